"""From the bytes of an engine to a context that runs it, with the differences between the generations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from runtimes.errors import GraphError, InputError, UnavailableError, first_line
from runtimes.tensorrt.generations import Generation
from runtimes.tensorrt.messages import Messages
from runtimes.tensorrt.runtime_cache import RuntimeCache

Graphs = Literal["captured", "by TensorRT-RTX", "off"]

# What TensorRT logs, in words. It has no codes for these.
_REASONS = (
    ("version tag does not match", "it was built by another version of TensorRT: build it again here"),
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

    Attributes:
        runtime: What loaded it; has to outlive it.
        engine: ``ICudaEngine``.
        context: ``IExecutionContext``.
        device_memory: Bytes of activations.
        graphs: Who makes CUDA graphs of it.
        cache_note: What became of the kernels' cache, for reports; ``None`` where there is none.
    """

    runtime: Any
    engine: Any = None
    context: Any = None
    device_memory: int = 0
    graphs: Graphs = "off"
    cache_note: str | None = None
    _cache: RuntimeCache | None = None
    _kernels: Any = None

    def close(self) -> None:
        """Keep the kernels, and give everything back in the order that TensorRT wants."""
        if self._cache is not None and self.context is not None:
            self._cache.keep(bytes(self._kernels.serialize()))
            self.cache_note = self._cache.note
        self._kernels = None
        self.context = None
        self.engine = None
        self.runtime = None


def load_engine(
    trt: Any,
    generation: Generation,
    plan: bytes,
    label: str,
    messages: Messages,
    *,
    runs_host_code: bool,
    graphs: bool,
    cache: RuntimeCache | None,
) -> Loaded:
    """Load an engine and make its context.

    Args:
        trt: The bindings' module.
        generation: Of its version.
        plan: The engine.
        label: What it is called in messages.
        messages: What TensorRT logs meanwhile.
        runs_host_code: Let the engine bring its own runtime, which a version-compatible one does.
        graphs: Whether kernels may be launched as CUDA graphs.
        cache: Kernels of earlier processes; only where the generation has such a cache.

    Raises:
        InputError: It is of another version or GPU, or damaged.
        UnavailableError: There is no GPU, or not enough of its memory.
        GraphError: TensorRT refuses it for another reason.
    """
    # No local names for what TensorRT makes: a traceback would keep it alive beyond the device that it lives on.
    loaded = Loaded(_runtime(trt, messages), graphs="captured" if graphs else "off", _cache=cache)
    try:
        if runs_host_code:
            loaded.runtime.engine_host_code_allowed = True
        loaded.engine = loaded.runtime.deserialize_cuda_engine(plan)
        if loaded.engine is None:
            raise _refusal(label, messages)
        loaded.device_memory = int(getattr(loaded.engine, generation.device_memory_size))
        _prepare(trt, generation, loaded, label)
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


def _prepare(trt: Any, generation: Generation, loaded: Loaded, label: str) -> None:
    try:
        if not generation.runtime_cache:
            loaded.context = loaded.engine.create_execution_context()
            return
        loaded.context = loaded.engine.create_execution_context(_settings(trt, loaded))
    except Exception as error:  # pybind's exceptions have no common base
        raise GraphError(f"{label} cannot be prepared: {first_line(error)}") from error


def _settings(trt: Any, loaded: Loaded) -> Any:
    """The settings under which TensorRT-RTX compiles kernels when an engine runs."""
    config = loaded.engine.create_runtime_config()
    strategy = trt.CudaGraphStrategy
    if loaded.graphs == "captured":
        # Its own graphs: one captured from outside would keep the kernels that it starts with and means to replace.
        config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE
        loaded.graphs = "by TensorRT-RTX"
    else:
        config.cuda_graph_strategy = strategy.DISABLED
    # At once, not in the background: what is measured is then what runs later.
    config.dynamic_shapes_kernel_specialization_strategy = trt.DynamicShapesKernelSpecializationStrategy.EAGER
    if loaded._cache is not None:
        loaded._kernels = config.create_runtime_cache()
        loaded.cache_note = loaded._cache.note
        earlier = loaded._cache.read()
        if earlier and not loaded._kernels.deserialize(earlier):
            loaded.cache_note = "started anew: the earlier one is of another version or GPU"
        config.set_runtime_cache(loaded._kernels)
    return config


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
