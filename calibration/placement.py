"""Where each target wants Q/DQ, as one table with the reason for each row.

A target is data: which integers it computes with, which roles of a tensor it wants quantised, and how it keeps biases.
:func:`place` looks at a network and applies the rows; nothing here depends on values.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, NamedTuple, get_args

import onnx

from calibration.graph import SHARING, WEIGHTED, Network, attribute
from calibration.grids import S7_NARROW, S8, S8_ASYMMETRIC, S8_NARROW, S8_SHIFTED, U8, Grid
from runtimes.errors import GraphError, InputError

TargetName = Literal["tensorrt", "onnxruntime", "openvino"]
TARGETS: Final[tuple[TargetName, ...]] = get_args(TargetName)
#: Processors that ONNX Runtime's file can be made for.
Cpu = Literal["any", "vnni", "avx2", "arm"]
CPUS: Final[tuple[Cpu, ...]] = get_args(Cpu)
Folding = Literal["all", "free", "none"]

Role = Literal["input", "shortcut", "branch", "result"]

#: Pools that average: their result lies between the values they take.
AVERAGING: Final = frozenset({"GlobalAveragePool", "AveragePool"})
#: Operators that read the 8-bit form of a tensor where there is one; all others read the float.
TAKES_INTEGERS: Final = WEIGHTED | SHARING | AVERAGING | {"Add", "Mul"}


class Rule(NamedTuple):
    """One row: a role that a tensor can play, the targets that want it quantised, and why."""

    role: Role
    targets: frozenset[TargetName]
    reason: str


_ALL: Final = frozenset(TARGETS)
RULES: Final[tuple[Rule, ...]] = (
    Rule("input", _ALL, "an INT8 kernel takes 8-bit data and 8-bit weights, or it runs in float; classifiers too"),
    Rule("shortcut", _ALL, "one side of a residual Add in 8 bits lets it fuse with the convolution of the other side"),
    Rule(
        "branch",
        frozenset({"onnxruntime"}),
        "QLinearAdd takes 8 bits on both sides; TensorRT and OpenVINO add inside the convolution's kernel instead, "
        "in its accumulators, and anything between the two would break that",
    ),
    Rule(
        "result",
        frozenset({"onnxruntime"}),
        "QLinearConv, QLinearAdd and the pools give 8 bits; without Q behind them they stay in float",
    ),
)


@dataclass(frozen=True)
class Target:
    """How one runtime wants a quantised file.

    Attributes:
        name: The runtime.
        signed: Integers for activations of both signs.
        positive: Integers for activations that cannot be negative.
        weights: Integers for weights, one scale per output channel.
        integer_bias: Biases as INT32 in the scale of the accumulators, instead of float.
        folds: Positive activations are stored less their zero point, so that symmetric integers hold them all.
        spares_pairs: Weights avoid sums that overflow 16 bits (:mod:`calibration.saturation`).
        cpu: Processor that it was fitted to.
    """

    name: TargetName
    signed: Grid
    positive: Grid
    weights: Grid
    integer_bias: bool
    folds: Folding
    spares_pairs: bool = False
    cpu: str = "any"


_TARGETS: Final[Mapping[TargetName, Target]] = MappingProxyType(
    {
        # Explicit quantisation in TensorRT is symmetric INT8, and its parser refuses INT32 DequantizeLinear.
        "tensorrt": Target("tensorrt", S8, S8, S8_NARROW, integer_bias=False, folds="free"),
        # U8 x S8 is what the x86 dot product instructions multiply; S8 activations run several times slower.
        "onnxruntime": Target("onnxruntime", U8, U8, S8_NARROW, integer_bias=True, folds="none", spares_pairs=True),
        "openvino": Target("openvino", S8, U8, S8_NARROW, integer_bias=False, folds="none", spares_pairs=True),
    }
)


def target(name: str, *, cpu: str = "any", folds: Folding | None = None) -> Target:
    """A target, fitted to a processor.

    Args:
        name: One of :data:`TARGETS`.
        cpu: For ``onnxruntime`` and ``openvino``: ``any`` keeps eight bits and avoids what saturates on x86 without
            VNNI; ``vnni`` needs not; ``avx2`` gives weights seven bits, as other tools do; ``arm`` takes signed
            activations.
        folds: For ``tensorrt``: zero points are folded into biases ``all`` over, only where that is ``free``
            (convolutions without padding), or ``none``.

    Raises:
        InputError: There is no such target or processor, or they do not go together.
    """
    if name not in _TARGETS:
        raise InputError(f"received the target {name!r}, expected one of {', '.join(TARGETS)}")
    if cpu not in CPUS:
        raise InputError(f"received the processor {cpu!r}, expected one of {', '.join(CPUS)}")
    found = _TARGETS[name]  # type: ignore[index]  # looked up two lines above
    if cpu != "any" and (name == "tensorrt" or (cpu == "arm" and name != "onnxruntime")):
        raise InputError(f"the processor {cpu} cannot be chosen for {name}: leave it out")
    if folds is not None and name != "tensorrt":
        raise InputError(f"{name} has zero points of its own: only the target tensorrt folds them into biases")
    found = replace(found, cpu=cpu)
    if cpu == "avx2":
        return replace(found, weights=S7_NARROW, spares_pairs=False)
    if cpu == "arm":
        return replace(found, signed=S8_ASYMMETRIC, positive=S8_ASYMMETRIC, spares_pairs=False)
    if cpu == "vnni":
        return replace(found, spares_pairs=False)
    return replace(found, folds=folds) if folds is not None else found


class Site(NamedTuple):
    """A tensor that becomes 8 bits.

    Attributes:
        tensor: Its name in the float network.
        source: The tensor whose range it has.
        grid: The integers it becomes.
        role: The first role that asked for it.
    """

    tensor: str
    source: str
    grid: Grid
    role: Role


class Weight(NamedTuple):
    """The weights of a node that become 8 bits.

    Attributes:
        node: First output of the node.
        name: The initializer.
        axis: Of the output channels.
        data: The tensor that they are multiplied with.
    """

    node: str
    name: str
    axis: int
    data: str


@dataclass(frozen=True)
class Placement:
    """What of a network becomes 8 bits for one target.

    Attributes:
        target: The target.
        sites: Activations, by tensor name, in order of computation.
        weights: Weights, by the first output of their node, in order of computation.
        left: Nodes with weights that stay in float and why, by first output.
    """

    target: Target
    sites: Mapping[str, Site]
    weights: Mapping[str, Weight]
    left: Mapping[str, str]

    def reads_integers(self, node: onnx.NodeProto, position: int) -> bool:
        """Whether a node's input is the 8-bit form of a tensor."""
        if node.op_type not in TAKES_INTEGERS or node.input[position] not in self.sites:
            return False
        return position == 0 or node.op_type in ("Add", "Mul")


