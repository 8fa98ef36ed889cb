"""The ONNX operators that residual networks are made of, in PyTorch.

They serve whoever has to look into a file while it runs: the simulated INT8 runtime, and refinement, which needs
gradients. Meanings: https://onnx.ai/onnx/operators/ (opset 13 to 21). An operator takes its attributes and its inputs
in the order of the node, ``None`` where an optional one is absent; it gives the first output of the node. What it
cannot do is refused when a node is compiled, so that it cannot turn up half-way through a run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from runtimes.errors import GraphError

Inputs = Sequence[Tensor | None]
Attributes = Mapping[str, Any]
Operator = Callable[[Attributes, Inputs], Tensor]


def unknown_operators(model: onnx.ModelProto) -> list[str]:
    """Types of operators in a model that are not in :data:`OPERATORS`, sorted.

    One of another domain than ONNX's own is named with its domain: its name alone does not say what it computes.
    """
    types = {
        node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}" for node in model.graph.node
    }
    return sorted(types - set(OPERATORS) - {"Constant"})


def compiled(node: onnx.NodeProto) -> Callable[[Inputs], Tensor]:
    """The function that a node computes.

    Raises:
        GraphError: The operator is not in :data:`OPERATORS`, or has an attribute whose value is not simulated.
    """
    operator = OPERATORS.get(node.op_type)
    if operator is None:
        raise GraphError(f"node {node.name}: {node.op_type} is not among the operators that can be simulated")
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    for name, value in attributes.items():
        if (node.op_type, name) in _ONLY and value not in (only := _ONLY[node.op_type, name]):
            shown, *expected = (item.decode() if isinstance(item, bytes) else str(item) for item in (value, *only))
            wanted = " or ".join(expected)
            raise GraphError(f"node {node.name}: {node.op_type} with {name} {shown} cannot be simulated, only {wanted}")
    return lambda inputs: operator(attributes, inputs)


def present(inputs: Inputs, index: int) -> Tensor:
    """An input that has to be there.

    Raises:
        GraphError: It is not.
    """
    if index >= len(inputs) or (value := inputs[index]) is None:
        raise GraphError(f"an operator lacks its input {index}")
    return value


def _optional(inputs: Inputs, index: int) -> Tensor | None:
    return inputs[index] if index < len(inputs) else None


def _integers(inputs: Inputs, index: int) -> list[int] | None:
    value = _optional(inputs, index)
    return None if value is None else [int(item) for item in value.reshape(-1).tolist()]


def _padded(attributes: Attributes, data: Tensor, kernel: Sequence[int], value: float) -> Tensor:
    """Data with the borders that the attribute ``pads`` asks for."""
    pads = list(attributes.get("pads", [0] * 2 * len(kernel)))
    if not any(pads):
        return data
    return functional.pad(data, _torch_pads(pads), value=value)


def _torch_pads(pads: Sequence[int]) -> list[int]:
    """Borders as PyTorch counts them: last dimension first, begin and end side by side."""
    rank = len(pads) // 2
    return [pads[dim + side * rank] for dim in reversed(range(rank)) for side in (0, 1)]


def convolution(attributes: Attributes, data: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``Conv`` on ``[N, C, *spatial]`` and ``[O, C/groups, *kernel]``."""
    spatial = weight.dim() - 2
    ones = [1] * spatial
    compute = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[spatial]
    pads = list(attributes.get("pads", [0] * 2 * spatial))
    # PyTorch's own padding saves a copy wherever both sides are alike.
    alike = pads[:spatial] == pads[spatial:]
    if not alike:
        data = _padded(attributes, data, weight.shape[2:], 0.0)
    result: Tensor = compute(
        data,
        weight,
        bias,
        stride=list(attributes.get("strides", ones)),
        padding=pads[:spatial] if alike else [0] * spatial,
        dilation=list(attributes.get("dilations", ones)),
        groups=int(attributes.get("group", 1)),
    )
    return result


