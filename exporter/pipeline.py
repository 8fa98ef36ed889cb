"""The main job: a model -> folded, exported, simplified, proven ONNX.

One function, :func:`export_onnx`; it prints nothing and writes one file, and only after every check has passed::

    original ─▶ folded ─▶ onnx ─▶ simplified ─▶ fp16
        └────────┴─────────┴──────────┴─────────┘    each against the first, and against the one before it
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx

from exporter.diagnose import explain_fold
from exporter.files import Output, reserve
from exporter.graph.capture import Captured, InputShape, capture
from exporter.graph.check import operator_counts, structural_faults
from exporter.graph.export import Exporter, export
from exporter.graph.fold import FoldResult, fold
from exporter.graph.metadata import tool_versions, write_metadata
from exporter.graph.peaks import with_peaks
from exporter.graph.precision import FP16_MAX, to_fp16
from exporter.graph.simplify import simplify
from exporter.inputs import Images, comparison_batches
from exporter.models.source import LoadedModel
from exporter.results import Listener, OnnxOptions, OnnxReport, StageTime
from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, InputError, ParityError, ResnetExportError, TensorError
from runtimes.ort import OrtRuntime
from runtimes.parity import InputBatch, ParityChain, StageResult, culprit
from runtimes.statistics import compare
from runtimes.tolerance import tolerance_for

_PROBABILITIES = frozenset({"Softmax", "LogSoftmax", "Sigmoid"})
_EXPORTERS: tuple[Exporter, ...] = ("torch.export", "torchscript")


@dataclass
class _Job:
    """The state of one run of the pipeline; lives inside :func:`export_onnx` only."""

    loaded: LoadedModel
    options: OnnxOptions
    listener: Listener
    shape: InputShape
    batches: Sequence[InputBatch]
    chain: ParityChain = field(default_factory=ParityChain)
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what the body puts into the list becomes its note."""
        self.listener.started(name)
        note: list[str] = []
        begin = time.perf_counter()
        yield note
        self.stages.append(StageTime(name, time.perf_counter() - begin, ", ".join(note)))
        self.listener.finished(self.stages[-1])


class _Candidate(NamedTuple):
    """A graph that passed its checks, and the very bytes that passed them."""

    model: onnx.ModelProto
    data: bytes
    exporter: str


def export_onnx(
    loaded: LoadedModel,
    output: Path,
    options: OnnxOptions | None = None,
    images: Images | None = None,
    listener: Listener | None = None,
    earlier: Sequence[StageTime] = (),
) -> OnnxReport:
    """Make an ONNX file of a model, and prove that it computes the same.

    Args:
        loaded: The model; untouched.
        output: Where the file goes. Nothing is left there, and nothing is lost, when this raises.
        options: What the file is to be.
        images: Preprocessed images ``[N, C, H, W]`` float32 that every stage is compared on, beside synthetic ones.
        listener: Hears of each stage.
        earlier: Stages that the caller has done, for the report.

    Returns:
        What was made, and the rows of the proof.

    Raises:
        ParityError: A stage computes something else than the model; it is named, and no file is left at ``output``.
        GraphError: The network cannot be captured or written as asked.
        InputError: Options that contradict each other, or an output that cannot be written.
    """
    options = options or OnnxOptions()
    options.check()
    shape = InputShape(loaded.in_channels, *loaded.size, options.batch, options.dynamic_size)
    with reserve(output) as target:
        job = _Job(loaded, options, listener or Listener(), shape, comparison_batches(loaded, shape, images))
        job.notes.extend(loaded.notes)
        job.stages.extend(earlier)
        if images is not None and len(images) % (options.batch or 1):
            rest = len(images) % (options.batch or 1)
            job.notes.append(f"{rest} of the images do not fill a batch of {options.batch} and are not compared")
        try:
            return _run(job, target)
        except ParityError as error:
            try:
                kept = target.retire()
                fate = f"an earlier file is kept as {kept}" if kept else "no file is written"
            except InputError as stuck:
                fate = f"and the earlier file is still there: {stuck}"
            raise ParityError(f"{error}; {fate}", error.rows) from error


