"""What every model makes of the golden images here, and how far a device may be from it.

What a device computes is held against two arrays: against the reference, "is this still the network?", and for INT8
against the exact integer arithmetic of the same file, "does this runtime compute what the file says?".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from calibration.preprocess import Preprocessing
from exporter.bundle.models import Member
from exporter.proof_inputs import fits
from runtimes.base import Array, Floats
from runtimes.batching import run_padded
from runtimes.errors import GateError, GraphError, InputError
from runtimes.statistics import compare
from runtimes.tolerance import AS_SIMULATED, MADE_FOR, TOLERANCES, Tolerance

#: Runtimes that may run an ONNX file, or an engine; each has rows of its own in the table of tolerances.
RUNTIMES: Final = {
    "onnx": ("onnxruntime", "openvino", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"),
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt-rtx",),
}


@dataclass(frozen=True, eq=False)
class Outputs:
    """What a model makes of the golden inputs.

    Attributes:
        logits: ``[N, classes]`` float32.
        by: What computed them: ``"onnxruntime"``, or ``"int8-sim"`` for INT8, which is exact on every machine.
        tolerances: What each runtime may differ by, and from what.
        measured: How far this machine's ONNX Runtime is from the same arrays.
    """

    logits: Floats
    by: str
    tolerances: tuple[dict[str, Any], ...]
    measured: tuple[dict[str, Any], ...]


def compute_outputs(
    members: Sequence[Member], reference: Member, images: Floats, contract: Preprocessing
) -> dict[str, Outputs]:
    """Run every ONNX model here, and hold it against the reference.

    Args:
        members: The models; they are opened and closed again.
        reference: One of them.
        images: ``[N, C, H, W]`` float32.
        contract: How they were made.

    Returns:
        By the model's id; an engine has the outputs of its network, and bounds of its own.

    Raises:
        GateError: A model does not compute what the reference does, or not what its own file says.
        TensorError: A model takes other images, or tells other classes apart.
    """
    own = [member for member in members if member.source is None]
    ran = {member.id: _on_onnxruntime(member, images, contract) for member in own}
    signal = ran[reference.id]
    if not np.isfinite(signal).all():
        raise GateError(
            f"{reference.file} gives NaN or Inf for a golden image: it cannot be what others are held against"
        )
    found = {member.id: _outputs(member, reference, ran[member.id], signal, images) for member in own}
    for member in members:
        if member.source is not None:
            base = found[member.source.id]
            found[member.id] = replace(base, tolerances=_tolerances(member, base.by, len(images)), measured=())
    return found


def _on_onnxruntime(member: Member, images: Floats, contract: Preprocessing) -> Floats:
    from runtimes.ort import OrtRuntime

    # One thread: the same bundle comes out of every machine of a kind.
    with OrtRuntime(member.file, f"onnxruntime:{member.file}", threads=1, cast_input=True) as runtime:
        with member.opening.runtime:
            fits(member.opening, contract)
        return run_padded(runtime, images)


def _outputs(member: Member, reference: Member, here: Floats, signal: Floats, images: Floats) -> Outputs:
    logits, by = here, "onnxruntime"
    if member.precision == "int8":
        simulated = _simulated(member, images)
        logits, by = (here, by) if simulated is None else (simulated, "int8-sim")
    rows = _tolerances(member, by, len(images))
    measured = []
    for row in rows:
        if row["runtime"] != "onnxruntime" or (member is reference and row["against"] == "reference"):
            continue
        against = signal if row["against"] == "reference" else logits
        stats = compare(against, here)
        passed, finding = bounds_of(row).judge(stats)
        if not passed:
            title = f"the reference {reference.file}" if row["against"] == "reference" else "the simulation of its file"
            raise GateError(f"{member.file} on onnxruntime does not compute what {title} does: {finding}")
        numbers = ("n", "sqnr_db", "decision_sqnr_db", "max_abs", "top1_agreement")
        measured.append(
            {"runtime": "onnxruntime", "against": row["against"], **{name: getattr(stats, name) for name in numbers}}
        )
    return Outputs(logits, by, rows, tuple(measured))


def _simulated(member: Member, images: Floats) -> Floats | None:
    """In exact integer arithmetic; ``None`` for a file of somebody else's that cannot be simulated."""
    from runtimes.int8_sim import Int8SimRuntime

    try:
        with Int8SimRuntime(member.file, f"int8-sim:{member.file}") as runtime:
            return run_padded(runtime, images)
    except GraphError:
        return None


def _tolerances(member: Member, by: str, count: int) -> tuple[dict[str, Any], ...]:
    """Rows of the table for every runtime that may run the model, against the reference and against its golden."""
    precisions = [member.precision]
    if member.precision == "fp32" and member.kind == "onnx":
        precisions += ["tf32", "fp16"]  # an engine of the same file may be built in these
    rows = []
    for runtime in RUNTIMES[member.kind]:
        for precision in precisions:
            if (runtime, precision) in TOLERANCES:
                rows.append(_row("reference", runtime, precision, TOLERANCES[runtime, precision], count))
        # The scales of a calibration cache are not those of the Q/DQ that the golden was computed with.
        if by == "int8-sim" and member.precision == "int8" and not member.provenance.get("calibration"):
            bounds = AS_SIMULATED[runtime in MADE_FOR.get(member.network.target, set())]
            rows.append(_row("golden", runtime, "int8", bounds, count))
    if not rows:
        raise InputError(f"{member.file} is {member.precision}, and no tolerance is known for that: leave it out")
    return tuple(rows)


def _row(against: str, runtime: str, precision: str, bounds: Tolerance, count: int) -> dict[str, Any]:
    return {"against": against, "runtime": runtime, "precision": precision, **for_few(bounds, count).to_json()}


def for_few(bounds: Tolerance, count: int) -> Tolerance:
    """A bound on agreement that one image alone cannot break.

    Args:
        bounds: A row of the table, whose fractions are of many images.
        count: Images that it is used on.
    """
    if bounds.min_top1 is None:
        return bounds
    least = max(int(bounds.min_top1 * count) - 1, 0) / count
    told = f"Of {count} images one more may change than the table's fraction says, so that one cannot decide."
    return replace(bounds, min_top1=least, reason=f"{bounds.reason} {told}")


def bounds_of(row: Mapping[str, Any]) -> Tolerance:
    """The bounds of a manifest's row."""
    names = ("min_sqnr_db", "min_decision_db", "max_ulp", "min_top1", "reason")
    return Tolerance(**{name: row[name] for name in names})


def judge_rows(
    rows: Iterable[Mapping[str, Any]], runtime: str, precision: str, outputs: Floats, signals: Mapping[str, Array]
) -> list[dict[str, Any]]:
    """Hold outputs against every golden that there are bounds for.

    Args:
        rows: Of a manifest's model.
        runtime: That computed the outputs.
        precision: In which it did.
        outputs: ``[N, classes]``.
        signals: The arrays by what a row calls them, ``[N, classes]`` each.

    Raises:
        TensorError: The outputs have another shape.
    """
    results = []
    for row in rows:
        if (row["runtime"], row["precision"]) == (runtime, precision):
            stats = compare(signals[row["against"]], outputs)
            passed, finding = bounds_of(row).judge(stats)
            results.append({"against": row["against"], "passed": passed, "finding": finding or None, **stats.to_json()})
    return results
