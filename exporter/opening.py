"""A runtime spec -> a runtime, and what a command has to know about the model that it runs.

The exporter's side of :mod:`runtimes.registry`, which leaves it to others to make a module of a checkpoint.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from calibration.preprocess import Preprocessing
from exporter.embedded import Output, Told, told
from exporter.feeding import Feed
from exporter.files import file_sha256
from exporter.subjects import Subject
from runtimes.base import Runtime
from runtimes.errors import GraphError, InputError, ResnetExportError
from runtimes.precision import PRECISIONS, Precision, computed
from runtimes.registry import RuntimeSpec, open_runtime, parse
from runtimes.tensorrt.sidecar import precision_of, read_sidecar

if TYPE_CHECKING:
    from exporter.models.source import LoadedModel

# What load_model's messages call the options of the command line: "--weights FILE", "--num-classes 10".
_FLAG: Final = re.compile(r"--([a-z]+(?:-[a-z]+)*)(?: (?=FILE|random|DEFAULT|\d))?")


@dataclass(frozen=True)
class Opening:
    """A model and what is to run it, ready to be opened.

    Attributes:
        spec: What the user wrote.
        runtime: Not opened yet.
        preprocessing: How a file becomes what its network takes; ``None`` where nothing says so.
        labels: Names of the classes; empty where nothing says so.
        sha256: Of an ONNX file with its external weights, of an engine, of a checkpoint, or of a module's tensors;
            ``None`` for a model on a server that does not tell.
        size: Bytes on the disk, external weights included; ``None`` for what is no file.
        precision: What the runtime computes in; ``None`` where nothing says so.
        onnx: The ONNX file that runs, or that an engine is made from; ``None`` where there is none, or none is known.
        target: What a quantised file was made for, as ``quantize --target`` has it; ``None`` where nothing says so.
        notes: Assumptions that the user should see, one sentence each.
        takes: What its input is instead, where a part of ``preprocessing`` is in the graph.
        output: What comes out.
        shape: Of its input, as the ONNX file declares it, ``None`` where a side is free; empty where no file does.
    """

    spec: RuntimeSpec
    runtime: Runtime
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    sha256: str | None
    size: int | None
    precision: Precision | None
    onnx: Path | None = None
    target: str | None = None
    notes: tuple[str, ...] = ()
    takes: Preprocessing | None = None
    output: Output = "logits"
    shape: tuple[int | None, ...] = ()

    @property
    def label(self) -> str:
        """The spec as text, in one spelling."""
        return self.spec.label

    def subject(self, feed: Feed | None = None) -> Subject:
        """The same, for those who measure; ``feed`` makes its input of what is read."""
        return Subject(self.label, self.spec.name, self.spec.file, self.runtime, feed)


def prepare(spec: RuntimeSpec | str) -> Opening:
    """Read what is known of a model, and make the runtime that is to run it.

    Args:
        spec: A spec, or ``NAME:FILE[@option=value,…]``.

    Raises:
        InputError: The spec, the model or its metadata cannot be used.
        UnavailableError: Memory or a package that reads the model is missing, or the server of the model. What the
            runtime itself needs is looked for when it is opened.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    if spec.kind in ("checkpoint", "source"):
        return _of_module(spec)
    if spec.kind == "served":
        return _of_server(spec)
    return _of_onnx(spec) if spec.kind == "onnx" else _of_engine(spec)


def load_module(spec: RuntimeSpec) -> LoadedModel:
    """The module that ``eager`` and ``torch-compile`` run, with its BatchNorms folded where the spec says so.

    Args:
        spec: Its file is a checkpoint, a variant's name, ``timm:NAME`` or ``package.module:factory``.

    Raises:
        ModelSourceError: Names nothing, or lacks ``weights``.
        CheckpointError: The file is broken, unsafe, or does not fit.
        ArchitectureError: A block without the projection that it needs.
        GraphError: The network cannot be captured, so that nothing can be folded.
        UnavailableError: A package is missing, or a download failed.
    """
    from exporter.models.source import SourceOptions, load_model

    given: dict[str, Any] = dict(spec.options)
    sides = str(given["input_size"]).split("x") if "input_size" in given else []
    options = SourceOptions(
        weights=given.get("weights"),
        num_classes=given.get("num_classes"),
        in_channels=given.get("in_channels"),
        input_size=(int(sides[0]), int(sides[-1])) if sides else None,
        checkpoint_key=given.get("checkpoint_key"),
        seed=given.get("seed", 0),
        norm_eps=given.get("bn_eps"),
    )
    try:
        loaded = load_model(spec.file, options)
        return _folded(loaded) if given.get("folded") else loaded
    except ResnetExportError as error:
        raise type(error)(f"{spec.label}: {_as_options(str(error))}") from error


def _folded(loaded: LoadedModel) -> LoadedModel:
    from exporter.graph.capture import InputShape, capture
    from exporter.graph.fold import fold

    result = fold(capture(loaded.module, InputShape(loaded.in_channels, *loaded.size)))
    notes = [f"{row.norm} is not folded: {row.reason}" for row in result.refused]
    return replace(loaded, module=result.captured.module).with_notes(notes)


