"""An engine's layers held against the network that it was built from: what runs in which precision, and why not INT8.

A claim such as ``52 of 53 Conv in INT8`` counts nodes of the network, not layers of the engine: a node that no layer
names is not counted as done. A reason is given only where a fact of the node or of the engine shows it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple

from runtimes.tensorrt.inspect import EngineLayer, EngineLayers
from runtimes.tensorrt.inspect_advice import advice_on, listed
from runtimes.tensorrt.inspect_network import NetworkNode
from runtimes.tensorrt.inspect_types import PRECISIONS, QUANTISED

#: Operators that multiply by weights, which is what a lower precision speeds up.
WEIGHTED: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")
#: Operators of which nothing is counted: they are fused, folded, or only views of a tensor.
_NOT_COUNTED: Final = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "Constant", "Identity", "Flatten", "Reshape", "Squeeze", "Unsqueeze",
     "Shape", "Dropout"}
)  # fmt: skip
# INT8 kernels work on groups of channels, and below 16 they want a multiple of 8 (TensorRT's developer guide,
# "Recommended Practices for Q/DQ Placement"): a kernel of another precision can be the faster one.
_FEW_CHANNELS: Final = 16


class Exceptional(NamedTuple):
    """A node that does not run in the precision of its operator's sentence.

    Attributes:
        module: Its name.
        op_type: Its operator.
        precision: What it runs in; ``None``: the engine does not tell, or does not name it.
        reason: Why, where it can be told; else empty.
    """

    module: str
    op_type: str
    precision: str | None
    reason: str


class Reformat(NamedTuple):
    """A layer that only copies.

    Attributes:
        layer: Its name.
        modules: Modules that it copies for.
        source: Type that it reads.
        target: Type that it writes.
    """

    layer: str
    modules: tuple[str, ...]
    source: str | None
    target: str | None

    @property
    def converts(self) -> bool:
        """Whether the type changes, not only the layout."""
        return self.source != self.target


@dataclass(frozen=True)
class EngineSummary:
    """What an engine runs.

    Attributes:
        counts: Operator → precision → number of nodes; ``unknown`` where the engine does not tell it. An Add inside a
            convolution's kernel counts as that kernel does.
        sentences: One for each operator with weights: ``52 of 53 Conv in INT8; conv1 in FP16: 3 input channels``.
        exceptions: Every node with weights that does not run in the precision of its sentence.
        reformats: Layers that only copy.
        unfused_adds: Adds of residual blocks that run outside a convolution's kernel, with their precision.
        quantisers: Q/DQ that run as layers of their own, but for those of the image and of the logits, which must.
        advice: Why INT8 may be no faster than FP16 here, a sentence each.
    """

    counts: Mapping[str, Mapping[str, int]]
    sentences: tuple[str, ...]
    exceptions: tuple[Exceptional, ...]
    reformats: tuple[Reformat, ...]
    unfused_adds: tuple[tuple[str, str | None], ...]
    quantisers: tuple[str, ...]
    advice: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "counts": {operator: dict(found) for operator, found in self.counts.items()},
            "sentences": list(self.sentences),
            "exceptions": [item._asdict() for item in self.exceptions],
            "reformats": [{**item._asdict(), "modules": list(item.modules)} for item in self.reformats],
            "unfused_adds": [{"module": name, "precision": precision} for name, precision in self.unfused_adds],
            "quantisers": list(self.quantisers),
            "advice": list(self.advice),
        }


def summary(engine: EngineLayers, network: Sequence[NetworkNode]) -> EngineSummary:
    """Hold an engine's layers against the nodes of its network.

    Args:
        engine: From :func:`runtimes.tensorrt.inspect.read_layers`.
        network: All nodes of the ONNX file that the engine was built from, in its order.
    """
    match = _Match(engine, network)
    exceptions: list[Exceptional] = []
    sentences = []
    for op_type in WEIGHTED:
        nodes = [node for node in network if node.op_type == op_type]
        if nodes:
            goal = match.goal(nodes)
            apart = [match.exception(node, goal) for node in nodes if match.precision(node.name) != goal]
            sentences.append(_sentence(op_type, len(nodes), goal, apart))
            exceptions.extend(apart)
    reformats = tuple(item for item in map(_reformat, engine.layers) if item)
    unfused = tuple((node.name, match.precision(node.name)) for node in network if match.stands_alone(node))
    quantisers = tuple((layer.nodes or (layer.name,))[0] for layer in match.inside if layer.is_quantiser)
    return EngineSummary(
        counts=match.counts(),
        sentences=tuple(sentences),
        exceptions=tuple(exceptions),
        reformats=reformats,
        unfused_adds=unfused,
        quantisers=quantisers,
        advice=advice_on(
            engine,
            conversions=[
                (item.modules[0] if item.modules else item.layer)
                for item in map(_reformat, match.inside)
                if item and item.converts
            ],
            quantisers=quantisers,
            float_adds=[name for name, precision in unfused if precision not in QUANTISED],
            channels={node.name: node.channels for node in network if node.op_type == "Conv" and node.channels},
            has_qdq=any(node.op_type == "QuantizeLinear" or node.quantised for node in network),
        ),
    )


class _Match:
    """Which layers stand for which node."""

    def __init__(self, engine: EngineLayers, network: Sequence[NetworkNode]) -> None:
        self._engine = engine
        self._network = network

    @cached_property
    def _layers(self) -> Mapping[str, tuple[EngineLayer, ...]]:
        found: dict[str, list[EngineLayer]] = {}
        for layer in self._engine.layers:
            if layer.computes:
                for name in layer.nodes:
                    found.setdefault(name, []).append(layer)
        # A part that another compiler took is named by its ends: what lies between them, and is in no layer, is in it.
        order = {node.name: place for place, node in enumerate(self._network)}
        for layer in self._engine.layers:
            for first, last in layer.spans:
                if first in order and last in order:
                    for node in self._network[order[first] : order[last] + 1]:
                        found.setdefault(node.name, [layer])
        return {name: tuple(layers) for name, layers in found.items()}

    def _of(self, name: str) -> tuple[EngineLayer, ...]:
        layers = self._layers.get(name, ())
        return tuple(layer for layer in layers if layer.weighted) or layers

    def precision(self, name: str) -> str | None:
        """The widest precision of the layers that compute a node; ``None`` where none is told."""
        told = {layer.precision for layer in self._of(name)} - {None}
        known = [item for item in PRECISIONS if item in told]
        return known[-1] if known else None

    def goal(self, nodes: Iterable[NetworkNode]) -> str | None:
        """The precision that a sentence counts: the quantised one if there is any, else the most frequent."""
        found = Counter(self.precision(node.name) for node in nodes)
        every = {layer.precision for layer in self._engine.layers if layer.computes and layer.weighted}
        quantised = [item for item in PRECISIONS if item in QUANTISED and item in {*found, *every}]
        if quantised:
            return max(quantised, key=lambda item: found[item])
        told = {precision: number for precision, number in found.items() if precision}
        return max(told, key=lambda item: told[item]) if told else None

    def exception(self, node: NetworkNode, goal: str | None) -> Exceptional:
        """A node that does not run as its operator's sentence says."""
        precision = self.precision(node.name)
        if precision is None:
            reason = "no layer names it" if not self._of(node.name) else "the engine does not tell its precision"
        else:
            reason = _reason(node) if goal in QUANTISED else ""
        return Exceptional(node.name, node.op_type, precision, reason)

    def stands_alone(self, node: NetworkNode) -> bool:
        """Whether a residual Add is computed, but in no kernel that multiplies by weights."""
        layers = self._of(node.name)
        return node.op_type == "Add" and node.operands > 1 and bool(layers) and not any(x.weighted for x in layers)

    @cached_property
    def inside(self) -> tuple[EngineLayer, ...]:
        """Layers between the first and the last that has weights.

        Around them the image has to be made INT8, and the logits float, in any INT8 engine.
        """
        weighted = [place for place, layer in enumerate(self._engine.layers) if layer.weighted]
        return self._engine.layers[weighted[0] : weighted[-1]] if weighted else ()

    def counts(self) -> dict[str, dict[str, int]]:
        """Operator → precision → number of nodes."""
        found: dict[str, Counter[str]] = {}
        for node in self._network:
            if node.op_type not in _NOT_COUNTED and (node.op_type in WEIGHTED or self._of(node.name)):
                found.setdefault(node.op_type, Counter())[self.precision(node.name) or "unknown"] += 1
        return {op_type: dict(number) for op_type, number in found.items()}


def _reason(node: NetworkNode) -> str:
    if node.quantised is False:
        return "no Q/DQ before it"
    if node.groups > 1:
        return "depthwise" if node.groups == node.channels else f"{node.groups} groups"
    if node.channels is not None and node.channels < _FEW_CHANNELS:
        return f"{node.channels} input channels"
    return ""


def _sentence(op_type: str, total: int, goal: str | None, apart: Sequence[Exceptional]) -> str:
    if goal is None:
        return f"{total} {op_type}, of which the engine tells no precision"
    groups: dict[tuple[str | None, str], list[str]] = {}
    for item in apart:
        groups.setdefault((item.precision, item.reason), []).append(item.module)
    parts = [f"{total - len(apart)} of {total} {op_type} in {goal}"]
    for (precision, reason), modules in groups.items():
        placed = f" in {precision}" if precision else ""
        parts.append(f"{listed(modules)}{placed}" + (f": {reason}" if reason else ""))
    return "; ".join(parts)


def _reformat(layer: EngineLayer) -> Reformat | None:
    if not layer.is_reformat:
        return None
    source, target = (tensors[0].type if tensors else None for tensors in (layer.inputs, layer.outputs))
    return Reformat(layer.name, layer.modules, source, target)
