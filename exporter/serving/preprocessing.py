"""The arithmetic of a preprocessing contract as an ONNX file: the first step of an ensemble, in place of Python.

::

    pixels uint8 [N,H,W,C] --Cast, Mul, Sub, Div--> --Transpose--> input [N,C,H,W]

The same operations in the same order and precision as :meth:`calibration.preprocess.Preprocessing.apply_pixels`, so
that both give the same bits. Decoding, resize and crop stay with the client, who sends pictures of the final size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.preprocess import Preprocessing
from runtimes.base import TensorSpec

PIXELS: Final = "pixels"
_OPSET, _IR_VERSION = 13, 7  # old enough for every Triton release with this protocol


def pixel_spec(taken: TensorSpec) -> TensorSpec:
    """What the graph takes: uint8 ``[N, H, W, C]``.

    Args:
        taken: Input of the model behind it, ``[N, C, H, W]``.
    """
    batch, channels, height, width = taken.shape
    return TensorSpec(PIXELS, "uint8", (batch, height, width, channels))


def preprocessing_model(contract: Preprocessing, taken: TensorSpec) -> onnx.ModelProto:
    """The graph.

    Args:
        contract: How pixels become a tensor. Pixels come in RGB order, grey, or for ``raw`` in the tensor's order.
        taken: Input of the model behind it; the output has its name, element type and shape.
    """
    spec = pixel_spec(taken)
    nodes, stored, last = [], [], PIXELS
    if contract.color == "BGR":
        stored.append(numpy_helper.from_array(np.array([2, 1, 0], np.int64), "bgr"))
        nodes.append(helper.make_node("Gather", [last, "bgr"], ["reordered"], "reorder", axis=3))
        last = "reordered"
    nodes.append(helper.make_node("Cast", [last], ["float"], "float", to=TensorProto.FLOAT))
    last = "float"
    for name, op_type, value in (
        ("scale", "Mul", (contract.scale,)), ("mean", "Sub", contract.mean), ("std", "Div", contract.std),
    ):  # fmt: skip
        stored.append(numpy_helper.from_array(np.array(value, np.float32), name))
        nodes.append(helper.make_node(op_type, [last, name], [f"{name}_done"], f"apply_{name}"))
        last = f"{name}_done"
    half = taken.dtype == "float16"
    planes = "planes" if half else taken.name
    nodes.append(helper.make_node("Transpose", [last], [planes], "planes_first", perm=[0, 3, 1, 2]))  # to [N,C,H,W]
    if half:
        nodes.append(helper.make_node("Cast", [planes], [taken.name], "half", to=TensorProto.FLOAT16))
    graph = helper.make_graph(nodes, "preprocessing", [_info(spec, "NHWC")], [_info(taken, "NCHW")], stored)
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR_VERSION, producer_name="resnet-export"
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _info(spec: TensorSpec, axes: str) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
    sizes = [axis if size is None else size for axis, size in zip(axes, spec.shape, strict=True)]
    return helper.make_tensor_value_info(spec.name, kind, sizes)
