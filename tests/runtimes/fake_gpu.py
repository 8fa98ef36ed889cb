"""A CUDA driver that does nothing before somebody waits for it, so that a missing wait gives wrong numbers.

Its memory are arrays, its stream is a list of things to do, and an engine on it computes what the test says. It shows
in which order and how often something is asked for, and what is given back; not that a GPU would do it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.runtimes.trt_fake import Fake

Work = Callable[[], None]
_FAULT, _MEMORY = 700, 2


class _Code(int):
    """A result code."""


def _copy(target: int, source: int, size: int) -> None:
    ctypes.memmove(target, source, size)


class FakeDriver:
    """The functions of ``cuda.bindings.driver`` that :mod:`runtimes.tensorrt.cuda` calls.

    Attributes:
        memory: What is allocated, by address.
        alive: Contexts, streams, events and graphs that nobody has given back.
        calls: Names of the functions called.
        limit: Bytes that one allocation may take.
        fails: Function to the code that it returns.
    """

    CUresult = _Code

    class CUstreamCaptureMode:
        CU_STREAM_CAPTURE_MODE_THREAD_LOCAL = 1

    def __init__(self, limit: int = 1 << 30) -> None:
        self.memory: dict[int, np.ndarray] = {}
        self.alive: list[str] = []
        self.calls: list[str] = []
        self.limit = limit
        self.fails: dict[str, int] = {}
        self._queue: list[Work] = []
        self._captured: list[Work] | None = None

    def __getattribute__(self, name: str) -> Any:
        found = super().__getattribute__(name)
        if not name.startswith("cu"):
            return found

        def call(*arguments: Any) -> Any:
            self.calls.append(name)
            return (self.fails[name], None) if name in self.fails else found(*arguments)

        return call

    def push(self, work: Work) -> None:
        """Onto the stream, or into the graph that is being captured."""
        (self._queue if self._captured is None else self._captured).append(work)

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

    def _made(self, what: str) -> tuple[int, int]:
        self.alive.append(what)
        return 0, 7

    def _gone(self, what: str) -> tuple[int]:
        self.alive.remove(what)
        return (0,)

    def cuDevicePrimaryCtxRetain(self, _device: int) -> tuple[int, int]:  # noqa: N802
        return self._made("context")

    def cuDevicePrimaryCtxRelease(self, _device: int) -> tuple[int]:  # noqa: N802
        return self._gone("context")

    def cuCtxSetCurrent(self, _context: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cuStreamCreate(self, _flags: int) -> tuple[int, int]:  # noqa: N802
        return self._made("stream")

    def cuStreamDestroy(self, _stream: int) -> tuple[int]:  # noqa: N802
        return self._gone("stream")

    def cuStreamSynchronize(self, _stream: int) -> tuple[int]:  # noqa: N802
        return self._drain()

    def cuEventCreate(self, _flags: int) -> tuple[int, list[bool]]:  # noqa: N802
        self.alive.append("event")
        return 0, [True]

    def cuEventDestroy(self, _event: Any) -> tuple[int]:  # noqa: N802
        return self._gone("event")

    def cuEventRecord(self, event: list[bool], _stream: int) -> tuple[int]:  # noqa: N802
        event[0] = False
        self.push(lambda: event.__setitem__(0, True))
        return (0,)

    def cuEventSynchronize(self, event: list[bool]) -> tuple[int]:  # noqa: N802
        while not event[0]:  # no further than the mark: what is behind it has not happened yet
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

    def cuMemcpyHtoDAsync(self, target: int, source: int, size: int, _stream: int) -> tuple[int]:  # noqa: N802
        self.push(lambda: _copy(target, source, size))
        return (0,)

    def cuMemcpyDtoHAsync(self, target: int, source: int, size: int, _stream: int) -> tuple[int]:  # noqa: N802
        self.push(lambda: _copy(target, source, size))
        return (0,)

    def cuStreamBeginCapture(self, _stream: int, _mode: int) -> tuple[int]:  # noqa: N802
        self._captured = []
        return (0,)

    def cuStreamEndCapture(self, _stream: int) -> tuple[int, list[Work] | None]:  # noqa: N802
        captured, self._captured = self._captured, None
        return 0, captured

    def cuGraphInstantiate(self, graph: list[Work], _flags: int) -> tuple[int, list[Work]]:  # noqa: N802
        self.alive.append("graph")
        return 0, list(graph)

    def cuGraphDestroy(self, _graph: Any) -> tuple[int]:  # noqa: N802
        return (0,)

    def cuGraphExecDestroy(self, _graph: Any) -> tuple[int]:  # noqa: N802
        return self._gone("graph")

    def cuGraphLaunch(self, graph: list[Work], _stream: int) -> tuple[int]:  # noqa: N802
        for work in graph:
            self.push(work)
        return (0,)


def put_engine(fake: Fake, driver: FakeDriver, low: int = 1, best: int = 2, high: int = 4, side: int = 8) -> list[Any]:
    """An engine ``[N, 3, side, side] -> [N, 5]`` float32 in a release: class k is k plus the sum of the image.

    Returns:
        The shapes that TensorRT was asked to compute, as the runs come.
    """
    trt = fake.module
    state: dict[str, Any] = {}
    runs: list[Any] = []

    def compute(shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        taken = (ctypes.c_float * size).from_address(state["input"])
        given = (ctypes.c_float * (shape[0] * 5)).from_address(state["logits"])
        sums = np.ctypeslib.as_array(taken).reshape(shape[0], -1).sum(axis=1)
        np.ctypeslib.as_array(given).reshape(shape[0], 5)[:] = sums[:, None] + np.arange(5)

    def execute(_stream: int) -> bool:
        shape = state["shape"]
        runs.append(shape)
        driver.push(lambda: compute(shape))
        return True

    image = (3, side, side)
    fake.values[("ICudaEngine", "num_io_tensors")] = 2
    for name in ("device_memory_size", "device_memory_size_v2"):
        fake.values[("ICudaEngine", name)] = 1_000_000
    fake.results |= {
        ("Runtime", "deserialize_cuda_engine"): lambda *_: fake.object("ICudaEngine"),
        ("ICudaEngine", "get_tensor_name"): lambda index: ("input", "logits")[index],
        ("ICudaEngine", "get_tensor_mode"): lambda name: trt.TensorIOMode.INPUT if name == "input" else "output",
        ("ICudaEngine", "get_tensor_dtype"): lambda _: trt.DataType.FLOAT,
        ("ICudaEngine", "get_tensor_shape"): lambda name: (-1, *image) if name == "input" else (-1, 5),
        ("ICudaEngine", "get_tensor_profile_shape"): lambda *_: [(n, *image) for n in (low, best, high)],
        ("ICudaEngine", "create_execution_context"): lambda *_: fake.object("IExecutionContext"),
        ("ICudaEngine", "create_runtime_config"): lambda *_: fake.object("IRuntimeConfig"),
        ("IRuntimeConfig", "create_runtime_cache"): lambda *_: fake.object("IRuntimeCache"),
        ("IRuntimeCache", "deserialize"): lambda data: data == b"kernels",
        ("IRuntimeCache", "serialize"): lambda *_: b"kernels",
        ("IExecutionContext", "set_input_shape"): lambda _, shape: state.update(shape=tuple(shape)) or True,
        ("IExecutionContext", "get_tensor_shape"): lambda _: (state["shape"][0], 5),
        ("IExecutionContext", "set_tensor_address"): lambda name, address: state.update({name: address}) or True,
        ("IExecutionContext", "execute_async_v3"): execute,
    }
    return runs
