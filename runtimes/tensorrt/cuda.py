"""The few things that running an engine asks of CUDA: a stream, memory on both sides, copies, graphs.

The driver's API through NVIDIA's own bindings (``cuda-bindings``): it needs nothing but the driver, and shares its
context with TensorRT, PyTorch and whoever else is in the process. Whatever a :class:`Gpu` gave is taken back when it is
closed, also after an error, and a thread that works with it has its own context back afterwards.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, Final, NoReturn

import numpy as np

from runtimes.base import Array
from runtimes.errors import GraphError, UnavailableError, first_line, missing_package

_SUCCESS, _OUT_OF_MEMORY = 0, 2
#: Work of another thread of the process neither joins a capture nor breaks it.
_THREAD_LOCAL: Final = "CU_STREAM_CAPTURE_MODE_THREAD_LOCAL"
_ALLOCATIONS: Final = {
    "cuMemAlloc": "the GPU has no memory left for",
    "cuMemHostAlloc": "this machine has no memory left that can be locked for",
}


class CaptureError(Exception):
    """What was to be captured cannot be: it waits for the device, or allocates."""


class Gpu:
    """One GPU, with one stream; a context manager.

    Args:
        index: Of the device, in the driver's order.
        driver: ``cuda.bindings.driver``, or something with its functions; ``None`` imports it.

    Entering raises ``UnavailableError`` where the bindings, the driver or the device are missing.
    """

    def __init__(self, index: int = 0, driver: Any = None) -> None:
        self._index = index
        self._driver = driver
        self._device: Any = None
        self._context: Any = None
        self._stream: Any = None
        self._undo: list[Callable[[], Any]] = []
        self._graphs: list[Any] = []

    def __enter__(self) -> Gpu:
        if self._driver is None:
            self._driver = _bindings()
        try:
            self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        try:
            self._call("cuInit", 0)
        except (RuntimeError, OSError, ImportError) as error:  # the bindings look for the driver at their first call
            raise UnavailableError(
                f"running an engine needs an NVIDIA GPU, and its driver cannot be used: {first_line(error)}"
            ) from error
        self._device = self._call("cuDeviceGet", self._index)
        self._context = self._call("cuDevicePrimaryCtxRetain", self._device)
        self._undo.append(lambda: self._call("cuDevicePrimaryCtxRelease", self._device))
        with self.active():
            self._stream = self._call("cuStreamCreate", 1)  # CU_STREAM_NON_BLOCKING: not held up by the default stream
            self._undo.append(lambda: self._call("cuStreamDestroy", self._stream))

    def close(self) -> None:
        """Wait for the device and give everything back, the newest first; what fails must not keep the rest."""
        if self._context is None:
            return
        with self.settled():
            while self._undo:
                self._quietly(self._undo.pop())
        self._context = self._stream = None

    @property
    def stream(self) -> int:
        """The stream's handle, as TensorRT takes it."""
        return int(self._stream)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make this device the calling thread's meanwhile: a runtime may be opened in one thread and run in another."""
        before = self._call("cuCtxGetCurrent")
        self._call("cuCtxSetCurrent", self._context)
        try:
            yield
        finally:
            self._quietly(lambda: self._call("cuCtxSetCurrent", before))

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """Nothing is queued and no graph is left meanwhile, for who gives back what they use; never fails itself."""
        with contextlib.ExitStack() as stack:
            self._quietly(lambda: stack.enter_context(self.active()))
            self.settle()
            while self._graphs:
                self.discard(self._graphs[-1])
            yield

    def free_bytes(self) -> int:
        """Memory of the device that nobody has."""
        with self.active():
            return int(self._call("cuMemGetInfo")[0])

    def allocate(self, size: int) -> int:
        """Memory on the device.

        Args:
            size: In bytes, at least 1.

        Raises:
            UnavailableError: There is not so much; says how much there is.
        """
        pointer = self._call("cuMemAlloc", size)
        self._undo.append(lambda: self._call("cuMemFree", pointer))
        return int(pointer)

    def pinned(self, shape: tuple[int, ...], dtype: str) -> Array:
        """An array in page-locked memory, which the device copies from and to by itself.

        It must not be touched after :meth:`close`.

        Raises:
            UnavailableError: There is not so much.
        """
        kind = np.dtype(dtype)
        count = math.prod(shape)
        pointer = int(self._call("cuMemHostAlloc", count * kind.itemsize, 0))
        self._undo.append(lambda: self._call("cuMemFreeHost", pointer))
        memory = (ctypes.c_byte * (count * kind.itemsize)).from_address(pointer)
        array: Array = np.frombuffer(memory, dtype=kind).reshape(shape)  # type: ignore[call-overload]
        return array

    def upload(self, target: int, source: Array) -> None:
        """Queue a copy of a contiguous, pinned array to the device."""
        self._call("cuMemcpyHtoDAsync", target, source.ctypes.data, source.nbytes, self._stream)

    def download(self, target: Array, source: int) -> None:
        """Queue a copy from the device into a contiguous, pinned array."""
        self._call("cuMemcpyDtoHAsync", target.ctypes.data, source, target.nbytes, self._stream)

    def event(self) -> Any:
        """A mark to be set in the stream and waited for."""
        event = self._call("cuEventCreate", 2)  # CU_EVENT_DISABLE_TIMING: cheaper, and nobody reads its time
        self._undo.append(lambda: self._call("cuEventDestroy", event))
        return event

    def record(self, event: Any) -> None:
        """Set a mark behind all that is queued."""
        self._call("cuEventRecord", event, self._stream)

    def wait(self, event: Any) -> None:
        """Until the stream has passed a mark."""
        self._call("cuEventSynchronize", event)

    def synchronize(self) -> None:
        """Until nothing is queued."""
        self._call("cuStreamSynchronize", self._stream)

    def settle(self) -> None:
        """Wait for what is queued, whatever it ends with: nobody wants its result any more."""
        if self._stream is not None:
            self._quietly(self.synchronize)

    def capture(self, work: Callable[[], bool]) -> Any:
        """What ``work`` queues, as a graph that is launched as one.

        Args:
            work: Queues on the stream; whether it could.

        Raises:
            CaptureError: It cannot be captured; the stream can be used as before.
        """
        mode = getattr(self._driver.CUstreamCaptureMode, _THREAD_LOCAL)
        self._call("cuStreamBeginCapture", self._stream, mode)
        graph = None
        try:
            queued = work()
        finally:  # the stream takes nothing else until the capture has ended, well or not
            try:
                graph = self._call("cuStreamEndCapture", self._stream)
            except (GraphError, UnavailableError) as error:
                raise CaptureError(str(error)) from error
        try:
            if not queued:
                raise CaptureError("TensorRT queues it only outside of a graph")
            return self._instantiated(graph)
        finally:
            self._quietly(lambda: self._call("cuGraphDestroy", graph))

    def _instantiated(self, graph: Any) -> Any:
        try:
            ready = self._call("cuGraphInstantiate", graph, 0)
        except (GraphError, UnavailableError) as error:  # a graph takes memory, and all goes on without one
            raise CaptureError(str(error)) from error
        self._graphs.append(ready)
        return ready

    def discard(self, graph: Any) -> None:
        """Give a graph back, when its last launch has ended."""
        self.settle()
        self._graphs.remove(graph)
        self._quietly(lambda: self._call("cuGraphExecDestroy", graph))

    def launch(self, graph: Any) -> None:
        """Queue a captured graph."""
        self._call("cuGraphLaunch", graph, self._stream)

    def _call(self, function: str, *arguments: Any) -> Any:
        """The results of a call: none, one, or a tuple."""
        code, *results = getattr(self._driver, function)(*arguments)
        if int(code) != _SUCCESS:
            self._fail(function, int(code), arguments)
        return results[0] if len(results) == 1 else tuple(results)

    def _fail(self, function: str, code: int, arguments: tuple[Any, ...]) -> NoReturn:
        _, text = self._driver.cuGetErrorString(self._driver.CUresult(code))
        said = text.decode(errors="replace") if isinstance(text, bytes) else "an error without a name"
        if code == _OUT_OF_MEMORY and function in _ALLOCATIONS:
            asked = f"{_ALLOCATIONS[function]} {arguments[0] / 1e6:.1f} MB"
            raise UnavailableError(f"{asked}: build the engine with a smaller --max")
        if code == _OUT_OF_MEMORY:
            raise UnavailableError(f"the GPU has no memory left ({function}): end what else is running on it")
        if function.startswith(("cuInit", "cuDevice")):
            raise UnavailableError(f"GPU {self._index} cannot be used: the driver says {said} ({function}: {code})")
        raise GraphError(f"the GPU failed: {said} ({function}: {code})")

    @staticmethod
    def _quietly(action: Callable[[], Any]) -> None:
        with contextlib.suppress(GraphError, UnavailableError):  # after a fault every call fails: the first was told
            action()


def _bindings() -> Any:
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise missing_package("cuda-bindings") from error
    return driver
