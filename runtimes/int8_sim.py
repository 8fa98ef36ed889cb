"""A Q/DQ file run in the integer arithmetic of the device it is meant for, on any machine.

A convolution, ``Gemm`` or ``MatMul`` whose two inputs come from ``DequantizeLinear`` is what an INT8 kernel computes:
here its products are summed as integers (held in float64, where every one below 2**53 is exact) and wrapped to 32
bits as a register would; then they are scaled and get their bias in float64 and are rounded to float32 once.
Everything else runs in float32, as it does between the kernels: also a sum that no integer kernel can do, because its
terms have scales of their own (one for each input channel) or are no 8-bit integers. So the result of a kernel does
not depend on the order of its sum, and can serve as the oracle for an engine that somebody else runs. The arithmetic is
that of Jacob et al. (2018), equations 4 and 7.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeAlias

import onnx
import torch
from torch import Tensor

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError, ResnetExportError, first_line
from runtimes.operators import Attributes, Inputs, compiled, convolution, gemm, present, unknown_operators
from runtimes.reading import check_external
from runtimes.values import constants, last_uses

# Operators that move numbers or pick among them: integers go through them as they are.
_MOVING: Final = frozenset(
    {"MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Identity", "Slice", "Pad", "GlobalMaxPool"}
)
_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})
_LINEAR: Final = frozenset({"QuantizeLinear", "DequantizeLinear"})
_BITS: Final = {torch.int8: (-128, 127), torch.uint8: (0, 255)}
_OUTPUT_DTYPES: Final = {
    "QuantizeLinear": {0: torch.uint8, onnx.TensorProto.UINT8: torch.uint8, onnx.TensorProto.INT8: torch.int8},
    "DequantizeLinear": {0: torch.float32, onnx.TensorProto.FLOAT: torch.float32},
}
_BORDER_DTYPES: Final[dict[str, dict[int, str]]] = {
    "input": {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT8: "int8", onnx.TensorProto.UINT8: "uint8"},
    "output": {onnx.TensorProto.FLOAT: "float32"},
}
_OLDEST_OPSET: Final = 13  # before it, Softmax and others mean something else, and there are no scales per channel
# A batch that cannot be reshaped, or a model that is not what its declarations say.
_FAILURES: Final = (RuntimeError, ValueError, TypeError, IndexError, KeyError)


@dataclass(frozen=True)
class _Steps:
    """Integers less their zero point, and the real value of one step.

    Attributes:
        values: float64 of any shape, all of them integers.
        scale: float64, of rank 0 or shaped so that it multiplies ``values``.
        narrow: Whether the integers were stored in 8 bits.
    """

    values: Tensor
    scale: Tensor
    narrow: bool

    def exact(self) -> Tensor:
        # 8 bits times the 24 of a float32 fit into float64: ``real`` rounds once, as the operator does.
        return self.values * self.scale

    def real(self) -> Tensor:
        return self.exact().to(torch.float32)


_Value: TypeAlias = Tensor | _Steps


class Int8SimRuntime(Runtime):
    """Runs a Q/DQ model with one input and one output.

    Args:
        model: Path of the file, or the serialised model itself.
        name: Name in messages and reports.

    Opening raises ``GraphError`` for a model that cannot be read, holds no ``QuantizeLinear``, has an operator that is
    not simulated, or another number or type of inputs and outputs.
    """

    def __init__(self, model: str | Path | bytes, name: str = "int8-sim") -> None:
        super().__init__(name)
        self._source = model
        self._program: list[Callable[[dict[str, _Value]], None]] = []
        self._constants: dict[str, Tensor] = {}

    def _open(self) -> Binding:
        model = self._read()
        try:
            self._refuse(model)
            self._constants = constants(model)
            given = [item for item in model.graph.input if item.name not in self._constants]
            binding = Binding(
                input=_spec("input", given),
                output=_spec("output", list(model.graph.output)),
                used={"torch": str(torch.__version__), "accumulators": "int32, exact", "between kernels": "float32"},
            )
            computed = [node for node in model.graph.node if node.op_type != "Constant"]
            gone = last_uses(computed, [binding.output.name])
            self._program = [_step(node, names) for node, names in zip(computed, gone, strict=True)]
        except GraphError as error:
            raise GraphError(f"{self._label()}: {error}") from error
        return binding

    def _run(self, batch: Array) -> Array:
        # A copy: torch.from_numpy shares the caller's images, and warns where they are read-only.
        values: dict[str, _Value] = {**self._constants, self.inputs[0].name: torch.tensor(batch)}
        try:
            with torch.no_grad():
                for step in self._program:
                    step(values)
            result: Array = _real(values[self.outputs[0].name]).numpy()
        except (GraphError, *_FAILURES) as error:
            raise GraphError(f"{self._label()} failed on {list(batch.shape)}: {first_line(error)}") from error
        return result

    def _close(self) -> None:
        self._program, self._constants = [], {}

    def _read(self) -> onnx.ModelProto:
        try:
            if isinstance(self._source, bytes):
                model = onnx.load_model_from_string(self._source)
            else:
                path = Path(self._source)
                check_external(path, self.name)
                model = onnx.load_model_from_string(path.read_bytes())  # a path's suffix would choose the parser
                onnx.load_external_data_for_model(model, str(path.parent))
        except ResnetExportError:
            raise
        except OSError as error:
            raise GraphError(f"{self._label()} cannot be read: {error.strerror or error}") from error
        except Exception as error:  # protobuf's DecodeError has no public base
            raise GraphError(f"{self._label()} is not an ONNX file: {first_line(error)}") from error
        if not model.graph.node:  # an empty file, or text that happens to parse
            raise GraphError(f"{self._label()} is not an ONNX file: it holds no operator")
        return model

    def _refuse(self, model: onnx.ModelProto) -> None:
        nodes = model.graph.node
        if not any(node.op_type == "QuantizeLinear" for node in nodes):
            raise GraphError("the model is not quantised: expected a file with QuantizeLinear")
        opset = max((item.version for item in model.opset_import if item.domain in ("", "ai.onnx")), default=1)
        if opset < _OLDEST_OPSET:
            raise GraphError(f"the model has opset {opset}, expected {_OLDEST_OPSET} or later")
        unknown = sorted(set(unknown_operators(model)) - _LINEAR)
        if unknown:
            raise GraphError(f"the model has {', '.join(unknown)}, which cannot be simulated")
        taken = {name for node in nodes for name in node.input} | {item.name for item in model.graph.output}
        for node in nodes:
            if any(name in taken for name in node.output[1:] if name):
                raise GraphError(f"{_title(node)}: an output beside the first one is used, and cannot be simulated")

    def _label(self) -> str:
        return (
            f"{self.name}: the model in memory" if isinstance(self._source, bytes) else f"{self.name}: {self._source}"
        )


def _spec(role: str, items: list[onnx.ValueInfoProto]) -> TensorSpec:
    if len(items) != 1:
        names = ", ".join(item.name for item in items)
        raise GraphError(f"the model has {len(items)} {role}s ({names}), expected exactly one")
    name, kind, expected = items[0].name, items[0].type.tensor_type, _BORDER_DTYPES[role]
    dtype = expected.get(kind.elem_type)
    if dtype is None:
        received = onnx.TensorProto.DataType.Name(kind.elem_type)
        raise GraphError(f"{role} '{name}' is {received}, expected {' or '.join(expected.values())}")
    shape = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim)
    return TensorSpec(name, dtype, shape or (None,) * (4 if role == "input" else 2))


def _title(node: onnx.NodeProto) -> str:
    return f"{node.op_type} '{node.name or next(iter(node.output), '')}'"


def _step(node: onnx.NodeProto, gone: tuple[str, ...]) -> Callable[[dict[str, _Value]], None]:
    """What one node does to the table of values, and what it lets go."""
    compute, title = _function(node), _title(node)

    def step(values: dict[str, _Value]) -> None:
        try:
            values[node.output[0]] = compute([values[name] if name else None for name in node.input])
        except (GraphError, *_FAILURES) as error:
            raise GraphError(f"{title}: {first_line(error)}") from error
        for name in gone:
            values.pop(name, None)

    return step


def _function(node: onnx.NodeProto) -> Callable[[list[_Value | None]], _Value]:
    if node.op_type in _LINEAR:
        return _linear(node)
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    plain = compiled(node)

    def compute(inputs: list[_Value | None]) -> _Value:
        first = inputs[0]
        if isinstance(first, _Steps):
            if node.op_type in _WEIGHTED and isinstance(weight := inputs[1], _Steps):
                if _is_kernel(node.op_type, attributes, first, weight):
                    return _integer_sums(node.op_type, attributes, first, weight, inputs[2:])
            elif node.op_type in _MOVING and first.scale.dim() == 0:
                moved = _in_steps(node.op_type, first, _reals(inputs[1:]))
                if moved is not None:
                    return replace(first, values=plain(moved))
        return plain(_reals(inputs))

    return compute


def _linear(node: onnx.NodeProto) -> Callable[[list[_Value | None]], _Value]:
    """``QuantizeLinear`` or ``DequantizeLinear``, as far as 8 bits and one scale for each tensor or channel go."""
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute}
    if attributes.get("block_size", 0):
        raise GraphError(f"{_title(node)}: scales for blocks cannot be simulated, expected block_size 0")
    wanted, known = attributes.get("output_dtype", 0), _OUTPUT_DTYPES[node.op_type]
    if wanted not in known:
        raise GraphError(f"{_title(node)}: output_dtype {wanted} cannot be simulated, expected one of {sorted(known)}")
    if node.op_type == "QuantizeLinear":
        return lambda inputs: _quantize(attributes, _reals(inputs), known[wanted])
    return lambda inputs: _dequantize(attributes, _reals(inputs))


def _in_steps(kind: str, data: _Steps, others: list[Tensor | None]) -> list[Tensor | None] | None:
    """The inputs of a moving operator, for integers; ``None`` where a ``Pad`` fills in what lies between two steps."""
    if kind == "Pad" and len(others) > 1 and (fill := others[1]) is not None:
        steps = torch.round(fill.to(torch.float64) / data.scale)
        # A fill that was rounded to float32 is still that number of steps.
        if not torch.allclose((steps * data.scale).to(torch.float32), fill, rtol=2.0**-22, atol=0.0):
            return None
        others = [others[0], steps, *others[2:]]
    return [data.values, *others]


def _is_kernel(kind: str, attributes: Attributes, data: _Steps, weight: _Steps) -> bool:
    """Whether the scales come out of the sum: one for all of the data, and one for each output channel at most."""
    if not (data.narrow and weight.narrow and data.scale.dim() == 0):
        return False
    if weight.scale.dim() == 0:
        return True
    rank = weight.values.dim()
    channel = {"Conv": 0, "Gemm": 0 if attributes.get("transB", 0) else 1, "MatMul": rank - 1}[kind]
    return rank > 1 and weight.scale.shape[channel] == weight.scale.numel()


def _integer_sums(kind: str, attributes: Attributes, data: _Steps, weight: _Steps, rest: list[_Value | None]) -> Tensor:
    bias = None if not rest or rest[0] is None else _exact(rest[0])
    scale = data.scale * weight.scale.reshape(-1)
    if kind == "Conv":
        sums = _wrapped(convolution(attributes, data.values, weight.values, None))
        channels = [-1] + [1] * (sums.dim() - 2)
        result = sums * scale.reshape(channels)
        return (result if bias is None else result + bias.reshape(channels)).to(torch.float32)
    if kind == "Gemm":
        bare = {name: value for name, value in attributes.items() if name.startswith("trans")}
        sums = _wrapped(gemm(bare, data.values, weight.values, None))
        result = float(attributes.get("alpha", 1.0)) * sums * scale
        return (result if bias is None else result + float(attributes.get("beta", 1.0)) * bias).to(torch.float32)
    sums = _wrapped(data.values @ weight.values)
    return (sums * scale).reshape(sums.shape).to(torch.float32)  # a product of two vectors stays without dimensions


def _wrapped(sums: Tensor) -> Tensor:
    """What a 32-bit register would hold."""
    return torch.remainder(sums + 2.0**31, 2.0**32) - 2.0**31


def _along(parameter: Tensor, data: Tensor, attributes: Attributes) -> Tensor:
    """A scale or a zero point, shaped so that it goes with the tensor it belongs to."""
    if parameter.numel() == 1:
        return parameter.reshape(())
    shape = [1] * data.dim()
    axis = int(attributes.get("axis", 1)) % data.dim()
    if parameter.numel() != data.shape[axis]:
        raise GraphError(f"{parameter.numel()} scales along axis {axis} of {list(data.shape)}, expected one for each")
    shape[axis] = -1
    return parameter.reshape(shape)


def _quantize(attributes: Attributes, inputs: Inputs, dtype: torch.dtype) -> Tensor:
    data, scale = present(inputs, 0), present(inputs, 1)
    zero = inputs[2] if len(inputs) > 2 and inputs[2] is not None else torch.zeros((), dtype=dtype)
    if zero.dtype not in _BITS:
        raise GraphError(f"a zero point of {zero.dtype} cannot be simulated, expected int8 or uint8")
    # In float32, as QuantizeLinear and the kernels do: a tie there is no tie in float64.
    steps = torch.round(data / _along(scale, data, attributes))
    return (steps + _along(zero, data, attributes)).clamp(*_BITS[zero.dtype]).to(zero.dtype)


def _dequantize(attributes: Attributes, inputs: Inputs) -> _Steps:
    data, scale = present(inputs, 0), present(inputs, 1).to(torch.float64)
    values = data.to(torch.float64)
    if len(inputs) > 2 and inputs[2] is not None:
        values = values - _along(inputs[2], data, attributes).to(torch.float64)
    return _Steps(values, _along(scale, data, attributes), data.dtype in _BITS)


def _exact(value: _Value) -> Tensor:
    return value.exact() if isinstance(value, _Steps) else value.to(torch.float64)


def _real(value: _Value) -> Tensor:
    return value.real() if isinstance(value, _Steps) else value


def _reals(values: list[_Value | None]) -> list[Tensor | None]:
    return [None if value is None else _real(value) for value in values]
