"""The checks that stand between the stages of the main job; each raises, or lets the job go on."""

from __future__ import annotations

import numpy as np
import onnx

from exporter.diagnose import explain_fold
from exporter.graph.capture import Captured
from exporter.graph.check import structural_faults
from exporter.graph.fold import FoldResult
from exporter.graph.peaks import with_peaks
from exporter.graph.precision import FP16_MAX
from exporter.job import Candidate, Job
from runtimes.eager import EagerRuntime
from runtimes.errors import GraphError, ParityError, TensorError
from runtimes.ort import OrtRuntime
from runtimes.parity import StageResult, culprit
from runtimes.statistics import compare
from runtimes.tolerance import tolerance_for


def prove_fold(job: Job, captured: Captured, folded: FoldResult) -> None:
    """Hold the folded graph against the module itself.

    Raises:
        ParityError: They differ; says whether the fold or the network's conditioning is to blame.
        GraphError: The module does not even agree with itself.
    """
    tolerance = tolerance_for("eager", "fp32")
    with job.stage("parity: folded") as note:
        original = job.chain.measure("original", EagerRuntime(job.loaded.module, "original"), tolerance, job.batches)
        _require_repeatable(job, original)
        job.chain.accept(original)
        result = job.chain.measure("folded", EagerRuntime(folded.captured.module, "folded"), tolerance, job.batches)
        try:
            require(job, result)
        except ParityError as error:
            failed = next(row for row in result.rows if not row.passed)
            images = job.batches[result.rows.index(failed) % len(job.batches)].images[: 2 * failed.batch]
            why = explain_fold(captured, folded.captured, images) if folded.rows else ""
            raise ParityError(f"{error}; {why}" if why else str(error), error.rows) from None
        note.append(worst(result))


def _require_repeatable(job: Job, original: StageResult) -> None:
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


def require(job: Job, result: StageResult) -> None:
    """Accept a stage, or end the run with the stage that broke the model."""
    if not result.passed:
        rows = [*job.chain.rows, *result.rows]
        failed = next(row for row in rows if not row.passed and row.stage == culprit(rows))
        raise ParityError(
            f"stage '{failed.stage}' does not compute what '{failed.reference}' does: {failed.finding} "
            f"({failed.inputs} images, batch {failed.batch})",
            [row.to_json() for row in rows],
        )
    job.chain.accept(result)


def worst(result: StageResult) -> str:
    """The smallest SQNR of a stage, for its line."""
    return f"{min(row.sqnr_db for row in result.rows):.0f} dB" if result.rows else ""


def sound_bytes(job: Job, folded: FoldResult, model: onnx.ModelProto, stage: str) -> bytes:
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


def measure(job: Job, stage: str, data: bytes, precision: str) -> StageResult:
    """Run a file's bytes on ONNX Runtime beside the stages before it.

    Raises:
        ParityError: It takes or gives other shapes than the model.
        GraphError: ONNX Runtime cannot load or run it.
    """
    runtime = OrtRuntime(data, stage, cast_input=job.options.fp16_io)
    try:
        return job.chain.measure(stage, runtime, tolerance_for("onnxruntime", precision), job.batches)
    except TensorError as error:  # of our own file: it takes or gives another shape than the model does
        raise ParityError(f"stage '{stage}' does not compute what the model does: {error}") from error


def check_range(job: Job, candidate: Candidate) -> str:
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
