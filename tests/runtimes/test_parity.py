from __future__ import annotations

import gc
import json
import weakref

import numpy as np
import pytest

from runtimes.errors import ParityError, TensorError
from runtimes.ort import OrtRuntime
from runtimes.parity import InputBatch, ParityChain, compare_stage, culprit
from runtimes.tolerance import Tolerance, tolerance_for
from tests.runtimes.models import CLASSES, FunctionRuntime, images, linear, onnx_linear, weights

FP32 = tolerance_for("onnxruntime", "fp32")
LOOSE = Tolerance(min_sqnr_db=30.0, min_decision_db=None, max_ulp=None, min_top1=None, reason="a test of drift")
BATCHES = (InputBatch("synthetic", images(1), 1), InputBatch("images", images(6), 4))


def good() -> FunctionRuntime:
    return FunctionRuntime(linear(weights()))


def scaled(gain: float) -> FunctionRuntime:
    return FunctionRuntime(linear(weights(), gain))


def wrong_weight():
    matrix = weights().copy()
    matrix[1, 2] += 1e-2
    return linear(matrix)


def swapped_channels(batch):
    return linear(weights())(batch[:, ::-1])


def swapped_classes(batch):
    return linear(weights())(batch)[:, [1, 0, 2, 3, 4]]


def reordered_rows(batch):
    return linear(weights())(batch)[::-1]


def one_nan(batch):
    output = linear(weights())(batch)
    output[-1, 0] = np.nan
    return output


def stale_results():
    """Hands out the result of the run before, as a missing synchronisation does."""
    last = [np.zeros((1, CLASSES), np.float32)]

    def apply(batch):
        last.append(linear(weights())(batch))
        return np.resize(last[-2], last[-1].shape)

    return apply


def reused_buffer():
    buffer = np.zeros((8, CLASSES), np.float32)

    def apply(batch):
        buffer[: len(batch)] = linear(weights())(batch)
        return buffer[: len(batch)]

    return apply


def chain_with(*stages: tuple[str, FunctionRuntime], tolerance: Tolerance = FP32) -> ParityChain:
    chain = ParityChain()
    for stage, runtime in stages:
        chain.add(stage, runtime, tolerance, BATCHES)
    return chain


def test_the_first_stage_has_no_rows():
    chain = ParityChain()
    assert chain.add("eager", good(), FP32, BATCHES) == []
    assert chain.rows == []
    assert culprit(chain.rows) is None


def test_the_second_stage_is_held_once_and_the_third_against_first_and_predecessor():
    chain = chain_with(("eager", good()), ("folded", good()), ("onnx", good()))
    told = [(row.stage, row.reference, row.predecessor, row.inputs, row.batch, row.n) for row in chain.rows]
    assert told == [
        ("folded", "eager", True, "synthetic", 1, 1),
        ("folded", "eager", True, "images", 4, 6),
        ("onnx", "eager", False, "synthetic", 1, 1),
        ("onnx", "eager", False, "images", 4, 6),
        ("onnx", "folded", True, "synthetic", 1, 1),
        ("onnx", "folded", True, "images", 4, 6),
    ]
    assert all(row.passed and row.finding is None for row in chain.rows)


def test_images_are_run_in_slices_of_the_batch_size_and_none_is_left_out():
    sizes = []

    def note(batch):
        sizes.append(len(batch))
        return linear(weights())(batch)

    ParityChain().add("eager", FunctionRuntime(note), FP32, BATCHES)
    assert sizes == [1, 4, 2]


@pytest.mark.parametrize(
    "defect",
    [wrong_weight(), swapped_channels, swapped_classes, reordered_rows, one_nan, stale_results()],
    ids=["wrong weight", "channels", "classes", "rows", "NaN", "stale"],
)
def test_a_planted_defect_fails_and_its_stage_is_the_culprit(defect):
    chain = chain_with(("eager", good()), ("folded", good()), ("broken", FunctionRuntime(defect)), ("after", good()))
    failed = [row for row in chain.rows if not row.passed]
    assert {row.stage for row in failed} >= {"broken"}
    assert all(row.finding for row in failed)
    assert culprit(chain.rows) == "broken"
    json.dumps([row.to_json() for row in chain.rows], allow_nan=False)


