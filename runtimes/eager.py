"""A PyTorch module as a runtime: the reference that every exported file is measured against."""

from __future__ import annotations

from typing import TYPE_CHECKING

from runtimes.module import Dtype, Forward, ModuleRuntime

if TYPE_CHECKING:
    import torch


class EagerRuntime(ModuleRuntime):
    """Runs a module operator by operator, as its code says; see :class:`runtimes.module.ModuleRuntime`.

    Args:
        module: Takes ``[N, C, H, W]`` float32 and returns one tensor ``[N, classes]``.
        name: Name in messages and reports.
        device: Where the module's parameters lie, for example ``"cpu"`` or ``"cuda:0"``.
        dtype: What weights and activations are rounded to; another one than float32 is given to a copy.
        tf32: Whether FP32 products on a CUDA device may round their inputs to TF32.
        threads: Threads that one operator may use on the CPU; ``None`` leaves it to PyTorch.
        place: Whether a copy of the module is put on the device; without it, it has to lie there.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str = "eager",
        device: str = "cpu",
        dtype: Dtype = "float32",
        tf32: bool = False,
        threads: int | None = None,
        place: bool = False,
    ) -> None:
        super().__init__(module, name, device, dtype, tf32, threads, place=place)

    def _prepare(self, module: torch.nn.Module) -> Forward:
        return module
