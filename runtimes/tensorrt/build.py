"""ONNX -> TensorRT engine, for every generation, with the differences in :mod:`runtimes.tensorrt.generations`.

Nothing here asks for a version: what a generation has, needs or lacks is a field of its row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal

import onnx

from runtimes.errors import GraphError, InputError
from runtimes.tensorrt.calibration_cache import write_cache
from runtimes.tensorrt.flavour import Flavour, module
from runtimes.tensorrt.generations import Generation
from runtimes.tensorrt.implicit import spread, strip
from runtimes.tensorrt.job import Job
from runtimes.tensorrt.messages import listening
from runtimes.tensorrt.monitor import Listener
from runtimes.tensorrt.options import BuildOptions, Built, Calibration
from runtimes.tensorrt.precision import NEEDS, Typing, carried, implicit, typing
from runtimes.tensorrt.profile import Profile, fixed_profile, profile

__all__ = ["BuildOptions", "Built", "Calibration", "build", "is_calibrated"]

_WITHOUT_TIMINGS: Final = "TensorRT-RTX keeps no timing cache, as it times no kernels when it builds: none was written"


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

    A deep learning accelerator of TensorRT 10 and before takes no Q/DQ: a file with Q/DQ is built for it as a float
    network with a calibration cache.

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
    _check_known(options, generation, title)
    options = replace(options, compute_capabilities=_capabilities(options.compute_capabilities))
    prepared = _prepared(model, flavour, options, title)
    _check_options(options, prepared.kinds)
    shapes, notes = _shapes(model, options, usual)
    if options.timing_cache is not None and not generation.timing_cache:
        options, notes = replace(options, timing_cache=None), (*notes, _WITHOUT_TIMINGS)
    trt = module(flavour)
    with listening(trt) as messages:
        job = Job(
            trt, generation, title, options, prepared.kinds, messages, prepared.calibration, (*prepared.notes, *notes)
        )
        return job.run(prepared.model, sha256, shapes, listener or Listener())


def is_calibrated(model: onnx.ModelProto, generation: Generation, options: BuildOptions) -> bool:
    """Whether an engine gets its scales from a calibration cache."""
    needed = options.dla_core is not None and generation.dla == "calibrated"
    return options.scales is not None or (needed and carried(model) == "int8")


@dataclass(frozen=True)
class _Prepared:
    """The network that TensorRT gets, and how it is told to compute."""

    model: onnx.ModelProto
    kinds: Typing
    calibration: Calibration | None = None
    notes: tuple[str, ...] = ()


def _prepared(model: onnx.ModelProto, flavour: Flavour, options: BuildOptions, title: str) -> _Prepared:
    generation, own = flavour.generation, carried(model)
    if options.scales is not None:
        kinds = implicit(own, options.precision, generation, title)
        return _Prepared(model, kinds, _calibration("ranges", spread(model, options.scales), flavour))
    if not is_calibrated(model, generation, options):
        return _Prepared(model, typing(own, options.precision, generation, title))
    stripped = strip(model)
    kinds = implicit(carried(stripped.model), options.precision, generation, title)
    note = f"the DLA of {title} takes no Q/DQ: their scales went into a calibration cache"
    calibration = _calibration("qdq", stripped.scales, flavour)
    return _Prepared(stripped.model, kinds, calibration, (note, *stripped.notes))


def _calibration(source: Literal["qdq", "ranges"], scales: Mapping[str, float], flavour: Flavour) -> Calibration:
    return Calibration(source, len(scales), write_cache(flavour.version, flavour.generation, scales))


def _shapes(
    model: onnx.ModelProto, options: BuildOptions, usual: tuple[int, int] | None
) -> tuple[Profile, tuple[str, ...]]:
    name, dims = _input(model)
    if options.dla_core is None:
        return profile(name, dims, options.sizes, usual), ()
    found, chosen = fixed_profile(name, dims, options.sizes, usual)
    text = "x".join(map(str, found.optimum))
    return found, (f"a DLA takes one fixed shape: the engine is for {text} alone; --opt chooses another",) * chosen


def _check_opset(model: onnx.ModelProto, generation: Generation, title: str) -> None:
    for item in model.opset_import:
        if item.domain in ("", "ai.onnx") and item.version > generation.highest_opset:
            raise GraphError(
                f"the file has opset {item.version}, and {title} reads {generation.highest_opset} at most: "
                f"export it with --opset {generation.highest_opset}"
            )


def _check_known(options: BuildOptions, generation: Generation, title: str) -> None:
    asked = {
        "--compute-capability": (bool(options.compute_capabilities), generation.compute_capabilities),
        "--version-compatible": (options.version_compatible, generation.version_compatible),
        "--hardware-compatible": (options.hardware is not None, generation.hardware_compatibility),
        "--dla-core": (options.dla_core is not None, generation.dla != "absent"),
    }
    for name, (wanted, known) in asked.items():
        if wanted and not known:
            raise InputError(f"{title} has no {name}: leave it out, or use another TensorRT")


def _check_options(options: BuildOptions, kinds: Typing) -> None:
    if kinds.precision in ("int8", "fp8") and (options.refit or options.strip):
        raise InputError(
            f"an {kinds.precision.upper()} engine cannot be {'refitted' if options.refit else 'stripped'}: scales and "
            f"weights are fused; leave {'--refit' if options.refit else '--strip'} out"
        )
    needed = NEEDS.get(kinds.precision)
    for text in options.compute_capabilities:
        if needed and _capability(text) < needed:
            raise InputError(
                f"{kinds.precision} needs compute capability {needed[0]}.{needed[1]} at least, and {text} was asked for"
            )


def _capabilities(given: Sequence[str]) -> tuple[str, ...]:
    """Each once, in their order, as TensorRT's names have them."""
    return tuple(dict.fromkeys("{}.{}".format(*_capability(text)) for text in given))


def _capability(text: str) -> tuple[int, int]:
    major, dot, minor = text.strip().partition(".")
    if not (dot and text.isascii() and major.isdigit() and minor.isdigit()):
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
