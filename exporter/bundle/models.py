"""The models of a bundle: read, and held against each other before anything is run."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from exporter.bundle.layout import is_safe
from exporter.opening import Opening
from exporter.proof_inputs import prepare_all
from runtimes.base import TensorSpec
from runtimes.errors import InputError
from runtimes.precision import Precision
from runtimes.tensorrt.sidecar import read_sidecar, sidecar_path

if TYPE_CHECKING:
    import onnx

#: What is in a manifest already, in a place of its own.
_ELSEWHERE: Final = frozenset({"preprocessing", "classes"})
#: Of an engine's document: where it comes from and what it is for. The layer table stays in the file beside it.
_OF_ENGINES: Final = (
    "flavour", "version", "targets", "precision", "source_sha256", "profile", "options", "gpu", "calibration", "notes",
)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A model of the bundle.

    Attributes:
        id: Unlike every other one's; for people, too: ``onnxruntime-int8``.
        opening: The model as it was read.
        path: Where it lies in the bundle.
        others: Files that belong to it, by their place in the bundle: external weights, an engine's document.
        precision: What it computes in.
        target: What it was quantised for; ``"any"`` for a float file; an engine's is its package.
        source: The ONNX model that an engine was built from; ``None`` for an ONNX model.
        provenance: What the file, or the document beside it, says of its making.
    """

    id: str
    opening: Opening
    path: str
    others: Mapping[str, Path]
    precision: Precision
    target: str
    source: Member | None
    provenance: Mapping[str, Any]

    @property
    def kind(self) -> str:
        """``"onnx"``, ``"tensorrt"`` or ``"tensorrt-rtx"``."""
        return self.opening.spec.kind

    @property
    def file(self) -> Path:
        """Where it is read from."""
        return self.opening.spec.path

    @property
    def network(self) -> Member:
        """The ONNX model: itself, or what an engine was built from."""
        return self.source or self


def read_members(paths: Sequence[Path | str]) -> list[Member]:
    """Read the models of a bundle.

    Args:
        paths: ONNX files, and engines with the documents that lie beside them. The ONNX file that an engine was built
            from has to be among them: its outputs are what the engine is held against.

    Raises:
        InputError: None was given, one twice, one is neither, an engine's document or its ONNX file is missing.
        GraphError: A file that cannot be read.
    """
    if not paths:
        raise InputError("a bundle needs one ONNX file at least, and none was given")
    openings = prepare_all([str(path) for path in paths])
    for opening in openings:
        _refuse_others(opening)
    ids: set[str] = set()
    members: list[Member] = []
    for opening in sorted(openings, key=lambda each: each.spec.kind != "onnx"):
        twin = next((each for each in members if each.opening.sha256 == opening.sha256), None)
        if twin is not None:
            raise InputError(f"{opening.spec.file} and {twin.file} are the same model: give it once")
        members.append(_onnx(opening, ids) if opening.spec.kind == "onnx" else _engine(opening, members, ids))
    if all(member.source for member in members):
        raise InputError("a bundle needs one ONNX file at least: give those that the engines were built from")
    return members


def reference_of(members: Sequence[Member]) -> Member:
    """What the others are held against: the first in FP32, else the first in another float, else the first."""
    own = [member for member in members if member.kind == "onnx"]
    order = ("fp32", "fp16", "bf16")
    return min(own, key=lambda each: order.index(each.precision) if each.precision in order else len(order))


def labels_of(members: Sequence[Member]) -> tuple[str, ...]:
    """Names of the classes that all models agree on; empty where none tells them.

    Raises:
        InputError: Two of them tell different ones.
    """
    told = [(member.file, member.opening.labels) for member in members if member.opening.labels]
    for file, labels in told[1:]:
        if labels != told[0][1]:
            raise InputError(f"{told[0][0]} and {file} name their classes differently: give --labels FILE")
    return told[0][1] if told else ()


