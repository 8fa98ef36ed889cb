"""Sizes of an engine, and progress of a build: pure arithmetic."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.errors import InputError
from runtimes.tensorrt.monitor import Listener, Monitor, interruptible
from runtimes.tensorrt.profile import Size, profile

FREE, FIXED, ANY_SIZE = (None, 3, 224, 224), (4, 3, 224, 224), (None, 3, None, None)


def sizes(*texts):
    return tuple(None if text is None else Size.parse(text) for text in texts)


@pytest.mark.parametrize(
    ("dims", "asked", "expected"),
    [
        (FREE, (None, None, None), [(1, 3, 224, 224), (1, 3, 224, 224), (8, 3, 224, 224)]),
        (FREE, ("2", None, None), [(2, 3, 224, 224), (2, 3, 224, 224), (8, 3, 224, 224)]),
        (FREE, (None, "16", None), [(1, 3, 224, 224), (16, 3, 224, 224), (16, 3, 224, 224)]),
        (FREE, ("1", "4", "32x224x224"), [(1, 3, 224, 224), (4, 3, 224, 224), (32, 3, 224, 224)]),
        (FIXED, (None, None, None), [FIXED, FIXED, FIXED]),
        (FIXED, (None, "4", None), [FIXED, FIXED, FIXED]),
        (ANY_SIZE, (None, None, None), [(1, 3, 32, 40), (1, 3, 32, 40), (8, 3, 32, 40)]),
        (ANY_SIZE, (None, None, "8x512x512"), [(1, 3, 32, 40), (1, 3, 32, 40), (8, 3, 512, 512)]),
        (ANY_SIZE, ("1x36x36", None, None), [(1, 3, 36, 36), (1, 3, 36, 40), (8, 3, 36, 40)]),
        (ANY_SIZE, (None, "1x64x64", None), [(1, 3, 64, 64), (1, 3, 64, 64), (8, 3, 64, 64)]),
        (ANY_SIZE, ("1x32x32", "1x64x64", "2x96x96"), [(1, 3, 32, 32), (1, 3, 64, 64), (2, 3, 96, 96)]),
    ],
)
def test_what_is_not_given_follows_from_what_is(dims, asked, expected):
    found = profile("input", dims, sizes(*asked), usual=(32, 40))
    assert list(found.shapes) == expected
    assert found.to_json() == {"input": "input", **dict(zip(("min", "opt", "max"), map(list, expected), strict=True))}
    assert found.is_fixed == (dims is FIXED)


@pytest.mark.parametrize(
    ("dims", "asked", "told"),
    [
        (FREE, (None, "16", "8"), "--opt 16x3x224x224 is more than --max 8x3x224x224"),
        (FREE, ("4", "2", None), "--min 4x3x224x224 is more than --opt 2x3x224x224"),
        (ANY_SIZE, ("1x64x64", "2x32x96", None), "--min 1x3x64x64 is more than --opt 2x3x32x96"),
        (FREE, (None, "1x96x96", None), "takes images of 224x224, and 96x96 was asked for.*--dynamic-size"),
        (FIXED, (None, "8", None), "fixed at 4, and a batch of 8 was asked for.*--batch"),
        ((None, 3, 8, None), (None, "1x16x16", None), "images of 8xany, and 16x16 was asked for"),
        ((None, None, 8, 8), (None, None, None), "how many channels"),
        (ANY_SIZE, (None, "2", None), "any size: say which, as --opt 1x224x224"),
    ],
)
def test_a_profile_that_cannot_be_is_refused_with_what_is_wrong(dims, asked, told):
    with pytest.raises(InputError, match=told):
        profile("input", dims, sizes(*asked))


@pytest.mark.parametrize("text", ["", "0", "8x224", "8x0x224", "-1", "a", "1x2x3x4", "8.5", "3000000000"])
def test_a_size_that_is_none_is_refused(text):
    with pytest.raises(InputError, match="expected a batch, or BATCHxHEIGHTxWIDTH"):
        Size.parse(text)


class Heard(Listener):
    def __init__(self):
        self.fractions = []

    def progress(self, fraction, phase):
        self.fractions.append(fraction)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6))
def test_progress_goes_up_to_one_whatever_the_phases_inside(inner):
    """A phase may tell of no steps, of more than it said, or not end."""
    heard = Heard()
    watch = Monitor(heard, threading.Event())
    watch.started("whole", None, len(inner))
    for place, steps in enumerate(inner):
        watch.started("part", "whole", steps)
        for step in range(steps + 1):
            assert watch.step("part", step)
        watch.finished("part")
        watch.step("whole", place)
    watch.finished("whole")
    assert heard.fractions == sorted(heard.fractions)
    assert 0 < heard.fractions[0] <= heard.fractions[-1] == 1.0


def test_half_of_the_third_of_four_steps_is_five_eighths():
    heard = Heard()
    watch = Monitor(heard, threading.Event())
    watch.started("whole", None, 4)
    watch.step("whole", 0)
    watch.step("whole", 1)
    watch.started("part", "whole", 2)
    watch.step("part", 0)
    assert heard.fractions[-1] == 5 / 8


def test_ctrl_c_sets_the_event_and_ends_the_build_at_its_next_step():
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as stop:
        watch = Monitor(Listener(), stop)
        watch.started("whole", None, 2)
        assert watch.step("whole", 0)
        os.kill(os.getpid(), signal.SIGINT)
        assert not watch.step("whole", 1)
    assert signal.getsignal(signal.SIGINT) is before


def test_outside_the_main_thread_no_signal_is_touched():
    found = []
    thread = threading.Thread(target=lambda: found.append(interruptible().__enter__().is_set()))
    thread.start()
    thread.join()
    assert found == [False]
