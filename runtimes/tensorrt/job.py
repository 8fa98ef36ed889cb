"""One build, step by step, in the terms of TensorRT's bindings."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import Any

import onnx

from runtimes.errors import GraphError, InputError, UnavailableError, first_line
from runtimes.tensorrt.calibrator import calibrator
from runtimes.tensorrt.generations import Generation
from runtimes.tensorrt.messages import Messages
from runtimes.tensorrt.monitor import Listener, interruptible, monitor
from runtimes.tensorrt.options import BuildOptions, Built, Calibration
from runtimes.tensorrt.parsing import ParserFault, sentence
from runtimes.tensorrt.precision import Typing
from runtimes.tensorrt.profile import Profile

_MIB = 1 << 20


class Job:
    """One build. ``trt`` is the bindings' module: its types are known to no checker."""

    def __init__(
        self,
        trt: Any,
        generation: Generation,
        title: str,
        options: BuildOptions,
        kinds: Typing,
        messages: Messages,
        calibration: Calibration | None,
        notes: Sequence[str],
    ) -> None:
        self._trt, self._generation, self._title = trt, generation, title
        self._options, self._kinds, self._messages = options, kinds, messages
        self._calibrator: Any = None
        self._calibration, self._notes = calibration, list(notes)

    def run(self, model: onnx.ModelProto, sha256: str, shapes: Profile, listener: Listener) -> Built:
        """Parse, configure, build; arguments and errors as for :func:`runtimes.tensorrt.build.build`."""
        begin = time.perf_counter()
        builder = self._builder()
        network = builder.create_network(self._creation_flags())
        self._parse(network, model)
        config = builder.create_builder_config()
        cache = self._configure(builder, config, shapes)
        plan = self._watched(builder, network, config, listener)
        timing = bytes(cache.serialize()) if cache is not None else None
        return Built(
            bytes(plan), sha256, self._kinds.precision, shapes, self._options.compute_capabilities, timing,
            self._calibration, time.perf_counter() - begin, tuple(self._notes),
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
        if self._calibration is not None:
            self._calibrator = calibrator(trt, self._calibration.cache)  # kept: TensorRT holds a bare pointer
            config.int8_calibrator = self._calibrator
            if not shapes.is_fixed:
                config.set_calibration_profile(wanted)
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
        # SM86 is 8.6, SM120 is 12.0: the last digit is the minor version.
        members_of = vars(self._trt.ComputeCapability).items()
        known = {f"{name[2:-1]}.{name[-1]}": value for name, value in members_of if name[2:].isdigit()}
        members = []
        for text in chosen:
            if text not in known:
                names = ", ".join(sorted(known, key=float))
                raise InputError(f"{self._title} does not build for compute capability {text}: for {names}")
            members.append(known[text])
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

    def _watched(self, builder: Any, network: Any, config: Any, listener: Listener) -> Any:
        if not self._generation.progress_monitor:
            # Nothing could end the build for an event: Ctrl-C is left to Python, which acts on it after the build.
            return self._built(builder, network, config)
        with interruptible() as stop:
            config.progress_monitor = monitor(self._trt, listener, stop)
            return self._built(builder, network, config, stop)

    def _built(self, builder: Any, network: Any, config: Any, stop: threading.Event | None = None) -> Any:
        self._messages.errors.clear()  # what was refused before was told, and is not why a build fails
        try:
            plan = builder.build_serialized_network(network, config)
        except Exception as error:  # pybind's exceptions have no common base
            raise GraphError(f"TensorRT failed: {first_line(error)}") from error
        if stop is not None and stop.is_set():
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
