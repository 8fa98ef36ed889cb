"""Stages of a job, timed and told."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from exporter.results import Listener, StageTime


@contextmanager
def timed(name: str, listener: Listener, done: list[StageTime]) -> Iterator[list[str]]:
    """Time a stage; what the body puts into the list becomes its note.

    Args:
        name: Of the stage.
        listener: Hears of its beginning, and of its end where it ends well.
        done: Gets the stage then.
    """
    listener.started(name)
    note: list[str] = []
    begin = time.perf_counter()
    yield note
    done.append(StageTime(name, time.perf_counter() - begin, ", ".join(note)))
    listener.finished(done[-1])
