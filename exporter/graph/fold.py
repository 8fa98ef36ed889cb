"""BatchNorm into the convolution or linear layer before it, in closed form.

In evaluation mode BatchNorm is an affine map per channel c, and so is the sum of a convolution and its bias:

    y_c = gamma_c * ((w_c * x) + b_c - mu_c) / sqrt(var_c + eps) + beta_c
        = (s_c w_c) * x  +  (s_c (b_c - mu_c) + beta_c),        s_c = gamma_c / sqrt(var_c + eps)

(Jacob et al. 2018, https://arxiv.org/abs/1712.05877, section 3.2.) Everything is computed in float64 and rounded
once. Matching, legality and rewriting are apart: ``_producer`` finds, ``_refusal`` says why not, ``_rewrite`` does.

Requires: a graph from :mod:`exporter.graph.capture`. Ensures: the input graph and its tensors are untouched; every
BatchNorm is in exactly one row of the result, folded or refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import chain, count
from typing import Any

import torch
from torch import Tensor, fx, nn

from exporter.graph.capture import Captured, module_path, rebuild

_ATEN = torch.ops.aten
_NORM = _ATEN.batch_norm.default
# Operator -> spatial dimensions of its input. For all of these the output channel is axis 0 of the weight.
_PLAIN: dict[Any, int] = {
    _ATEN.conv1d.default: 1,
    _ATEN.conv2d.default: 2,
    _ATEN.conv3d.default: 3,
    _ATEN.conv1d.padding: 1,
    _ATEN.conv2d.padding: 2,
    _ATEN.conv3d.padding: 3,
    _ATEN.linear.default: 0,
}
# A transposed convolution's weight is [in, out/groups, ...]: the output channel is axis 1.
_TRANSPOSED: dict[Any, int] = {
    _ATEN.conv_transpose1d.default: 1,
    _ATEN.conv_transpose2d.input: 2,
    _ATEN.conv_transpose3d.input: 3,
}
_TRANSPOSED_GROUPS_ARG = 6


@dataclass(frozen=True)
class FoldRow:
    """One BatchNorm that was folded.

    Attributes:
        layer: Module path of the convolution or linear layer.
        norm: Module path of the BatchNorm.
        channels: Output channels.
        max_scale: Largest ``|s_c|``: how much a channel's weights grow.
        min_variance: Smallest running variance; a tiny one marks a dead channel.
        bound: Largest change of an output, over all channels, that rounding the folded weights and bias to the
            layer's dtype can cause for any input with ``|x| <= 1``; computed from the rounding errors themselves.
    """

    layer: str
    norm: str
    channels: int
    max_scale: float
    min_variance: float
    bound: float


@dataclass(frozen=True)
class Refusal:
    """One BatchNorm that stays, and why."""

    norm: str
    reason: str


@dataclass(frozen=True)
class FoldResult:
    """A graph with its foldable BatchNorms gone.

    Attributes:
        captured: The new graph.
        rows: Folded BatchNorms, in data-flow order.
        refused: BatchNorms that stay.
    """

    captured: Captured
    rows: tuple[FoldRow, ...]
    refused: tuple[Refusal, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"rows": [asdict(row) for row in self.rows], "refused": [asdict(row) for row in self.refused]}


def fold(captured: Captured) -> FoldResult:
    """Fold every BatchNorm that may be folded.

    Args:
        captured: Flat graph in evaluation mode; untouched.

    Returns:
        A new graph, and one row per BatchNorm.
    """
    module = rebuild(captured.module)
    readers = _parameter_readers(module)
    rows: list[FoldRow] = []
    refused: list[Refusal] = []
    for norm in [node for node in module.graph.nodes if node.target is _NORM]:
        reason = _refusal(module, norm, readers)
        if reason is None:
            folded = _folded_tensors(module, norm)
            reason = folded.problem
        if reason is None:
            rows.append(_row(norm, folded))
            _rewrite(module, norm, folded)
        else:
            refused.append(Refusal(module_path(norm) or norm.name, reason))
    module.graph.eliminate_dead_code()
    # A second rebuild leaves behind the parameters that no operator reads any more.
    return FoldResult(Captured(rebuild(module), captured.shape), tuple(rows), tuple(refused))


def _parameter_readers(module: fx.GraphModule) -> dict[int, int]:
    """How many operators read each tensor, by identity: tied weights have several names and one identity."""
    readers: dict[int, int] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":
            key = id(_tensor(module, node))
            readers[key] = readers.get(key, 0) + len(node.users)
    return readers


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor | None:
    """The tensor behind a ``get_attr`` node; ``None`` for a computed value."""
    if node.op != "get_attr":
        return None
    owner, _, name = str(node.target).rpartition(".")
    value = getattr(module.get_submodule(owner), name)
    return value if isinstance(value, Tensor) else None


def _refusal(module: fx.GraphModule, norm: fx.Node, readers: dict[int, int]) -> str | None:
    """Why this BatchNorm must stay, or ``None``."""
    source, _, _, mean, variance, training = norm.args[:6]
    if mean is None or variance is None:
        return "it has no running statistics: it normalises with those of each batch"
    if training:
        return "it is in training mode: call .eval() on the model first"
    if not isinstance(source, fx.Node) or source.target not in _PLAIN | _TRANSPOSED:
        before = module_path(source) or source.name if isinstance(source, fx.Node) else "nothing"
        return f"its input is {before}, not a convolution: a BatchNorm before a convolution (pre-activation) stays"
    return (
        _readers_refusal(module, norm, source, readers)
        or _computed_refusal(module, norm, source)
        or _shape_refusal(norm, source)
    )


def _readers_refusal(module: fx.GraphModule, norm: fx.Node, source: fx.Node, readers: dict[int, int]) -> str | None:
    """Somebody else reads the layer's output or its weight, and would see them changed."""
    others = [user for user in source.users if user is not norm]
    if others:
        return f"the output of {_layer_name(source)} is also read by {module_path(others[0]) or others[0].name}"
    weight = source.args[1]
    if isinstance(weight, fx.Node) and readers.get(id(_tensor(module, weight)), 0) > 1:
        return f"the weight of {_layer_name(source)} is used more than once"
    return None