def specs_of(member: Member) -> tuple[list[TensorSpec], list[TensorSpec]]:
    """Inputs and outputs of a member whose network has been opened; an engine's batch is that of its profile."""
    runtime = member.network.opening.runtime
    inputs, outputs = list(runtime.inputs), list(runtime.outputs)
    profile = member.provenance.get("profile")
    if member.source is None or not isinstance(profile, Mapping):
        return inputs, outputs
    low, high = list(profile["min"]), list(profile["max"])
    shape = tuple(int(a) if a == b else None for a, b in zip(low, high, strict=True))
    output = TensorSpec(outputs[0].name, outputs[0].dtype, (shape[0], *outputs[0].shape[1:]))
    return [TensorSpec(inputs[0].name, inputs[0].dtype, shape)], [output]


def _refuse_others(opening: Opening) -> None:
    if opening.spec.kind not in ("onnx", "tensorrt", "tensorrt-rtx"):
        raise InputError(
            f"{opening.spec.file} is neither an ONNX file nor an engine: make one with resnet-export onnx first"
        )
    if opening.spec.options:
        raise InputError(f"{opening.label} has options: a bundle holds files, and run.py has options of its own")
    if not is_safe(opening.spec.path.name):
        raise InputError(f"{opening.spec.path.name!r} cannot be a file's name everywhere: rename it")


def _onnx(opening: Opening, ids: set[str]) -> Member:
    from exporter.graph.metadata import read_metadata
    from runtimes.reading import external_files, read_model

    precision: Precision = opening.precision or "fp32"
    target = opening.target or ("any" if precision in ("fp32", "fp16", "bf16") else "unknown")
    name = _named(precision if target == "any" else f"{target}-{precision}", ids)
    model, _ = read_model(opening.spec.path, "make one with resnet-export onnx")
    metadata = {key: value for key, value in read_metadata(model).items() if key not in _ELSEWHERE}
    folder = opening.spec.path.parent
    others = {f"models/{name}/{_inside(path, folder)}": path for path in external_files(opening.spec.path)}
    provenance = {**metadata, "file": opening.spec.path.name, "opset": _opset(model)}
    path = f"models/{name}/{opening.spec.path.name}"
    return Member(name, opening, path, others, precision, target, None, provenance)


def _engine(opening: Opening, members: Sequence[Member], ids: set[str]) -> Member:
    path = opening.spec.path
    document = read_sidecar(path, opening.sha256 or "")
    if document is None:
        raise InputError(
            f"{path} has no document about it beside it ({path.name}.json): build it with resnet-export engine"
        )
    digest = document.get("source_sha256")
    source = next((each for each in members if each.opening.sha256 == digest), None)
    if source is None:
        raise InputError(
            f"{path} was built from the model {str(digest)[:12]}, which is not among those given: give that ONNX file, "
            "too"
        )
    precision = opening.precision or source.precision
    name = _named(f"{opening.spec.kind}-engine-{precision}", ids)
    others = {f"models/{name}/{path.name}.json": sidecar_path(path)}
    provenance = {"file": path.name, **{key: document[key] for key in _OF_ENGINES if key in document}}
    return Member(name, opening, f"models/{name}/{path.name}", others, precision, opening.spec.kind, source, provenance)


def _named(wanted: str, ids: set[str]) -> str:
    plain = re.sub(r"[^a-z0-9-]+", "-", wanted.lower()).strip("-") or "model"
    name = next(each for each in (plain, *(f"{plain}-{n}" for n in range(2, 10_000))) if each not in ids)
    ids.add(name)
    return name


def _inside(path: Path, folder: Path) -> str:
    from os.path import normpath

    place = Path(normpath(path.relative_to(folder))).as_posix()
    if not is_safe(place):
        raise InputError(
            f"{path} keeps weights outside of its model's folder: save the model with its weights beside it"
        )
    return place


def _opset(model: onnx.ModelProto) -> int:
    return max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
