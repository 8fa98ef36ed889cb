"""A PyTorch module as a runtime: the reference that every exported file is measured against.

The module is handed in ready: finding, building and loading it is not this package's work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError, InputError, TensorError, UnavailableError, missing_package

if TYPE_CHECKING:
    import torch


class EagerRuntime(Runtime):
    """Runs a module in ``torch.inference_mode()`` and changes nothing about it.

    The module is neither moved nor switched to evaluation: both would be visible to its owner. Batch
    normalisation in training mode would make each image depend on the others of its batch, so such a
    module is refused. On a CUDA device, PyTorch may use TF32 for convolutions unless its owner switched
    that off; the FP32 bounds of the tolerance table are meant for full FP32.

    Args:
        module: Takes ``[N, C, H, W]`` float32 and returns one tensor ``[N, classes]``.
        name: Name in messages and reports.
        device: Where the module's parameters lie, for example ``"cpu"`` or ``"cuda:0"``.
    """

    def __init__(self, module: torch.nn.Module, name: str = "eager", device: str = "cpu") -> None:
        super().__init__(name)
        self._module = module
        self._device = device

    def _open(self) -> Binding:
        try:
            import torch
        except ImportError as error:
            raise missing_package("torch") from error
        self._refuse_training()
        self._refuse_other_device(self._usable_device())
        return Binding(
            input=TensorSpec("input", "float32", (None, None, None, None)),
            output=TensorSpec("logits", "float32", (None, None)),
            used={
                "torch": str(torch.__version__),
                "device": self._device,
                "threads": torch.get_num_threads(),
            },
        )

    def _run(self, batch: Array) -> Array:
        import torch

        self._refuse_training()  # again: the owner can have called .train() since the opening
        try:
            with torch.inference_mode():
                # torch.tensor copies: a module that begins with an in-place operation must not
                # write into the caller's images.
                output = self._module(torch.tensor(batch, device=self._device))
                if not isinstance(output, torch.Tensor):
                    received = type(output).__name__
                    raise TensorError(f"{self.name}: the module returned {received}, expected one tensor")
                result: Array = output.float().cpu().numpy()
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise GraphError(f"{self.name}: the module failed on {list(batch.shape)}: {cause}") from error
        return result

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
        return device

    def _refuse_other_device(self, device: torch.device) -> None:
        for path, parameter in self._module.named_parameters():
            placed = parameter.device
            if placed.type != device.type or (device.index is not None and placed.index != device.index):
                raise InputError(
                    f"{self.name}: parameter '{path}' is on {placed}, expected {device}: call .to('{device}') first"
                )
