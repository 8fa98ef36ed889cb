"""Which precision a file carries, and which one a runtime computes it in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

if TYPE_CHECKING:
    import onnx

Precision = Literal["fp32", "tf32", "fp16", "bf16", "int8", "fp8"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
_WEIGHTED: Final = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
# Integers by name: what ONNX Runtime's quantisers write besides Q/DQ (https://onnx.ai/onnx/operators and contrib ops).
_INTEGER: Final = frozenset({"ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "DynamicQuantizeMatMul"})
_HANDING_ON: Final = frozenset({"Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten"})
_ASKED: Final[Mapping[str, Precision]] = {
    "float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "f32": "fp32", "f16": "fp16", "bf16": "bf16",
}  # fmt: skip


def carried(model: onnx.ModelProto) -> Precision:
    """The precision that a file's own types say: that of its Q/DQ or integer operators, else of its weights."""
    from onnx import TensorProto

    quantisers = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    kinds = _kinds(model)
    if quantisers:
        stored = {kinds.get(name, 0) for node in quantisers for name in (node.input[0], *node.input[2:])}
        return "fp8" if stored & {TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2} else "int8"
    if any(node.op_type in _INTEGER or node.op_type.startswith("QLinear") for node in model.graph.node):
        return "int8"
    weights = {kinds.get(node.input[1], 0) for node in model.graph.node if node.op_type in _WEIGHTED and node.input[1:]}
    if TensorProto.FLOAT16 in weights:
        return "fp16"
    return "bf16" if TensorProto.BFLOAT16 in weights else "fp32"


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element type of every stored tensor, also behind operators that only hand it on."""
    kinds = {item.name: item.data_type for item in model.graph.initializer}
    for node in model.graph.node:
        values = {item.name: item for item in node.attribute}
        if node.op_type == "Constant" and "value" in values:
            kinds[node.output[0]] = values["value"].t.data_type
        elif node.op_type == "Cast" and node.input[0] in kinds:
            kinds[node.output[0]] = values["to"].i
        elif node.op_type in _HANDING_ON and node.input[0] in kinds:
            kinds[node.output[0]] = kinds[node.input[0]]
    return kinds


def computed(own: Precision | None, options: Mapping[str, Any]) -> Precision | None:
    """The precision that a runtime computes a model in, which is what a tolerance is chosen by.

    Args:
        own: What the model carries; ``None`` where nobody knows.
        options: Of the runtime: its ``dtype`` or ``precision``, and ``tf32``.

    Returns:
        ``own`` unless something coarser was asked for: weights that were rounded once stay rounded, and INT8 layers
        stay INT8.
    """
    given = options.get("dtype", options.get("precision", own))
    asked = given if given in PRECISIONS else _ASKED.get(str(given))
    coarser = own == "fp32" or (own, asked) == ("fp16", "bf16")
    found = asked if coarser else own
    return "tf32" if found == "fp32" and options.get("tf32") else found
