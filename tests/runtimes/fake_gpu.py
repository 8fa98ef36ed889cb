"""A CUDA driver that does nothing before somebody waits for it, so that a missing wait gives wrong numbers.

Its memory are arrays, its stream is a list of things to do, and an engine on it (:mod:`tests.runtimes.fake_engine`)
computes what the test says. It shows in which order and how often something is asked for, and what is given back; not
that a GPU would do it. What a real driver answers with an error or a crash, a test hears as an AssertionError: a handle
that nobody made or that was given back, memory that is not there, work without the device's context.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np

Work = Callable[[], None]
_MEMORY, _INVALID_CONTEXT = 2, 201
_PRIMARY = 0x1000
#: A context of somebody else in the process.
FOREIGN = 0x2000
# What needs no current context.
_FREE = frozenset(
    {"cuInit", "cuGetErrorString", "cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease",
     "cuCtxSetCurrent", "cuCtxGetCurrent"}
)  # fmt: skip


class _Code(int):
    """A result code."""


class FakeDriver:
    """The functions of ``cuda.bindings.driver`` that :mod:`runtimes.tensorrt.cuda` calls.

    Attributes:
        memory: What is allocated, by address.
        calls: Names of the functions called.
        limit: Bytes that one allocation may take.
        fails: Function to the code that it returns.
        current: The thread's context; 0 is none.
        lives_here: Names of what would not outlive the device.
    """

    CUresult = _Code

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, limit: int = 1 << 30) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.calls: list[str] = []
        self.limit = limit
        self.fails: dict[str, int] = {}
        self.current = 0
        self.lives_here: Callable[[], list[str]] = list
        self._retained = 0
        self._handles = count(0x3000, 0x10)
        self._kinds: dict[int, str] = {}
        self._done: dict[int, bool] = {}
        self._graphs: dict[int, list[Work]] = {}
        self._queue: list[Work] = []
        self._captured: list[Work] | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu") or not callable(found):
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            if name in self.fails:
                return self.fails[name], None
            assert name in _FREE or self.current == _PRIMARY, f"{name} in the context {self.current:#x}"
            return found(*arguments)

        return call

    @property
    def alive(self) -> list[str]:
        """What nobody has given back: contexts, streams, events and graphs."""
        return ["context"] * self._retained + list(self._kinds.values())

    def push(self, work: Work) -> None:
        """Onto the stream, or into the graph that is being captured."""
        (self._queue if self._captured is None else self._captured).append(work)

    def check(self, handle: int, kind: str) -> None:
        """Whether a handle is one of a kind that is alive."""
        assert self._kinds.get(handle) == kind, f"{handle:#x} is no {kind}"
        assert self.current == _PRIMARY, f"a {kind} is used in the context {self.current:#x}"

    def check_memory(self, address: int, size: int) -> None:
        """Whether bytes lie in memory that is allocated."""
        inside = any(0 <= address - start <= array.nbytes - size for start, array in self.memory.items())
        assert inside, f"{size} bytes at {address:#x} are not allocated"

    def _copied(self, target: int, source: int, size: int) -> tuple[int]:
        def copy() -> None:
            for address in (target, source):
                self.check_memory(address, size)
            ctypes.memmove(target, source, size)

        self.push(copy)
        return (0,)

    def _drain(self) -> tuple[int]:
        while self._queue:
            self._queue.pop(0)()
        return (0,)

    def cuInit(self, _flags: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cuGetErrorString(self, _code: int) -> tuple[int, bytes]:  # noqa: N802
        return 0, b"something went wrong"

    def cuDeviceGet(self, index: int) -> tuple[int, int]:  # noqa: N802
        return 0, index

    def _made(self, kind: str) -> tuple[int, int]:
        handle = next(self._handles)
        self._kinds[handle] = kind
        return 0, handle

    def _gone(self, handle: int, kind: str) -> tuple[int]:
        self.check(handle, kind)
        del self._kinds[handle]
        return (0,)

    def cuDevicePrimaryCtxRetain(self, _device: int) -> tuple[int, int]:  # noqa: N802
        self._retained += 1
        return 0, _PRIMARY

    def cuDevicePrimaryCtxRelease(self, _device: int) -> tuple[int]:  # noqa: N802
        assert self._retained
        self._retained -= 1
        assert not self.lives_here(), f"{self.lives_here()} outlive the device"
        assert self.fails or not (self._kinds or self.memory), f"{self.alive} are left on the device"
        return (0,)

    def cuCtxGetCurrent(self) -> tuple[int, int]:  # noqa: N802
        return 0, self.current

    def cuCtxSetCurrent(self, context: int) -> tuple[int]:  # noqa: N802
        if context not in (0, FOREIGN) and not (context == _PRIMARY and self._retained):
            return (_INVALID_CONTEXT,)
        self.current = context
        return (0,)

    def cuMemGetInfo(self) -> tuple[int, int, int]:  # noqa: N802
        return 0, self.limit, self.limit

    def cuStreamCreate(self, _flags: int) -> tuple[int, int]:  # noqa: N802
        return self._made("stream")

    def cuStreamDestroy(self, stream: int) -> tuple[int]:  # noqa: N802
        return self._gone(stream, "stream")

    def cuStreamSynchronize(self, stream: int) -> tuple[int]:  # noqa: N802
        self.check(stream, "stream")
        return self._drain()

    def cuEventCreate(self, _flags: int) -> tuple[int, int]:  # noqa: N802
        code, event = self._made("event")
        self._done[event] = True
        return code, event

    def cuEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        return self._gone(event, "event")

    def cuEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        self.check(event, "event")
        self.check(stream, "stream")
        self._done[event] = False
        self.push(lambda: self._done.update({event: True}))
        return (0,)

    def cuEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        self.check(event, "event")
        while not self._done[event]:  # no further than the mark: what is behind it has not happened yet
            self._queue.pop(0)()
        return (0,)

    def _allocated(self, size: int) -> tuple[int, int]:
        if size > self.limit:
            return _MEMORY, 0
        array = np.full(size, 0xAB, np.uint8)
        self.memory[array.ctypes.data] = array
        return 0, array.ctypes.data

    def cuMemAlloc(self, size: int) -> tuple[int, int]:  # noqa: N802
        return self._allocated(size)

    def cuMemHostAlloc(self, size: int, _flags: int) -> tuple[int, int]:  # noqa: N802
        return self._allocated(size)

    def cuMemFree(self, pointer: int) -> tuple[int]:  # noqa: N802
        del self.memory[pointer]
        return (0,)

    def cuMemFreeHost(self, pointer: int) -> tuple[int]:  # noqa: N802
        return self.cuMemFree(pointer)

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        self.check(stream, "stream")
        return self._copied(target, source, size)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, stream: int) -> tuple[int]:  # noqa: N802
        self.check(stream, "stream")
        return self._copied(target, source, size)

    def cuStreamBeginCapture(self, stream: int, _mode: int) -> tuple[int]:  # noqa: N802
        self.check(stream, "stream")
        self._captured = []
        return (0,)

    def cuStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        self.check(stream, "stream")
        code, graph = self._made("captured graph")
        self._graphs[graph], self._captured = self._captured or [], None
        return code, graph

    def cuGraphInstantiate(self, graph: int, _flags: int) -> tuple[int, int]:  # noqa: N802
        self.check(graph, "captured graph")
        code, ready = self._made("graph")
        self._graphs[ready] = list(self._graphs[graph])
        return code, ready

    def cuGraphDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        return self._gone(graph, "captured graph")

    def cuGraphExecDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        return self._gone(graph, "graph")

    def cuGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        self.check(graph, "graph")
        self.check(stream, "stream")
        for work in self._graphs[graph]:
            self.push(work)
        return (0,)
