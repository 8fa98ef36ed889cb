from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.errors import TensorError
from runtimes.statistics import SQNR_CAP_DB, Accumulator, compare

SUMMED = ("mean_abs", "sqnr_db", "cosine")


def outputs(rows: int = 8, classes: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, classes)).astype(np.float32)


@st.composite
def pairs(draw):
    """A reference and a candidate at some distance from it, both ``[N, classes]`` float32."""
    rows, classes = draw(st.integers(1, 12)), draw(st.integers(1, 6))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    noise = 10.0 ** draw(st.integers(-6, 1))
    reference = generator.standard_normal((rows, classes))
    candidate = reference + noise * generator.standard_normal((rows, classes))
    return reference.astype(np.float32), candidate.astype(np.float32)


def test_the_numbers_of_a_worked_example():
    reference = np.array([[3.0, 4.0], [0.0, 0.0]], np.float32)
    candidate = np.array([[3.0, 4.0], [0.0, 0.5]], np.float32)
    stats = compare(reference, candidate)
    assert (stats.n, stats.finite, stats.worst_row) == (2, True, 1)
    assert stats.max_abs == 0.5
    assert stats.mean_abs == 0.125
    assert stats.max_rel == 0.125
    assert stats.max_ulp == 0.5 / 2**-21  # 4 = 2^2, 23 mantissa bits
    assert stats.sqnr_db == pytest.approx(20.0)  # 25 / 0.25
    assert stats.cosine == pytest.approx(25.0 / (5.0 * math.sqrt(25.25)))
    assert stats.top1_agreement == 0.5


@given(pairs())
def test_sqnr_is_that_of_an_independent_formula(pair):
    reference, candidate = pair
    stats = compare(reference, candidate)
    exact = [(float(r), float(c)) for r, c in zip(reference.flat, candidate.flat, strict=True)]
    noise = math.fsum((r - c) ** 2 for r, c in exact)
    if noise:
        root = math.sqrt(math.fsum(r * r for r, _ in exact) / noise)
        assert stats.sqnr_db == pytest.approx(20.0 * math.log10(root), abs=1e-9)
    else:
        assert stats.sqnr_db == SQNR_CAP_DB


@given(pairs())
def test_cosine_is_that_of_numpy(pair):
    reference, candidate = (side.astype(np.float64).ravel() for side in pair)
    expected = reference @ candidate / (np.linalg.norm(reference) * np.linalg.norm(candidate))
    assert compare(*pair).cosine == pytest.approx(expected, abs=1e-12)


@settings(max_examples=60)
@given(pairs(), st.data())
def test_any_split_and_merge_equals_one_pass(pair, data):
    reference, candidate = pair
    rows = len(reference)
    if data.draw(st.booleans()):
        candidate[data.draw(st.integers(0, rows - 1)), 0] = np.nan
    cuts = sorted(data.draw(st.lists(st.integers(0, rows), max_size=4)))
    total = Accumulator()
    for start, stop in zip([0, *cuts], [*cuts, rows], strict=True):
        part = Accumulator()
        if data.draw(st.booleans()):
            total.update(reference[start:stop], candidate[start:stop])
        else:
            part.update(reference[start:stop], candidate[start:stop])
        total.merge(part)
    merged, once = total.result().to_json(), compare(reference, candidate).to_json()
    left, right = merged.pop("decision_sqnr_db"), once.pop("decision_sqnr_db")
    # A difference of two sums: what cancels takes digits with it, 10 dB a digit.
    lost = max(once["sqnr_db"] - min(left, right), 0.0) / 10.0
    assert left == pytest.approx(right, abs=10.0 ** (lost - 10.0)) or lost > 10.0
    for key in SUMMED:
        left, right = merged.pop(key), once.pop(key)
        assert left == right or left == pytest.approx(right, rel=1e-12, abs=1e-12)
    assert merged == once


@given(pairs(), st.integers(-20, 20))
def test_scaling_both_sides_changes_only_the_absolute_numbers(pair, exponent):
    factor = np.float32(2.0**exponent)  # a power of two: float32 loses nothing
    before, after = compare(*pair), compare(pair[0] * factor, pair[1] * factor)
    assert after.sqnr_db == pytest.approx(before.sqnr_db, abs=1e-9)
    assert after.cosine == pytest.approx(before.cosine, abs=1e-12)
    assert (after.max_ulp, after.max_rel) == (before.max_ulp, before.max_rel)
    assert after.top1_agreement == before.top1_agreement
    assert after.max_abs == before.max_abs * factor


@given(pairs())
def test_identical_sides_reach_the_cap_and_stay_json(pair):
    stats = compare(pair[0], pair[0].copy())
    assert (stats.max_abs, stats.max_ulp, stats.sqnr_db, stats.top1_agreement) == (0.0, 0.0, SQNR_CAP_DB, 1.0)
    json.dumps(stats.to_json(), allow_nan=False)


