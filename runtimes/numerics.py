"""What PyTorch may do to FP32 while a module runs: process-wide switches, set for one run and put back.

PyTorch may compute FP32 products in TF32 (10 mantissa bits, NVIDIA) or BF16 (7 bits, oneDNN on CPUs), depending on
switches that anybody in the process can have set. cuDNN's convolutions use TF32 unless told otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

_PLACES: Final = {
    "cuda matmul": ("cuda", "matmul"),
    "cuda convolution": ("cudnn", "conv"),
    "cpu matmul": ("mkldnn", "matmul"),
    "cpu convolution": ("mkldnn", "conv"),
}


@contextmanager
def numerics(tf32: bool = False, threads: int | None = None) -> Iterator[None]:
    """Run a block with full FP32, or with TF32 on CUDA, and with a number of threads; then all is as it was.

    The switches belong to the process: other threads that compute meanwhile are affected.

    Args:
        tf32: Whether CUDA's products and convolutions of FP32 may round their inputs to TF32.
        threads: That one operator may use on the CPU; ``None`` leaves it.
    """
    import torch

    legacy, before, count = torch.get_float32_matmul_precision(), _read(), torch.get_num_threads()
    wanted = {name: "tf32" if tf32 and name.startswith("cuda") else "ieee" for name in _PLACES}
    try:
        # The older switch goes along: PyTorch raises where it finds the two of cuBLAS in contradiction.
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        _write(wanted)
        if threads is not None:
            torch.set_num_threads(threads)
        yield
    finally:
        torch.set_float32_matmul_precision(legacy)
        _write(before)
        if threads is not None:
            torch.set_num_threads(count)


def fp32_precision(device: str) -> dict[str, str]:
    """How FP32 is computed right now on a kind of device, read back from PyTorch.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Returns:
        ``{"matmul": …, "convolution": …}``, each ``"ieee"``, ``"tf32"`` or ``"bf16"``.
    """
    found = {name.split()[1]: value for name, value in _read().items() if name.startswith(device)}
    return {name: "ieee" if value == "none" else value for name, value in found.items()}


def _read() -> dict[str, str]:
    return {name: str(_place(*where).fp32_precision) for name, where in _PLACES.items()}


def _write(values: dict[str, str]) -> None:
    for name, value in values.items():
        place = _place(*_PLACES[name])
        if place.fp32_precision != value:  # what is written is no longer inherited from a wider switch
            place.fp32_precision = value


def _place(backend: str, operator: str) -> Any:
    import torch

    return getattr(getattr(torch.backends, backend), operator)
