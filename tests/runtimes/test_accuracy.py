"""Accuracy against a slow count, image by image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.accuracy import NO_CLASS, Evaluation, predictions
from runtimes.errors import DataError, TensorError


def evaluated(logits, labels):
    evaluation = Evaluation()
    evaluation.update(np.asarray(logits, np.float32), np.asarray(labels, np.int64), np.arange(len(labels)))
    return evaluation.result()


def slow(logits, labels, k):
    """Fraction right among the first ``k``: sorted by falling logit, then by rising index."""
    right = 0
    for row, label in zip(np.asarray(logits), labels, strict=True):
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        right += bool(np.isfinite(row).all()) and label in order[:k]
    return right / len(labels)


VALUES = st.sampled_from([-1.0, 0.0, 0.5, 1.0, float("nan"), float("inf")])
CASES = st.integers(1, 8).flatmap(
    lambda classes: st.lists(
        st.tuples(st.lists(VALUES, min_size=classes, max_size=classes), st.integers(0, classes - 1)), min_size=1
    )
)


@settings(deadline=None)
@given(CASES)
def test_accuracy_is_what_sorting_each_row_shows(case):
    logits, labels = [row for row, _ in case], [label for _, label in case]
    found = evaluated(logits, labels)
    assert found.top1 == slow(logits, labels, 1)
    assert found.top5 == (slow(logits, labels, 5) if len(logits[0]) >= 5 else None)
    assert found.n == len(labels)
    assert found.not_finite == sum(not np.isfinite(row).all() for row in logits)


@settings(deadline=None)
@given(CASES, st.data())
def test_parts_merged_in_any_order_give_the_whole(case, data):
    logits, labels = np.array([row for row, _ in case], np.float32), np.array([label for _, label in case])
    part = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(case), max_size=len(case))))
    merged = Evaluation()
    for number in data.draw(st.permutations(range(4))):
        piece = Evaluation()
        here = np.flatnonzero(part == number)
        if here.size:
            piece.update(logits[here], labels[here], here)
        merged.merge(piece)
    assert merged.result() == evaluated(logits, labels)


@settings(deadline=None)
@given(CASES)
def test_a_prediction_is_the_first_of_the_largest_logits_and_none_where_one_is_not_finite(case):
    logits = np.array([row for row, _ in case], np.float32)
    expected = [row.tolist().index(row.max()) if np.isfinite(row).all() else NO_CLASS for row in logits]
    assert predictions(logits).tolist() == expected


def test_classes_are_counted_each_by_itself_and_those_without_images_left_out():
    found = evaluated([[1, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 1])
    assert [(each.index, each.n, each.top1) for each in found.per_class] == [(0, 1, 1.0), (1, 2, 0.5)]
    assert found.to_json()["per_class"][1] == {"class": 1, "n": 2, "top1": 0.5}


def test_four_classes_have_no_top_5_and_five_have():
    assert evaluated(np.eye(4), range(4)).to_json()["top5_ci95"] is None
    assert evaluated(np.eye(5), range(5)).top5 == 1.0


def test_a_model_of_one_class_is_right_unless_its_logit_is_not_finite():
    assert evaluated([[0.0], [np.nan]], [0, 0]).top1 == 0.5


def test_accuracy_of_float16_logits_is_counted_without_rounding_anything():
    evaluation = Evaluation()
    evaluation.update(np.array([[1.0, 2.0]], np.float16), np.array([1]), np.array([0]))
    assert evaluation.result().top1 == 1.0


@pytest.mark.parametrize(
    ("label", "message"), [(3, "image 41 has the label 3, and the model has 3 classes"), (-1, "image 41 has no label")]
)
def test_a_label_that_is_no_class_is_refused_with_the_place_of_its_image(label, message):
    with pytest.raises(DataError, match=message):
        Evaluation().update(np.eye(3), np.array([0, label, 2]), np.array([40, 41, 42]))


def test_a_refused_batch_leaves_the_counts_as_they_were():
    evaluation = Evaluation()
    evaluation.update(np.eye(3), np.arange(3), np.arange(3))
    before = evaluation.result()
    with pytest.raises(DataError):
        evaluation.update(np.eye(3), np.array([0, 9, 2]), np.arange(3))
    assert evaluation.result() == before


@pytest.mark.parametrize("logits", [np.eye(3, dtype=int), np.zeros((2, 3)), np.zeros(3), np.zeros((3, 0))])
def test_logits_of_another_kind_are_refused(logits):
    with pytest.raises(TensorError, match=r"expected floats \[3, classes\]"):
        Evaluation().update(logits, np.arange(3), np.arange(3))


def test_labels_that_are_no_integers_are_refused():
    with pytest.raises(DataError, match="expected integers"):
        Evaluation().update(np.eye(3), np.zeros(3), np.arange(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["uint8", "int32", "uint64"])
def test_labels_may_be_integers_of_any_kind(kind):
    evaluation = Evaluation()
    evaluation.update(np.eye(3), np.arange(3).astype(kind), np.arange(3))
    assert evaluation.result().top1 == 1.0


def test_another_number_of_classes_is_refused_in_an_update_and_in_a_merge():
    three, two = Evaluation(), Evaluation()
    three.update(np.eye(3), np.arange(3), np.arange(3))
    two.update(np.eye(2), np.arange(2), np.arange(2))
    with pytest.raises(TensorError, match="2 classes, expected 3"):
        three.merge(two)
    with pytest.raises(TensorError, match="2 classes, expected 3"):
        three.update(np.eye(2), np.arange(2), np.arange(2))


def test_nothing_evaluated_is_no_result():
    with pytest.raises(DataError, match="no images"):
        Evaluation().result()


def test_memory_does_not_grow_with_the_images():
    evaluation = Evaluation()
    for start in range(3):
        evaluation.update(np.eye(3), np.arange(3), np.arange(3) + 3 * start)
    assert all(np.size(value) <= 3 for value in vars(evaluation).values())
