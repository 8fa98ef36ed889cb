"""What an engine takes and gives, read off the engine itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from runtimes.base import TensorSpec
from runtimes.errors import GraphError, TensorError
from runtimes.tensorrt.loading import Loaded
from runtimes.tensorrt.messages import translated

_NUMPY_NAMES: Final = {
    "FLOAT": "float32", "HALF": "float16", "INT8": "int8", "UINT8": "uint8", "INT32": "int32", "INT64": "int64",
}  # fmt: skip
_FLOATS: Final = ("float32", "float16")

Shape = tuple[int, ...]


@dataclass(frozen=True)
class EngineIO:
    """The input and output of an engine, and the sizes of its first profile.

    Attributes:
        input: ``[N, C, H, W]``, ``None`` where a dimension is free.
        output: ``[N, classes]``.
        minimum: Smallest shape of the input.
        optimum: The one that kernels were chosen for.
        maximum: Largest.
    """

    input: TensorSpec
    output: TensorSpec
    minimum: Shape
    optimum: Shape
    maximum: Shape

    def check_image(self, shape: Shape) -> None:
        """Refuse images outside of the profile; the batch is split and filled, so that any size of it goes.

        Args:
            shape: Of the images, ``[N, C, H, W]``.

        Raises:
            TensorError: They are too small or too large.
        """
        image, low, high = shape[1:], self.minimum[1:], self.maximum[1:]
        if any(not a <= size <= b for size, a, b in zip(image, low, high, strict=True)):
            raise TensorError(
                f"tensor '{self.input.name}': received images {_text(image)}, expected {_text(low)} to {_text(high)}, "
                "the profile that the engine was built for"
            )


def read_io(trt: Any, loaded: Loaded, label: str) -> EngineIO:
    """The tensors of an engine.

    Args:
        trt: The bindings' module.
        loaded: The engine. (Not its ``ICudaEngine``, which a traceback would keep alive beyond its device.)
        label: What it is called in messages.

    Raises:
        GraphError: It has not one input of four dimensions and one output, a type that numpy has not, or a tensor
            whose elements do not lie in the order of its dimensions.
    """
    with translated(f"{label} does not tell its inputs and outputs"):
        return _io(trt, loaded, label)


def _io(trt: Any, loaded: Loaded, label: str) -> EngineIO:
    names = [loaded.engine.get_tensor_name(index) for index in range(loaded.engine.num_io_tensors)]
    taken = [name for name in names if loaded.engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    given = [name for name in names if name not in taken]
    if len(taken) != 1 or len(given) != 1:
        raise GraphError(f"{label} has inputs {taken} and outputs {given}, expected one of each")
    spec = _spec(trt, loaded, taken[0], "input", label)
    if len(spec.shape) != 4:
        raise GraphError(f"{label}: input '{spec.name}' has {len(spec.shape)} dimensions, expected [N, C, H, W]")
    output = _spec(trt, loaded, given[0], "output", label)
    if output.dtype not in _FLOATS:
        raise GraphError(f"{label}: output '{output.name}' is {output.dtype}, expected {' or '.join(_FLOATS)}")
    low, best, high = (tuple(map(int, shape)) for shape in loaded.engine.get_tensor_profile_shape(spec.name, 0))
    return EngineIO(spec, output, low, best, high)


def _spec(trt: Any, loaded: Loaded, name: str, role: str, label: str) -> TensorSpec:
    if loaded.engine.get_tensor_format(name) != trt.TensorFormat.LINEAR:
        raise GraphError(
            f"{label}: {role} '{name}' is laid out as {loaded.engine.get_tensor_format_desc(name)}, expected row-major "
            f"linear: build it without --inputIOFormats and --outputIOFormats"
        )
    kind = loaded.engine.get_tensor_dtype(name).name
    if kind not in _NUMPY_NAMES:
        raise GraphError(f"{label}: {role} '{name}' is {kind}, expected one of {', '.join(_NUMPY_NAMES)}")
    shape = tuple(None if size < 0 else int(size) for size in loaded.engine.get_tensor_shape(name))
    return TensorSpec(name, _NUMPY_NAMES[kind], shape)


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape))
