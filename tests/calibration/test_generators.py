"""Arrays from the caller's own code: what is taken, how it is cut, and what is refused."""

import subprocess
import sys
from dataclasses import replace
from itertools import count, islice

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from calibration.images import array_batches
from calibration.preprocess import PRESETS
from runtimes.errors import DataError, InputError

TINY = replace(PRESETS["cifar"], size=(4, 4))
ANY_SIZE = replace(TINY, size=None)


def images(number, dtype=np.float32):
    return np.random.default_rng(0).normal(size=(number, 3, 4, 4)).astype(dtype)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 7))
def test_pieces_of_any_length_become_batches_of_one_length(lengths, batch):
    """A length of 0 stands for a single image ``[C, H, W]``."""
    rows = images(sum(max(n, 1) for n in lengths))
    source, start = [], 0
    for n in lengths:
        source.append(rows[start : start + n] if n else rows[start])
        start += max(n, 1)
    out = list(array_batches(source, TINY, batch))
    assert [len(tensor) for tensor in out[:-1]] == [batch] * (len(out) - 1)
    assert 1 <= len(out[-1]) <= batch
    assert all(tensor.dtype == np.float32 and tensor.flags.c_contiguous for tensor in out)
    np.testing.assert_array_equal(np.concatenate(out), rows)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_every_floating_dtype_is_cast_to_float32(dtype):
    rows = images(2, dtype)
    (tensor,) = array_batches(rows, TINY, 2)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, rows.astype(np.float32))


def test_a_generator_may_reuse_its_array():
    def reusing():
        buffer = np.zeros((3, 4, 4), np.float32)
        for value in range(3):
            buffer[:] = value
            yield buffer

    (tensor,) = array_batches(reusing(), TINY, 3)
    assert tensor[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_no_more_is_read_than_a_batch_needs():
    endless = count()
    rows = images(1)[0]
    assert len(list(islice(array_batches((rows for _ in endless), TINY, 4), 2))) == 2
    assert next(endless) == 8


@pytest.mark.parametrize("form", [tuple, list])
def test_the_first_member_of_a_tuple_or_list_is_the_images(form):
    rows = images(4)
    (tensor,) = array_batches([form([rows, [1, 2, 3, 4]])], TINY, 4)
    np.testing.assert_array_equal(tensor, rows)


def test_a_data_loader_of_torch_is_a_source():
    rows = images(7)
    loader = DataLoader(TensorDataset(torch.from_numpy(rows), torch.arange(7)), batch_size=3)
    out = list(array_batches(loader, TINY, 5))
    assert [len(tensor) for tensor in out] == [5, 2]
    np.testing.assert_array_equal(np.concatenate(out), rows)


def test_a_tensor_with_a_gradient_is_taken_out_of_its_graph():
    tensor = torch.ones(3, 4, 4, requires_grad=True) * 2
    assert next(array_batches([tensor], TINY, 1)).max() == 2


def test_sizes_are_free_but_equal_where_the_contract_has_none():
    (tensor,) = array_batches(np.zeros((2, 3, 5, 7), np.float32), ANY_SIZE, 2)
    assert tensor.shape == (2, 3, 5, 7)
    mixed = [np.zeros((3, 5, 7), np.float32), np.zeros((3, 7, 5), np.float32)]
    with pytest.raises(DataError, match=r"item 0 has \[3, 5, 7\], item 1 \[3, 7, 5\]"):
        list(array_batches(mixed, ANY_SIZE, 2))


GOOD = np.zeros((3, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (np.zeros((3, 4, 4), np.uint8), "item 1 is uint8: give floating"),
        (np.zeros((3, 4, 4), np.int64), "item 1 is int64: give floating"),
        (np.zeros((4, 4), np.float32), r"item 1 has the shape \[4, 4\].*\[3,4,4\]"),
        (np.zeros((4, 4, 3), np.float32), r"shape \[4, 4, 3\].*\[3,4,4\]"),
        (np.zeros((2, 3, 4, 5), np.float32), r"shape \[2, 3, 4, 5\]"),
        (np.zeros((1, 1, 3, 4, 4), np.float32), r"shape \[1, 1, 3, 4, 4\]"),
        (np.zeros((0, 3, 4, 4), np.float32), "not empty"),
        (np.float32(1), r"shape \[\]"),
        (np.full((3, 4, 4), np.nan, np.float32), "item 1 holds NaN"),
        (np.full((3, 4, 4), 1e300), "item 1 holds NaN, infinity or more"),
        ((), "item 1 is an empty tuple"),
        ({"images": GOOD}, "item 1 is object"),
        ("photo.png", "item 1 is <U9"),
        (None, "item 1 is object"),
        ([[GOOD, GOOD[:2]]], "item 1 is a list that numpy cannot take"),
        (torch.zeros(3, 4, 4, dtype=torch.bfloat16), "item 1 is a Tensor that numpy cannot take"),
        (torch.zeros(3, 4, 4, device="meta"), "item 1 is a Tensor that numpy cannot take"),
    ],
)
def test_an_item_that_cannot_be_used_is_refused_by_its_position(item, message):
    with pytest.raises(DataError, match=message) as caught:
        list(array_batches([GOOD, item], TINY, 4))
    assert "\n" not in str(caught.value)


def test_a_contract_without_size_says_so():
    with pytest.raises(DataError, match=r"\[3,H,W\]"):
        list(array_batches([np.zeros((1, 4, 4), np.float32)], ANY_SIZE, 1))


def test_a_source_of_nothing_is_an_error_that_thinks_of_used_up_generators():
    source = iter(images(2))
    assert len(list(array_batches(source, TINY, 2))) == 1
    with pytest.raises(DataError, match="a generator can be read only once"):
        list(array_batches(source, TINY, 2))


def test_what_the_source_raises_passes_through():
    def failing():
        yield GOOD
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(array_batches(failing(), TINY, 4))


@pytest.mark.parametrize(
    ("source", "batch", "message"), [([GOOD], 0, "batch is 0"), (3, 1, "source of images is a int: give an iterable")]
)
def test_arguments_that_cannot_be_used_are_refused_at_the_call(source, batch, message):
    with pytest.raises(InputError, match=message):
        array_batches(source, TINY, batch)


def test_taking_arrays_loads_no_torch():
    code = (
        "import sys, numpy; from calibration.images import array_batches; from calibration.preprocess import PRESETS;"
        "list(array_batches(numpy.zeros((1, 3, 32, 32)), PRESETS['cifar'], 1)); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
