"""Changed predictions against a slow count, however the stream was divided."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtimes.changes import Change, Changes
from runtimes.errors import TensorError
from runtimes.intervals import mcnemar

ROWS = st.lists(st.tuples(st.integers(-1, 3), st.integers(-1, 3), st.integers(0, 3)), max_size=30)


def compared(rows, places=None, keep=1000):
    places = range(len(rows)) if places is None else places
    changes = Changes(keep)
    columns = np.array([(*rows[place], place) for place in places], np.int64).reshape(-1, 4)
    changes.update(*columns.T)
    return changes


@settings(deadline=None)
@given(ROWS)
def test_counts_are_those_of_a_loop_over_the_images(rows):
    found = compared(rows).result()
    assert found.n == len(rows)
    assert found.changed == sum(a != b for a, b, _ in rows)
    assert found.only_reference_right == sum(a == label != b for a, b, label in rows)
    assert found.only_this_right == sum(b == label != a for a, b, label in rows)
    assert found.mcnemar_p == mcnemar(found.only_reference_right, found.only_this_right)
    assert {(a, b): count for a, b, count in found.confusion} == {
        pair: [row[:2] for row in rows].count(pair) for pair in {row[:2] for row in rows} if pair[0] != pair[1]
    }
    assert [each.image for each in found.changes] == [i for i, (a, b, _) in enumerate(rows) if a != b]


@settings(deadline=None)
@given(ROWS, st.integers(0, 5), st.data())
def test_parts_merged_in_any_order_give_the_whole_list_and_all(rows, keep, data):
    part = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    merged = Changes(keep)
    for number in data.draw(st.permutations(range(4))):
        merged.merge(compared(rows, [i for i, own in enumerate(part) if own == number], keep))
    assert merged.result() == compared(rows, keep=keep).result()


def test_the_list_is_bounded_and_the_counts_are_not():
    found = compared([(0, 1, 0)] * 50, keep=3).result()
    assert [each.image for each in found.changes] == [0, 1, 2]
    assert found.changed == found.only_reference_right == 50


def test_the_most_frequent_confusion_comes_first():
    found = compared([(0, 1, 0), (2, 3, 0), (2, 3, 0)]).result()
    assert found.confusion == ((2, 3, 2), (0, 1, 1))


def test_a_prediction_that_is_not_there_is_null_in_json():
    document = compared([(2, -1, 2)]).result().to_json()
    assert document["changes"] == [{"index": 0, "label": 2, "from": 2, "to": None}]
    assert document["confusion"] == [{"from": 2, "to": None, "count": 1}]


def test_a_change_between_two_wrong_classes_counts_as_changed_and_for_neither():
    found = compared([(0, 1, 2)]).result()
    assert found.changes == (Change(0, 2, 0, 1),)
    assert (found.only_reference_right, found.only_this_right, found.mcnemar_p) == (0, 0, 1.0)


def test_lists_of_different_lengths_are_not_merged():
    with pytest.raises(ValueError, match="at most 3"):
        Changes(4).merge(Changes(3))
    with pytest.raises(ValueError, match="-1"):
        Changes(-1)


def test_arrays_that_are_not_of_one_length_are_refused():
    three, one = np.arange(3), np.arange(1)
    with pytest.raises(TensorError, match=r"\(1,\)"):
        Changes().update(three, one, three, three)
