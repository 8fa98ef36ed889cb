"""Other nodes before a network, or behind it; the rest of the file stays as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibration.graph import Network, reached
from runtimes.errors import GraphError

Array = npt.NDArray[Any]


@dataclass
class Front:
    """Nodes that take a new input and give what the network took before, one after the other.

    Attributes:
        input: Name of the input, and the beginning of all names that are made.
        last: What the latest node gives; the network takes it in the place of the input, or of ``target``.
        target: Tensor of the network that ``last`` replaces; what made it before goes, where nothing else needs it.
    """

    input: str
    last: str = ""
    target: str = ""
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)
    replaced: dict[str, onnx.NodeProto] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.last = self.last or self.input

    def add(self, operator: str, name: str, *operands: Array | str, **attributes: Any) -> str:
        """A node on :attr:`last` and more operands: constants, or names of tensors; its output becomes the last."""
        self.last = self.make(operator, name, self.last, *operands, **attributes)
        return self.last

    def make(self, operator: str, name: str, *operands: Array | str, **attributes: Any) -> str:
        """A node on operands alone; gives the name of its output."""
        output = f"{self.input}.{name}"
        names = [
            each if isinstance(each, str) else self.constant(f"{output}.{place}" if place > 1 else f"{output}.by", each)
            for place, each in enumerate(operands)
        ]
        self.nodes.append(helper.make_node(operator, names, [output], output, **attributes))
        return output

    def constant(self, name: str, value: Array) -> str:
        """A constant of the graph."""
        self.constants[name] = value
        return name

    def replace(self, old: onnx.NodeProto, new: onnx.NodeProto) -> None:
        """Put a node of the network in the place of another with the same outputs."""
        self.replaced[old.output[0]] = new


def with_front(network: Network, front: Front, taken: onnx.ValueInfoProto) -> onnx.ModelProto:
    """A network behind other nodes, with another input in the place of its own.

    Args:
        network: Unchanged.
        front: Begins at the new input.
        taken: The new input, called as the old one.

    Raises:
        GraphError: A name is taken.
    """
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    graph = model.graph
    replaced, target = front.target or network.input, front.last
    rest = []
    for node in network.nodes:
        new = onnx.NodeProto()
        new.CopyFrom(front.replaced.get(node.output[0], node))
        for place, name in enumerate(new.input):
            if name == replaced:
                new.input[place] = target
        rest.append(new)
    nodes = reached([*front.nodes, *rest], network.outputs)
    assemble(graph, nodes, front.constants, taken)
    return model


def assemble(
    graph: onnx.GraphProto,
    nodes: Sequence[onnx.NodeProto],
    constants: dict[str, Array],
    taken: onnx.ValueInfoProto | None = None,
) -> None:
    """Give a graph other nodes, in place; constants that no node reads any more go.

    Args:
        graph: Changed.
        nodes: All of them, in order.
        constants: New ones by name.
        taken: The one input, where it is another one.

    Raises:
        GraphError: A name is taken.
    """
    used = {name for node in nodes for name in node.input} | {item.name for item in graph.output}
    kept = [item for item in graph.initializer if item.name in used and item.name not in constants]
    names = [*(name for node in nodes for name in node.output if name), *(item.name for item in kept), *constants]
    twice = next((name for name in names if names.count(name) > 1), None) if len(set(names)) < len(names) else None
    if twice:
        raise GraphError(f"the model has a tensor {twice} already, which is what a new one is called: rename it")
    initial = {item.name for item in graph.initializer}
    inputs = [taken] if taken is not None else [item for item in graph.input if item.name not in initial]
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:]
    graph.node.extend(nodes)
    graph.input.extend(inputs)
    graph.initializer.extend(kept)
    graph.initializer.extend(
        numpy_helper.from_array(np.asarray(constants[name]), name) for name in sorted(constants) if name in used
    )


def image_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The one input of a model that is no constant."""
    constants = {item.name for item in model.graph.initializer}
    found: onnx.ValueInfoProto = next(item for item in model.graph.input if item.name not in constants)
    return found


def pixel_input(model: onnx.ModelProto) -> onnx.ValueInfoProto:
    """The input of uint8 ``[N, H, W, C]`` that takes the place of a model's ``[N, C, H, W]``."""
    old = image_input(model)
    batch, channels, height, width = old.type.tensor_type.shape.dim
    new = helper.make_tensor_value_info(old.name, TensorProto.UINT8, None)
    new.type.tensor_type.shape.dim.extend([batch, height, width, channels])
    return new


def planes(values: Array) -> npt.NDArray[np.float32]:
    """A value for each channel ``[C]``, as it goes with images: ``[1, C, 1, 1]``."""
    return values.astype(np.float32).reshape(1, -1, 1, 1)