@given(st.floats(min_value=0.0, max_value=float(np.finfo(np.float32).max), width=32))
def test_one_ulp_is_numpys_spacing_of_the_largest_reference(magnitude):
    reference = np.array([[magnitude]], np.float32)
    stats = compare(reference, np.zeros((1, 1), np.float32))
    largest = np.finfo(np.float32).max
    step = 2.0**104 if magnitude == largest else float(np.spacing(reference[0, 0]))  # numpy has Inf for the largest
    assert stats.max_ulp == float(reference[0, 0]) / step


def test_the_ulp_of_the_largest_float32_does_not_hide_an_error():
    largest = np.finfo(np.float32).max
    stats = compare(np.array([[largest]]), np.array([[largest / 2]]))
    assert stats.max_ulp == pytest.approx(2.0**23, rel=1e-6)


def test_the_reference_is_the_signal():
    small, large = np.full((1, 2), 1.0), np.full((1, 2), 10.0)
    assert compare(large, small).sqnr_db == pytest.approx(20.0 * math.log10(10.0 / 9.0))
    assert compare(small, large).sqnr_db == pytest.approx(20.0 * math.log10(1.0 / 9.0))


def test_two_zero_sides_agree():
    zero = np.zeros((2, 3), np.float32)
    stats = compare(zero, zero)
    assert (stats.sqnr_db, stats.cosine, stats.max_rel, stats.max_ulp) == (SQNR_CAP_DB, 1.0, 0.0, 0.0)


def test_a_zero_reference_and_a_non_zero_candidate_do_not():
    stats = compare(np.zeros((2, 3), np.float32), outputs(2, 3))
    assert (stats.sqnr_db, stats.cosine, stats.max_rel) == (-SQNR_CAP_DB, 0.0, None)
    json.dumps(stats.to_json(), allow_nan=False)


@pytest.mark.parametrize("exponent", [-300, -170, -40, 38])
def test_extreme_magnitudes_stay_json(exponent):
    reference = np.array([[1.0, -2.0]]) * 10.0**exponent
    for stats in (compare(reference, reference * 1.5), compare(reference, -reference), compare(-reference, reference)):
        json.dumps(stats.to_json(), allow_nan=False)
        assert -1.0 <= stats.cosine <= 1.0
        assert stats.sqnr_db < 10.0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e39])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_a_value_that_is_not_finite_spoils_the_comparison_and_names_its_row(value, side):
    reference, candidate = outputs().astype(np.float64), outputs().astype(np.float64)
    if side != "candidate":
        reference[5, 2] = value
    if side != "reference":
        candidate[5, 2] = value
    candidate[1, 0] += 100.0
    stats = compare(reference, candidate)
    assert (stats.finite, stats.worst_row, stats.max_abs, stats.max_ulp) == (False, 5, None, None)
    assert (stats.sqnr_db, stats.cosine) == (-SQNR_CAP_DB, 0.0)
    assert stats.top1_agreement <= 7 / 8
    json.dumps(stats.to_json(), allow_nan=False)


def test_a_channel_swap_is_seen_by_every_measure():
    reference = outputs()
    stats = compare(reference, reference[:, [1, 0, 2, 3, 4]])
    assert stats.sqnr_db < 10.0
    assert stats.cosine < 0.95
    assert stats.top1_agreement < 1.0


def test_a_row_reorder_is_seen():
    reference = outputs()
    assert compare(reference, reference[::-1]).sqnr_db < 10.0


def test_the_worst_row_is_the_first_of_the_largest_difference():
    reference = outputs().astype(np.float64)
    candidate = reference.copy()
    candidate[2, 1] += 1.0
    candidate[6, 0] -= 1.5
    candidate[7, 3] += 1.25
    assert compare(reference, candidate).worst_row == 6


def test_float16_and_float32_sides_are_compared_in_float64():
    reference = outputs()
    stats = compare(reference, reference.astype(np.float16))
    exact = np.abs(reference.astype(np.float64) - reference.astype(np.float16).astype(np.float64))
    assert stats.max_abs == exact.max()
    assert 66.0 < stats.sqnr_db < 85.0  # one rounding to 11 significant bits


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        (outputs(4, 5), outputs(1, 5)),
        (outputs(4, 5), outputs(4, 1)),
        (outputs(4, 5), outputs(5, 4)),
        (outputs(4, 5), outputs(4, 5).astype(np.int32)),
        (outputs(4, 5).astype(np.int32), outputs(4, 5).astype(np.int32)),
        (outputs(4, 5), outputs(4, 5).astype(np.complex64)),
        (outputs(4, 5)[0], outputs(4, 5)[0]),
        (outputs(4, 5)[None], outputs(4, 5)[None]),
        (outputs(4, 5)[:, :0], outputs(4, 5)[:, :0]),
        (outputs(4, 5)[:0], outputs(4, 5)[:0]),
    ],
)
def test_shapes_and_types_that_differ_are_refused_and_never_broadcast(reference, candidate):
    with pytest.raises(TensorError, match="expected"):
        compare(reference, candidate)


