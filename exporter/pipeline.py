"""The main job: a model -> folded, exported, simplified, proven ONNX.

One function, :func:`export_onnx`; it prints nothing and writes one file, and only after every check has passed::

    original ─▶ folded ─▶ onnx ─▶ simplified ─▶ fp16
        └────────┴─────────┴──────────┴─────────┘    each against the first, and against the one before it
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exporter.embed_proof import Pixels
from exporter.embed_stages import embed_stages
from exporter.embedded import EmbedOptions
from exporter.files import Output, reserve
from exporter.graph.capture import Captured, InputShape, capture
from exporter.graph.check import operator_counts
from exporter.graph.embed_resize import check_resizable
from exporter.graph.export import Exporter, export
from exporter.graph.fold import FoldResult, fold
from exporter.graph.metadata import read_metadata, tool_versions, write_metadata
from exporter.graph.precision import to_fp16
from exporter.graph.simplify import simplify
from exporter.inputs import Images, comparison_batches
from exporter.job import Candidate, Job
from exporter.models.source import LoadedModel
from exporter.proof import check_range, measure, prove_fold, require, sound_bytes, worst
from exporter.results import Listener, OnnxOptions, OnnxReport, StageTime
from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, InputError, ParityError, ResnetExportError

_PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")


def export_onnx(
    loaded: LoadedModel,
    output: Path,
    options: OnnxOptions | None = None,
    images: Images | None = None,
    listener: Listener | None = None,
    earlier: Sequence[StageTime] = (),
    pixels: Pixels | None = None,
) -> OnnxReport:
    """Make an ONNX file of a model, and prove that it computes the same.

    Args:
        loaded: The model; untouched.
        output: Where the file goes. Nothing is left there, and nothing is lost, when this raises.
        options: What the file is to be.
        images: Preprocessed images ``[N, C, H, W]`` float32 that every stage is compared on, beside synthetic ones.
        listener: Hears of each stage.
        earlier: Stages that the caller has done, for the report.
        pixels: The images before their normalisation, uint8 ``[N, H, W, C]``, where a file that takes pixels is made.

    Returns:
        What was made, and the rows of the proof.

    Raises:
        ParityError: A stage computes something else than the model; it is named, and no file is left at ``output``.
        GraphError: The network cannot be captured or written as asked.
        InputError: Options that contradict each other, or an output that cannot be written.
    """
    options = options or OnnxOptions()
    options.check()
    if options.embed is not None and options.embed.resize:
        check_resizable(options.opset, loaded.preprocessing)
    shape = InputShape(loaded.in_channels, *loaded.size, options.batch, options.dynamic_size)
    with reserve(output) as target:
        job = Job(loaded, options, listener or Listener(), shape, comparison_batches(loaded, shape, images))
        job.notes.extend(loaded.notes)
        job.pixels = pixels
        job.stages.extend(earlier)
        if images is not None and len(images) % (options.batch or 1):
            rest = len(images) % (options.batch or 1)
            job.notes.append(f"{rest} of the images do not fill a batch of {options.batch} and are not compared")
        try:
            return _run(job, target)
        except ParityError as error:
            raise ParityError(f"{error}; {target.fate()}", error.rows) from error


def _run(job: Job, target: Output) -> OnnxReport:
    with job.stage("capture") as note:
        captured = capture(job.loaded.module, job.shape)
        note.append(f"{sum(node.op == 'call_function' for node in captured.module.graph.nodes)} operators")
    _check_labels(job.options.labels, captured)
    with job.stage("fold") as note:
        folded = fold(captured)
        note.append(f"{len(folded.rows)} BatchNorms folded" + (f", {len(folded.refused)} kept" * bool(folded.refused)))
        job.notes.extend(f"{row.norm} is not folded: {row.reason}" for row in folded.refused)
    prove_fold(job, captured, folded)
    candidate = _export(job, folded)
    simplified = _simplify(job, folded, candidate) if job.options.simplify else None
    final = simplified or candidate
    last = final.model.graph.node[-1].op_type
    if last in _PROBABILITIES:
        job.notes.append(f"the network ends in {last}: what is called logits is not raw")
    if job.options.precision == "fp16":
        final = _halve(job, folded, final)
    _report_merged(job, folded, final)
    if job.options.embed is not None:
        final = _embed(job, final, job.options.embed)
    with job.stage("write") as note:
        sha256 = target.commit(final.data)
        note.append(f"{len(final.data) / 1e6:.1f} MB")
    return _report(job, target.path, sha256, folded, final, simplified is not None)


def _check_labels(labels: tuple[str, ...], captured: Captured) -> None:
    classes = captured.classes
    if labels and len(labels) != classes:
        raise InputError(
            f"--labels has {len(labels)} names, and the model has {classes} classes: expected one line per class"
        )


def _export(job: Job, folded: FoldResult) -> Candidate:
    """The first exporter whose file passes every check; the reasons of the others become notes."""
    wanted = job.options.exporter
    failures: list[ResnetExportError] = []
    for exporter in _EXPORTERS if wanted == "auto" else (wanted,):
        try:
            candidate = _export_by(job, folded, exporter)
        except (GraphError, ParityError) as error:
            failures.append(error)
            continue
        job.notes.extend(f"the {exporter} exporter was used instead of the newer one: {error}" for error in failures)
        return candidate
    # The newer exporter's reason is the one to mend; the older one was only tried because of it.
    raise failures[0]


def _export_by(job: Job, folded: FoldResult, exporter: Exporter) -> Candidate:
    with job.stage("export") as note:
        model = export(folded.captured, job.options.opset, exporter)
        write_metadata(model, _metadata(job, folded, exporter))
        note.append(f"{len(model.graph.node)} nodes, {exporter}")
    with job.stage("parity: onnx") as note:
        candidate = Candidate(model, sound_bytes(job, folded, model, "onnx"), exporter)
        result = measure(job, "onnx", candidate.data, "fp32")
        require(job, result)
        note.append(worst(result))
    return candidate


def _simplify(job: Job, folded: FoldResult, candidate: Candidate) -> Candidate | None:
    """Onnxsim's graph if it is proven equal, else ``None`` and a note."""
    with job.stage("simplify") as note:
        result = simplify(candidate.model)
        removed = ", ".join(f"{count} {op}" for op, count in result.removed.items())
        note.append(result.reason or (f"removed {removed}" if removed else "nothing to remove"))
    if result.model is None:
        job.notes.append(f"the simplified graph is not used: {result.reason}")
        return None
    with job.stage("parity: simplified") as note:
        try:
            data = sound_bytes(job, folded, result.model, "simplified")
            measured = measure(job, "simplified", data, "fp32")
        except (GraphError, ParityError) as error:
            job.notes.append(f"the simplified graph is not used: {error}")
            return None
        if not measured.passed:
            finding = next(row.finding for row in measured.rows if not row.passed)
            job.notes.append(f"the simplified graph is not used: it computes something else ({finding})")
            return None
        job.chain.accept(measured)
        note.append(worst(measured))
    return candidate._replace(model=result.model, data=data)


