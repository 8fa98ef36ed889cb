"""From a file that takes preprocessed images to one that takes pixels: made, proven, described.

::

    file ─▶ embedded ─▶ resize ─▶ outputs ─▶ bytes          each proven before the next
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, Final

import onnx

from calibration.graph import Network
from calibration.preprocess import Preprocessing
from exporter.embed_proof import STAGE, Pixels, pixel_batches, prove_head, prove_pixels, prove_resize
from exporter.embedded import EmbedOptions, described
from exporter.graph.embed import Embedded, check_embeddable, embed
from exporter.graph.embed_resize import check_resizable, embed_resize
from exporter.graph.head import check_head, with_head
from exporter.graph.metadata import write_metadata
from exporter.graph.rewrite import image_input
from runtimes.base import Runtime
from runtimes.errors import ParityError, first_line
from runtimes.ort import OrtRuntime
from runtimes.parity import InputBatch
from runtimes.precision import Precision
from runtimes.tolerance import AS_SIMULATED, Tolerance, tolerance_for

#: Times a stage; what is put into the list becomes its note.
Stage = Callable[[str], AbstractContextManager[list[str]]]

_BATCHES: Final = (1, 7)
_SIDE: Final = 64  # of pictures for a network that takes any
_RUN: Final = 16


@dataclass(frozen=True)
class Made:
    """A file that takes pixels, and the proof.

    Attributes:
        model: The file.
        data: Its bytes.
        how: Where the normalisation went; see :mod:`exporter.graph.embed`.
        rows: Of the comparison, JSON-ready.
        notes: What the user should know.
    """

    model: onnx.ModelProto
    data: bytes
    how: str
    rows: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def input(self) -> dict[str, Any]:
        """Name, element type and shape of the input; bytes of one image, where they are fixed."""
        item = image_input(self.model)
        dims = item.type.tensor_type.shape.dim
        shape = [dim.dim_value if dim.HasField("dim_value") else None for dim in dims]
        sides = [side for side in shape[1:] if side is not None]
        return {
            "name": item.name,
            "dtype": "uint8",
            "layout": "NHWC",
            "shape": shape,
            "bytes_per_image": math.prod(sides) if len(sides) == len(shape) - 1 else None,
        }

    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return tuple(item.name for item in self.model.graph.output)

    def to_json(self) -> dict[str, Any]:
        """What is told of it beside the rows and notes."""
        return {"how": self.how, "input": self.input(), "outputs": list(self.outputs())}


def check(model: onnx.ModelProto, contract: Preprocessing, options: EmbedOptions) -> None:
    """Refuse what cannot be made, before any long work.

    Raises:
        GraphError: The model cannot take pixels, or has no such outputs.
        InputError: Options that contradict the contract or the model.
    """
    network = Network(model, "")
    check_embeddable(network, contract)
    if options.resize:
        check_resizable(network.opset, contract)
    check_head(model, options.softmax, options.top_k)


def embed_stages(
    model: onnx.ModelProto,
    contract: Preprocessing,
    options: EmbedOptions,
    *,
    stage: Stage,
    precision: Precision,
    metadata: Mapping[str, Any],
    original: Runtime | None = None,
    images: Pixels | None = None,
) -> Made:
    """Make and prove the file.

    Args:
        model: Takes preprocessed images; unchanged.
        contract: How pixels become those.
        options: What goes into the graph besides.
        stage: Times each part.
        precision: What the model computes in.
        metadata: Of the model, by name without prefix.
        original: The network that the model was made of, held against too.
        images: Pixels ``[N, h, w, C]`` to compare on beside synthetic ones.

    Raises:
        ParityError: A part computes something else.
        GraphError, InputError: As :func:`check`.
    """
    check(model, contract, options)
    with stage("embed") as note:
        made = embed(model, contract)
        note.append(_HOW[made.how])
    rows, logits, first = _prove(model, made, contract, precision, stage, original, images)
    notes = [f"the normalisation is {_HOW[made.how]}: {made.reason}"] if made.how == "nodes" else []
    result = made.model
    if options.softmax or options.top_k is not None:
        with stage("parity: outputs") as note:
            result = with_head(result, options.softmax, options.top_k)
            prove_head(result, logits, first, options.softmax, options.top_k)
            note.append(options.output)
    if options.resize:
        with stage("parity: resize") as note:
            result = embed_resize(result, contract)
            said = prove_resize(result, contract)
            note.append(said)
        notes.append(
            f"the resize in the graph is {said}; TensorRT does not take it, and OpenVINO leaves the antialias out"
        )
    write_metadata(result, {**metadata, **described(contract, options, made.how)})
    try:
        onnx.checker.check_model(result, full_check=True)
    except Exception as error:  # ValidationError, InferenceError and RuntimeError
        raise ParityError(f"stage '{STAGE}' is not valid ONNX: {first_line(error)}") from error
    return Made(result, result.SerializeToString(deterministic=True), made.how, rows, tuple(notes))


_HOW: Final = {
    "convolution": "in the first convolution",
    "shifted": "in the first convolution, behind one subtraction",
    "nodes": "two nodes before the network",
    "lattice": "left out: pixels are what the quantised input holds",
}


def _prove(
    model: onnx.ModelProto,
    made: Embedded,
    contract: Preprocessing,
    precision: Precision,
    stage: Stage,
    original: Runtime | None,
    images: Pixels | None,
) -> tuple[tuple[dict[str, Any], ...], Any, Pixels]:
    """The rows, and the logits of the first batch of pixels."""
    with stage(f"parity: {STAGE}") as note:
        batches = _batches(model, contract, images)
        before = OrtRuntime(model.SerializeToString(), "preprocessed images", cast_input=True)
        models = [before] if original is None else [original, before]
        data = made.model.SerializeToString()
        found = prove_pixels(models, data, contract, batches, tolerance(precision, made.how))
        note.append(f"{min(row.sqnr_db for row in found.rows):.0f} dB")
    return tuple(row.to_json() for row in found.rows), found.outputs[0], batches[0].images


def tolerance(precision: Precision, how: str) -> Tolerance:
    """What the pixels may change.

    Args:
        precision: Of the model.
        how: Where the normalisation went.
    """
    if precision != "int8":
        return tolerance_for("onnxruntime", precision)
    if how == "lattice":
        same = tolerance_for("onnxruntime", "fp32")
        return replace(
            same, reason="The integers of the input are the same, and so is all that follows. " + same.reason
        )
    return AS_SIMULATED[True]


def _batches(model: onnx.ModelProto, contract: Preprocessing, images: Pixels | None) -> list[InputBatch]:
    dims = image_input(model).type.tensor_type.shape.dim
    batch, _, height, width = (
        dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims
    )
    usual = contract.size or (_SIDE, _SIDE)
    shape = (height or usual[0], width or usual[1], contract.channels)
    found = pixel_batches((batch,) if batch else _BATCHES, shape)
    whole = 0 if images is None else len(images) - len(images) % (batch or 1)
    if images is not None and whole:
        found.append(InputBatch("images", images[:whole], batch or min(_RUN, whole)))
    return found
