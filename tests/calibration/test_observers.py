"""Observers: any order, batching and merge of the same images gives the same statistics, exactly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibration.histogram import BINS, Histogram, needed_exponent
from calibration.observers import Observer
from runtimes.errors import DataError

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
IMAGES = hnp.arrays(np.float32, st.tuples(st.integers(1, 6), st.just(2), st.integers(1, 3)), elements=FINITE)


def observed(*parts):
    observer = Observer()
    for part in parts:
        observer.update(part)
    return observer


@settings(deadline=None)
@given(IMAGES, st.data())
def test_merging_in_any_order_equals_one_pass(images, data):
    whole = observed(images)
    order = data.draw(st.permutations(range(len(images))))
    merged = Observer()
    for image in order:
        merged = (
            merged.merged(observed(images[image : image + 1]))
            if image % 2
            else observed(images[[image]]).merged(merged)
        )
    assert merged.to_json() == whole.to_json()


@settings(deadline=None)
@given(IMAGES, st.data())
def test_batches_of_any_size_and_order_equal_one_pass(images, data):
    order = data.draw(st.permutations(range(len(images))))
    cut = data.draw(st.integers(0, len(images)))
    parts = [images[order[:cut]], images[order[cut:]]]
    assert observed(*(part for part in parts if len(part))).to_json() == observed(images).to_json()


@settings(deadline=None)
@given(IMAGES)
def test_the_histogram_is_the_one_of_a_plain_count(images):
    histogram = observed(images).histogram
    values = images[images != 0].astype(np.float64)
    plain, _ = np.histogram(values, np.arange(-BINS, BINS + 1) * 2.0**histogram.exponent)
    # numpy's last bin is closed; the largest value never lies on the last edge
    assert (histogram.counts == plain).all()
    assert histogram.zeros == (images == 0).sum()
    assert histogram.total == images.size


@given(FINITE, FINITE)
def test_the_bins_are_as_narrow_as_the_extremes_allow(a, b):
    low, high = min(a, b), max(a, b)
    exponent = needed_exponent(low, high)
    assert -BINS * 2.0**exponent <= min(low, 0)
    assert high < BINS * 2.0**exponent
    half = BINS * 2.0 ** (exponent - 1)
    assert exponent == -100 or low < -half or high >= half


@settings(deadline=None)
@given(IMAGES)
def test_extremes_are_exact(images):
    observer = observed(images)
    assert (observer.low, observer.high) == (images.min(), images.max())
    assert (observer.channel_low == images.min(axis=(0, 2))).all()
    assert (observer.channel_high == images.max(axis=(0, 2))).all()
    exact = images.astype(np.float64)
    with np.errstate(over="ignore"):
        assert observer.mean_low == pytest.approx(exact.min(axis=(1, 2)).mean(), rel=1e-12, abs=1e-300)
        assert observer.mean_high == pytest.approx(exact.max(axis=(1, 2)).mean(), rel=1e-12, abs=1e-300)


@settings(deadline=None)
@given(IMAGES)
def test_json_keeps_an_observer_exactly(images):
    observer = observed(images)
    copy = Observer.from_json(json.loads(json.dumps(observer.to_json())))
    assert copy.to_json() == observer.to_json()
    assert copy.merged(observer).images == 2 * len(images)


def test_memory_does_not_grow_with_the_images():
    observer = Observer()
    rng = np.random.default_rng(0)
    for _ in range(50):
        observer.update(rng.standard_normal((2, 3, 8, 8)).astype(np.float32) * 10 ** rng.uniform(-3, 3))
    assert observer.histogram.counts.nbytes == 2 * BINS * 8
    assert observer.channel_low.shape == (3,)


@pytest.mark.parametrize(("value", "kind"), [(np.nan, "NaN"), (np.inf, "infinity"), (-np.inf, "infinity")])
def test_a_value_that_is_not_finite_is_refused_and_changes_nothing(value, kind):
    observer = observed(np.ones((2, 3, 4), np.float32))
    before = observer.to_json()
    bad = np.ones((2, 3, 4), np.float32)
    bad[1, 2, 3] = value
    with pytest.raises(DataError, match=kind):
        observer.update(bad)
    assert observer.to_json() == before


@pytest.mark.parametrize("shape", [(2, 4, 5), (2,), (0, 3, 5)])
def test_a_batch_of_another_form_is_refused(shape):
    observer = observed(np.ones((2, 3, 4), np.float32))
    with pytest.raises(DataError, match=r"expected \[N,3"):
        observer.update(np.ones(shape, np.float32))


def test_observers_of_different_tensors_are_not_merged():
    with pytest.raises(DataError, match="3 and 4 channels"):
        observed(np.ones((1, 3), np.float32)).merged(observed(np.ones((1, 4), np.float32)))


@pytest.mark.parametrize(
    "change",
    [
        {"counts": "???"},
        {"counts": "AAAA"},
        {"exponent": 999},
        {"first": -1},
        {"first": 2 * BINS},
        {"zeros": None},
        {"zeros": -1},
    ],
)
def test_a_damaged_histogram_is_refused(change):
    sound = observed(np.ones((1, 3), np.float32)).histogram.to_json()
    with pytest.raises(DataError, match="damaged"):
        Histogram.from_json(sound | change)


@pytest.mark.parametrize("change", [{"images": 0}, {"low": float("nan")}, {"channel_low": []}, {"low_sum": "x"}])
def test_damaged_statistics_are_refused(change):
    sound = observed(np.ones((1, 3), np.float32)).to_json()
    with pytest.raises(DataError, match="damaged"):
        Observer.from_json(sound | change)


def test_of_a_large_tensor_a_sample_is_counted_that_leaves_no_channel_or_column_out():
    """Each pixel's value says where it is: 3 channels of 64 x 128 are more than an image may have counted."""
    channel, row, column = np.meshgrid(np.arange(3), np.arange(64), np.arange(128), indexing="ij")
    for place, count in ((channel, 3), (row, 64), (column, 128)):
        observer = Observer()
        observer.update((place + 0.5)[None].astype(np.float32))
        counts = observer.histogram.occupied()[1]
        assert len(counts) == count
        assert counts.sum() <= 8192
        assert counts.max() - counts.min() <= 0.02 * counts.sum() / count + 2
    assert observer.high == 127.5  # extremes are of all values


def test_what_is_counted_of_an_image_does_not_depend_on_the_batch():
    images = np.random.default_rng(0).standard_normal((5, 4, 80, 90)).astype(np.float32)
    together, one_by_one = Observer(), Observer()
    together.update(images)
    for image in images[::-1]:
        one_by_one.update(image[None])
    assert together.to_json() == one_by_one.to_json()
