"""Faults as they happen to exported files, each planted into a copy at one place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

Fault = Callable[[onnx.ModelProto], None]


def planted(model: onnx.ModelProto, fault: Fault) -> onnx.ModelProto:
    """A copy with the fault in it."""
    copy: onnx.ModelProto = onnx.ModelProto.FromString(model.SerializeToString())
    fault(copy)
    return copy


def node_of(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return found


def rewritten(tensor: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]) -> Fault:
    """``change`` applied to an initializer, which keeps its type."""

    def apply(model: onnx.ModelProto) -> None:
        item = next(each for each in model.graph.initializer if each.name == tensor)
        values = numpy_helper.to_array(item)
        item.CopyFrom(numpy_helper.from_array(change(values.copy()).astype(values.dtype), tensor))

    return apply


def one_channel(layer: str, channel: int = 2) -> Fault:
    """The weights of one output channel are those of another one."""

    def change(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values[channel] = values[channel + 1]
        return values

    return rewritten(f"{layer}.weight", change)


def one_weight(layer: str) -> Fault:
    """One weight of thousands is off by a tenth of the largest."""

    def change(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values.reshape(-1)[values.size // 2] += np.abs(values).max() / 10
        return values

    return rewritten(f"{layer}.weight", change)


def swapped_inputs(tensor: str) -> Fault:
    """The input channels are in the opposite order: BGR for RGB in a stem."""
    return rewritten(tensor, lambda values: values[:, ::-1])


def rolled(tensor: str, axis: int = 0) -> Fault:
    """Everything is one place too far along an axis."""
    return rewritten(tensor, lambda values: np.roll(values, 1, axis))


def without_bias(layer: str) -> Fault:
    """BatchNorm was folded into the weights and its shift was forgotten."""
    return rewritten(f"{layer}.bias", np.zeros_like)


def times(tensor: str, factor: float) -> Fault:
    return rewritten(tensor, lambda values: values * factor)


def not_finite(layer: str, value: float = np.nan) -> Fault:
    def change(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        values.reshape(-1)[0] = value
        return values

    return rewritten(f"{layer}.weight", change)


def attribute(name: str, key: str, value: Any) -> Fault:
    """An attribute of a node has another value."""

    def apply(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        kept = [item for item in node.attribute if item.name != key]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(key, value)])

    return apply


def dropped(name: str, place: int = 0) -> Fault:
    """A node is gone, and whoever read it reads its input ``place`` instead."""

    def apply(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        for each in model.graph.node:
            for index, tensor in enumerate(each.input):
                if tensor == node.output[0]:
                    each.input[index] = node.input[place]
        model.graph.node.remove(node)

    return apply


def rewired(name: str, place: int, tensor: str) -> Fault:
    """A node reads another tensor."""

    def apply(model: onnx.ModelProto) -> None:
        node_of(model, name).input[place] = tensor

    return apply


def own_scale(name: str, factor: float) -> Fault:
    """A DequantizeLinear has another scale than the QuantizeLinear before it."""

    def apply(model: onnx.ModelProto) -> None:
        node = node_of(model, name)
        scale = next(each for each in model.graph.initializer if each.name == node.input[1])
        wrong = numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(factor), f"{name}.wrong_scale")
        model.graph.initializer.append(wrong)
        node.input[1] = wrong.name

    return apply
