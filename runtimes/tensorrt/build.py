"""ONNX -> TensorRT engine, for every generation, with the differences in :mod:`runtimes.tensorrt.generations`.

Nothing here asks for a version: what a generation has, needs or lacks is a field of its row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import onnx

from runtimes.errors import GraphError, InputError, UnavailableError, first_line
from runtimes.tensorrt.flavour import Flavour, module
from runtimes.tensorrt.generations import Generation
from runtimes.tensorrt.messages import Messages, listening
from runtimes.tensorrt.monitor import Listener, interruptible, monitor
from runtimes.tensorrt.parsing import ParserFault, sentence
from runtimes.tensorrt.precision import NEEDS, Precision, Typing, carried, typing
from runtimes.tensorrt.profile import Profile, Size, profile

_MIB = 1 << 20


@dataclass(frozen=True)
class BuildOptions:
    """What is asked for.

    Attributes:
        precision: ``None``: what the file carries.
        sizes: Smallest, best and largest batch and image.
        workspace_mib: Memory that kernels may use while they run, in MiB; ``None``: all there is.
        timing_cache: Measured kernels of earlier builds; ``None``: none. An empty one starts a new cache.
        compute_capabilities: GPUs to build for, as ``8.6``; only where none needs to be here.
        version_compatible: Runs on later TensorRT versions of the same major.
        hardware: ``ampere+`` for all GPUs from Ampere on, ``same`` for those of the compute capability.
        strip: Leave the weights out, to be filled in on the device.
        refit: Weights can be exchanged later.
        dla_core: Deep learning accelerator to run on, with the GPU for what it does not take.
    """

    precision: Precision | None = None
    sizes: tuple[Size | None, Size | None, Size | None] = (None, None, None)
    workspace_mib: int | None = None
    timing_cache: bytes | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware: str | None = None
    strip: bool = False
    refit: bool = False
    dla_core: int | None = None


@dataclass(frozen=True)
class Built:
    """An engine, and how it came about.

    Attributes:
        plan: The serialized engine, a standard plan.
        source_sha256: Of the ONNX file.
        precision: What it computes in.
        profile: Sizes that it takes.
        targets: Compute capabilities that it is for; empty: that of the GPU that built it.
        timing_cache: To be used again; ``None`` where there was none.
        seconds: Of the build.
        notes: What the user should know.
    """

    plan: bytes
    source_sha256: str
    precision: Precision
    profile: Profile
    targets: tuple[str, ...]
    timing_cache: bytes | None
    seconds: float
    notes: tuple[str, ...] = field(default=())


def build(
    model: onnx.ModelProto,
    sha256: str,
    flavour: Flavour,
    options: BuildOptions,
    *,
    usual: tuple[int, int] | None = None,
    listener: Listener | None = None,
) -> Built:
    """Build an engine.

    Args:
        model: With its weights.
        sha256: Of its file, as :func:`runtimes.reading.read_model` tells it.
        flavour: Which TensorRT.
        options: What is asked for.
        usual: Height and width that the model's preprocessing makes.
        listener: Hears how far the build is.

    Raises:
        GraphError: TensorRT does not take the model.
        InputError: Options that contradict each other, the file or the generation.
        UnavailableError: There is no GPU, and none was named; or memory ran out.
        KeyboardInterrupt: The build was interrupted; TensorRT has given back what it took.
    """
    generation, title = flavour.generation, f"{flavour.name} {flavour.version}"
    _check_opset(model, generation, title)
    kinds = typing(carried(model), options.precision, generation, title)
    _check_options(options, kinds, generation, title)
    shapes = profile(*_input(model), options.sizes, usual)
    trt = module(flavour)
    with listening(trt) as messages:
        job = _Job(trt, generation, title, options, kinds, messages)
        return job.run(model, sha256, shapes, listener or Listener())


def _check_opset(model: onnx.ModelProto, generation: Generation, title: str) -> None:
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx") and item.version > generation.highest_opset:
            raise GraphError(
                f"the file has opset {item.version}, and {title} reads {generation.highest_opset} at most: "
                f"export it with --opset {generation.highest_opset}"
            )


def _check_options(options: BuildOptions, kinds: Typing, generation: Generation, title: str) -> None:
    asked = {
        "--compute-capability": (bool(options.compute_capabilities), generation.compute_capabilities),
        "--version-compatible": (options.version_compatible, generation.version_compatible),
        "--hardware-compatible": (options.hardware is not None, generation.hardware_compatibility),
        "--dla-core": (options.dla_core is not None, generation.dla != "absent"),
    }
    for name, (wanted, known) in asked.items():
        if wanted and not known:
            raise InputError(f"{title} has no {name}: leave it out, or use another TensorRT")
    if kinds.precision in ("int8", "fp8") and (options.refit or options.strip):
        raise InputError(
            f"an {kinds.precision.upper()} engine cannot be {'refitted' if options.refit else 'stripped'}: scales and "
            f"weights are fused; leave {'--refit' if options.refit else '--strip'} out"
        )
    if options.dla_core is not None and generation.dla == "calibrated" and kinds.precision == "int8":
        raise InputError(f"the DLA of {title} takes no Q/DQ: give the float file, with --precision fp16")
    needed = NEEDS.get(kinds.precision)
    for text in options.compute_capabilities:
        if needed and _capability(text) < needed:
            raise InputError(
                f"{kinds.precision} needs compute capability {needed[0]}.{needed[1]} at least, and {text} was asked for"
            )


def _capability(text: str) -> tuple[int, int]:
    major, dot, minor = text.strip().partition(".")
    if not (dot and major.isdigit() and minor.isdigit()):
        raise InputError(f"received the compute capability {text!r}, expected two numbers, as 8.6")
    return int(major), int(minor)


def _input(model: onnx.ModelProto) -> tuple[str, list[int | None]]:
    stored = {item.name for item in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in stored]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise GraphError(
            "the model does not take one batch of images [N,C,H,W]: an engine of another is not built here"
        )
    dims = inputs[0].type.tensor_type.shape.dim
    return inputs[0].name, [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]


class _Job:
    """One build. ``trt`` is the bindings' module: its types are known to no checker."""

    def __init__(
        self,
        trt: Any,
        generation: Generation,
        title: str,
        options: BuildOptions,
        kinds: Typing,
        messages: Messages,
    ) -> None:
        self._trt, self._generation, self._title = trt, generation, title
        self._options, self._kinds, self._messages = options, kinds, messages
        self._notes: list[str] = []

    def run(self, model: onnx.ModelProto, sha256: str, shapes: Profile, listener: Listener) -> Built:
        begin = time.perf_counter()
        builder = self._builder()
        network = builder.create_network(self._creation_flags())
        self._parse(network, model)
        config = builder.create_builder_config()
        cache = self._configure(builder, config, shapes)
        with interruptible() as stop:
            watch = monitor(self._trt, listener, stop) if self._generation.progress_monitor else None
            if watch is not None:
                config.progress_monitor = watch
            plan = self._built(builder, network, config, stop)
        timing = bytes(cache.serialize()) if cache is not None else None
        return Built(
            bytes(plan), sha256, self._kinds.precision, shapes, self._options.compute_capabilities, timing,
            time.perf_counter() - begin, tuple(self._notes),
        )  # fmt: skip

    def _builder(self) -> Any:
        try:
            found = self._trt.Builder(self._messages.logger)
        except Exception as error:  # pybind's exceptions have no common base
            raise UnavailableError(f"TensorRT cannot start: {self._messages.last() or first_line(error)}") from error
        if found is None:
            raise UnavailableError(f"TensorRT cannot start: {self._messages.last() or 'it does not say why'}")
        return found

    def _creation_flags(self) -> int:
        flags = self._trt.NetworkDefinitionCreationFlag
        chosen = 0
        if self._generation.explicit_batch_flag:
            chosen |= 1 << int(flags.EXPLICIT_BATCH)
        if self._kinds.strongly_typed and self._generation.strongly_typed == "optional":
            chosen |= 1 << int(flags.STRONGLY_TYPED)
        return chosen

    def _parse(self, network: Any, model: onnx.ModelProto) -> None:
        parser = self._trt.OnnxParser(network, self._messages.logger)
        if parser.parse(model.SerializeToString()):
            return
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        raise GraphError(sentence([_fault(each, model) for each in faults]))

    def _configure(self, builder: Any, config: Any, shapes: Profile) -> Any:
        trt, options = self._trt, self._options
        for name in sorted(self._kinds.flags):
            config.set_flag(getattr(trt.BuilderFlag, name))
        if "TF32" not in self._kinds.flags:
            config.clear_flag(trt.BuilderFlag.TF32)  # it is on from the start, and FP32 has to be FP32
        # The layer table needs it; it costs some kilobytes of the plan and nothing when the engine runs.
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
        if options.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib * _MIB)
        flags = {
            "VERSION_COMPATIBLE": (options.version_compatible, "--version-compatible"),
            self._generation.refit_flag: (options.refit, "--refit"),
            "STRIP_PLAN": (options.strip, "--strip"),
        }
        for name, (wanted, option) in flags.items():
            if wanted and not hasattr(trt.BuilderFlag, name):
                raise InputError(f"{self._title} has no {option}: leave it out, or use another TensorRT")
            if wanted:
                config.set_flag(getattr(trt.BuilderFlag, name))
        if options.hardware is not None:
            config.hardware_compatibility_level = self._hardware(options.hardware)
        if options.dla_core is not None:
            config.default_device_type = trt.DeviceType.DLA
            config.DLA_core = options.dla_core
            config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        self._choose_capabilities(config)
        wanted = builder.create_optimization_profile()
        wanted.set_shape(shapes.name, *shapes.shapes)
        if config.add_optimization_profile(wanted) < 0:
            raise InputError(f"TensorRT refuses the profile {shapes.to_json()}: {self._messages.last()}")
        return self._timing(config)

    def _hardware(self, text: str) -> Any:
        levels = self._trt.HardwareCompatibilityLevel
        name = {"ampere+": "AMPERE_PLUS", "same": "SAME_COMPUTE_CAPABILITY"}.get(text, text)
        level = getattr(levels, name, None)
        if level is None:
            raise InputError(f"{self._title} has no hardware compatibility {text!r}: ampere+ is the oldest")
        return level

    def _choose_capabilities(self, config: Any) -> None:
        chosen = self._options.compute_capabilities
        if not self._generation.compute_capabilities:
            return
        if not chosen:
            self._notes.append("no --compute-capability was given: the engine is for every GPU from Ampere on")
            return
        known = {name[2:]: value for name, value in vars(self._trt.ComputeCapability).items() if name[2:].isdigit()}
        members = []
        for text in chosen:
            digits = "{}{}".format(*_capability(text))
            if digits not in known:
                names = ", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(known, key=int))
                raise InputError(f"{self._title} does not build for compute capability {text}: for {names}")
            members.append(known[digits])
        config.num_compute_capabilities = len(members)
        for index, member in enumerate(members):
            if config.set_compute_capability(member, index) is False:
                raise InputError(f"TensorRT refuses compute capability {chosen[index]}: {self._messages.last()}")

    def _timing(self, config: Any) -> Any:
        given = self._options.timing_cache
        if given is None:
            return None
        cache = config.create_timing_cache(given)
        if cache is None or not config.set_timing_cache(cache, False):
            self._notes.append("the timing cache is of another GPU or TensorRT, and was started anew")
            cache = config.create_timing_cache(b"")
            config.set_timing_cache(cache, False)
        return cache

    def _built(self, builder: Any, network: Any, config: Any, stop: Any) -> Any:
        self._messages.errors.clear()  # what was refused before was told, and is not why a build fails
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:  # pybind's exceptions have no common base
            raise GraphError(f"TensorRT failed: {first_line(error)}") from error
        if stop.is_set():
            raise KeyboardInterrupt
        if plan is None:
            raise self._failure()
        return plan

    def _failure(self) -> Exception:
        said = self._messages.last() or "it does not say why"
        lower = said.lower()
        if "out of memory" in lower or "insufficient memory" in lower or "alloc" in lower:
            return UnavailableError(f"TensorRT ran out of memory ({said}): give a smaller --max, or --workspace")
        if "cuda_success" in lower or ("cuda" in lower and ("driver" in lower or "device" in lower)):
            return UnavailableError(f"this build needs a GPU, and CUDA gave none ({said[:120]})")
        return GraphError(f"TensorRT cannot build the engine: {said}")


def _fault(error: Any, model: onnx.ModelProto) -> ParserFault:
    index = error.node()
    nodes = model.graph.node
    node = nodes[index] if 0 <= index < len(nodes) else onnx.NodeProto()
    return ParserFault(str(error.desc()), node.name or (node.output[0] if node.output else ""), node.op_type)