def test_stages_that_inherit_a_defect_are_not_the_culprit():
    chain = chain_with(("eager", good()), ("folded", scaled(2.0)), ("onnx", scaled(2.0)))
    assert [row.stage for row in chain.rows if not row.passed] == ["folded", "folded", "onnx", "onnx"]
    assert culprit(chain.rows) == "folded"


def test_drift_that_no_single_step_shows_is_told_by_the_stage_where_it_adds_up():
    gains = [1.0, 1.02, 1.04, 1.06]
    chain = chain_with(*((f"stage {gain}", scaled(gain)) for gain in gains), tolerance=LOOSE)
    assert all(row.passed for row in chain.rows if row.predecessor)
    assert culprit(chain.rows) == "stage 1.04"


def test_a_step_that_goes_too_far_is_the_culprit_even_after_a_drift():
    gains = [1.0, 1.02, 1.04, 2.0]
    chain = chain_with(*((f"stage {gain}", scaled(gain)) for gain in gains), tolerance=LOOSE)
    assert next(row.stage for row in chain.rows if not row.passed) == "stage 1.04"
    assert culprit(chain.rows) == "stage 2.0"


def test_a_runtime_that_reuses_its_buffer_still_compares_right():
    chain = chain_with(("eager", good()), ("buffered", FunctionRuntime(reused_buffer())))
    assert all(row.passed for row in chain.rows)


def test_the_worst_sample_is_its_index_among_all_images():
    seen = 0

    def spoil(batch):
        nonlocal seen
        output = linear(weights())(batch)
        for row in range(len(batch)):
            output[row] += 1.0 if seen == 1 + 5 else 0.0  # one synthetic image comes first
            seen += 1
        return output

    chain = chain_with(("eager", good()), ("spoilt", FunctionRuntime(spoil)))
    assert [(row.inputs, row.passed) for row in chain.rows] == [("synthetic", True), ("images", False)]
    assert chain.rows[1].worst_sample == 5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_first_stage_that_is_not_finite_is_refused_by_name_and_sample(value):
    def spoil(batch):
        output = linear(weights())(batch)
        output[-1, 2] = value
        return output

    chain = ParityChain()
    with pytest.raises(ParityError, match="'eager' gives NaN or Inf for sample 0 of the synthetic inputs"):
        chain.add("eager", FunctionRuntime(spoil), FP32, BATCHES)
    assert chain.add("mended", good(), FP32, BATCHES) == []


@pytest.mark.parametrize("classes", [1, CLASSES - 1, CLASSES + 1])
def test_another_number_of_classes_is_refused_and_both_stages_are_named(classes):
    chain = chain_with(("eager", good()))
    other = FunctionRuntime(lambda batch: np.resize(linear(weights())(batch), (len(batch), classes)))
    with pytest.raises(TensorError, match="'onnx' against 'eager'"):
        chain.add("onnx", other, FP32, BATCHES)
    assert chain.rows == []


def test_a_runtime_is_never_held_against_itself():
    runtime = good()
    chain = chain_with(("eager", runtime), ("folded", good()))
    with pytest.raises(ValueError, match="held against itself"):
        chain.add("onnx", runtime, FP32, BATCHES)


def test_a_stage_name_is_used_once():
    chain = chain_with(("eager", good()))
    with pytest.raises(ValueError, match="'eager' is already in the chain"):
        chain.add("eager", good(), FP32, BATCHES)


def test_a_stage_measured_but_not_accepted_leaves_no_trace():
    chain = chain_with(("eager", good()), ("onnx", good()))
    before = list(chain.rows)
    attempt = chain.measure("simplified", scaled(2.0), FP32, BATCHES)
    assert not attempt.passed
    assert chain.rows == before
    again = chain.measure("simplified", good(), FP32, BATCHES)
    chain.accept(again)
    assert again.after == "onnx"
    assert [row.reference for row in again.rows if row.predecessor] == ["onnx", "onnx"]
    assert culprit(chain.rows) is None


def test_a_result_measured_before_another_stage_was_accepted_is_refused():
    chain = chain_with(("eager", good()))
    late = chain.measure("late", good(), FP32, BATCHES)
    chain.add("onnx", good(), FP32, BATCHES)
    with pytest.raises(ValueError, match="'late' was measured after 'eager', not after 'onnx'"):
        chain.accept(late)


