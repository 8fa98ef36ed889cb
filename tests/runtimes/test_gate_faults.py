"""Runtimes that are broken in the ways in which runtimes break: none gets through the gate."""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.errors import TensorError
from runtimes.misplaced import misplaced
from runtimes.parity import InputBatch, ParityChain, culprit
from runtimes.tolerance import Tolerance, tolerance_for
from tests.runtimes.models import CLASSES, FunctionRuntime, images, linear, weights

FP32 = tolerance_for("onnxruntime", "fp32")
#: Lets the small differences between alike images pass.
LOOSE = Tolerance(min_sqnr_db=20.0, min_decision_db=None, max_ulp=None, min_top1=None, reason="a test of order")


def right(batch):
    return linear(weights())(batch)


def alike(batch):
    """Logits as an untrained network gives them: nearly the same for every image."""
    return (100.0 + right(batch)).astype(np.float32)


def stale(function):
    """Reads the output before it is written: the result of the run before."""
    kept = [np.zeros((4, CLASSES), np.float32)]

    def apply(batch):
        kept.append(function(batch))
        return kept[-2][: len(batch)].copy()

    return apply


def frozen(function):
    """Never writes its output again after the first run."""
    kept: list[np.ndarray] = []

    def apply(batch):
        kept.append(function(batch))
        return np.repeat(kept[0][:1], len(batch), axis=0)

    return apply


def same_buffer(function):
    """Hands out one buffer, and writes the next result into it."""
    buffer = np.zeros((8, CLASSES), np.float32)

    def apply(batch):
        buffer[: len(batch)] = function(batch)
        return buffer[: len(batch)]

    return apply


def measured(broken, batch: int = 4, tolerance: Tolerance = FP32, function=right, count: int = 12):
    inputs = [InputBatch("images", images(count), batch)]
    chain = ParityChain()
    chain.add("eager", FunctionRuntime(function), tolerance, inputs)
    rows = chain.add("broken", FunctionRuntime(broken), tolerance, inputs)
    return rows[0], culprit(chain.rows)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("row", [0, -1])
def test_one_value_that_is_not_finite_fails(value, row):
    def broken(batch):
        output = right(batch)
        output[row, 1] = value
        return output

    found, named = measured(broken)
    assert not found.passed
    assert "NaN or Inf" in found.finding
    assert named == "broken"


@pytest.mark.parametrize(
    "broken",
    [
        lambda batch: right(batch)[:-1],
        lambda batch: np.concatenate([right(batch)] * 2),
        lambda batch: right(batch)[:1],
        lambda batch: right(batch)[:, :-1],
        lambda batch: right(batch)[:, :1],
        lambda batch: right(batch).reshape(-1),
        lambda batch: right(batch)[:, :, None],
        lambda batch: right(batch).T,
        lambda batch: right(batch)[:0],
    ],
    ids=["a row less", "twice", "one row", "a class less", "one class", "flat", "rank 3", "transposed", "empty"],
)
def test_another_shape_is_refused_and_never_broadcast(broken):
    with pytest.raises(TensorError):
        measured(broken)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, np.complex64, bool])
def test_another_element_type_than_was_declared_is_refused(dtype):
    with pytest.raises(TensorError, match="expected float32"):
        measured(lambda batch: right(batch).astype(dtype))


def test_no_array_at_all_is_refused():
    with pytest.raises(TensorError, match="received list"):
        measured(lambda batch: right(batch).tolist())


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("tolerance", [FP32, LOOSE], ids=["strict", "loose"])
def test_the_result_of_the_run_before_fails(batch, tolerance):
    found, _ = measured(stale(right), batch, tolerance)
    assert not found.passed
    assert "of the run before" in found.finding


@pytest.mark.parametrize("function", [right, alike])
@pytest.mark.parametrize("batch", [1, 4])
def test_one_result_for_all_images_fails_however_alike_they_are(function, batch):
    found, _ = measured(frozen(function), batch, LOOSE, function)
    assert not found.passed
    assert "the same logits for different images" in found.finding


@pytest.mark.parametrize("function", [right, alike])
@pytest.mark.parametrize(
    "order", [lambda rows: rows[::-1], lambda rows: np.roll(rows, 1, axis=0)], ids=["reversed", "rolled"]
)
def test_rows_in_another_order_fail_however_alike_they_are(function, order):
    found, _ = measured(lambda batch: order(function(batch)), 4, LOOSE, function)
    assert not found.passed
    assert "in another order" in found.finding


def test_a_buffer_that_is_written_again_does_no_harm():
    found, named = measured(same_buffer(right))
    assert found.passed
    assert named is None


def test_a_gate_that_missed_nothing_else_still_says_so():
    found, _ = measured(frozen(alike), 4, LOOSE, alike)
    assert found.finding == "gives the same logits for different images"


def test_equal_images_may_have_equal_logits():
    same = np.repeat(images(1), 4, axis=0)
    assert misplaced(right(same), right(same), same, 2) is None


def test_a_network_that_tells_no_images_apart_may_give_the_same_logits():
    constant = np.ones((4, CLASSES), np.float32)
    assert misplaced(constant, constant + 1e-4, images(4), 2) is None


def test_noise_as_large_as_the_difference_between_images_is_no_other_order():
    expected = alike(images(12))
    noise = np.random.default_rng(3).normal(0, expected.std(axis=0).mean(), expected.shape)
    assert misplaced(expected, expected + noise, images(12), 4) is None


def test_one_image_has_no_order():
    assert misplaced(right(images(1)), np.zeros((1, CLASSES)), images(1), 1) is None