def _halve(job: Job, folded: FoldResult, candidate: Candidate) -> Candidate:
    with job.stage("fp16 range") as note:
        note.append(check_range(job, candidate))
    with job.stage("fp16") as note:
        half = to_fp16(candidate.model, keep_io=not job.options.fp16_io)
        note.append(f"weights rounded by at most {half.worst_relative:.1e}")
        if half.underflows:
            job.notes.append(f"{half.underflows} weights are too small for FP16 and became 0")
    with job.stage("parity: fp16") as note:
        data = sound_bytes(job, folded, half.model, "fp16")
        result = measure(job, "fp16", data, "fp16")
        require(job, result)
        note.append(worst(result))
    return candidate._replace(model=half.model, data=data)


def _embed(job: Job, candidate: Candidate, options: EmbedOptions) -> Candidate:
    contract = job.loaded.preprocessing
    made = job.made = embed_stages(
        candidate.model, contract, options, stage=job.stage, precision=job.options.precision,
        metadata=read_metadata(candidate.model), images=job.pixels,
        original=EagerRuntime(job.loaded.module, "original"),
    )  # fmt: skip
    job.notes.extend(made.notes)
    return candidate._replace(model=made.model, data=made.data)


def _report_merged(job: Job, folded: FoldResult, final: Candidate) -> None:
    """An exporter may do by itself what the fold would not; parity has held, but the user is told one thing only."""
    left = operator_counts(final.model).get("BatchNormalization", 0)
    if left < len(folded.refused):
        job.notes.append(
            f"of the {len(folded.refused)} BatchNorms that were not folded, the exporter merged some: {left} are left"
        )


def _metadata(job: Job, folded: FoldResult, exporter: str) -> dict[str, Any]:
    loaded = job.loaded
    return {
        "architecture": loaded.blueprint.to_json() if loaded.blueprint else {"name": loaded.name},
        "classes": {"count": folded.captured.classes, "labels": list(job.options.labels)},
        "preprocessing": loaded.preprocessing.to_json(),
        "preprocessing_sha256": loaded.preprocessing.sha256(),
        "source_sha256": loaded.sha256,
        "precision": job.options.precision,
        "folded": len(folded.rows),
        "exporter": exporter,
        "tools": tool_versions(),
    }


def _report(job: Job, path: Path, sha256: str, folded: FoldResult, final: Candidate, simplified: bool) -> OnnxReport:
    blueprint = job.loaded.blueprint
    return OnnxReport(
        onnx=path,
        sha256=sha256,
        size=len(final.data),
        opset=job.options.opset,
        precision=job.options.precision,
        ops=operator_counts(final.model),
        fold=folded,
        exporter=final.exporter,
        simplified=simplified,
        stages=tuple(job.stages),
        parity=(*(row.to_json() for row in job.chain.rows), *(job.made.rows if job.made else ())),
        model={
            "name": job.loaded.name,
            "kind": job.loaded.kind,
            "family": blueprint.family if blueprint else None,
            "depth": blueprint.depth if blueprint else None,
            "shortcut_option": blueprint.shortcut_option if blueprint else None,
            "classes": folded.captured.classes,
            "input": str(job.shape),
            "preprocessing": job.loaded.preprocessing.to_json(),
            "source_sha256": job.loaded.sha256,
        },
        notes=tuple(job.notes),
        embedded=job.made.to_json() if job.made else None,
    )
