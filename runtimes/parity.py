"""Whether the stages of one model still compute the same, and which one broke it if not.

Each stage is held against the first (is the result still right?) and against its predecessor (did *this*
step do it?). The caller decides what becomes of a stage::

    chain = ParityChain()
    chain.add("checkpoint", eager, tolerance, batches)   # the reference: no rows
    result = chain.measure("simplified", simplified, tolerance, batches)
    if result.passed:
        chain.accept(result)                             # else the chain goes on as if nothing had been tried

Memory does not grow with the number of stages: outputs are kept of the first and of the latest one.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from runtimes.base import Array, Floats, Runtime
from runtimes.errors import ParityError, TensorError
from runtimes.misplaced import misplaced
from runtimes.statistics import compare
from runtimes.tolerance import Tolerance


@dataclass(frozen=True, eq=False)
class InputBatch:
    """Images that every stage is run on.

    Attributes:
        label: Where they come from: ``"synthetic"`` or ``"images"``.
        images: ``[N, C, H, W]``, N ≥ 1, in the element type that the models take.
        batch: Images per run, at least 1. The last run is shorter where N is no multiple of it.

    Raises TensorError for other ``images``, and ValueError for a ``batch`` below 1.
    """

    label: str
    images: Array
    batch: int

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or not len(self.images):
            received = list(self.images.shape)
            raise TensorError(f"{self.label}: received {received}, expected [N, C, H, W] with N ≥ 1")
        if self.batch < 1:
            raise ValueError(f"{self.label}: received {self.batch} images per run, expected at least 1")

    def fingerprint(self) -> str:
        """Sha256 over everything that makes two runs comparable: label, run size, dtype, shape, content."""
        head = f"{self.label} {self.batch} {self.images.dtype.str} {self.images.shape}\n"
        digest = hashlib.sha256(head.encode())
        digest.update(np.ascontiguousarray(self.images).data)
        return digest.hexdigest()

    def run(self, runtime: Runtime) -> Floats:
        """All images through an open runtime, ``batch`` at a time: ``[N, classes]`` float32."""
        starts = range(0, len(self.images), self.batch)
        return np.concatenate([runtime.run(self.images[start : start + self.batch]) for start in starts])


@dataclass(frozen=True)
class ParityRow:
    """One stage held against one other on one set of inputs.

    Attributes:
        stage: Name of the stage that is judged.
        reference: Name of the stage that is the signal.
        predecessor: Whether ``reference`` is the stage directly before: a failure is then this stage's own doing.
        inputs: ``"synthetic"`` or ``"images"``.
        batch: Images per run.
        n: Images in all.
        max_abs, mean_abs, max_ulp, sqnr_db, decision_sqnr_db, cosine, top1_agreement: As in
            :class:`runtimes.statistics.DifferenceStatistics`, in logits where there is a unit.
        worst_sample: Index of the image that differs most, or of the first one with NaN or Inf.
        tolerance: The bounds and their reason.
        passed: Whether all bounds held.
        finding: What did not hold; None for a row that passed.
    """

    stage: str
    reference: str
    predecessor: bool
    inputs: str
    batch: int
    n: int
    max_abs: float | None
    mean_abs: float | None
    max_ulp: float | None
    sqnr_db: float
    decision_sqnr_db: float
    cosine: float
    top1_agreement: float
    worst_sample: int
    tolerance: dict[str, Any]
    passed: bool
    finding: str | None

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class StageResult:
    """A stage that was run and compared, and that no chain depends on yet.

    Attributes:
        stage: Name of the stage.
        after: Name of the stage it was measured after; None for the first.
        rows: One row per reference and InputBatch; none for the first stage.
        outputs: ``[N, classes]`` float32 for each InputBatch.
        fingerprints: Fingerprint of each InputBatch.
        runtime: What produced the outputs; closed, unless it was handed over open.
    """

    stage: str
    after: str | None
    rows: tuple[ParityRow, ...]
    outputs: tuple[Floats, ...] = field(repr=False)
    fingerprints: tuple[str, ...] = field(repr=False)
    runtime: Runtime = field(repr=False)

    @property
    def passed(self) -> bool:
        """Whether every row passed; the first stage, which has none, does."""
        return all(row.passed for row in self.rows)


class _Kept(NamedTuple):
    """An accepted stage without its runtime, whose weights can so be freed."""

    stage: str
    outputs: tuple[Floats, ...]


class ParityChain:
    """The stages of one model in the order in which they were made.

    Attributes:
        rows: Rows of every accepted stage, in order.
    """

    def __init__(self) -> None:
        self.rows: list[ParityRow] = []
        self._first: _Kept | None = None
        self._previous: _Kept | None = None
        self._fingerprints: tuple[str, ...] = ()
        self._stages: set[str] = set()
        self._runtimes: weakref.WeakSet[Runtime] = weakref.WeakSet()

    def add(self, stage: str, runtime: Runtime, tolerance: Tolerance, batches: Sequence[InputBatch]) -> list[ParityRow]:
        """Measure a stage and accept it, whatever the verdict; see :meth:`measure`.

        Returns:
            Its rows: none for the first stage.
        """
        result = self.measure(stage, runtime, tolerance, batches)
        self.accept(result)
        return list(result.rows)

    def measure(self, stage: str, runtime: Runtime, tolerance: Tolerance, batches: Sequence[InputBatch]) -> StageResult:
        """Run a stage and compare it with the first and with the latest accepted one; the chain stays as is.

        Args:
            stage: Name of the stage, unlike that of any accepted one.
            runtime: The stage, opened for the measurement unless it is open already.
            tolerance: What the stage may differ by, from both.
            batches: At least one; the same for every stage.

        Raises:
            ParityError: The first stage gives NaN or Inf: there is nothing to compare with.
            TensorError: An output does not have the shape of the reference's.
            ValueError: The name or the runtime was accepted before, or the inputs are not the first stage's.
        """
        fingerprints = tuple(batch.fingerprint() for batch in batches)
        self._refuse_repeats(stage, runtime, fingerprints)
        with nullcontext() if runtime.is_open else runtime:
            outputs = tuple(batch.run(runtime) for batch in batches)
        if self._first is None or self._previous is None:
            _require_finite(stage, outputs, batches)
            return StageResult(stage, None, (), outputs, fingerprints, runtime)
        references = [(True, self._previous)]
        if self._first is not self._previous:
            references.insert(0, (False, self._first))
        rows = tuple(
            compare_stage(stage, kept.stage, output, expected, tolerance, inputs=batch, predecessor=direct)
            for direct, kept in references
            for batch, output, expected in zip(batches, outputs, kept.outputs, strict=True)
        )
        return StageResult(stage, self._previous.stage, rows, outputs, fingerprints, runtime)

    def accept(self, result: StageResult) -> None:
        """Make a measured stage part of the chain: the next stage is held against it.

        Raises:
            ValueError: The chain has gone on since the stage was measured.
        """
        latest = self._previous.stage if self._previous else None
        if result.after != latest:
            raise ValueError(f"'{result.stage}' was measured after {result.after!r}, not after {latest!r}")
        self._refuse_repeats(result.stage, result.runtime, result.fingerprints)
        self._previous = _Kept(result.stage, result.outputs)
        self._fingerprints = result.fingerprints
        self._first = self._first or self._previous
        self._stages.add(result.stage)
        self._runtimes.add(result.runtime)
        self.rows.extend(result.rows)

    def _refuse_repeats(self, stage: str, runtime: Runtime, fingerprints: tuple[str, ...]) -> None:
        if not fingerprints:
            raise ValueError(f"'{stage}' was given no inputs: nothing compared proves nothing")
        if stage in self._stages:
            raise ValueError(f"a stage named '{stage}' is already in the chain")
        if runtime in self._runtimes:
            raise ValueError(f"'{stage}' is the runtime of an earlier stage: it would be held against itself")
        if self._first is not None and fingerprints != self._fingerprints:
            raise ValueError(f"'{stage}' was given other inputs than '{self._first.stage}'")


def compare_stage(
    stage: str,
    reference: str,
    outputs: Array,
    expected: Array,
    tolerance: Tolerance,
    *,
    inputs: InputBatch,
    predecessor: bool,
) -> ParityRow:
    """Hold the outputs of one stage against those of another.

    Args:
        stage: Name of the stage that is judged.
        reference: Name of the stage that is the signal.
        outputs: ``[N, classes]`` of ``stage``.
        expected: ``[N, classes]`` of ``reference``.
        tolerance: What they may differ by.
        inputs: What both were run on, N images.
        predecessor: Whether ``reference`` is the stage directly before.

    Raises:
        TensorError: The shapes differ, or the number of rows is not the number of images.
    """
    try:
        stats = compare(expected, outputs)
    except TensorError as error:
        raise TensorError(f"'{stage}' against '{reference}': {error}") from error
    if stats.n != len(inputs.images):
        raise TensorError(f"'{stage}': received {stats.n} rows, expected {len(inputs.images)}: one per image")
    passed, finding = tolerance.judge(stats)
    order = misplaced(expected, outputs, inputs.images, inputs.batch)
    if order:
        passed, finding = False, f"{order}; {finding}" if finding else order
    return ParityRow(
        stage=stage,
        reference=reference,
        predecessor=predecessor,
        inputs=inputs.label,
        batch=inputs.batch,
        n=stats.n,
        max_abs=stats.max_abs,
        mean_abs=stats.mean_abs,
        max_ulp=stats.max_ulp,
        sqnr_db=stats.sqnr_db,
        decision_sqnr_db=stats.decision_sqnr_db,
        cosine=stats.cosine,
        top1_agreement=stats.top1_agreement,
        worst_sample=stats.worst_row,
        tolerance=tolerance.to_json(),
        passed=passed,
        finding=finding or None,
    )


def culprit(rows: Iterable[ParityRow]) -> str | None:
    """The stage that broke the model, or None where every row passed.

    Args:
        rows: Rows in the order of the stages.

    Returns:
        The first stage that differs from its predecessor: it did the damage, and those after it inherit
        it. Where no single step went too far, the first stage that has drifted too far from the first.
    """
    failed = [row for row in rows if not row.passed]
    own = [row for row in failed if row.predecessor]
    return (own or failed)[0].stage if failed else None


def _require_finite(stage: str, outputs: Sequence[Floats], batches: Sequence[InputBatch]) -> None:
    for output, batch in zip(outputs, batches, strict=True):
        bad = np.flatnonzero(~np.isfinite(output).all(axis=1))
        if bad.size:
            raise ParityError(
                f"'{stage}' gives NaN or Inf for sample {int(bad[0])} of the {batch.label} inputs: "
                "it cannot be the reference of later stages"
            )
