"""Batches of any length through models of a fixed batch."""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.base import Binding, Runtime, TensorSpec
from runtimes.batching import as_input, fixed_batch, run_padded
from runtimes.errors import TensorError
from tests.runtimes.models import CHANNELS, images, linear, weights


class FixedRuntime(Runtime):
    """`linear` for one batch size and element type; remembers what it was fed."""

    def __init__(self, batch, dtype="float32"):
        super().__init__("fixed")
        self.batch, self.dtype, self.fed = batch, dtype, []

    def _open(self):
        return Binding(
            TensorSpec("input", self.dtype, (self.batch, CHANNELS, None, None)),
            TensorSpec("logits", "float32", (self.batch, None)),
            {},
        )

    def _run(self, batch):
        self.fed.append(batch)
        return linear(weights())(batch.astype(np.float32))


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 7, 64])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_image_gets_its_own_logits_whatever_batch_the_model_takes(batch, count):
    given = images(count)
    with FixedRuntime(batch) as runtime:
        logits = run_padded(runtime, given)
        assert fixed_batch(runtime) == batch
    np.testing.assert_allclose(logits, linear(weights())(given), rtol=1e-6)
    assert {len(fed) for fed in runtime.fed} == {batch or count}


def test_a_short_batch_is_filled_up_with_copies_of_its_first_image():
    given = images(5)
    with FixedRuntime(4) as runtime:
        run_padded(runtime, given)
    np.testing.assert_array_equal(runtime.fed[1], given[[4, 4, 4, 4]])


def test_the_result_does_not_hold_on_to_the_logits_of_the_padding():
    with FixedRuntime(64) as runtime:
        assert run_padded(runtime, images(1)).base is None


def test_a_model_of_half_precision_is_fed_the_rounded_images_and_the_caller_keeps_its_own():
    given = images(3)
    before = given.copy()
    with FixedRuntime(2, "float16") as runtime:
        run_padded(runtime, given)
        assert as_input(runtime, given).dtype == np.float16
    np.testing.assert_array_equal(runtime.fed[0], given[:2].astype(np.float16))
    np.testing.assert_array_equal(given, before)


def test_images_that_are_no_floats_are_refused_not_converted():
    with FixedRuntime(2) as runtime, pytest.raises(TensorError, match="uint8"):
        run_padded(runtime, images(2).astype(np.uint8))


def test_no_images_at_all_are_refused():
    with FixedRuntime(2) as runtime, pytest.raises(TensorError, match=r"\[0, 3, 4, 4\]"):
        run_padded(runtime, images(2)[:0])
