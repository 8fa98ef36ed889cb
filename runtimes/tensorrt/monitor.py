"""How far a build is, and its interruption."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Listener:
    """Hears how far a build is; this one keeps quiet."""

    def progress(self, fraction: float, phase: str) -> None:
        """So much of 1 is done, in the innermost of its phases."""


class Monitor:
    """Phases inside phases, as TensorRT tells of them, as one fraction that never goes back.

    TensorRT may call from several threads; the listener hears of one step at a time.
    """

    def __init__(self, listener: Listener, stop: threading.Event) -> None:
        self._listener, self._stop = listener, stop
        self._lock = threading.Lock()
        self._phases: dict[str, list[Any]] = {}  # name -> parent, steps, done
        self._most = 0.0

    def started(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        with self._lock:
            self._phases[name] = [parent, max(steps, 1), 0]

    def step(self, name: str, step: int) -> bool:
        """A step of a phase has ended; whether to go on."""
        with self._lock:
            if name in self._phases:
                self._phases[name][2] = step + 1
                self._most = max(self._most, min(1.0, self._fraction(name)))
                self._listener.progress(self._most, name)
        return not self._stop.is_set()

    def finished(self, name: str) -> None:
        """A phase has ended."""
        with self._lock:
            self._phases.pop(name, None)

    def _fraction(self, name: str) -> float:
        """What is done of the whole, where this phase is the current step of those around it."""
        parent, steps, done = self._phases[name]
        part, seen = done / steps, {name}
        while parent in self._phases and parent not in seen:  # names are TensorRT's: one may come again inside itself
            seen.add(parent)
            parent, steps, done = self._phases[parent]
            part = (done + min(part, 1.0)) / steps
        return float(part)


def monitor(trt: Any, listener: Listener, stop: threading.Event) -> Any:
    """A progress monitor for the bindings.

    Args:
        trt: The bindings' module.
        listener: Hears of it.
        stop: Ends the build when it is set.
    """
    own = Monitor(listener, stop)

    class Bound(trt.IProgressMonitor):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)  # pybind wants it by name

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            own.started(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return own.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            own.finished(phase_name)

    return Bound()


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets. An exception inside TensorRT's callbacks would end the process."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # signals come to the main thread
        return

    def handle(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    heard = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]  # nohup stays nohup
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
