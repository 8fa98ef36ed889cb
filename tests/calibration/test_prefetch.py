"""Reading ahead: the same items, not too many of them, and no thread left behind."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from calibration.prefetch import prefetched
from runtimes.errors import DataError, InputError


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


@pytest.mark.parametrize("ahead", [1, 2, 100])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_all_items_come_in_order(ahead, count):
    assert list(prefetched(range(count), ahead)) == list(range(count))


def test_items_may_be_none():
    assert list(prefetched([None, 0, None])) == [None, 0, None]


def test_the_next_item_is_made_while_the_caller_has_the_last_one():
    made = [threading.Event() for _ in range(3)]

    def source():
        for event in made:
            event.set()
            yield

    with closing(prefetched(source())) as items:
        next(items)
        assert made[1].wait(timeout=30)


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_is_made_than_allowed(ahead):
    made = []
    idle = threading.Event()

    def source():
        for number in range(20):
            made.append(number)
            if len(made) == 1 + ahead:
                idle.set()
            yield number

    with closing(prefetched(source(), ahead)) as items:
        next(items)
        assert idle.wait(timeout=30)
        assert len(made) == 1 + ahead
        next(items)
    assert len(made) <= 2 + ahead


def test_an_error_of_the_source_comes_in_the_place_of_its_item():
    def source():
        yield 1
        raise DataError("broken.png")

    items = prefetched(source(), ahead=3)
    assert next(items) == 1
    with pytest.raises(DataError, match=r"broken\.png"):
        next(items)


def test_an_error_while_the_source_is_made_iterable_is_the_callers():
    with pytest.raises(TypeError):
        next(prefetched(3))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_caller_closes_the_source_in_the_thread_that_ran_it(error):
    ended_in = []

    def source():
        try:
            yield from range(1000)
        finally:
            ended_in.append(threading.current_thread().name)

    def fails():
        with closing(prefetched(source())) as items:
            for _ in items:
                raise error

    with pytest.raises(error):
        fails()
    assert [name.startswith("prefetch") for name in ended_in] == [True]


def test_a_generator_that_was_never_asked_starts_no_thread():
    before = threading.active_count()
    items = prefetched(range(3))
    assert threading.active_count() == before
    items.close()


def test_reading_nothing_ahead_is_refused_at_once():
    with pytest.raises(InputError, match="0 items"):
        prefetched([], 0)
