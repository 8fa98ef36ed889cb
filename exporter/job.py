"""The state of one run of the main job, and a graph on its way through it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from exporter.graph.capture import InputShape
from exporter.models.source import LoadedModel
from exporter.results import Listener, OnnxOptions, StageTime
from runtimes.parity import InputBatch, ParityChain


@dataclass
class Job:
    """The state of one run; lives inside :func:`exporter.pipeline.export_onnx` only.

    Attributes:
        loaded: The model.
        options: What the file is to be.
        listener: Hears of each stage.
        shape: What the graph will take.
        batches: What every stage is compared on.
        chain: The stages that have been proven.
        stages: Times.
        notes: What the user should know.
    """

    loaded: LoadedModel
    options: OnnxOptions
    listener: Listener
    shape: InputShape
    batches: Sequence[InputBatch]
    chain: ParityChain = field(default_factory=ParityChain)
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def stage(self, name: str) -> Iterator[list[str]]:
        """Time a stage; what the body puts into the list becomes its note."""
        self.listener.started(name)
        note: list[str] = []
        begin = time.perf_counter()
        yield note
        self.stages.append(StageTime(name, time.perf_counter() - begin, ", ".join(note)))
        self.listener.finished(self.stages[-1])


class Candidate(NamedTuple):
    """A graph that passed its checks, and the very bytes that passed them."""

    model: onnx.ModelProto
    data: bytes
    exporter: str
