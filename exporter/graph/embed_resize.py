"""Resize and centre crop inside the graph, as close to Pillow as ONNX gets.

::

    [N,H,W,C] ─ Transpose ─ Resize to (H, W) * resize // min(H, W) ─ Slice ─ Transpose ─▶ [N,h,w,C]      all uint8

ONNX's Resize with ``antialias`` is Pillow's filter: its support grows with the reduction, pixel centres are at half
(``half_pixel``), weights outside of the image are left out. On uint8 ONNX Runtime also rounds between the two passes,
as Pillow does; what remains are weights that fall on the edge of the support, in float32. The sizes are computed in
integers: torchvision truncates the longer side, and rounds the place of the crop to even.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper

from calibration.graph import Network
from calibration.preprocess import Preprocessing
from exporter.graph.rewrite import Front, image_input, with_front
from runtimes.errors import GraphError, InputError

#: Opset from which on Resize has ``antialias``.
ANTIALIAS: Final = 18
_FILTERS: Final[dict[str, dict[str, Any]]] = {
    "bilinear": {"mode": "linear", "antialias": 1},
    # Pillow's cubic is Keys' with a = -0.5, and leaves out what lies outside of the image.
    "bicubic": {"mode": "cubic", "antialias": 1, "cubic_coeff_a": -0.5, "exclude_outside": 1},
    "nearest": {"mode": "nearest", "nearest_mode": "round_prefer_ceil"},
}


def check_resizable(opset: int, contract: Preprocessing) -> None:
    """Refuse what ONNX cannot say.

    Args:
        opset: Of the model.
        contract: What is to be done inside.

    Raises:
        InputError: The contract has nothing to do inside.
        GraphError: The opset has no antialiased Resize.
    """
    if contract.resize is None and contract.crop == "none":
        raise InputError(
            "--embed-resize, but the preprocessing has neither resize nor crop: leave it out, or give --resize"
        )
    if contract.resize is not None and contract.interpolation != "nearest" and opset < ANTIALIAS:
        raise GraphError(
            f"--embed-resize with opset {opset}: Resize has no antialias before opset {ANTIALIAS}, without which small "
            f"details turn into noise; export with --opset {ANTIALIAS}, or resize outside"
        )


def embed_resize(model: onnx.ModelProto, contract: Preprocessing) -> onnx.ModelProto:
    """A model that resizes and crops by itself; its input becomes ``[N, height, width, C]`` with free sizes.

    Args:
        model: Takes uint8 ``[N, h, w, C]``; unchanged.
        contract: What is done inside.

    Raises:
        InputError, GraphError: As :func:`check_resizable`.
    """
    network = Network(model, "")
    check_resizable(network.opset, contract)
    front = Front(network.input)
    front.add("Transpose", "picture.planes", perm=[0, 3, 1, 2])
    shape = front.make("Shape", "picture.shape", front.last)
    sides = front.make("Slice", "picture.sides", shape, _integers(2), _integers(4), _integers(0))
    if contract.resize is not None:
        sides = _resize(front, shape, sides, contract)
    if contract.crop == "center" and contract.size is not None:
        _crop(front, sides, contract.size)
    front.add("Transpose", "picture.pixels", perm=[0, 2, 3, 1])
    if contract.size is not None:
        # Says the size, and fails where a picture was smaller than the crop.
        front.add("Reshape", "picture.checked", _integers(0, *contract.size, contract.channels))
    old = image_input(model)
    batch, _, _, channels = old.type.tensor_type.shape.dim
    taken = helper.make_tensor_value_info(old.name, TensorProto.UINT8, ["N", "height", "width", None])
    taken.type.tensor_type.shape.dim[0].CopyFrom(batch)
    taken.type.tensor_type.shape.dim[3].CopyFrom(channels)
    return with_front(network, front, taken)


def _resize(front: Front, shape: str, sides: str, contract: Preprocessing) -> str:
    longer = front.make("Mul", "picture.longer", sides, _integers(contract.resize or 0))
    shorter = front.make("ReduceMin", "picture.shorter", sides, keepdims=1)
    scaled = front.make("Div", "picture.scaled", longer, shorter)
    rest = front.make("Slice", "picture.batch", shape, _integers(0), _integers(2), _integers(0))
    sizes = front.make("Concat", "picture.sizes", rest, scaled, axis=0)
    attributes = {"coordinate_transformation_mode": "half_pixel", **_FILTERS[contract.interpolation]}
    front.add("Resize", "picture.resized", "", "", sizes, **attributes)
    return scaled


def _crop(front: Front, sides: str, size: tuple[int, int]) -> None:
    """The middle; half a pixel goes to the even side, as Python rounds."""
    spare = front.make("Sub", "crop.spare", sides, _integers(*size))
    half = front.make("Div", "crop.half", spare, _integers(2))
    tie = front.make("Sub", "crop.tie", spare, front.make("Mul", "crop.double", half, _integers(2)))
    quarter = front.make("Div", "crop.quarter", half, _integers(2))
    odd = front.make("Sub", "crop.odd", half, front.make("Mul", "crop.even", quarter, _integers(2)))
    begin = front.make("Add", "crop.begin", half, front.make("Mul", "crop.up", tie, odd))
    end = front.make("Add", "crop.end", begin, _integers(*size))
    front.add("Slice", "crop.middle", begin, end, _integers(2, 3))


def _integers(*values: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.array(values, np.int64)
