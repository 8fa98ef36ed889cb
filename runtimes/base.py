"""What every runtime has in common: it is opened, fed one batch at a time, and closed.

The base class checks what goes in and what comes out, so that a backend holds only the calls to its own
library. A backend overrides ``_open``, ``_run`` and, where there is something to give back, ``_close``::

    with OrtRuntime("model.onnx") as runtime:
        logits = runtime.run(images)  # [N, C, H, W] -> [N, classes] float32
        print(runtime.used)           # what it really runs on, read back

The shape of this class follows Polygraphy's ``BaseRunner``
(NVIDIA/TensorRT, ``tools/Polygraphy/polygraphy/backend/base/runner.py``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from runtimes.errors import TensorError

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

_RuntimeT = TypeVar("_RuntimeT", bound="Runtime")


@dataclass(frozen=True)
class TensorSpec:
    """Name, element type and shape of one input or output of a model.

    Attributes:
        name: Name of the tensor in the model, for example ``"input"``.
        dtype: numpy name of the element type, for example ``"float32"``.
        shape: Size of each dimension in elements, outermost first; ``None`` marks a dimension that may
            take any size from 1. A batch of 224 × 224 colour images is ``(None, 3, 224, 224)``.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]

    def check(self, array: object) -> None:
        """Refuse an array that does not fit this tensor.

        Args:
            array: What is to be fed to the tensor, or what came out of it.

        Raises:
            TensorError: ``array`` is no ndarray, or its dtype, rank or a fixed dimension differs, or a
                dimension is 0. The message names the tensor, what was received and what was expected.
        """
        expected = f"{self.dtype} {_shape_text(self.shape)}"
        if not isinstance(array, np.ndarray):
            received = type(array).__name__
            raise TensorError(f"tensor '{self.name}': received {received}, expected an ndarray {expected}")
        fits = array.ndim == len(self.shape) and all(
            size > 0 and wanted in (None, size) for size, wanted in zip(array.shape, self.shape, strict=True)
        )
        if not fits or array.dtype != np.dtype(self.dtype):
            received = f"{array.dtype} {_shape_text(array.shape)}"
            raise TensorError(f"tensor '{self.name}': received {received}, expected {expected}")


@dataclass(frozen=True)
class Binding:
    """What a backend tells about a model once it is open.

    Attributes:
        input: The one input, ``[N, C, H, W]``.
        output: The one output, ``[N, classes]``, in the element type in which the backend returns it.
        used: What the backend really uses, read back from it and JSON-ready: version, device, threads.
        batches: Smallest and largest batch that is computed as it is; ``None``: as the input's shape says.
    """

    input: TensorSpec
    output: TensorSpec
    used: Mapping[str, Any]
    batches: tuple[int, int | None] | None = None


class Runtime(ABC):
    """A model with one input and one output, on one backend; a context manager.

    Attributes:
        name: Name of the backend in messages and reports, for example ``"onnxruntime"``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._binding: Binding | None = None
        self._is_open = False

    @abstractmethod
    def _open(self) -> Binding:
        """Load the model and tell what it takes, gives and runs on."""

    @abstractmethod
    def _run(self, batch: Array) -> Array:
        """Run one batch, already checked and C-contiguous; it must not be written to."""

    def _close(self) -> None:  # noqa: B027 - a backend with nothing to give back has nothing to override
        """Give back what ``_open`` took; also called when ``_open`` failed half-way."""

    @property
    def is_open(self) -> bool:
        """Whether ``run`` can be called now."""
        return self._is_open

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs of the model: one. Known from the first opening on."""
        return (self._known().input,)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The outputs of the model: one, as the backend declares it. Known from the first opening on."""
        return (self._known().output,)

    @property
    def used(self) -> dict[str, Any]:
        """What the backend really uses, read back from it. Known from the first opening on."""
        return dict(self._known().used)

    @property
    def batch_range(self) -> tuple[int, int | None]:
        """Smallest and largest batch that is computed as it is; ``None``: any. Known from the first opening on.

        A backend may take others too: it fills smaller ones up and cuts larger ones into pieces, which changes no
        result, and takes another time.
        """
        known = self._known()
        fixed = known.input.shape[0] if known.input.shape else None
        return known.batches or (fixed or 1, fixed)

    def __enter__(self: _RuntimeT) -> _RuntimeT:
        if self._is_open:
            raise RuntimeError(f"{self.name} is already open")
        try:
            self._binding = self._open()
        except BaseException:
            self._close()
            raise
        self._is_open = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._is_open = False
        self._close()

    def run(self, batch: Array) -> Floats:
        """Run one batch.

        Args:
            batch: ``[N, C, H, W]`` in the element type of ``inputs[0]``, N ≥ 1. It is left unchanged.

        Returns:
            ``[N, classes]`` float32, a new array that belongs to the caller: a later run does not touch it.

        Raises:
            TensorError: ``batch`` does not fit the model, or the backend returned something other than a
                two-dimensional float array with one row per image.
            GraphError: The backend could not run the model.
            RuntimeError: The runtime is not open.
        """
        if not self._is_open:
            raise RuntimeError(f"{self.name} is not open: use it in a with statement")
        binding = self._known()
        self._check(binding.input, batch)
        output = self._run(np.ascontiguousarray(batch))
        self._check_output(binding.output, output, rows=len(batch))
        return _own(output)

    def _known(self) -> Binding:
        if self._binding is None:
            raise RuntimeError(f"{self.name} has not been opened yet: use it in a with statement")
        return self._binding

    def _check(self, spec: TensorSpec, array: object) -> None:
        try:
            spec.check(array)
        except TensorError as error:
            raise TensorError(f"{self.name}: {error}") from None

    def _check_output(self, spec: TensorSpec, output: Array, rows: int) -> None:
        self._check(spec, output)
        if output.ndim != 2 or output.dtype.kind != "f" or len(output) != rows:
            raise TensorError(
                f"{self.name}: output '{spec.name}': received {output.dtype} {_shape_text(output.shape)}, "
                f"expected floats [{rows}, classes]: one row for each image of the batch"
            )


def _own(output: Array) -> Floats:
    """A float32 copy, always: backends reuse their output buffers, and the next run would rewrite this result."""
    if output.dtype.itemsize <= 4:
        return output.astype(np.float32, order="C", subok=False)
    with np.errstate(over="ignore"):  # a float64 that float32 cannot hold becomes Inf, and Inf never passes
        return output.astype(np.float32, order="C", subok=False)


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