def place(network: Network, goal: Target, keep: frozenset[str] = frozenset()) -> Placement:
    """Apply the table to a network.

    Args:
        network: The float network.
        goal: The target.
        keep: First outputs of nodes that are to stay in float.

    Returns:
        The placement; empty ``weights`` where nothing can be quantised.

    Raises:
        GraphError: The opset is below 13, which has no scales per channel.
    """
    if network.opset < 13:
        raise GraphError(
            f"the model has opset {network.opset}: scales per channel need 13 or newer; export it again with --opset 13"
        )
    weights: dict[str, Weight] = {}
    left: dict[str, str] = {}
    for node in network.nodes:
        if node.op_type not in WEIGHTED and "Conv" not in node.op_type:
            continue
        reason = "it is to stay in float" if node.output[0] in keep else _obstacle(network, node)
        if reason:
            left[node.output[0]] = reason
        else:
            weights[node.output[0]] = Weight(node.output[0], node.input[1], _output_axis(node), node.input[0])
    sites: dict[str, Site] = {}
    wanted = {rule.role for rule in RULES if goal.name in rule.targets}
    for role, tensor in _roles(network, weights, everything="result" in wanted):
        source = network.source(tensor)
        if role in wanted and tensor not in sites and source in network.observed_set:
            grid = goal.positive if network.non_negative(tensor) else goal.signed
            sites[tensor] = Site(tensor, source, grid, role)
    if goal.folds != "none":
        sites = {name: _folded(network, site, goal.folds, sites) for name, site in sites.items()}
    placed = Placement(goal, sites, weights, left)
    read = {
        name
        for node in network.nodes
        for position, name in enumerate(node.input)
        if placed.reads_integers(node, position)
    }
    # In order of computation; what a Sigmoid alone reads, say, is read as float and would be rounded for nobody.
    ordered = [name for name in _tensors(network) if name in read]
    return replace(placed, sites={name: sites[name] for name in ordered})


