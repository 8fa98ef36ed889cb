"""An ONNX file on ONNX Runtime.

ONNX Runtime raises its own exception classes, which share no base but ``Exception``, and it falls back to
the CPU with a warning where a provider cannot be used. Here both become errors of this project.
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError, InputError, UnavailableError, missing_package

if TYPE_CHECKING:
    import onnxruntime

_NUMPY_NAMES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
}
_OUTPUT_DTYPES = ("float32", "float16")
#: What to do where a provider is missing; the package for GPUs is another build of the same module.
INSTALL: Final[Mapping[str, str]] = MappingProxyType(
    dict.fromkeys(
        ("CUDAExecutionProvider", "TensorrtExecutionProvider"),
        "pip install onnxruntime-gpu, after pip uninstall onnxruntime",
    )
)
# Of a message that is about the machine, not about the model.
_MACHINE: Final = re.compile(
    r"cuda_?call|cuda failure|cuda error|no cuda-capable device|invalid device id|\.so\.\d+: cannot", re.I
)
# A provider that is there and does not start: its libraries are no part of the package.
_LIBRARIES: Final = {
    "CUDAExecutionProvider": "it needs an NVIDIA driver, CUDA and cuDNN (pip install 'onnxruntime-gpu[cuda,cudnn]')",
    "TensorrtExecutionProvider": "it needs an NVIDIA driver, CUDA, cuDNN and TensorRT (pip install tensorrt)",
}
# "file.cc:12 int ns::f(const T&) [with T = …] what happened": signatures end in brackets of either kind.
_SIGNATURE: Final = re.compile(
    r"(^|Status Message: )\S+\.(?:h|cc|cpp|cuh?|hpp):\d+ .*?\)(?: const)?(?: \[with .*?\])? (?=\S)"
)
_LONGEST: Final = 240  # of what a backend says: beyond come its own types and paths
_FATAL_ONLY = 4  # log severity: every failure is raised here, so stderr need not hold it a second time


class OrtRuntime(Runtime):
    """Runs an ONNX model with one input and one output.

    Args:
        model: Path of the file, or the serialised model itself.
        name: Name in messages and reports.
        providers: Execution providers, first choice first. Each must really be used: none is dropped.
            ONNX Runtime adds the CPU provider for the nodes that no other one takes.
        provider_options: Options by name of each provider, in the order of ``providers``; empty: their defaults.
        threads: Threads that one operator may use; ``None`` leaves it to ONNX Runtime (one per core),
            read back as 0.
        optimize: Whether ONNX Runtime may fuse and rewrite nodes when it loads the model.
        cast_input: Whether a model that takes float16 is fed float32 here, rounded on the way in; without it
            the caller has to bring float16.

    Raises:
        InputError: ``providers`` is empty, ``provider_options`` are of another number, or ``threads`` is below 1.

    Opening raises ``GraphError`` for a model that cannot be loaded, is not safe to load or has another number of
    inputs or outputs, and ``UnavailableError`` where the package, a provider or memory is missing.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        name: str = "onnxruntime",
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
        optimize: bool = True,
        cast_input: bool = False,
        provider_options: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(name)
        if isinstance(providers, str) or not providers:
            raise InputError(f"{name}: received providers {providers!r}, expected a list of at least one")
        if provider_options and len(provider_options) != len(providers):
            raise InputError(
                f"{name}: received options of {len(provider_options)} providers, expected one mapping for each of "
                f"{len(providers)}"
            )
        if threads is not None and threads < 1:
            raise InputError(f"{name}: received {threads} threads, expected at least 1")
        self._model = model
        self._providers = tuple(providers)
        self._provider_options = tuple(provider_options)
        self._threads = threads
        self._optimize = optimize
        self._cast_input = cast_input
        self._rounds_input = False
        self._input_name = ""
        self._session: onnxruntime.InferenceSession | None = None
        self._run_options: onnxruntime.RunOptions | None = None
        self._failures: tuple[type[Exception], ...] = ()

    def _open(self) -> Binding:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("onnxruntime") from error
        self._failures = failure_classes()
        self._require_providers(onnxruntime.get_available_providers(), "this onnxruntime has", INSTALL)
        if not isinstance(self._model, bytes):
            from runtimes.reading import check_external

            check_external(Path(self._model), self.name)
        session = self._session = self._started(self._chosen_options())
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = _FATAL_ONLY
        # A provider can be compiled in and still fail to start, for want of a driver: then
        # the session quietly runs without it.
        self._require_providers(session.get_providers(), "the session started with", _LIBRARIES)
        taken = self._spec(session.get_inputs(), "input")
        self._input_name = taken.name
        self._rounds_input = self._cast_input and taken.dtype == "float16"
        return Binding(
            input=replace(taken, dtype="float32") if self._rounds_input else taken,
            output=self._spec(session.get_outputs(), "output"),
            used={
                "onnxruntime": str(onnxruntime.__version__),
                "providers": list(session.get_providers()),
                "threads": int(session.get_session_options().intra_op_num_threads),
                "optimize": self._optimize,
                **({"provider_options": session.get_provider_options()} if self._provider_options else {}),
            },
        )

    def _chosen_options(self) -> Sequence[Mapping[str, str]]:
        """Options of the providers, once it is known that they are there."""
        return self._provider_options

    def _started(self, chosen: Sequence[Mapping[str, str]]) -> onnxruntime.InferenceSession:
        import onnxruntime

        if INSTALL.keys() & set(self._providers):
            _load_cuda(onnxruntime)
        source = self._model if isinstance(self._model, bytes) else str(self._model)
        options = {"provider_options": [dict(each) for each in chosen]} if chosen else {}
        try:
            return onnxruntime.InferenceSession(
                source, self._options(), providers=list(self._providers), enable_fallback=0, **options
            )
        except self._failures as error:
            if _MACHINE.search(str(error)):
                raise UnavailableError(f"{self.name}: no GPU can be used: {_first_line(error)}") from error
            raise self._translated("cannot be loaded", error) from error

    def _run(self, batch: Array) -> Array:
        assert self._session is not None  # the base class runs nothing before _open
        if self._rounds_input:
            batch = batch.astype(np.float16)
        try:
            output: Array = self._session.run(None, {self._input_name: batch}, self._run_options)[0]
        except self._failures as error:
            raise self._translated(f"failed on {list(batch.shape)}", error) from error
        return output

    def _close(self) -> None:
        self._session = None
        self._run_options = None

    def _options(self) -> onnxruntime.SessionOptions:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if self._optimize else levels.ORT_DISABLE_ALL
        return options

    def _require_providers(self, present: Iterable[str], where: str, advice: Mapping[str, str]) -> None:
        present = list(present)
        for provider in self._providers:
            if provider not in present:
                line = f"{self.name}: {provider} is not available: {where} {', '.join(present)}"
                raise UnavailableError(f"{line}: {advice[provider]}" if provider in advice else line)

    def _spec(self, nodes: Sequence[Any], role: str) -> TensorSpec:
        if len(nodes) != 1:
            names = ", ".join(node.name for node in nodes)
            raise GraphError(f"{self._label()} has {len(nodes)} {role}s ({names}), expected exactly one")
        node = nodes[0]
        dtype = _NUMPY_NAMES.get(node.type)
        if dtype is None or (role == "output" and dtype not in _OUTPUT_DTYPES):
            expected = _OUTPUT_DTYPES if role == "output" else tuple(_NUMPY_NAMES.values())
            raise GraphError(
                f"{self._label()}: {role} '{node.name}' is {node.type}, expected one of {', '.join(expected)}"
            )
        # A symbolic size arrives as its name, an unknown one as None, an undeclared shape as [].
        shape = tuple(size if isinstance(size, int) else None for size in node.shape)
        undeclared = (None,) * (4 if role == "input" else 2)
        return TensorSpec(node.name, dtype, shape or undeclared)

    def _label(self) -> str:
        if isinstance(self._model, bytes):
            return f"{self.name}: the model in memory ({len(self._model)} bytes)"
        return f"{self.name}: {self._model}"

    def _translated(self, what: str, error: Exception) -> GraphError:
        return GraphError(f"{self._label()} {what}: {_first_line(error)}")


def _load_cuda(onnxruntime: Any) -> None:
    """Load CUDA and cuDNN from their own Python packages, if they are there; else the system's are found later."""
    load = getattr(onnxruntime, "preload_dlls", None)
    if load is not None:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            load()


def failure_classes() -> tuple[type[Exception], ...]:
    """Every exception class of the binding, and what its C++ and Python layers raise besides."""
    from onnxruntime.capi import onnxruntime_pybind11_state as binding

    own = [kind for kind in vars(binding).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError, ValueError, TypeError, OSError)


def _first_line(error: Exception) -> str:
    """The first line of a message, without the status code and the C++ signature that may precede it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    line = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", line)
    line = _SIGNATURE.sub(r"\1", line)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST].rstrip()}…"
