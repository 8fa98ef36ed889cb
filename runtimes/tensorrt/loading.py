"""From the bytes of an engine to a context that runs it, with the differences between the generations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from runtimes.errors import GraphError, InputError, UnavailableError, first_line
from runtimes.tensorrt.generations import Generation
from runtimes.tensorrt.messages import Messages, translated
from runtimes.tensorrt.runtime_cache import RuntimeCache

CAPTURED: Final = "captured"

_HOST_CODE: Final = (
    "it brings a program that runs here with your rights: if you trust whoever made it, give host_code=true, or "
    "--trust-host-code to layers"
)
# What TensorRT logs, in words. It has no codes for these.
_REASONS = (
    ("version tag does not match", "it was built by another version of TensorRT: build it again here"),
    ("expecting library version", "it was built by another version of TensorRT: build it again here"),
    ("hostcode", _HOST_CODE),
    ("host code", _HOST_CODE),
    ("compute capability", "it was built for another GPU: build it again here"),
    ("expecting compute", "it was built for another GPU: build it again here"),
    ("generated on a device", "it was built for another GPU: build it again here"),
    ("magictag", "it is damaged or cut short: build it again"),
    ("magic tag", "it is damaged or cut short: build it again"),
    ("engine size", "it is damaged or cut short: build it again"),
    ("checksum", "it is damaged or cut short: build it again"),
)


@dataclass
class Loaded:
    """An engine that is ready to run.

    Only here is anything of TensorRT's kept by name: a traceback holds the locals of every function that it went
    through, and what they name would outlive the device.

    Attributes:
        graphs: Who makes CUDA graphs of it, for reports: :data:`CAPTURED`, ``by TensorRT-RTX``, or ``off`` with the
            reason.
        cache: Kernels of earlier processes; ``None`` where there are no such.
        runtime: What loaded it; has to outlive it.
        engine: ``ICudaEngine``.
        kernels: ``IRuntimeCache``; has to outlive the context.
        settings: ``IRuntimeConfig`` of the context.
        context: ``IExecutionContext``.
        device_memory: Bytes of activations.
    """

    graphs: str
    cache: RuntimeCache | None = None
    runtime: Any = None
    engine: Any = None
    kernels: Any = None
    settings: Any = None
    context: Any = None
    device_memory: int = 0

    @property
    def cache_note(self) -> str | None:
        """What became of the kernels' cache, for reports; ``None`` where there is none."""
        return None if self.cache is None else self.cache.note

    def close(self) -> None:
        """Give everything back in the order that TensorRT wants, and keep the kernels."""
        compiled = b"" if self.context is None else self._compiled()
        self.settings = None
        self.context = None
        self.kernels = None
        self.engine = None
        self.runtime = None
        if self.cache is not None and compiled:
            self.cache.keep(compiled)

    def _compiled(self) -> bytes:
        """The kernels' bytes; empty where there are none. An error here must not stand in for the one that ends it."""
        if self.cache is None:
            return b""
        try:
            return bytes(self.kernels.serialize())
        except Exception as error:  # noqa: BLE001  (pybind's exceptions have no common base)
            self.cache.note = f"not kept: TensorRT does not give the kernels ({first_line(error)})"
            return b""


def load_engine(
    trt: Any,
    generation: Generation,
    plan: bytes,
    label: str,
    messages: Messages,
    *,
    host_code: bool = False,
    dla_core: int | None = None,
    graphs: bool = False,
    cache: RuntimeCache | None = None,
) -> Loaded:
    """Load an engine and make its context.

    Args:
        trt: The bindings' module.
        generation: Of its version.
        plan: The engine.
        label: What it is called in messages.
        messages: What TensorRT logs meanwhile.
        host_code: Let the engine bring a program of its own, which a version-compatible one does.
        dla_core: Deep learning accelerator that it was built for; ``None``: the GPU.
        graphs: Whether kernels may be launched as CUDA graphs.
        cache: Kernels of earlier processes; only where the generation has such a cache.

    Raises:
        InputError: It is of another version or GPU, or damaged.
        UnavailableError: There is no GPU, or not enough of its memory.
        GraphError: TensorRT refuses it for another reason.
    """
    loaded = Loaded(CAPTURED if graphs else "off", cache)
    try:
        with translated(f"{label} cannot be loaded"):
            loaded.runtime = _runtime(trt, messages)
            if host_code:
                loaded.runtime.engine_host_code_allowed = True
            if dla_core is not None:
                loaded.runtime.DLA_core = dla_core
            loaded.engine = loaded.runtime.deserialize_cuda_engine(plan)
            if loaded.engine is None:
                raise _refusal(label, messages)
            loaded.device_memory = int(getattr(loaded.engine, generation.device_memory_size))
        with translated(f"{label} cannot be prepared"):
            _prepare(trt, generation, loaded)
        if loaded.context is None:
            raise UnavailableError(
                f"{label} needs {loaded.device_memory / 1e6:.0f} MB of the GPU for its activations, and could not "
                f"have them ({messages.last() or 'TensorRT does not say why'}): build it with a smaller --max"
            )
    except BaseException:
        loaded.close()
        raise
    return loaded


def _runtime(trt: Any, messages: Messages) -> Any:
    try:
        return trt.Runtime(messages.logger)
    except Exception as error:  # pybind's exceptions have no common base
        raise UnavailableError(f"TensorRT cannot start: {messages.last() or first_line(error)}") from error


def _prepare(trt: Any, generation: Generation, loaded: Loaded) -> None:
    if not generation.runtime_cache:
        loaded.context = loaded.engine.create_execution_context()
        return
    loaded.settings = loaded.engine.create_runtime_config()
    _settle(trt, loaded)
    loaded.context = loaded.engine.create_execution_context(loaded.settings)


def _settle(trt: Any, loaded: Loaded) -> None:
    """How TensorRT-RTX compiles kernels when an engine runs."""
    strategy = trt.CudaGraphStrategy
    if loaded.graphs == CAPTURED:
        # Its own graphs: one captured from outside would keep the kernels that it starts with and means to replace.
        loaded.settings.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE
        loaded.graphs = "by TensorRT-RTX"
    else:
        loaded.settings.cuda_graph_strategy = strategy.DISABLED
    # At once, not in the background: what is measured is then what runs later.
    loaded.settings.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    if loaded.cache is not None:
        loaded.kernels = loaded.settings.create_runtime_cache()
        earlier = loaded.cache.read()
        if earlier and not loaded.kernels.deserialize(earlier):
            loaded.cache.refuse()
        loaded.settings.set_runtime_cache(loaded.kernels)


def _refusal(label: str, messages: Messages) -> Exception:
    told = " ".join(messages.errors).lower()
    if "cudaerror 35" in told or "cudaerror 100" in told or "no cuda-capable device" in told:
        return UnavailableError(f"{label} cannot be loaded: running an engine needs an NVIDIA GPU and its driver")
    if "out of memory" in told:
        return UnavailableError(f"{label} cannot be loaded: the GPU has no memory left")
    for sign, reason in _REASONS:
        if sign in told:
            return InputError(f"{label} cannot be loaded: {reason} ({messages.last()[:160]})")
    return GraphError(f"{label} cannot be loaded: {messages.last() or 'TensorRT does not say why'}")
