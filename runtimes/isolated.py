"""Cold start and memory of a runtime, in a process of its own, so that runtimes do not count each other's.

The process is a new interpreter, not a fork, which would begin with the parent's memory and libraries; and not one of
``multiprocessing``, which would begin with everything that the parent's main script imports.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

import numpy as np

from runtimes.base import Array, Runtime
from runtimes.batching import as_input
from runtimes.errors import ResnetExportError, first_line
from runtimes.machine import peak_rss_mb

_CHILD: Final = "from runtimes.isolated import child; child()"
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


def cold_start(create: Callable[[], Runtime], shape: Sequence[int], dtype: str = "float32") -> ColdStart:
    """Start a process, open a runtime in it, and run it a few times.

    Args:
        create: Makes the runtime, not open yet. It has to be picklable: a class or ``functools.partial``, no lambda,
            and nothing that is defined in the main script.
        shape: Of the images, ``[N, C, H, W]``; they are seeded noise, made in that process.
        dtype: Their element type: of floats, or uint8 for a model that takes pixels.
    """
    try:
        job = pickle.dumps((tuple(shape), dtype, pickle.dumps(create)))
    except (pickle.PicklingError, AttributeError, TypeError, ValueError) as error:
        return _unknown(f"the runtime cannot be sent to a process of its own: {first_line(error)}")
    # What can be imported here has to be importable there; the empty entry is the folder that this process is in.
    paths = os.pathsep.join(entry or os.getcwd() for entry in sys.path)  # noqa: PTH109 - a string is wanted
    pipe = subprocess.PIPE
    try:
        # In a session of its own: Ctrl+C reaches every process of the terminal's, and this one is ended below.
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD], stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True,
            env={**os.environ, "PYTHONPATH": paths},
        )  # fmt: skip
    except OSError as error:
        return _unknown(f"no process can be started: {error.strerror or first_line(error)}")
    with process:
        try:
            output, messages = process.communicate(job)
        finally:
            process.kill()
    if process.returncode != 0 or not output:
        last = (messages.decode(errors="replace").strip().splitlines() or ["no message"])[-1][:200]
        return _unknown(f"its own process ended with {process.returncode}: {last}")
    return ColdStart(**json.loads(output))


def child() -> None:
    """What the process of its own does: a job from standard input, a result as JSON to standard output."""
    # Libraries print to standard output, which is for the result alone.
    answer = os.dup(1)
    os.dup2(2, 1)
    shape, dtype, pickled = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent
    found = _measured(pickled, _noise(shape, dtype))
    with os.fdopen(answer, "w") as stream:
        json.dump(asdict(found), stream)


def _noise(shape: Sequence[int], dtype: str) -> Array:
    random = np.random.default_rng(0)
    if dtype == "uint8":
        return random.integers(0, 256, shape, np.uint8)
    return random.standard_normal(shape, dtype=np.float32)


def _measured(pickled: bytes, images: Array) -> ColdStart:
    begin = time.perf_counter_ns()
    try:
        create: Callable[[], Runtime] = pickle.loads(pickled)  # noqa: S301 - from the parent
        with create() as runtime:
            feed = as_input(runtime, images)
            runtime.run(feed)
            elapsed = time.perf_counter_ns() - begin
            for _ in range(_RUNS - 1):
                runtime.run(feed)
            return ColdStart(elapsed * 1e-6, peak_rss_mb())
    except ResnetExportError as error:
        return _unknown(str(error))


def _unknown(remark: str) -> ColdStart:
    return ColdStart(None, None, remark)