def _computed_refusal(module: fx.GraphModule, norm: fx.Node, source: fx.Node) -> str | None:
    """The closed form needs constants; a weight-standardised convolution, for one, has none."""
    for role, argument in zip(("weight", "bias"), source.args[1:3], strict=False):
        if isinstance(argument, fx.Node) and _tensor(module, argument) is None:
            return f"the {role} of {_layer_name(source)} is computed from other tensors at every call"
    if any(isinstance(node, fx.Node) and _tensor(module, node) is None for node in norm.args[1:5]):
        return "its parameters are computed from other tensors at every call"
    return None


def _shape_refusal(norm: fx.Node, source: fx.Node) -> str | None:
    rank = source.meta["val"].dim()
    spatial = (_PLAIN | _TRANSPOSED)[source.target]
    if rank != spatial + 2:
        name = _layer_name(source)
        return f"{name} gives {rank} dimensions, and BatchNorm's second one is not its output channel"
    if source.target in _TRANSPOSED:
        groups = source.args[_TRANSPOSED_GROUPS_ARG] if len(source.args) > _TRANSPOSED_GROUPS_ARG else 1
        if groups != 1:
            return f"{_layer_name(source)} is a transposed convolution of {groups} groups: channels are not one axis"
    return None


def _layer_name(source: fx.Node) -> str:
    return module_path(source) or source.name