def test_a_result_is_accepted_once():
    chain = ParityChain()
    result = chain.measure("eager", good(), FP32, BATCHES)
    chain.accept(result)
    with pytest.raises(ValueError, match="'eager' was measured after None"):
        chain.accept(result)


def test_two_stages_on_different_inputs_are_not_compared():
    chain = chain_with(("eager", good()))
    for other in (
        BATCHES[:1],
        (BATCHES[0], InputBatch("images", images(6), 3)),
        (BATCHES[0], InputBatch("images", images(6, seed=9), 4)),
        (BATCHES[0], InputBatch("synthetic", images(6), 4)),
    ):
        with pytest.raises(ValueError, match="other inputs than 'eager'"):
            chain.add("onnx", good(), FP32, other)
    chain.add("onnx", good(), FP32, [InputBatch("synthetic", images(1), 1), InputBatch("images", images(6), 4)])


def test_images_changed_between_two_stages_are_noticed():
    changing = (InputBatch("images", images(4), 2),)
    chain = ParityChain()
    chain.add("eager", good(), FP32, changing)
    changing[0].images[0] = 0.0
    with pytest.raises(ValueError, match="other inputs"):
        chain.add("onnx", good(), FP32, changing)


def test_a_stage_without_inputs_proves_nothing():
    with pytest.raises(ValueError, match="no inputs"):
        ParityChain().add("eager", good(), FP32, [])


def test_a_runtime_is_opened_for_the_measurement_and_one_that_is_open_stays_open():
    closed, opened = good(), good()
    chain = chain_with(("eager", closed))
    assert (closed.opened, closed.closed) == (1, 1)
    with opened:
        chain.add("onnx", opened, FP32, BATCHES)
        assert opened.is_open
    assert (opened.opened, opened.closed) == (1, 1)


def test_the_chain_keeps_neither_runtimes_nor_outputs_of_the_middle_alive():
    chain = ParityChain()
    chain.add("eager", good(), FP32, BATCHES)
    runtime = good()
    result = chain.measure("middle", runtime, FP32, BATCHES)
    chain.accept(result)
    output, held = weakref.ref(result.outputs[1]), weakref.ref(runtime)
    del result, runtime
    chain.add("last", good(), FP32, BATCHES)
    gc.collect()
    assert held() is None
    assert output() is None


def test_an_onnx_file_passes_against_the_function_it_was_made_from():
    chain = chain_with(("eager", good()))
    source = onnx_linear(weights()).SerializeToString()
    rows = chain.add("onnx", OrtRuntime(source), FP32, [InputBatch(b.label, b.images, b.batch) for b in BATCHES])
    assert all(row.passed for row in rows)
    off = onnx_linear(weights() * np.float32(1.0001)).SerializeToString()
    assert not chain.measure("off", OrtRuntime(off), FP32, BATCHES).passed


def test_a_row_has_the_keys_that_reports_read():
    row = chain_with(("eager", good()), ("onnx", scaled(1.5))).rows[0].to_json()
    assert {
        "stage",
        "reference",
        "batch",
        "max_abs",
        "sqnr_db",
        "cosine",
        "top1_agreement",
        "tolerance",
        "passed",
    } <= set(row)
    assert row["tolerance"] == FP32.to_json()
    assert "SQNR is 6.0206 dB, at least 100 dB is required" in row["finding"]


def test_a_comparison_needs_one_row_for_each_image():
    outputs = linear(weights())(images(3))
    with pytest.raises(TensorError, match="received 3 rows, expected 6"):
        compare_stage("onnx", "eager", outputs, outputs, FP32, inputs=BATCHES[1], predecessor=True)


@pytest.mark.parametrize("array", [images()[0], images()[:0]])
def test_an_input_batch_needs_images(array):
    with pytest.raises(TensorError, match=r"expected \[N, C, H, W\]"):
        InputBatch("images", array, 1)


def test_an_input_batch_needs_a_run_size():
    with pytest.raises(ValueError, match="0 images per run"):
        InputBatch("images", images(), 0)
