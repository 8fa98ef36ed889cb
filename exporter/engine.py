"""The engine job: an ONNX file in, a TensorRT engine and what is known of it out.

One function, :func:`build_engine`; it prints nothing and writes two files, three with a timing cache.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx

from exporter.files import check_output, reserve
from exporter.graph.metadata import read_metadata
from exporter.layers import LayerReport, layers_of
from runtimes.errors import InputError
from runtimes.reading import external_files, read_model
from runtimes.tensorrt.build import BuildOptions, Built, build
from runtimes.tensorrt.device import Device, find_devices
from runtimes.tensorrt.flavour import Flavour, flavour
from runtimes.tensorrt.inspect_network import network_nodes
from runtimes.tensorrt.monitor import Listener

#: Version of the document beside an engine.
SCHEMA = 1


@dataclass(frozen=True)
class EngineReport:
    """What was made.

    Attributes:
        engine: The file, a standard plan.
        sha256: Of its bytes.
        flavour: Which TensorRT.
        built: The rest.
        options: What was asked for.
        gpu: That it was built on, and is for; ``None`` where it is for those that were named.
        layers: What it runs.
    """

    engine: Path
    sha256: str
    flavour: Flavour
    built: Built
    options: BuildOptions
    gpu: Device | None
    layers: LayerReport

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
        """The document beside the engine: the same, the layer table, and the network that it is held against."""
        document = self.to_json() | self.layers.table()
        return (json.dumps(document, indent=2) + "\n").encode()


def build_engine(
    source: Path,
    output: Path,
    options: BuildOptions,
    *,
    name: str | None = None,
    timing_cache: Path | None = None,
    listener: Listener | None = None,
) -> EngineReport:
    """Build an engine and write it, with ``OUTPUT.json`` beside it.

    Args:
        source: ONNX file.
        output: Where the engine goes; nothing is left there, and nothing is lost, when this raises.
        options: What is asked for.
        name: Package of the TensorRT to use; ``None``: the best that is installed.
        timing_cache: File with measured kernels; read where it is there, and written anew.
        listener: Hears how far the build is.

    Raises:
        GraphError: The model cannot become an engine.
        InputError: Options that contradict each other.
        UnavailableError: TensorRT, a GPU, memory or disk space is missing.
    """
    sidecar = output.with_name(f"{output.name}.json")
    read = [source, *external_files(source)]
    for path in (output, sidecar):
        check_output(path, [*read, *([timing_cache] if timing_cache else [])])
    if timing_cache is not None:
        check_output(timing_cache, read)
    model, source_sha256 = read_model(source, "make one with resnet-export onnx")
    found = flavour(name)
    with ExitStack() as stack:
        places = [stack.enter_context(reserve(path)) for path in (output, sidecar)]
        kept = stack.enter_context(reserve(timing_cache)) if timing_cache else None
        if timing_cache is not None:
            options = replace(options, timing_cache=_read(timing_cache))
        built = build(model, source_sha256, found, options, usual=_usual(model), listener=listener)
        digest = places[0].commit(built.plan)
        search = find_devices()
        gpu = search.devices[0] if search.devices and not built.targets else None
        layers = layers_of(built.plan, str(output), found, search, network_nodes(model), built.targets)
        report = EngineReport(output, digest, found, built, options, gpu, layers)
        places[1].commit(report.sidecar())
        if kept is not None and built.timing_cache is not None:
            kept.commit(built.timing_cache)
    return report


def _read(path: Path) -> bytes:
    if not path.exists():
        return b""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error


def _usual(model: onnx.ModelProto) -> tuple[int, int] | None:
    """Height and width that the file says its preprocessing makes."""
    try:
        told = read_metadata(model).get("preprocessing") or {}
        height, width = told["size"]
        return int(height), int(width)
    except (ValueError, KeyError, TypeError):  # a file from elsewhere, or without a size
        return None
