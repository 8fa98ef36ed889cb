"""The engine job: an ONNX file in, a TensorRT engine and what is known of it out.

One function, :func:`build_engine`; it prints nothing and writes two files, and the caches that it is asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import onnx

from calibration.implicit import scales
from calibration.ranges import read_ranges
from exporter.files import check_output, commit_together, reserve
from exporter.graph.metadata import read_metadata
from exporter.graph.tensors import input_and_output, to_json
from exporter.layers import LayerReport, layers_of
from runtimes.errors import GraphError, InputError
from runtimes.reading import external_files, read_model
from runtimes.tensorrt.build import BuildOptions, Built, build, is_calibrated
from runtimes.tensorrt.device import Device, find_devices
from runtimes.tensorrt.flavour import Flavour, flavour
from runtimes.tensorrt.inspect_network import network_nodes
from runtimes.tensorrt.monitor import Listener
from runtimes.tensorrt.precision import carried, implicit
from runtimes.tensorrt.sidecar import sidecar_path

#: Version of the document beside an engine.
SCHEMA = 1
_KEPT = ("preprocessing", "preprocessing_sha256", "classes", "quantisation", "embedded")


@dataclass(frozen=True)
class EngineReport:
    """What was made.

    Attributes:
        engine: The file, a standard plan.
        sha256: Of its bytes.
        flavour: Which TensorRT.
        built: The rest.
        options: What was asked for.
        gpu: That it was built on; ``None`` where there was none, or it is for others that were named. Without names, an
            engine of TensorRT is for this one, and one of TensorRT-RTX for every GPU from Ampere on.
        layers: What it runs.
        model: What the ONNX file says of its input, output, preprocessing, classes and quantisation.
    """

    engine: Path
    sha256: str
    flavour: Flavour
    built: Built
    options: BuildOptions
    gpu: Device | None
    layers: LayerReport
    model: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        built = self.built
        return {
            "schema": SCHEMA,
            "engine": str(self.engine),
            "bytes": len(built.plan),
            "sha256": self.sha256,
            "flavour": self.flavour.name,
            "version": self.flavour.version,
            "targets": list(built.targets),
            "precision": built.precision,
            "calibration": built.calibration.to_json() if built.calibration else None,
            "build_seconds": round(built.seconds, 3),
            "source_sha256": built.source_sha256,
            "profile": built.profile.to_json(),
            "options": {
                "version_compatible": self.options.version_compatible,
                "hardware_compatible": self.options.hardware,
                "strip": self.options.strip,
                "refit": self.options.refit,
                "dla_core": self.options.dla_core,
                "workspace_mib": self.options.workspace_mib,
            },
            "gpu": self.gpu.to_json() if self.gpu else None,
            "summary": self.layers.summary,
            "notes": list(built.notes),
        }

    def sidecar(self) -> bytes:
        """The document beside the engine: the same, the layer table with its network, and what feeds the model."""
        document = self.to_json() | self.layers.table() | dict(self.model)
        return (json.dumps(document, indent=2) + "\n").encode()


def build_engine(
    source: Path,
    output: Path,
    options: BuildOptions,
    *,
    name: str | None = None,
    ranges: Path | None = None,
    timing_cache: Path | None = None,
    calibration_cache: Path | None = None,
    listener: Listener | None = None,
) -> EngineReport:
    """Build an engine and write it, with ``OUTPUT.json`` beside it.

    Args:
        source: ONNX file.
        output: Where the engine goes; nothing is left there, and nothing is lost, when this raises.
        options: What is asked for.
        name: Package of the TensorRT to use; ``None``: the best that is installed.
        ranges: Ranges of a FP32 file, which becomes INT8 by them, without Q/DQ; not for every generation.
        timing_cache: File with measured kernels; read where it is there, and written anew.
        calibration_cache: Where the scales go that a calibrator or a DLA was given, as ``trtexec --calib`` reads them.
        listener: Hears how far the build is.

    Raises:
        DataError: The ranges cannot be read, or are of another model.
        GraphError: The model cannot become an engine.
        InputError: Options that contradict each other.
        UnavailableError: TensorRT, a GPU, memory or disk space is missing.
    """
    sidecar = sidecar_path(output)
    read = [source, *external_files(source)]
    if ranges is not None:
        read.append(ranges)
    caches = [path for path in (timing_cache, calibration_cache) if path is not None]
    for path in (output, sidecar):
        check_output(path, [*read, *caches])
    for place, path in enumerate(caches):
        check_output(path, [*read, *caches[:place]])
    model, source_sha256 = read_model(source, "make one with resnet-export onnx")
    told, network = _told(model, source), network_nodes(model)
    found = flavour(name)
    if ranges is not None:
        options = replace(options, scales=_scales(ranges, model, source_sha256, found, options))
    if calibration_cache is not None and not is_calibrated(model, found.generation, options):
        raise InputError(
            "this engine uses no calibration cache: leave --calibration-cache out, or give a FP32 file with --ranges, "
            "or --dla-core on TensorRT 10.7 or before"
        )
    with ExitStack() as stack:
        places = [stack.enter_context(reserve(path)) for path in (output, sidecar)]
        kept, scaled = (
            stack.enter_context(reserve(path)) if path else None for path in (timing_cache, calibration_cache)
        )
        if timing_cache is not None:
            options = replace(options, timing_cache=_read(timing_cache))
        built = build(model, source_sha256, found, options, usual=_usual(told), listener=listener)
        search = find_devices()
        gpu = search.devices[0] if search.devices and not built.targets else None
        layers = layers_of(built, str(output), found, search, network, options)
        report = EngineReport(output, sha256(built.plan).hexdigest(), found, built, options, gpu, layers, told)
        contents = [(places[0], built.plan), (places[1], report.sidecar())]
        if kept is not None and built.timing_cache is not None:
            contents.append((kept, built.timing_cache))
        if scaled is not None and built.calibration is not None:
            contents.append((scaled, built.calibration.cache))
        commit_together(contents)
    return report


def _scales(
    ranges: Path, model: onnx.ModelProto, sha256: str, found: Flavour, options: BuildOptions
) -> dict[str, float]:
    """What a calibrator is given, once it is clear that there is one and that the ranges are the model's."""
    implicit(carried(model), options.precision, found.generation, f"{found.name} {found.version}")
    known = read_ranges(ranges)
    known.require(model_sha256=sha256)
    return scales(known)


def _read(path: Path) -> bytes:
    if not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _told(model: onnx.ModelProto, source: Path) -> Mapping[str, Any]:
    """What the file says of itself, and whoever runs the engine has to know."""
    told: dict[str, Any] = {}
    with contextlib.suppress(GraphError):  # no network for images: it can be built, and nothing here serves it
        taken, given = input_and_output(model, source)
        told["tensors"] = {"input": to_json(taken), "output": to_json(given)}
    with contextlib.suppress(ValueError):  # damaged: the engine needs none of it
        found = read_metadata(model)
        told |= {name: found[name] for name in _KEPT if name in found}
    return told


def _usual(told: Mapping[str, Any]) -> tuple[int, int] | None:
    """Height and width that the file says its preprocessing makes."""
    try:
        height, width = told["preprocessing"]["size"]
        return int(height), int(width)
    except (ValueError, KeyError, TypeError):  # a file from elsewhere, or without a size
        return None