def gemm(attributes: Attributes, left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    """``Gemm``: ``alpha * A' * B' + beta * C``."""
    left = left.t() if attributes.get("transA", 0) else left
    right = right.t() if attributes.get("transB", 0) else right
    result = float(attributes.get("alpha", 1.0)) * (left @ right)
    return result if bias is None else result + float(attributes.get("beta", 1.0)) * bias


def _inside(attributes: Attributes, data: Tensor, pooled: Tensor) -> Tensor:
    """Pooled windows, less those that start behind the data: ``ceil_mode`` makes such, and ONNX drops them."""
    if not attributes.get("ceil_mode", 0):
        return pooled
    rank = data.dim() - 2
    pads, strides = attributes.get("pads", [0] * rank), attributes.get("strides", [1] * rank)
    for dim in range(rank):
        starts = -(-(data.shape[dim + 2] + pads[dim]) // strides[dim])
        pooled = pooled.narrow(dim + 2, 0, min(starts, pooled.shape[dim + 2]))
    return pooled


def _max_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    kernel, data = list(attributes["kernel_shape"]), present(inputs, 0)
    lowest = -torch.inf if data.is_floating_point() else torch.iinfo(data.dtype).min
    pool = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}[len(kernel)]
    ones = [1] * len(kernel)
    pooled: Tensor = pool(
        _padded(attributes, data, kernel, lowest),
        kernel,
        stride=list(attributes.get("strides", ones)),
        dilation=list(attributes.get("dilations", ones)),
        ceil_mode=bool(attributes.get("ceil_mode", 0)),
    )
    return _inside(attributes, data, pooled)


def _average_pool(attributes: Attributes, inputs: Inputs) -> Tensor:
    kernel = list(attributes["kernel_shape"])
    data = present(inputs, 0)
    strides = list(attributes.get("strides", [1] * len(kernel)))
    pool = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}[len(kernel)]
    ceil = bool(attributes.get("ceil_mode", 0))

    def averages(values: Tensor) -> Tensor:
        padded = _padded(attributes, values, kernel, 0.0)
        return _inside(attributes, values, pool(padded, kernel, stride=strides, ceil_mode=ceil))

    if any(attributes.get("pads", ())) and not attributes.get("count_include_pad", 0):
        return averages(data) / averages(torch.ones_like(data[:1, :1]))
    return averages(data)


