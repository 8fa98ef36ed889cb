"""Preprocessing inside the graph: the file takes the pixels of a decoder, uint8 ``[N, H, W, C]``.

A contract makes ``x[c] = (s * p[c] - m[c]) / d[c]`` of a pixel ``p[c]`` from 0 to 255 (scale, mean, std), and the
first convolution ``y = sum W * x + b`` of that. Put together::

    y = sum (W * s/d) * p + (b - sum W * m/d)          where no tap of W lies outside of the image
    y = sum (W * s/d) * (p - m/s) + b                  everywhere

Outside of the image a convolution finds ``x = 0``, and that is no pixel of 0 but the mean colour, ``p = m/s``. The
first line is right for convolutions without padding only. In the second the mean colour is moved to 0 before: then
the convolution's own zeros are the right ones, for every padding, stride, dilation and size of image, and one
subtraction is all that is left of the preprocessing. Where the weights cannot take the factor, it is two nodes, in
FP32::

    convolution   uint8 ─ Cast ─ Transpose ─────────────────────────▶ convolution of W * s/d, with another bias
    shifted       uint8 ─ Cast ─ Transpose ─ Sub m/s ───────────────▶ convolution of W * s/d
    nodes         uint8 ─ Cast ─ Transpose ─ Sub m/s ─ Mul s/d ─────▶ the network as it was
    lattice       uint8 ─ …                                         ▶ 8 bits; see :mod:`exporter.graph.embed_lattice`

The Cast comes first, because TensorRT takes uint8 from an input and gives it to a Cast only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from calibration.graph import Network, attribute
from calibration.preprocess import Preprocessing
from exporter.graph.embed_lattice import find_lattice, lattice_front
from exporter.graph.rewrite import Front, pixel_input, planes, with_front
from runtimes.errors import GraphError

How = Literal["convolution", "shifted", "nodes", "lattice"]
Doubles = npt.NDArray[np.float64]

_OLDEST: Final = 13
_FLOATS: Final = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class Embedded:
    """A network that normalises by itself.

    Attributes:
        model: Takes uint8 ``[N, H, W, C]`` under the name of the input before; all else is called as it was.
        how: Which of the ways above.
        reason: Why not a better one, or empty.
    """

    model: onnx.ModelProto
    how: How
    reason: str = ""


def embed(model: onnx.ModelProto, contract: Preprocessing) -> Embedded:
    """Put the normalisation of a contract into a network.

    Args:
        model: FP32, FP16 or with Q/DQ; takes one batch ``[N, C, H, W]``. Unchanged.
        contract: How pixels become its input; as many channels.

    Raises:
        GraphError: The model takes something else, or its opset is below 13.
    """
    network = Network(model, "")
    kind = check_embeddable(network, contract)
    taken = pixel_input(model)
    if kind == TensorProto.FLOAT and (lattice := find_lattice(network, contract)):
        return Embedded(with_front(network, lattice_front(network, lattice), taken), "lattice")
    factors = np.array(contract.scale / np.array(contract.std, np.float64))
    colours = np.array(contract.mean, np.float64) / contract.scale
    obstacle = _obstacle(network, kind)
    if obstacle:
        return Embedded(with_front(network, _nodes(network.input, kind, factors, colours), taken), "nodes", obstacle)
    takers = network.consumers[network.input]
    if not colours.any() or not any(map(_is_padded, takers)):
        front, how, moved = _pixels(network.input), "convolution", colours
    else:
        front, how, moved = _shifted(network.input, colours), "shifted", np.zeros_like(colours)
    for node in takers:
        _merge(network, node, front, factors, moved)
    reason = "" if how == "convolution" else "the convolution pads: its zeros are the mean colour"
    return Embedded(with_front(network, front, taken), how, reason)  # type: ignore[arg-type]  # one of two literals


def check_embeddable(network: Network, contract: Preprocessing) -> int:
    """Element type of the input of a network, if pixels can take its place.

    Raises:
        GraphError: They cannot.
    """
    if network.opset < _OLDEST:
        raise GraphError(
            f"the model is in opset {network.opset}, and pixels need {_OLDEST} or newer: export it with a newer --opset"
        )
    constants = set(network.initializers)
    inputs = [item for item in network.model.graph.input if item.name not in constants]
    if len(inputs) != 1 or len(network.model.graph.output) != 1:
        raise GraphError(
            f"the model has {len(inputs)} inputs and {len(network.model.graph.output)} outputs, expected one of each"
        )
    kind = inputs[0].type.tensor_type
    if kind.elem_type == TensorProto.UINT8:
        raise GraphError("the model takes uint8 already: give the file that takes the preprocessed images")
    dims = kind.shape.dim
    if kind.elem_type not in _FLOATS or len(dims) != 4:
        found = TensorProto.DataType.Name(kind.elem_type)
        raise GraphError(f"the model takes {found} of {len(dims)} dimensions, expected floats [N,C,H,W]")
    if dims[1].HasField("dim_value") and dims[1].dim_value != contract.channels:
        raise GraphError(
            f"the model takes {dims[1].dim_value} channels and the preprocessing makes {contract.channels}: "
            "give another --preset"
        )
    if network.input in network.outputs or network.input not in network.consumers:
        raise GraphError("the model does not use its input: nothing can be put before it")
    return int(kind.elem_type)


def _obstacle(network: Network, kind: int) -> str:
    """Why the factors cannot go into the first convolutions, or empty."""
    if kind != TensorProto.FLOAT:
        return "the model takes FP16, whose smallest numbers the scaled weights would reach"
    given = {item.name for item in network.model.graph.input}
    for node in network.consumers[network.input]:
        if node.op_type != "Conv" or network.input in node.input[1:]:
            return f"the input goes into {node.op_type}, not straight into a convolution"
        if any(name and (name not in network.initializers or name in given) for name in node.input[1:]):
            return f"{node.output[0]} has weights or a bias that are no constants"
        if network.initializers[node.input[1]].dtype != np.float32:
            return f"{node.output[0]} has weights that are not FP32"
    return ""


def _is_padded(node: onnx.NodeProto) -> bool:
    mode = attribute(node, "auto_pad", b"NOTSET")
    return any(attribute(node, "pads", ())) if mode == b"NOTSET" else bool(mode != b"VALID")


def _pixels(name: str, kind: int = TensorProto.FLOAT) -> Front:
    front = Front(name)
    front.add("Cast", "float", to=kind)
    front.add("Transpose", "planes", perm=[0, 3, 1, 2])
    return front


def _shifted(name: str, colours: Doubles) -> Front:
    front = _pixels(name)
    front.add("Sub", "shifted", planes(colours))
    return front


def _nodes(name: str, kind: int, factors: Doubles, colours: Doubles) -> Front:
    # Subtracted first: a pixel less its mean colour is rounded once, and close to 0 not at all.
    front = _shifted(name, colours) if colours.any() else _pixels(name)
    front.add("Mul", "normalised", planes(factors))
    if kind != TensorProto.FLOAT:
        front.add("Cast", "half", to=kind)
    return front


def _merge(network: Network, node: onnx.NodeProto, front: Front, factors: Doubles, colours: Doubles) -> None:
    """Have a convolution take pixels, or pixels less a colour where ``colours`` is 0; in float64, rounded once."""
    weight = network.initializers[node.input[1]].astype(np.float64)  # [O, C/groups, *kernel]
    groups = int(attribute(node, "group", 1))
    # Output o of group g reads the channels g*C/groups and on: [C] -> [groups, C/groups] -> [O, C/groups]
    by_output = np.repeat(factors.reshape(groups, -1), len(weight) // groups, axis=0)
    merged = weight * by_output[:, :, None, None]
    new = onnx.NodeProto()
    new.CopyFrom(node)
    new.input[1] = front.constant(f"{node.output[0]}.pixels.weight", merged.astype(np.float32))
    if colours.any():
        given = node.input[2] if len(node.input) > 2 else ""
        bias = network.initializers[given].astype(np.float64) if given else np.zeros(len(weight))
        mean = np.repeat(colours.reshape(groups, -1), len(weight) // groups, axis=0)  # [O, C/groups]
        values = bias - np.einsum("oihw,oi->o", merged, mean)
        del new.input[2:]
        new.input.append(front.constant(f"{node.output[0]}.pixels.bias", values.astype(np.float32)))
    front.replace(node, new)