@dataclass(frozen=True)
class _Folded:
    weight: Tensor
    bias: Tensor
    scale: Tensor
    variance: Tensor
    bound: float

    @property
    def problem(self) -> str | None:
        if self.weight.isfinite().all() and self.bias.isfinite().all():
            return None
        dtype = str(self.weight.dtype).removeprefix("torch.")
        return f"its folded weights are not finite in {dtype}: variance + eps is ~0, or the checkpoint holds NaN or Inf"


def _folded_tensors(module: fx.GraphModule, norm: fx.Node) -> _Folded:
    """The closed form of the module's docstring, in float64, rounded once to the weight's dtype."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)

    def exact(argument: Any, default: float, like: Tensor) -> Tensor:
        tensor = _tensor(module, argument) if isinstance(argument, fx.Node) else None
        return torch.full_like(like, default, dtype=torch.float64) if tensor is None else tensor.detach().double()

    weight_node = source.args[1]
    assert isinstance(weight_node, fx.Node)
    weight = _tensor(module, weight_node)
    assert weight is not None
    variance = exact(norm.args[4], 1.0, weight.new_zeros(()))
    gamma, beta = exact(norm.args[1], 1.0, variance), exact(norm.args[2], 0.0, variance)
    mean = exact(norm.args[3], 0.0, variance)
    bias = exact(source.args[2] if len(source.args) > 2 else None, 0.0, variance)
    eps = norm.args[7]
    assert isinstance(eps, float | int)

    scale = gamma * torch.rsqrt(variance + eps)
    axis = 1 if source.target in _TRANSPOSED else 0
    shape = [-1 if dim == axis else 1 for dim in range(weight.dim())]
    exact_weight = weight.detach().double() * scale.view(shape)  # [C_out, 1, 1, 1] over [C_out, C_in/g, k, k]
    exact_bias = scale * (bias - mean) + beta
    rounded_weight, rounded_bias = exact_weight.to(weight.dtype), exact_bias.to(weight.dtype)
    error = (rounded_weight.double() - exact_weight).abs_()
    per_channel = error.transpose(0, axis).flatten(1).sum(1) + (rounded_bias.double() - exact_bias).abs()
    return _Folded(rounded_weight, rounded_bias, scale, variance, float(per_channel.max()))


def _row(norm: fx.Node, folded: _Folded) -> FoldRow:
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    return FoldRow(
        layer=_layer_name(source),
        norm=module_path(norm) or norm.name,
        channels=folded.scale.numel(),
        max_scale=float(folded.scale.abs().max()),
        min_variance=float(folded.variance.min()),
        bound=folded.bound,
    )


def _rewrite(module: fx.GraphModule, norm: fx.Node, folded: _Folded) -> None:
    """Give the layer its new tensors, and the BatchNorm's readers the layer's output."""
    source = norm.args[0]
    assert isinstance(source, fx.Node)
    weight = source.args[1]
    assert isinstance(weight, fx.Node)
    owner, _, name = str(weight.target).rpartition(".")
    holder = module.get_submodule(owner)
    setattr(holder, name, nn.Parameter(folded.weight, requires_grad=False))
    bias_name = _bias_name(holder, owner, source)
    setattr(holder, bias_name, nn.Parameter(folded.bias, requires_grad=False))
    with module.graph.inserting_before(source):
        bias = module.graph.get_attr(f"{owner}.{bias_name}" if owner else bias_name)
    source.args = (*source.args[:2], bias, *source.args[3:])
    norm.replace_all_uses_with(source)
    module.graph.erase_node(norm)


def _bias_name(holder: nn.Module, owner: str, source: fx.Node) -> str:
    """``bias`` where it is free or the layer's own, else a new name: the old one may have other readers."""
    old = source.args[2] if len(source.args) > 2 else None
    if isinstance(old, fx.Node) and old.target == (f"{owner}.bias" if owner else "bias") and len(old.users) == 1:
        return "bias"
    names = chain(("bias", "folded_bias"), (f"folded_bias_{number}" for number in count(1)))
    return next(name for name in names if not hasattr(holder, name))