def _run(job: _Job, target: Output) -> OnnxReport:
    with job.stage("capture") as note:
        captured = capture(job.loaded.module, job.shape)
        note.append(f"{sum(node.op == 'call_function' for node in captured.module.graph.nodes)} operators")
    _check_labels(job.options.labels, captured)
    with job.stage("fold") as note:
        folded = fold(captured)
        note.append(f"{len(folded.rows)} BatchNorms folded" + (f", {len(folded.refused)} kept" * bool(folded.refused)))
        job.notes.extend(f"{row.norm} is not folded: {row.reason}" for row in folded.refused)
    _prove_fold(job, captured, folded)
    candidate = _export(job, folded)
    simplified = _simplify(job, folded, candidate) if job.options.simplify else None
    final = simplified or candidate
    if job.options.precision == "fp16":
        final = _halve(job, folded, final)
    _report_merged(job, folded, final)
    if final.model.graph.node[-1].op_type in _PROBABILITIES:
        job.notes.append(f"the network ends in {final.model.graph.node[-1].op_type}: what is called logits is not raw")
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


def _prove_fold(job: _Job, captured: Captured, folded: FoldResult) -> None:
    tolerance = tolerance_for("eager", "fp32")
    with job.stage("parity: folded") as note:
        original = job.chain.measure("original", EagerRuntime(job.loaded.module, "original"), tolerance, job.batches)
        _require_repeatable(job, original)
        job.chain.accept(original)
        result = job.chain.measure("folded", EagerRuntime(folded.captured.module, "folded"), tolerance, job.batches)
        try:
            _require(job, result)
        except ParityError as error:
            failed = next(row for row in result.rows if not row.passed)
            images = job.batches[result.rows.index(failed) % len(job.batches)].images[: 2 * failed.batch]
            why = explain_fold(captured, folded.captured, images) if folded.rows else ""
            raise ParityError(f"{error}; {why}" if why else str(error), error.rows) from None
        note.append(_worst(result))


def _require_repeatable(job: _Job, original: StageResult) -> None:
    """A network that draws random numbers, or says the same of every image, proves nothing by agreeing with itself."""
    with EagerRuntime(job.loaded.module, "original again") as runtime:
        again = job.batches[0].run(runtime)
    passed, _ = tolerance_for("eager", "fp32").judge(compare(original.outputs[0], again))
    if not passed:
        raise GraphError(
            f"{job.loaded.name} gives other logits when it is run again on the same images: it draws random numbers "
            "(dropout or noise in forward), and cannot be compared with anything; make it deterministic in eval()"
        )
    logits = np.concatenate(original.outputs)
    if len(logits) > 1 and not np.ptp(logits, axis=0).any():
        raise ParityError(
            f"{job.loaded.name} gives the same logits for every image: no comparison can tell a right file from a "
            "wrong one; check its weights"
        )


def _require(job: _Job, result: StageResult) -> None:
    """Accept a stage, or end the run with the stage that broke the model."""
    if not result.passed:
        rows = [*job.chain.rows, *result.rows]
        worst = next(row for row in rows if not row.passed and row.stage == culprit(rows))
        raise ParityError(
            f"stage '{worst.stage}' does not compute what '{worst.reference}' does: {worst.finding} "
            f"({worst.inputs} images, batch {worst.batch})",
            [row.to_json() for row in rows],
        )
    job.chain.accept(result)


def _worst(result: StageResult) -> str:
    return f"{min(row.sqnr_db for row in result.rows):.0f} dB" if result.rows else ""


def _export(job: _Job, folded: FoldResult) -> _Candidate:
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


def _export_by(job: _Job, folded: FoldResult, exporter: Exporter) -> _Candidate:
    with job.stage("export") as note:
        model = export(folded.captured, job.options.opset, exporter)
        write_metadata(model, _metadata(job, folded, exporter))
        note.append(f"{len(model.graph.node)} nodes, {exporter}")
    with job.stage("parity: onnx") as note:
        candidate = _Candidate(model, _sound_bytes(job, folded, model, "onnx"), exporter)
        result = _measure(job, "onnx", candidate.data, "fp32")
        _require(job, result)
        note.append(_worst(result))
    return candidate


