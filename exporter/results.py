"""What goes into the main job and what comes out of it: options, stage times, the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from exporter.embedded import EmbedOptions
from exporter.graph.opset import DEFAULT_OPSET, EXPORTER_OLDEST, require_opset
from runtimes.errors import GraphError

if TYPE_CHECKING:  # importing it takes seconds, and commands without torch show progress as well
    from exporter.graph.fold import FoldResult


@dataclass(frozen=True)
class OnnxOptions:
    """What the file is to be.

    Attributes:
        opset: ONNX operator set.
        precision: ``fp32``, or ``fp16`` for a graph whose every tensor is FP16.
        fp16_io: With ``fp16``: input and output are FP16 too, instead of FP32 behind a Cast.
        batch: Fixed batch, or ``None`` for any.
        dynamic_size: Height and width stay free.
        simplify: Whether onnxsim is asked.
        exporter: ``auto`` tries torch.export's, then TorchScript's.
        labels: Class names for the metadata.
        embed: What of the preprocessing goes into the graph; ``None``: nothing.
    """

    opset: int = DEFAULT_OPSET
    precision: Literal["fp32", "fp16"] = "fp32"
    fp16_io: bool = False
    batch: int | None = None
    dynamic_size: bool = False
    simplify: bool = True
    exporter: Literal["auto", "torch.export", "torchscript"] = "auto"
    labels: tuple[str, ...] = ()
    embed: EmbedOptions | None = None

    def check(self) -> None:
        """Refuse options that cannot be had together, before any long work.

        Raises:
            GraphError: An opset that does not exist, or FP16 input in an FP32 graph.
        """
        require_opset(self.opset)
        if self.exporter == "torchscript" and self.opset > EXPORTER_OLDEST:
            raise GraphError(
                f"--exporter torchscript with --opset {self.opset}: it writes at most {EXPORTER_OLDEST}; "
                "give a lower --opset, or leave --exporter out"
            )
        if self.fp16_io and self.precision != "fp16":
            raise GraphError("--fp16-io needs --precision fp16: an FP32 graph has no FP16 input")


class StageTime(NamedTuple):
    """A finished stage: its name, its seconds, and what it did in a few words."""

    name: str
    seconds: float
    note: str


class Listener:
    """Hears of stages as they begin and end; this one keeps quiet."""

    def started(self, name: str) -> None:
        """A stage begins."""

    def finished(self, stage: StageTime) -> None:
        """A stage has ended well."""


@dataclass(frozen=True)
class OnnxReport:
    """What was made, and the proof.

    Attributes:
        onnx: The file.
        sha256: Of its bytes.
        size: Its bytes.
        opset: Its operator set.
        precision: ``fp32`` or ``fp16``.
        ops: Operator -> number of nodes.
        fold: Every BatchNorm, folded or refused.
        exporter: Which of torch's exporters wrote it.
        simplified: Whether onnxsim's graph was taken.
        stages: Times.
        parity: Rows of the comparison.
        model: Name, input and classes.
        notes: What the user should know: assumptions, fallbacks, refusals.
        embedded: Where the preprocessing went, and what is left of it; ``None`` where it is outside.
    """

    onnx: Path
    sha256: str
    size: int
    opset: int
    precision: str
    ops: dict[str, int]
    fold: FoldResult
    exporter: str
    simplified: bool
    stages: tuple[StageTime, ...]
    parity: tuple[dict[str, Any], ...]
    model: dict[str, Any]
    notes: tuple[str, ...]
    embedded: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """The document that ``--json`` prints."""
        return {
            "onnx": str(self.onnx),
            "sha256": self.sha256,
            "bytes": self.size,
            "opset": self.opset,
            "precision": self.precision,
            "ops": self.ops,
            "folded": len(self.fold.rows),
            "fold": self.fold.to_json(),
            "exporter": self.exporter,
            "simplified": self.simplified,
            "stages": [{"name": s.name, "seconds": round(s.seconds, 3), "note": s.note} for s in self.stages],
            "parity": list(self.parity),
            "model": self.model,
            "notes": list(self.notes),
            "embedded": self.embedded,
        }
