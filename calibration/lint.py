"""The linter of quantised files: what a target will refuse, compute wrongly, or run in float, and why.

It reads files of any maker: nothing is taken from names, and nothing is run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import onnx
from onnx.inliner import inline_local_functions

from calibration.graph import QUANTISED
from calibration.lint_fusion import fusion
from calibration.lint_graph import AVERAGING, MOVING, WEIGHTED, QuantisedGraph, title
from calibration.lint_sides import CLIPPING
from calibration.lint_table import RULES, Severity
from calibration.placement import TARGETS
from runtimes.errors import GraphError
from runtimes.reading import read_model

# Operators that are integer already -> what they are counted as.
_INTEGER_FORMS: Final = {
    "QLinearConv": "Conv", "ConvInteger": "Conv", "QLinearAdd": "Add", "QGemm": "Gemm", "QLinearMatMul": "MatMul",
    "MatMulInteger": "MatMul", "MatMulIntegerToFloat": "MatMul", "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearAveragePool": "AveragePool",
}  # fmt: skip
# What the rules take for granted of a node.
_FEWEST_INPUTS: Final = {
    **dict.fromkeys(MOVING | AVERAGING | CLIPPING | {"Pad"}, 1),
    **dict.fromkeys(WEIGHTED | {"Add", "QuantizeLinear", "DequantizeLinear"}, 2),
}
_COUNTED: Final = ("Conv", "Add", "Gemm", "MatMul", "MaxPool", "AveragePool", "GlobalAveragePool", "ReduceMean")


@dataclass(frozen=True)
class Finding:
    """One thing at one place.

    Attributes:
        rule: Name of the rule.
        severity: ``error`` for what the target refuses or computes wrongly, ``warning`` for what is slow or loses
            accuracy, ``note`` for the rest.
        node: Name of the node, or of its first output where it has none; empty for the file as a whole.
        tensor: The tensor that is meant; empty for the file as a whole.
        message: What was found there.
        advice: What to do about it.
    """

    rule: str
    severity: Severity
    node: str
    tensor: str
    message: str
    advice: str

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


class Count(NamedTuple):
    """How many operators of one kind compute with integers, and how many there are."""

    quantised: int
    total: int


@dataclass(frozen=True)
class Report:
    """What was found in a file.

    Attributes:
        target: For whom it was looked at.
        counts: By operator, those that the file has; for ``onnxruntime`` as its optimiser will decide on x86.
        findings: In the order of the table, and of the file within one rule.
        reasons: Why each rule with a finding matters.
    """

    target: str
    counts: Mapping[str, Count]
    findings: tuple[Finding, ...]
    reasons: Mapping[str, str]

    def number(self, severity: Severity) -> int:
        """How many findings are of one severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def clean(self) -> bool:
        """Whether there is neither an error nor a warning."""
        return not self.number("error") and not self.number("warning")

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            "target": self.target,
            "clean": self.clean,
            "counts": {name: count._asdict() for name, count in self.counts.items()},
            "errors": self.number("error"),
            "warnings": self.number("warning"),
            "notes": self.number("note"),
            "findings": [finding.to_json() for finding in self.findings],
            "reasons": dict(self.reasons),
        }


def lint(model: onnx.ModelProto, target: str) -> tuple[Finding, ...]:
    """Everything that is wrong or remarkable in a quantised model.

    Args:
        model: With its weights in memory; left as it is.
        target: One of :data:`calibration.placement.TARGETS`.

    Returns:
        The findings of :func:`report`.

    Raises:
        GraphError: As :func:`report`.
    """
    return report(model, target).findings


def report(model: onnx.ModelProto, target: str) -> Report:
    """Findings, and counts of what is quantised.

    Args:
        model: With its weights in memory; left as it is.
        target: One of :data:`calibration.placement.TARGETS`.

    Raises:
        GraphError: The target is none, or the model has no nodes, is not quantised, or lacks inputs of nodes.
    """
    if target not in TARGETS:
        raise GraphError(f"target {target!r} is not known: expected one of {', '.join(TARGETS)}")
    if model.functions:
        model = inline_local_functions(model)
    _check(model, "the model")
    graph = QuantisedGraph(model)
    findings, reasons = [], {}
    for rule in RULES:
        if target not in rule.targets:
            continue
        found = [Finding(rule.id, rule.severity, *hit, rule.advice) for hit in rule.find(graph)]
        if found:
            findings += found
            reasons[rule.id] = rule.reason
    return Report(target, _counts(graph, target), tuple(findings), reasons)


def read_quantised(path: Path) -> onnx.ModelProto:
    """A quantised ONNX file, with its weights.

    Raises:
        GraphError: It cannot be read, is not ONNX, has no nodes, is not quantised, or lacks inputs of nodes.
    """
    model, _ = read_model(path, "give a file with Q/DQ")
    _check(model, str(path))
    return model


def _check(model: onnx.ModelProto, name: str) -> None:
    if not model.graph.node:
        raise GraphError(f"{name} has no nodes: give a file with Q/DQ")
    inside = (node for function in model.functions for node in function.node)
    if not any(node.op_type in QUANTISED for node in (*model.graph.node, *inside)):
        raise GraphError(f"{name} is not quantised: expected QuantizeLinear and DequantizeLinear in it")
    for node in model.graph.node:
        fewest = _FEWEST_INPUTS.get(node.op_type, 0)
        if len(node.input) < fewest or (fewest and not node.output):
            raise GraphError(
                f"{name} is not valid ONNX: inputs and outputs of {node.op_type} {title(node)} are "
                f"{len(node.input)} and {len(node.output)}, expected {fewest} and 1 at least"
            )


def _counts(graph: QuantisedGraph, target: str) -> Mapping[str, Count]:
    found: dict[str, list[bool]] = {name: [] for name in _COUNTED}
    for node in _layers(graph):
        found[node.op_type].append(_is_integer(graph, node, target))
    for node in graph.nodes:
        if node.op_type in _INTEGER_FORMS:
            found[_INTEGER_FORMS[node.op_type]].append(target != "tensorrt")
    return {name: Count(sum(items), len(items)) for name, items in found.items() if items}


def _layers(graph: QuantisedGraph) -> Iterable[onnx.NodeProto]:
    pools = AVERAGING | {"MaxPool"}
    return (*graph.weighted, *graph.sums, *(node for node in graph.nodes if node.op_type in pools))


def _is_integer(graph: QuantisedGraph, node: onnx.NodeProto, target: str) -> bool:
    if target == "onnxruntime":
        return fusion(graph, node).integer
    if graph.quantizes(node.input[0]) is not None:
        return True  # the file has it on integers already, as a MaxPool can be
    inputs = [graph.dequantized(name, MOVING | {"Pad"}) is not None for name in node.input[:2]]
    if node.op_type == "Add":
        return any(inputs)  # the other side is added in the accumulators
    if node.op_type in WEIGHTED:
        return inputs[0] and graph.weight(node) is not None
    return inputs[0]
