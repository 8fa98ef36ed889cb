"""Batches through a loaded engine: pieces, page-locked memory, one stream, and graphs where nothing forbids them.

A batch above the profile's largest is cut into pieces, and while the device computes one, the next is copied into
place; one below the smallest is filled up, and what the filling gave is cut off again.

What TensorRT queues is captured into a CUDA graph at the second run of a shape: the first one chooses and allocates,
which no graph can hold. Another shape ends the graph, since the context that it was made of has changed: a batch whose
pieces differ is therefore run without one, which would be made anew for every piece. (TensorRT's developer guide, "CUDA
Graphs".)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from runtimes.base import Array
from runtimes.errors import GraphError, TensorError
from runtimes.tensorrt.cuda import CaptureError, Gpu
from runtimes.tensorrt.engine_io import EngineIO, Shape
from runtimes.tensorrt.loading import CAPTURED, Loaded
from runtimes.tensorrt.messages import Messages, translated


class _Slot(NamedTuple):
    """Page-locked memory of one piece of a batch, and the mark behind its result."""

    input: Array
    output: Array
    done: Any


class _Sent(NamedTuple):
    """A piece that is on its way."""

    slot: _Slot
    output: Shape
    rows: int


class Executor:
    """Takes all memory for the largest batch when it is made, so that running allocates nothing.

    Args:
        gpu: Whose stream and memory are used.
        loaded: The engine; its ``graphs`` tell later where it turns out that none can be made.
        io: Its input and output.
        label: What it is called in messages.
        messages: What TensorRT logs meanwhile.

    Raises:
        UnavailableError: The GPU has not enough memory.
        GraphError: The engine's output has no size before it is run.
    """

    def __init__(self, gpu: Gpu, loaded: Loaded, io: EngineIO, label: str, messages: Messages) -> None:
        self._gpu, self._loaded, self._io, self._label = gpu, loaded, io, label
        self._graph: Any = None
        self._is_warm = False
        self._shape: Shape = ()
        self._output: Shape = ()
        with translated(f"{label} cannot be prepared"):
            self._prepare(messages)

    def _prepare(self, messages: Messages) -> None:
        gpu, io = self._gpu, self._io
        self._fit(io.maximum, messages)
        sizes = [
            np.dtype(spec.dtype).itemsize * math.prod(shape)
            for spec, shape in ((io.input, io.maximum), (io.output, self._output))
        ]
        self._source, self._target = (gpu.allocate(size) for size in sizes)
        self._slots = tuple(
            _Slot(gpu.pinned(io.maximum, io.input.dtype), gpu.pinned(self._output, io.output.dtype), gpu.event())
            for _ in range(2)
        )
        for name, address in ((io.input.name, self._source), (io.output.name, self._target)):
            if not self._loaded.context.set_tensor_address(name, address):
                raise GraphError(f"{self._label}: TensorRT refuses the memory of '{name}': {messages.last()}")

    def run(self, batch: Array, messages: Messages) -> Array:
        """One batch of any size.

        Args:
            batch: ``[N, C, H, W]`` in the input's type, contiguous.
            messages: What TensorRT logs meanwhile.

        Returns:
            ``[N, classes]`` in the output's type.

        Raises:
            TensorError: Its images are outside of the profile.
            GraphError: The device or TensorRT failed.
        """
        self._io.check_image(batch.shape)
        largest = self._io.maximum[0]
        pieces = [batch[start : start + largest] for start in range(0, len(batch), largest)]
        with self._gpu.active(), translated(f"{self._label} failed"):
            results = self._results(pieces, messages)
        return results[0] if len(results) == 1 else np.concatenate(results)

    def _results(self, pieces: Sequence[Array], messages: Messages) -> list[Array]:
        alike = len({self._shape_for(piece) for piece in pieces}) == 1
        results: list[Array] = []
        sent: list[_Sent] = []
        for number, piece in enumerate(pieces):
            if len(sent) == len(self._slots):  # its memory is wanted again
                results.append(self._received(sent.pop(0)))
            slot = self._slots[number % len(self._slots)]
            sent.append(self._send(slot, piece, alike, messages))
        results.extend(map(self._received, sent))
        return results

    def _shape_for(self, piece: Array) -> Shape:
        return max(len(piece), self._io.minimum[0]), *piece.shape[1:]

    def _send(self, slot: _Slot, piece: Array, captures: bool, messages: Messages) -> _Sent:
        shape = self._shape_for(piece)
        source = _front(slot.input, shape)
        source[: len(piece)] = piece
        source[len(piece) :] = piece[:1]  # any image does: its row is cut off again
        if shape != self._shape:
            self._fit(shape, messages)
        self._gpu.upload(self._source, source)
        self._execute(captures, messages)
        self._gpu.download(_front(slot.output, self._output), self._target)
        self._gpu.record(slot.done)
        return _Sent(slot, self._output, len(piece))

    def _received(self, sent: _Sent) -> Array:
        self._gpu.wait(sent.slot.done)
        output = _front(sent.slot.output, sent.output)
        if len(output) < sent.rows:
            raise TensorError(f"{self._label}: gave {len(output)} rows for {sent.rows} images, expected one for each")
        result: Array = output[: sent.rows].copy()  # a later piece is written to this memory
        return result

    def _fit(self, shape: Shape, messages: Messages) -> None:
        """Tell TensorRT the input's shape, and hear the output's."""
        if self._graph is not None:
            self._gpu.discard(self._graph)
        self._graph, self._is_warm = None, False
        if not self._loaded.context.set_input_shape(self._io.input.name, shape):
            raise GraphError(f"{self._label}: TensorRT refuses the shape {list(shape)}: {messages.last()}")
        output = tuple(map(int, self._loaded.context.get_tensor_shape(self._io.output.name)))
        if min(output, default=-1) < 0:
            raise GraphError(f"{self._label}: the size of '{self._io.output.name}' is known only after a run")
        self._shape, self._output = shape, output

    def _execute(self, captures: bool, messages: Messages) -> None:
        if self._graph is None and captures and self._is_warm and self._loaded.graphs == CAPTURED:
            try:
                self._graph = self._gpu.capture(self._enqueue)
            except CaptureError as error:
                self._loaded.graphs = f"off: {error}"
        if self._graph is not None:
            self._gpu.launch(self._graph)
            return
        if not self._enqueue():
            raise GraphError(f"{self._label} failed on {list(self._shape)}: {messages.last() or 'no reason is told'}")
        self._is_warm = True

    def _enqueue(self) -> bool:
        return bool(self._loaded.context.execute_async_v3(self._gpu.stream))


def _front(memory: Array, shape: Shape) -> Array:
    """The first elements of an array as a contiguous one of another shape."""
    return memory.reshape(-1)[: math.prod(shape)].reshape(shape)