def _global_average(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    return data.mean(dim=tuple(range(2, data.dim())), keepdim=True)


def _global_max(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    return data.amax(dim=tuple(range(2, data.dim())), keepdim=True)


def _axes(attributes: Attributes, inputs: Inputs) -> list[int] | None:
    """Axes: an input from opset 13 or 18 on, an attribute before; an empty list says as little as none."""
    return _integers(inputs, 1) or list(attributes.get("axes", ())) or None


def _reduce_mean(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    axes = _axes(attributes, inputs)
    if axes is None:
        if attributes.get("noop_with_empty_axes", 0):
            return data
        axes = list(range(data.dim()))
    return data.mean(dim=axes, keepdim=bool(attributes.get("keepdims", 1)))


def _flatten(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    axis = attributes.get("axis", 1)
    axis = axis + data.dim() if axis < 0 else axis  # not modulo: an axis behind the last dimension is allowed too
    rows = 1
    for size in data.shape[:axis]:
        rows *= size
    return data.reshape(rows, -1)


def _reshape(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, shape = present(inputs, 0), _integers(inputs, 1) or []
    if not attributes.get("allowzero", 0):
        shape = [data.shape[dim] if size == 0 else size for dim, size in enumerate(shape)]
    return data.reshape(shape)


def _transpose(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    return data.permute(list(attributes.get("perm", reversed(range(data.dim())))))


def _squeeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, axes = present(inputs, 0), _axes(attributes, inputs)
    return data.squeeze() if axes is None else data.squeeze(tuple(axes))


def _unsqueeze(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, axes = present(inputs, 0), _axes(attributes, inputs) or []
    rank = data.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        data = data.unsqueeze(axis)
    return data


def _slice(attributes: Attributes, inputs: Inputs) -> Tensor:
    data = present(inputs, 0)
    starts, ends = _integers(inputs, 1) or [], _integers(inputs, 2) or []
    axes = _integers(inputs, 3) or list(range(len(starts)))
    steps = _integers(inputs, 4) or [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            data = data[(slice(None),) * (axis % data.dim()) + (slice(start, end, step),)]
        else:  # PyTorch has no slices that run backwards, and Python's begin before the front where ONNX's begin at it
            size = data.shape[axis]
            first = min(max(start + size if start < 0 else start, 0), size - 1)
            last = min(max(end + size if end < 0 else end, -1), size - 1)
            data = data.index_select(axis, torch.tensor(range(first, last, step), dtype=torch.int64))
    return data


def _pad(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, pads = present(inputs, 0), _integers(inputs, 1) or []
    value, axes = _optional(inputs, 2), _integers(inputs, 3)
    if axes is not None:
        full = [0] * 2 * data.dim()
        for place, axis in enumerate(item % data.dim() for item in axes):
            full[axis], full[axis + data.dim()] = pads[place], pads[place + len(axes)]
        pads = full
    return functional.pad(data, _torch_pads(pads), value=0.0 if value is None else float(value))


def _clip(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, low, high = present(inputs, 0), _optional(inputs, 1), _optional(inputs, 2)
    return data if low is None and high is None else data.clamp(low, high)


def _batch_norm(attributes: Attributes, inputs: Inputs) -> Tensor:
    data, scale, shift, mean, variance = (present(inputs, index) for index in range(5))
    return functional.batch_norm(data, mean, variance, scale, shift, eps=attributes.get("epsilon", 1e-5))


def _dropout(attributes: Attributes, inputs: Inputs) -> Tensor:
    if any(_integers(inputs, 2) or []):
        raise GraphError("Dropout in training mode cannot be simulated: its result is random")
    return present(inputs, 0)


def _gemm(attributes: Attributes, inputs: Inputs) -> Tensor:
    return gemm(attributes, present(inputs, 0), present(inputs, 1), _optional(inputs, 2))


def _conv(attributes: Attributes, inputs: Inputs) -> Tensor:
    return convolution(attributes, present(inputs, 0), present(inputs, 1), _optional(inputs, 2))


def _concat(attributes: Attributes, inputs: Inputs) -> Tensor:
    return torch.cat([present(inputs, index) for index in range(len(inputs))], dim=attributes["axis"])


_TYPES: Final = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}


def _cast(attributes: Attributes, inputs: Inputs) -> Tensor:
    return present(inputs, 0).to(_TYPES[attributes["to"]])


def _two(function: Callable[[Tensor, Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(present(inputs, 0), present(inputs, 1))


def _one(function: Callable[[Tensor], Tensor]) -> Operator:
    return lambda attributes, inputs: function(present(inputs, 0))


def _over_axis(function: Callable[..., Tensor]) -> Operator:
    return lambda attributes, inputs: function(present(inputs, 0), dim=attributes.get("axis", -1))


_AUTO_PAD: Final = (b"NOTSET", b"VALID")

# Attributes that are simulated for some values only.
_ONLY: Final[Mapping[tuple[str, str], tuple[Any, ...]]] = {
    ("AveragePool", "auto_pad"): _AUTO_PAD,
    ("AveragePool", "dilations"): ([1], [1, 1], [1, 1, 1]),
    ("BatchNormalization", "training_mode"): (0,),
    ("Cast", "to"): tuple(_TYPES),
    ("Conv", "auto_pad"): _AUTO_PAD,
    ("MaxPool", "auto_pad"): _AUTO_PAD,
    ("Pad", "mode"): (b"constant",),
}

OPERATORS: Final[Mapping[str, Operator]] = {
    "Add": _two(torch.add),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _conv,
    "Div": _two(torch.div),
    "Dropout": _dropout,
    "Flatten": _flatten,
    "Gemm": _gemm,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global_max,
    "Identity": _one(lambda data: data),
    "LeakyRelu": lambda attributes, inputs: functional.leaky_relu(present(inputs, 0), attributes.get("alpha", 0.01)),
    "MatMul": _two(torch.matmul),
    "MaxPool": _max_pool,
    "Mul": _two(torch.mul),
    "Pad": _pad,
    "ReduceMean": _reduce_mean,
    "Relu": _one(torch.relu),
    "Reshape": _reshape,
    "Sigmoid": _one(torch.sigmoid),
    "Slice": _slice,
    "Softmax": _over_axis(torch.softmax),
    "Squeeze": _squeeze,
    "Sub": _two(torch.sub),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
