"""A PyTorch module compiled by TorchInductor.

Each batch size is compiled when it is first seen, which takes seconds to minutes: the runs that warm up pay for it.
"""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, get_args

from runtimes.base import Array, Binding
from runtimes.errors import InputError, ResnetExportError, UnavailableError, first_line
from runtimes.module import Dtype, Forward, ModuleRuntime

if TYPE_CHECKING:
    import torch

Mode = Literal["default", "reduce-overhead", "max-autotune"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
_COMPILER_ERRORS: Final = ("CppCompileError", "InvalidCxxCompiler")
_RECOMPILES: Final = 256
"""Versions of one ``forward`` that may exist: every module of a class and every batch size is one."""


class TorchCompileRuntime(ModuleRuntime):
    """Runs a module as one graph that TorchInductor compiled; see :class:`runtimes.module.ModuleRuntime`.

    A module that cannot be captured whole is refused: part of it would quietly run as eager code.

    Args:
        module: Takes ``[N, C, H, W]`` float32 and returns one tensor ``[N, classes]``.
        name: Name in messages and reports.
        device: Where the module's parameters lie, for example ``"cpu"`` or ``"cuda:0"``.
        dtype: What weights and activations are rounded to; another one than float32 is given to a copy.
        mode: ``torch.compile``'s: how long it may search for fast kernels, and whether it uses CUDA graphs.
        freezing: Whether weights become constants, which lets the compiler fold and lay them out for its kernels;
            a change of the module's weights after the first run is then not seen.
        channels_last: Whether weights and images are laid out with the channels innermost.
        tf32: Whether FP32 products on a CUDA device may round their inputs to TF32.
        threads: Threads that one operator may use on the CPU; ``None`` leaves it to PyTorch.
        place: Whether a copy of the module is put on the device; without it, it has to lie there.

    Raises:
        InputError: An unknown mode or dtype, or ``threads`` below 1.

    Opening raises ``UnavailableError`` where the compiler that the device needs is missing.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        name: str = "torch-compile",
        device: str = "cpu",
        dtype: Dtype = "float32",
        mode: Mode = "default",
        freezing: bool = False,
        channels_last: bool = False,
        tf32: bool = False,
        threads: int | None = None,
        place: bool = False,
    ) -> None:
        super().__init__(module, name, device, dtype, tf32, threads, channels_last, place)
        if mode not in MODES:
            raise InputError(f"{name}: received mode '{mode}', expected one of {', '.join(MODES)}")
        self._mode = mode
        self._freezing = freezing
        self._compiled: set[tuple[int, ...]] = set()

    def _open(self) -> Binding:
        binding = super()._open()
        used = {
            **binding.used,
            "backend": "inductor",
            "compiler": self._compiler(),
            "mode": self._mode,
            "freezing": self._freezing,
            "channels_last": self._channels_last,
        }
        return Binding(binding.input, binding.output, used)

    def _prepare(self, module: torch.nn.Module) -> Forward:
        import torch
        from torch._inductor import list_mode_options

        self._compiler()
        # A mode is a set of Inductor's options; named one by one, freezing can stand beside them, and only here.
        options = {**list_mode_options(self._mode, dynamic=False), "freezing": self._freezing}
        compiled: Forward = torch.compile(module, fullgraph=True, dynamic=False, options=options)
        return compiled

    def _run(self, batch: Array) -> Array:
        if batch.shape in self._compiled:
            return super()._run(batch)
        with self._compiling():
            output = super()._run(batch)
        self._compiled.add(batch.shape)
        return output

    def _close(self) -> None:
        super()._close()
        self._compiled.clear()

    @contextmanager
    def _compiling(self) -> Iterator[None]:
        from torch._dynamo import config as dynamo
        from torch._inductor import config as inductor

        log = logging.getLogger("torch")  # what fails is raised: stderr need not hold it a second time
        level = log.level
        log.setLevel(logging.CRITICAL)
        try:
            # TorchDynamo asks the process whether weights are constants, and does not see one compilation's options.
            with (
                dynamo.patch(recompile_limit=_RECOMPILES, accumulated_recompile_limit=_RECOMPILES),
                inductor.patch(freezing=self._freezing),
            ):
                yield
        finally:
            log.setLevel(level)

    def _compiler(self) -> str:
        """The compiler of the device's kernels.

        Raises:
            UnavailableError: There is none.
        """
        import torch
        from torch._inductor.cpp_builder import get_cpp_compiler

        if torch.device(self._device).type == "cuda":
            try:
                triton = importlib.import_module("triton")
            except ImportError as error:
                raise UnavailableError(
                    f"{self.name}: triton is not installed, which compiles for CUDA: pip install 'triton'"
                ) from error
            return f"triton {triton.__version__}"
        try:
            return str(get_cpp_compiler())
        except RuntimeError as error:
            raise UnavailableError(
                f"{self.name}: no C++ compiler was found ({first_line(error)}): install g++, or name one in CXX"
            ) from error

    def _translate(self, error: Exception, what: str) -> ResnetExportError:
        cause = _root(error)
        if type(cause).__name__ in _COMPILER_ERRORS:
            lines = (line.strip() for line in str(cause).splitlines())
            told = next((line for line in lines if "error:" in line.lower()), first_line(cause))
            return UnavailableError(f"{self.name}: the C++ compiler failed, which needs Python's headers: {told[:200]}")
        return super()._translate(cause, what)


def _root(error: Exception) -> Exception:
    """What a compiler's error wraps: TorchDynamo and Inductor name the stage, and keep the reason inside."""
    inner = getattr(error, "inner_exception", None)
    return _root(inner) if isinstance(inner, Exception) else error
