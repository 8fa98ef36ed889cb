"""What a server has to know of a model: read from an ONNX file, or from the document beside an engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

import onnx

from calibration.preprocess import Preprocessing
from exporter.graph.metadata import read_metadata
from exporter.graph.tensors import from_json, input_and_output
from exporter.opening import Opening, prepare
from runtimes.base import TensorSpec
from runtimes.errors import InputError
from runtimes.kinds import TITLES, kind_of
from runtimes.reading import external_files
from runtimes.tensorrt.sidecar import is_version_compatible, read_sidecar

Backend = Literal["onnxruntime", "tensorrt"]
FILE_NAMES: Final[Mapping[Backend, str]] = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
# What clients read back (runtimes.remote), by the names of the file's metadata.
_KEPT: Final = ("preprocessing", "preprocessing_sha256", "classes", "quantisation")
_NAME: Final = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
_NOT_IN_NAMES: Final = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Servable:
    """A model that a server can load.

    Attributes:
        name: Of the model on the server.
        source: The file.
        backend: What runs it there.
        input: ``[N, C, H, W]``; N is ``None`` where it takes any number up to ``most``.
        output: ``[N, classes]``.
        most: Largest batch; ``None``: any.
        sample: Shape of one image as the input has it, without the batch; ``None`` where nothing says its size.
        preprocessing: How pixels become its input; ``None`` where nothing says so.
        labels: Names of the classes; empty where nothing says so.
        parameters: What a client may want to know, JSON-ready, by name.
        companions: Other files that it reads its weights from, in its folder or below.
        notes: What the user should know.
    """

    name: str
    source: Path
    backend: Backend
    input: TensorSpec
    output: TensorSpec
    most: int | None
    sample: tuple[int, ...] | None
    preprocessing: Preprocessing | None
    labels: tuple[str, ...]
    parameters: Mapping[str, Any]
    companions: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """Of the file, with its external weights."""
        return str(self.parameters["sha256"])


def read_servable(text: str) -> Servable:
    """Read what is known of a model.

    Args:
        text: ``FILE``, or ``NAME=FILE`` with the name that it is to have on the server.

    Raises:
        InputError: No ONNX file and no engine of TensorRT, or the name cannot be one.
        GraphError: It cannot be read, or has other inputs and outputs than a network for images.
    """
    head, sign, tail = text.partition("=")
    named = bool(sign) and _NAME.fullmatch(head) is not None and not Path(text).exists()
    path = Path(tail if named else text)
    name = head if named else _NOT_IN_NAMES.sub("_", path.stem).lstrip(".")
    if not _NAME.fullmatch(name):
        raise InputError(f"'{name}' cannot be a model's name on a server: give NAME={path}, of letters, digits and _")
    kind = kind_of(str(path))
    if kind == "onnx":
        return _of_onnx(name, path)
    if kind == "tensorrt":
        return _of_engine(name, path)
    raise InputError(f"{path} is {TITLES[kind]}, and Triton serves ONNX files and TensorRT engines: give one of them")


def _of_onnx(name: str, path: Path) -> Servable:
    opening = prepare(f"onnxruntime:{path}")
    model = onnx.load_model_from_string(path.read_bytes())
    taken, given = input_and_output(model, path)
    return Servable(
        name=name,
        source=path,
        backend="onnxruntime",
        input=taken,
        output=given,
        most=None,
        sample=_sample(taken, opening.preprocessing.size if opening.preprocessing else None),
        preprocessing=opening.preprocessing,
        labels=opening.labels,
        parameters=_parameters(read_metadata(model), opening, opening.sha256),
        companions=tuple(external_files(path)),
    )


def _of_engine(name: str, path: Path) -> Servable:
    opening = prepare(f"tensorrt:{path}")
    document = read_sidecar(path, opening.sha256 or "")
    if document is None:
        raise InputError(f"{path} has no {path.name}.json beside it: build it with resnet-export engine")
    try:
        taken, given = (from_json(document["tensors"][role]) for role in ("input", "output"))
        smallest, best, largest = (document["profile"][key] for key in ("min", "opt", "max"))
        needs = f"{path} runs on TensorRT {document['version']}: take the release of Triton that has it"
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}.json does not tell inputs and outputs: build {path} anew") from error
    if 1 < smallest[0] < largest[0]:
        raise InputError(
            f"{path} takes {smallest[0]} to {largest[0]} images, and a server may send one: build it with --min 1, or "
            f"with --min and --max of the same batch"
        )
    if smallest[0] == largest[0]:
        taken, given = (replace(each, shape=(largest[0], *each.shape[1:])) for each in (taken, given))
    if is_version_compatible(document):
        needs += ", or a later one with --backend-config=tensorrt,version-compatible=true"
    return Servable(
        name=name,
        source=path,
        backend="tensorrt",
        input=taken,
        output=given,
        most=int(largest[0]),
        sample=_sample(taken, opening.preprocessing.size if opening.preprocessing else (int(best[2]), int(best[3]))),
        preprocessing=opening.preprocessing,
        labels=opening.labels,
        parameters=_parameters(document, opening, document.get("source_sha256")),
        notes=(needs,),
    )


def _parameters(told: Mapping[str, Any], opening: Opening, source_sha256: Any) -> dict[str, Any]:
    found = {name: told[name] for name in _KEPT if name in told}
    found |= {"sha256": opening.sha256, "source_sha256": source_sha256, "precision": opening.precision}
    return {name: value for name, value in sorted(found.items()) if value is not None}


def _sample(taken: TensorSpec, usual: tuple[int, int] | None) -> tuple[int, ...] | None:
    channels, *image = taken.shape[1:]
    sizes = (channels, *(usual if usual and None in image else image))
    return None if None in sizes else tuple(int(size) for size in sizes if size is not None)