def _as_options(message: str) -> str:
    """A message of the command line's ``MODEL`` in the words of a spec: ``weights=FILE`` for ``--weights FILE``."""

    def named(found: re.Match[str]) -> str:
        return found[1].replace("-", "_") + ("=" if found[0].endswith(" ") else "")

    return _FLAG.sub(named, message)


def _of_module(spec: RuntimeSpec) -> Opening:
    loaded = load_module(spec)
    files = [path for path in (spec.path, Path(str(spec.options.get("weights", "")))) if path.is_file()]
    return Opening(
        spec=spec,
        runtime=open_runtime(spec, load_module=lambda _: loaded),
        preprocessing=loaded.preprocessing,
        labels=(),
        sha256=loaded.sha256,
        size=files[0].stat().st_size if files else None,
        precision=computed("fp32", spec.options),
        notes=loaded.notes,
    )


def _of_onnx(spec: RuntimeSpec) -> Opening:
    from runtimes.reading import external_files

    read = _read(spec.path)
    said = _told(spec, read.metadata)
    return Opening(
        spec=spec,
        runtime=open_runtime(spec),
        preprocessing=said.network,
        takes=said.takes,
        output=said.output,
        labels=_labels(read.metadata),
        sha256=read.sha256,
        size=sum(path.stat().st_size for path in (spec.path, *external_files(spec.path))),
        precision=computed(read.precision, spec.options),
        onnx=spec.path,
        target=_target(read.metadata),
        shape=read.shape,
    )


def _of_engine(spec: RuntimeSpec) -> Opening:
    """An engine says nothing of itself: the document beside it does, and the ONNX file that the spec may name."""
    source = Path(str(spec.options["model"])) if "model" in spec.options else None
    read = _read(source) if source else None
    digest = _file_sha256(spec.path)
    document = read_sidecar(spec.path, digest) or {}
    known = {**(read.metadata if read else {}), **document}
    said = _told(spec, known)
    return Opening(
        spec=spec,
        runtime=open_runtime(spec),
        preprocessing=said.network,
        takes=said.takes,
        output=said.output,
        labels=_labels(known),
        sha256=digest,
        size=spec.path.stat().st_size,
        precision=precision_of(document) or (read.precision if read else None),
        onnx=source,
        target=_target(known),
        shape=read.shape if read else (),
    )


def _of_server(spec: RuntimeSpec) -> Opening:
    """What the server tells in the parameters of the model, and the ONNX file that the spec may name."""
    from runtimes.remote import TritonRuntime

    source = Path(str(spec.options["model"])) if "model" in spec.options else None
    read = _read(source) if source else None
    runtime = open_runtime(spec)
    assert isinstance(runtime, TritonRuntime)  # the one row that takes URLs
    with runtime:
        known = {**(read.metadata if read else {}), **runtime.told}
    if "ensemble" in known:
        raise InputError(
            f"{spec.label} takes pixels, and models are fed tensors: give the model behind it, {known['ensemble'][-1]}"
        )
    said = _told(spec, known)
    precision, sha256 = known.get("precision"), known.get("sha256")
    unproven = source is not None and "source_sha256" not in runtime.told
    return Opening(
        spec=spec,
        runtime=runtime,
        preprocessing=said.network,
        takes=said.takes,
        output=said.output,
        labels=_labels(known),
        sha256=sha256 if isinstance(sha256, str) else None,
        size=None,
        precision=precision if precision in PRECISIONS else (read.precision if read else None),
        onnx=source,
        target=_target(known),
        notes=(f"the server does not say what it runs: taken to be {source}",) if unproven else (),
    )


def _told(spec: RuntimeSpec, metadata: Mapping[str, Any]) -> Told:
    try:
        found = told(metadata)
    except InputError as error:
        raise InputError(f"{spec.label}: {error}") from error
    if found.output == "top-k":
        raise InputError(
            f"{spec.label} gives the best classes alone, not a number for each: give the file made without --top-k"
        )
    return found


class _Read(NamedTuple):
    """What an ONNX file says."""

    metadata: Mapping[str, Any]
    sha256: str
    precision: Precision
    shape: tuple[int | None, ...]


def _read(path: Path) -> _Read:
    from exporter.graph.metadata import declared_shape, read_metadata
    from runtimes.precision import carried
    from runtimes.reading import read_model

    model, digest = read_model(path, "make one with resnet-export onnx")
    try:
        return _Read(read_metadata(model), digest, carried(model), declared_shape(model))
    except json.JSONDecodeError as error:
        raise GraphError(f"{path} has damaged metadata ({error}): export the model again") from error


def _target(metadata: Mapping[str, Any]) -> str | None:
    told = metadata.get("quantisation")
    target = told.get("target") if isinstance(told, Mapping) else None
    return target if isinstance(target, str) else None


def _labels(metadata: Mapping[str, Any]) -> tuple[str, ...]:
    classes = metadata.get("classes")
    found = classes.get("labels") if isinstance(classes, Mapping) else None
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _file_sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise GraphError(f"{path} cannot be read: {error.strerror or error}") from error