def _sound_bytes(job: _Job, folded: FoldResult, model: onnx.ModelProto, stage: str) -> bytes:
    """The file's bytes, if its structure is what was asked for."""
    half_io = stage == "fp16" and job.options.fp16_io
    faults = structural_faults(
        model,
        job.shape,
        job.options.opset,
        len(folded.refused),
        classes=folded.captured.classes,
        io_type=onnx.TensorProto.FLOAT16 if half_io else onnx.TensorProto.FLOAT,
    )
    if faults:
        raise ParityError(f"stage '{stage}' is not what was asked for: {'; '.join(faults)}")
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def _measure(job: _Job, stage: str, data: bytes, precision: str) -> StageResult:
    runtime = OrtRuntime(data, stage, cast_input=job.options.fp16_io)
    try:
        return job.chain.measure(stage, runtime, tolerance_for("onnxruntime", precision), job.batches)
    except TensorError as error:  # of our own file: it takes or gives another shape than the model does
        raise ParityError(f"stage '{stage}' does not compute what the model does: {error}") from error


def _simplify(job: _Job, folded: FoldResult, candidate: _Candidate) -> _Candidate | None:
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
            data = _sound_bytes(job, folded, result.model, "simplified")
            measured = _measure(job, "simplified", data, "fp32")
        except (GraphError, ParityError) as error:
            job.notes.append(f"the simplified graph is not used: {error}")
            return None
        if not measured.passed:
            finding = next(row.finding for row in measured.rows if not row.passed)
            job.notes.append(f"the simplified graph is not used: it computes something else ({finding})")
            return None
        job.chain.accept(measured)
        note.append(_worst(measured))
    return candidate._replace(model=result.model, data=data)


def _halve(job: _Job, folded: FoldResult, candidate: _Candidate) -> _Candidate:
    with job.stage("fp16 range") as note:
        note.append(_check_range(job, candidate))
    with job.stage("fp16") as note:
        half = to_fp16(candidate.model, keep_io=not job.options.fp16_io)
        note.append(f"weights rounded by at most {half.worst_relative:.1e}")
        if half.underflows:
            job.notes.append(f"{half.underflows} weights are too small for FP16 and became 0")
    with job.stage("parity: fp16") as note:
        data = _sound_bytes(job, folded, half.model, "fp16")
        result = _measure(job, "fp16", data, "fp16")
        _require(job, result)
        note.append(_worst(result))
    return candidate._replace(model=half.model, data=data)


def _check_range(job: _Job, candidate: _Candidate) -> str:
    """Refuse a network whose activations FP16 cannot hold: no CPU kernel would show it, and every device would."""
    probe = with_peaks(candidate.model)
    with OrtRuntime(probe.model.SerializeToString(), "fp16 range") as runtime:
        peaks = np.concatenate([batch.run(runtime) for batch in job.batches]).max(axis=0)
    # -Inf pads a MaxPool, and FP16 has it too; what the network itself makes infinite, parity finds.
    beyond = np.flatnonzero(np.isfinite(peaks) & (peaks > FP16_MAX))
    if beyond.size:
        first = int(beyond[0])
        raise ParityError(
            f"stage 'fp16': {probe.tensors[first]} reaches {peaks[first]:.3g}, and FP16 ends at {FP16_MAX:g}: "
            "it would be Inf on a device; export --precision fp32, or build the engine with BF16",
            [row.to_json() for row in job.chain.rows],
        )
    largest = int(np.where(np.isfinite(peaks), peaks, 0).argmax())
    return f"largest activation {peaks[largest]:.3g} in {probe.tensors[largest]}"


def _report_merged(job: _Job, folded: FoldResult, final: _Candidate) -> None:
    """An exporter may do by itself what the fold would not; parity has held, but the user is told one thing only."""
    left = operator_counts(final.model).get("BatchNormalization", 0)
    if left < len(folded.refused):
        job.notes.append(
            f"of the {len(folded.refused)} BatchNorms that were not folded, the exporter merged some: {left} are left"
        )


def _metadata(job: _Job, folded: FoldResult, exporter: str) -> dict[str, Any]:
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


def _report(job: _Job, path: Path, sha256: str, folded: FoldResult, final: _Candidate, simplified: bool) -> OnnxReport:
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
        parity=tuple(row.to_json() for row in job.chain.rows),
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
    )
