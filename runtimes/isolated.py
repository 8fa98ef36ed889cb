"""Cold start and memory of a runtime, in a process of its own, so that runtimes do not count each other's.

The process is spawned, not forked: a fork would begin with the parent's memory and libraries. It imports what it needs,
and the script that was started as well, so that script has to keep its work under ``if __name__ == "__main__"``.
"""

from __future__ import annotations

import multiprocessing
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Final

import numpy as np

from runtimes.base import Runtime
from runtimes.batching import as_input
from runtimes.errors import ResnetExportError, first_line
from runtimes.machine import peak_rss_mb

_RUNS: Final = 3  # allocators reach their final size after the first few


@dataclass(frozen=True)
class ColdStart:
    """A runtime's first moments.

    Attributes:
        cold_start_ms: From an interpreter with numpy to the first logits: importing the backend's library, opening
            the model, and one run. None where it could not be measured.
        peak_rss_mb: Largest resident set of the process in MiB: interpreter, libraries, model and a batch. None where
            it could not be measured. Memory of a GPU is not in it.
        remark: Why something could not be measured, or None.
    """

    cold_start_ms: float | None
    peak_rss_mb: float | None
    remark: str | None = None


def cold_start(create: Callable[[], Runtime], shape: Sequence[int]) -> ColdStart:
    """Start a process, open a runtime in it, and run it a few times.

    Args:
        create: Makes the runtime, not open yet. It has to be picklable: a class or ``functools.partial``, no lambda.
        shape: Of the images, ``[N, C, H, W]``; they are seeded noise, made in that process.
    """
    try:
        # Not by multiprocessing itself: there, torch would move the tensors of a module into shared memory.
        pickled = pickle.dumps(create)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        return _unknown(f"the runtime cannot be sent to a process of its own: {first_line(error)}")
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(there, pickled, tuple(shape)))
    try:
        process.start()
        there.close()
        found = here.recv()
    except OSError as error:
        return _unknown(f"no process can be started: {error.strerror or first_line(error)}")
    except EOFError:
        process.join()
        return _unknown(f"its own process ended with {process.exitcode} before its first result")
    finally:
        here.close()
        if process.pid is not None:
            process.kill()
            process.join()
    return found if isinstance(found, ColdStart) else _unknown(str(found))


def _child(connection: Connection, pickled: bytes, shape: tuple[int, ...]) -> None:
    # Ctrl+C reaches every process of the terminal; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    images = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    begin = time.perf_counter_ns()
    try:
        create: Callable[[], Runtime] = pickle.loads(pickled)  # noqa: S301 - bytes of the parent, from its own memory
        with create() as runtime:
            feed = as_input(runtime, images)
            runtime.run(feed)
            elapsed = time.perf_counter_ns() - begin
            for _ in range(_RUNS - 1):
                runtime.run(feed)
            connection.send(ColdStart(elapsed * 1e-6, peak_rss_mb()))
    except ResnetExportError as error:
        connection.send(str(error))


def _unknown(remark: str) -> ColdStart:
    return ColdStart(None, None, remark)
