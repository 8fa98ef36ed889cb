"""The embedding job: an ONNX file in, one that takes pixels out.

One function, :func:`embed_onnx`; it prints nothing and writes one file, and only after every check has passed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from calibration.graph import Network
from calibration.preprocess import Preprocessing
from exporter.embed_stages import check, embed_stages
from exporter.embedded import KEY, EmbedOptions, taken
from exporter.files import check_output, reserve
from exporter.graph.check import operator_counts
from exporter.picture_inputs import read_pixels
from exporter.quantisation_inputs import contract_of, open_any
from exporter.results import Listener, StageTime
from exporter.stages import timed
from runtimes.errors import GraphError, InputError, ParityError
from runtimes.precision import carried
from runtimes.reading import external_files


@dataclass(frozen=True)
class EmbedInputs:
    """What the job reads.

    Attributes:
        model: ONNX file that takes preprocessed images.
        data: Images to compare on, beside synthetic ones.
        images: How many of ``data`` are sampled; 0: all.
        seed: Of the sample.
        preset: Preprocessing to start from, where not the file's own.
        fields: Fields of the preprocessing that are overridden.
        labels: Class names for the metadata; empty keeps the file's.
    """

    model: Path
    data: Path | None = None
    images: int = 64
    seed: int = 0
    preset: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class EmbedReport:
    """What was made, and the proof.

    Attributes:
        onnx: The file.
        sha256: Of its bytes.
        size: Its bytes.
        how: Where the normalisation went; see :mod:`exporter.graph.embed`.
        options: What was asked for.
        input: Name, element type and shape of the input, and bytes of an image where its size is fixed.
        outputs: Names.
        preprocessing: What is left to the caller.
        network: What the network is fed inside.
        ops: Operator -> number of nodes.
        parity: Rows of the comparison.
        stages: Times.
        notes: What the user should know.
    """

    onnx: Path
    sha256: str
    size: int
    how: str
    options: EmbedOptions
    input: dict[str, Any]
    outputs: tuple[str, ...]
    preprocessing: Preprocessing
    network: Preprocessing
    ops: dict[str, int]
    parity: tuple[dict[str, Any], ...]
    stages: tuple[StageTime, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "bytes": self.size,
            "how": self.how,
            "resize": self.options.resize,
            "output": self.options.output,
            "input": self.input,
            "outputs": list(self.outputs),
            "preprocessing": self.preprocessing.to_json(),
            "embedded": self.network.to_json(),
            "ops": self.ops,
            "parity": list(self.parity),
            "stages": [{"name": s.name, "seconds": round(s.seconds, 3), "note": s.note} for s in self.stages],
            "notes": list(self.notes),
        }


def embed_onnx(
    inputs: EmbedInputs, output: Path, options: EmbedOptions | None = None, listener: Listener | None = None
) -> EmbedReport:
    """Make a file that takes pixels, and prove that it computes the same.

    Args:
        inputs: What is read.
        output: Where the file goes. Nothing is left there, and nothing is lost, when this raises.
        options: What goes into the graph besides the normalisation.
        listener: Hears of each stage.

    Raises:
        ParityError: It computes something else than the file that was given.
        GraphError: The file cannot be read, or cannot take pixels.
        InputError: Options that contradict each other, or no preprocessing.
        DataError: Images that cannot be used.
    """
    options = options or EmbedOptions()
    done: list[StageTime] = []
    stage = partial(timed, listener=listener or Listener(), done=done)
    read = [path for path in (inputs.model, inputs.data) if path is not None]
    check_output(output, [*read, *external_files(inputs.model)])
    with stage("load"):
        network, metadata = open_any(inputs.model)
        if KEY in metadata:
            raise GraphError(f"{inputs.model} has its preprocessing inside already: give the file it was made from")
        contract = contract_of(network, metadata, inputs.preset, inputs.fields)
        check(network.model, contract, options)
        metadata = _labelled(metadata, network, inputs.labels)
        images, remarks = None, tuple[str, ...]()
        if inputs.data is not None:
            images, remarks = read_pixels(inputs.data, contract, inputs.images, inputs.seed)
    with reserve(output) as target:
        try:
            made = embed_stages(
                network.model, contract, options, stage=stage, precision=carried(network.model),
                metadata=metadata, images=images,
            )  # fmt: skip
        except ParityError as error:
            raise ParityError(f"{error}; {target.fate()}", error.rows) from error
        with stage("write") as note:
            sha256 = target.commit(made.data)
            note.append(f"{len(made.data) / 1e6:.1f} MB")
    return EmbedReport(
        onnx=output, sha256=sha256, size=len(made.data), how=made.how, options=options,
        input=made.input(), outputs=made.outputs(),
        preprocessing=taken(contract, options), network=contract, ops=operator_counts(made.model),
        parity=made.rows, stages=tuple(done), notes=(*remarks, *made.notes),
    )  # fmt: skip


def _labelled(metadata: Mapping[str, Any], network: Network, labels: tuple[str, ...]) -> dict[str, Any]:
    if not labels:
        return dict(metadata)
    dims = network.model.graph.output[0].type.tensor_type.shape.dim
    count = dims[-1].dim_value if len(dims) == 2 else 0
    if count and len(labels) != count:
        raise InputError(
            f"--labels has {len(labels)} names, and the model has {count} classes: expected one line per class"
        )
    return {**metadata, "classes": {"count": len(labels), "labels": list(labels)}}
