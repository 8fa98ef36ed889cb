"""The state of one run of the main job, and a graph on its way through it."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from exporter.embed_proof import Pixels
from exporter.embed_stages import Made
from exporter.graph.capture import InputShape
from exporter.models.source import LoadedModel
from exporter.results import Listener, OnnxOptions, StageTime
from exporter.stages import timed
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
        pixels: ``[N, h, w, C]`` that the file that takes pixels is compared on as well.
        made: That file; ``None`` before, and where none was asked for.
    """

    loaded: LoadedModel
    options: OnnxOptions
    listener: Listener
    shape: InputShape
    batches: Sequence[InputBatch]
    chain: ParityChain = field(default_factory=ParityChain)
    stages: list[StageTime] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    pixels: Pixels | None = None
    made: Made | None = None

    def stage(self, name: str) -> AbstractContextManager[list[str]]:
        """Time a stage; what the body puts into the list becomes its note."""
        return timed(name, self.listener, self.stages)


class Candidate(NamedTuple):
    """A graph that passed its checks, and the very bytes that passed them."""

    model: onnx.ModelProto
    data: bytes
    exporter: str