def _obstacle(network: Network, node: onnx.NodeProto) -> str:
    """Why a node with weights cannot be quantised; empty where it can."""
    if node.op_type not in WEIGHTED or not network.is_activation(node.input[0]):
        return f"{node.op_type} has no 8-bit form here, or its data does not come from the input"
    if any(name and name not in network.initializers for name in node.input[1:]):
        return "its weights or its bias are computed, not stored"
    if network.source(node.input[0]) not in network.observed_set:
        return "its data has no range, as an output of the network or no FP32"
    return _oddity(network, node)


def _oddity(network: Network, node: onnx.NodeProto) -> str:
    """What a node does beside multiplying its data with weights and adding a bias to each channel."""
    rank = network.initializers[node.input[1]].ndim
    if node.op_type == "MatMul" and rank != 2:
        return f"its weights have {rank} dimensions, not 2"
    scaled = any(attribute(node, name, 1.0) != 1.0 for name in ("alpha", "beta")) or attribute(node, "transA", 0)
    if node.op_type == "Gemm" and scaled:
        return "it scales its product or transposes its data (alpha, beta, transA)"
    bias = network.initializers[node.input[2]] if len(node.input) > 2 and node.input[2] else None
    if bias is not None and bias.size not in (1, *bias.shape[-1:]):
        return "its bias has more than one value for each channel"
    if attribute(node, "auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        return "its padding depends on the image (auto_pad)"
    return ""


def _output_axis(node: onnx.NodeProto) -> int:
    if node.op_type == "Conv":
        return 0
    return 0 if node.op_type == "Gemm" and attribute(node, "transB", 0) else 1


def _roles(network: Network, weights: Mapping[str, Weight], *, everything: bool) -> Iterator[tuple[Role, str]]:
    """Every role that a tensor of the network plays."""
    for node in network.nodes:
        if node.output[0] in weights:
            # Q/DQ is put where the range is: pools and reshapes after it then move integers.
            yield "input", node.input[0] if everything else network.source(node.input[0])
        if node.op_type == "Add" and _adds_integers(network, weights, node):
            shortcut = _shortcut(network, node)
            yield "shortcut", shortcut if everything else network.source(shortcut)
            yield from (("branch", name) for name in node.input if name != shortcut)
        if everything and _moves_integers(network, weights, node):
            for name in (*node.input, *node.output):
                seen = name not in network.outputs and not network.only_feeds_relu(name)
                if seen and network.is_activation(name):
                    yield "result", name


def _moves_integers(network: Network, weights: Mapping[str, Weight], node: onnx.NodeProto) -> bool:
    """Whether an operator has an 8-bit kernel here, or moves what another one with an 8-bit kernel takes."""
    if node.op_type in SHARING:
        return any(_moves_integers(network, weights, each) for each in network.consumers.get(node.output[0], ()))
    if node.op_type in ("Add", "Mul"):
        return _adds_integers(network, weights, node)
    return node.op_type in AVERAGING or node.output[0] in weights


def _adds_integers(network: Network, weights: Mapping[str, Weight], node: onnx.NodeProto) -> bool:
    """Whether an Add or Mul of two activations is worth 8 bits: not where all convolutions before it stay in float."""
    before = [network.producers.get(name) for name in node.input]
    convolved = [each.output[0] in weights for each in before if each is not None and each.op_type in WEIGHTED]
    return all(map(network.is_activation, node.input)) and (any(convolved) or not convolved)


def _shortcut(network: Network, add: onnx.NodeProto) -> str:
    """The side of a residual Add that did less since the block's input: the identity, or the projection's output."""
    first, second = (_weights_behind(network, name) for name in add.input)
    name: str = add.input[0] if first < second else add.input[1]
    return name


def _weights_behind(network: Network, name: str) -> int:
    """Most nodes with weights on a way from the last Add, or the input, to a tensor."""
    node = network.producers.get(name)
    if node is None or node.op_type == "Add":
        return 0
    before = max((_weights_behind(network, each) for each in node.input if network.is_activation(each)), default=0)
    return before + (node.op_type in WEIGHTED)


def _folded(network: Network, site: Site, folds: Folding, sites: Container[str]) -> Site:
    """The site with 256 levels above zero, where its zero point can go into the biases around it."""
    possible = site.grid.signed and site.grid.symmetric and network.non_negative(site.tensor)
    if not possible or not _absorbs_before(network, site.tensor, sites):
        return site
    takers = network.consumers.get(site.tensor, ())
    if all(_absorbs_after(network, node, site.tensor, folds, sites) for node in takers):
        return site._replace(grid=S8_SHIFTED)
    return site


def _absorbs_before(network: Network, name: str, sites: Container[str]) -> bool:
    """Whether the constant can go into a bias before (Relu(Conv), Relu(Conv + x)), or costs next to nothing."""
    node = network.producers.get(name)
    if node is None:
        return False
    if node.op_type == "GlobalAveragePool":
        return True  # one value per channel: an addition there is not worth a thought
    return node.op_type == "Relu" and network.only_feeds_relu(node.input[0]) and biased(network, node.input[0], sites)


def biased(network: Network, name: str, sites: Container[str]) -> bool:
    """Whether a constant can be added to a tensor in a bias that nothing else depends on.

    A side of an addition that is in ``sites`` is something else: it is quantised with its own range on the way.
    """
    node = network.producers.get(name)
    if node is None or name in network.outputs or len(network.consumers.get(name, ())) != 1:
        return False
    if node.op_type == "Add":
        return node.input[0] != node.input[1] and any(takes_bias(network, side, sites) for side in node.input)
    return node.op_type == "Conv" and not _obstacle(network, node)


def takes_bias(network: Network, side: str, sites: Container[str]) -> bool:
    """Whether a constant for an addition can go into the bias of one of its sides."""
    return side not in sites and biased(network, side, sites)


def _absorbs_after(network: Network, node: onnx.NodeProto, name: str, folds: Folding, sites: Container[str]) -> bool:
    """Whether a consumer takes values less a constant, and puts the constant right in its own bias."""
    if node.op_type in ("Conv", "Gemm"):
        padded = node.op_type == "Conv" and any(attribute(node, "pads", [0]))
        return not _obstacle(network, node) and (folds == "all" or not padded)
    if node.output[0] in network.outputs:
        return False
    if node.op_type == "Add":
        return any(takes_bias(network, side, sites) for side in node.input if side != name)
    if passes_offset(network, node):
        after = network.consumers.get(node.output[0], ())
        return all(_absorbs_after(network, each, node.output[0], folds, sites) for each in after)
    return False


def passes_offset(network: Network, node: onnx.NodeProto) -> bool:
    """Whether an operator gives values less a constant for values less that constant; ``Pad`` if it pads with it."""
    if node.op_type == "AveragePool":
        return not (attribute(node, "count_include_pad", 0) and any(attribute(node, "pads", [0])))
    return node.op_type == "GlobalAveragePool" or network.source(node.output[0]) != node.output[0]


def _tensors(network: Network) -> list[str]:
    return [network.input, *(name for node in network.nodes for name in node.output if name)]