def test_a_merged_row_that_is_not_finite_is_numbered_after_the_rows_before_it():
    spoilt = outputs(4)
    spoilt[2, 0] = np.nan
    total, part = Accumulator(), Accumulator()
    total.update(outputs(3), outputs(3))
    part.update(outputs(4), spoilt)
    total.merge(part)
    assert total.result().worst_row == 3 + 2


def test_an_accumulator_without_rows_has_no_result():
    empty = Accumulator()
    empty.merge(Accumulator())
    with pytest.raises(TensorError, match="no rows were compared"):
        empty.result()


def test_an_accumulator_refuses_another_number_of_classes():
    total, other = Accumulator(), Accumulator()
    total.update(outputs(2, 5), outputs(2, 5))
    with pytest.raises(TensorError, match="4 classes, expected 5"):
        total.update(outputs(2, 4), outputs(2, 4))
    other.update(outputs(2, 4), outputs(2, 4))
    with pytest.raises(TensorError, match="4 classes, expected 5"):
        total.merge(other)
    assert total.result().n == 2


def test_an_accumulator_holds_numbers_and_one_row_however_many_it_has_seen():
    total = Accumulator()
    for _ in range(3):
        total.update(outputs(100), outputs(100, seed=1))
    held = [value for value in vars(total).values() if not (value is None or isinstance(value, int | float))]
    assert [value.shape for value in held] == [(outputs(1).shape[1],)]


def _decision_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """The definition, written down once more: row means off, then class means off."""
    deciding = reference - reference.mean(axis=1, keepdims=True)
    deciding = deciding - deciding.mean(axis=0)
    return float(10 * np.log10(np.square(deciding).sum() / np.square(reference - candidate).sum()))


def test_the_deciding_signal_follows_its_definition_and_merges() -> None:
    rng = np.random.default_rng(5)
    reference = rng.standard_normal((9, 6)) + 100.0 * rng.standard_normal(6)
    candidate = reference + 0.01 * rng.standard_normal((9, 6))
    whole = compare(reference, candidate)
    assert whole.decision_sqnr_db == pytest.approx(_decision_db(reference, candidate), abs=1e-6)
    assert whole.decision_sqnr_db < whole.sqnr_db - 20
    left, right = Accumulator(), Accumulator()
    left.update(reference[:4], candidate[:4])
    right.update(reference[4:], candidate[4:])
    left.merge(right)
    assert left.result().decision_sqnr_db == pytest.approx(whole.decision_sqnr_db, abs=1e-6)


def test_a_large_constant_in_the_logits_hides_no_fault_from_the_deciding_signal() -> None:
    rng = np.random.default_rng(6)
    reference = rng.standard_normal((8, 5))
    offset = reference + 1e6
    stats = compare(offset, rng.standard_normal((8, 5)) + 1e6)  # other logits altogether, under the same constant
    assert stats.sqnr_db > 100
    assert stats.decision_sqnr_db < 6


def test_one_row_is_judged_by_what_its_classes_do_not_share() -> None:
    reference = np.array([[1e3 + 1.0, 1e3 - 1.0]])
    stats = compare(reference, reference + np.array([[0.1, 0.0]]))
    assert stats.decision_sqnr_db == pytest.approx(10 * np.log10(2.0 / 0.01), abs=1e-6)


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
def test_images_that_are_all_the_same_say_what_one_of_them_says(rounding: float) -> None:
    row = np.array([[3.0, -7.0, 2.0]])
    alike = np.tile(row, (4, 1)) * (1.0 + rounding * np.array([[0.0], [1.0], [-1.0], [0.0]]))
    one = compare(row, row + 1e-3).decision_sqnr_db
    assert compare(alike, alike + 1e-3).decision_sqnr_db == pytest.approx(one, abs=1e-3)
    assert compare(alike, alike).decision_sqnr_db == 300.0


def test_logits_that_are_all_the_same_hold_no_decision() -> None:
    reference = np.full((4, 3), 2.0)
    assert compare(reference, reference + 1e-3).decision_sqnr_db == -300.0


def test_a_single_class_is_its_own_decision() -> None:
    reference = np.array([[1.0], [3.0]])
    assert compare(reference, reference + 0.1).decision_sqnr_db == pytest.approx(10 * np.log10(2.0 / 0.02), abs=1e-6)
