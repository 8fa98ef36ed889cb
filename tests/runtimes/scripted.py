"""A clock that only runs forward where a test says so, and runtimes whose runs take as long as they are told."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError

MS = 1_000_000


class FakeClock:
    """Nanoseconds that pass by :meth:`pass_` alone."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now

    def pass_(self, nanoseconds: int) -> None:
        self.now += nanoseconds


class ScriptedRuntime(Runtime):
    """Run number ``i`` takes ``duration(i)`` nanoseconds; every run is noted in ``log``, if there is one."""

    def __init__(
        self,
        clock: FakeClock,
        duration: Callable[[int], int],
        name: str = "scripted",
        *,
        log: list[str] | None = None,
        batch: int | None = None,
        fails_at: int | None = None,
    ) -> None:
        super().__init__(name)
        self.clock, self.duration, self.log = clock, duration, log
        self.batch, self.fails_at = batch, fails_at
        self.runs = 0
        self.sizes: list[int] = []

    def _open(self) -> Binding:
        spec = TensorSpec("input", "float32", (self.batch, 3, None, None))
        return Binding(spec, TensorSpec("logits", "float32", (None, 2)), {"threads": 2, "device": "fake"})

    def _run(self, batch: Array) -> Array:
        self.clock.pass_(self.duration(self.runs))
        self.runs += 1
        self.sizes.append(len(batch))
        if self.log is not None:
            self.log.append(self.name)
        if self.runs == self.fails_at:
            raise GraphError(f"{self.name}: out of memory")
        return np.zeros((len(batch), 2), np.float32)
