"""What the runtimes of a PyTorch module share; the module is handed in ready, and nothing about it is changed.

Finding, building and loading it is not this package's work.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, get_args

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import (
    GraphError,
    InputError,
    ResnetExportError,
    TensorError,
    UnavailableError,
    first_line,
    missing_package,
)
from runtimes.numerics import fp32_precision, numerics

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "float16", "bfloat16"]
DTYPES: Final[tuple[Dtype, ...]] = get_args(Dtype)
Forward: TypeAlias = Callable[["torch.Tensor"], Any]


class ModuleRuntime(Runtime):
    """Runs a module in ``torch.inference_mode()``.

    The module is neither moved nor switched to evaluation: both would be visible to its owner. Batch
    normalisation in training mode would make each image depend on the others of its batch, so such a
    module is refused. Another dtype or memory format is given to a copy. FP32 is computed as FP32, whatever the
    process is set to, unless ``tf32`` asks for less; the process's own settings hold again after each run.

    Args:
        module: Takes ``[N, C, H, W]`` float32 and returns one tensor ``[N, classes]``.
        name: Name in messages and reports.
        device: Where the module's parameters lie, for example ``"cpu"`` or ``"cuda:0"``.
        dtype: What weights and activations are rounded to; the images are given as float32 all the same.
        tf32: Whether FP32 products on a CUDA device may round their inputs to TF32.
        threads: Threads that one operator may use on the CPU; ``None`` leaves it to PyTorch.
        channels_last: Whether weights and images are laid out with the channels innermost.
        place: Whether a copy of the module is put on the device; without it, it has to lie there.

    Raises:
        InputError: An unknown dtype, or ``threads`` below 1.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str,
        device: str,
        dtype: Dtype,
        tf32: bool,
        threads: int | None,
        channels_last: bool = False,
        place: bool = False,
    ) -> None:
        super().__init__(name)
        if dtype not in DTYPES:
            raise InputError(f"{name}: received dtype '{dtype}', expected one of {', '.join(DTYPES)}")
        if threads is not None and threads < 1:
            raise InputError(f"{name}: received {threads} threads, expected at least 1")
        self._module = module
        self._device = device
        self._dtype = dtype
        self._tf32 = tf32
        self._threads = threads
        self._channels_last = channels_last
        self._place = place
        self._forward: Forward | None = None

    @abstractmethod
    def _prepare(self, module: torch.nn.Module) -> Forward:
        """What is called with each batch, from the module in its final dtype and layout."""

    def _translate(self, error: Exception, what: str) -> ResnetExportError:
        """What a foreign exception means to the user."""
        import torch

        if isinstance(error, torch.OutOfMemoryError):
            return UnavailableError(f"{self.name}: {self._device} has too little memory {what}: use a smaller batch")
        return GraphError(f"{self.name}: the module failed {what}: {first_line(error)}")

    def _open(self) -> Binding:
        try:
            import torch
        except ImportError as error:
            raise missing_package("torch") from error
        self._refuse_training()
        device = self._usable_device()
        if not self._place:
            self._refuse_other_device(device)
        with numerics(self._tf32, self._threads):
            self._forward = self._prepare(self._in_shape())
            used = {
                "torch": str(torch.__version__),
                "device": self._device,
                "threads": torch.get_num_threads(),
                "dtype": self._dtype,
                "fp32": fp32_precision("cuda" if device.type == "cuda" else "cpu"),
            }
        if device.type == "cuda":
            used["gpu"] = torch.cuda.get_device_name(device)
        return Binding(
            input=TensorSpec("input", "float32", (None, None, None, None)),
            output=TensorSpec("logits", "float32", (None, None)),
            used=used,
        )

    def _run(self, batch: Array) -> Array:
        import torch

        assert self._forward is not None  # the base class runs nothing before _open
        self._refuse_training()  # again: the owner can have called .train() since the opening
        try:
            with numerics(self._tf32, self._threads), torch.inference_mode():
                # torch.tensor copies: a module that begins with an in-place operation must not
                # write into the caller's images.
                images = torch.tensor(batch, device=self._device, dtype=getattr(torch, self._dtype))
                output = self._forward(images.to(memory_format=self._layout()))
                if not isinstance(output, torch.Tensor):
                    received = type(output).__name__
                    raise TensorError(f"{self.name}: the module returned {received}, expected one tensor")
                result: Array = output.float().cpu().numpy()
        except ResnetExportError:
            raise
        except Exception as error:
            # Anything: the module is foreign code, and a compiler's errors share no base.
            raise self._translate(error, f"on {list(batch.shape)}") from error
        return result

    def _close(self) -> None:
        self._forward = None

    def _layout(self) -> torch.memory_format:
        import torch

        return torch.channels_last if self._channels_last else torch.preserve_format

    def _in_shape(self) -> torch.nn.Module:
        """The module itself, or a copy where device, dtype or layout are not its own."""
        import torch

        at_home = not self._place or torch.device(self._device).type == "cpu"
        if at_home and self._dtype == "float32" and not self._channels_last:
            return self._module
        dtype: torch.dtype = getattr(torch, self._dtype)
        try:
            return copy.deepcopy(self._module).to(self._device, dtype).to(memory_format=self._layout())
        except Exception as error:
            raise self._translate(error, "to be copied") from error

    def _refuse_training(self) -> None:
        for path, module in self._module.named_modules():
            if module.training:
                culprit = f"module '{path}'" if path else "the module"
                raise InputError(f"{self.name}: {culprit} is in training mode: call .eval()")

    def _usable_device(self) -> torch.device:
        import torch

        try:
            device = torch.device(self._device)
        except RuntimeError as error:
            raise InputError(f"{self.name}: received device '{self._device}', expected cpu or cuda") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UnavailableError(f"{self.name}: PyTorch finds no CUDA device here: use device 'cpu'")
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise UnavailableError(
                f"{self.name}: there is no {self._device}: PyTorch finds {torch.cuda.device_count()} CUDA devices"
            )
        if self._tf32 and device.type != "cuda":
            raise InputError(f"{self.name}: tf32 is a mode of CUDA devices, and the device is {device}: leave it out")
        return device

    def _refuse_other_device(self, device: torch.device) -> None:
        for path, parameter in self._module.named_parameters():
            placed = parameter.device
            if placed.type != device.type or (device.index is not None and placed.index != device.index):
                raise InputError(
                    f"{self.name}: parameter '{path}' is on {placed}, expected {device}: call .to('{device}') first"
                )
