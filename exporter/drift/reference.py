"""The layers of a reference and their values: an eager module, a captured graph, or an ONNX file.

A module runs as its flat graph of ATen operators, node by node, and its logits are held against those of the module
itself: so operators of a block's own ``forward`` (``layer1.0.add``), which no forward hook sees, have values too, and a
folded graph, which has no submodules to hook, is read in the same way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
import onnx
import torch
from torch import Tensor, fx, nn

from calibration.graph import Network
from exporter.graph.capture import InputShape, capture
from exporter.graph.names import base_name, unique
from runtimes.base import Array
from runtimes.errors import GraphError, first_line
from runtimes.probes import Probes, probed
from runtimes.reading import read_model
from runtimes.statistics import compare

INPUT: Final = "input"
#: Operators whose output is their input.
TRANSPARENT: Final = frozenset({"Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Dropout"})

# ATen's names of the operators that matching has to tell apart.
_ONNX_NAMES: Final[Mapping[str, str]] = {
    "conv1d": "Conv",
    "conv2d": "Conv",
    "conv3d": "Conv",
    "linear": "Gemm",
    "batch_norm": "BatchNormalization",
    "relu": "Relu",
    "add": "Add",
    "dropout": "Dropout",
}
# The interpreted graph holds the same operators as the module: only their kernels' threads may differ.
_SAME_DB: Final = 100.0


@dataclass(frozen=True)
class Layer:
    """One operator of the reference.

    Attributes:
        name: Module path, or that of the block and the operator.
        op: ONNX operator where it has one, else ATen's.
        inputs: Names of the layers that it reads, in order; constants are left out.
    """

    name: str
    op: str
    inputs: tuple[str, ...]


class Reference(ABC):
    """What the judged file is held against; a context manager.

    Attributes:
        label: What it is called in messages.
        layers: By name, in the order of computation.
        batch: Images that it is fixed to; None: any number.
    """

    label: str
    layers: Mapping[str, Layer]
    batch: int | None = None

    def __enter__(self) -> Reference:
        return self

    def __exit__(  # noqa: B027 - a module holds nothing that is to be given back
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give back what was opened."""

    def values(self, images: Array, names: Collection[str]) -> dict[str, Array]:
        """Outputs of the named layers.

        Args:
            images: ``[N, C, H, W]`` float32.
            names: Keys of ``layers``.

        Raises:
            GraphError: The reference cannot run, or one of the values is NaN or Inf: it can be no reference.
        """
        found = self._values(images, names)
        for name in self.layers:
            if name in found and not np.isfinite(found[name]).all():
                raise GraphError(f"{self.label} gives NaN or Inf in {name}: it cannot be the reference")
        return found

    @abstractmethod
    def _values(self, images: Array, names: Collection[str]) -> dict[str, Array]:
        """As :meth:`values`, unchecked."""


class ModuleReference(Reference):
    """A module in evaluation mode, on the CPU.

    Args:
        module: Takes ``[N, C, H, W]`` float32; also a graph of :mod:`exporter.graph.capture` or its fold.
        images: A batch that it takes.

    Raises:
        GraphError: It cannot be captured, or its capture computes something else.
    """

    def __init__(self, module: nn.Module, images: Array) -> None:
        self.label = "the module"
        graph = module if _is_flat(module) else capture(module, InputShape(*images.shape[1:])).module
        assert isinstance(graph, fx.GraphModule)
        self._graph = graph
        self._names = _names(graph)
        self.layers = {
            name: Layer(name, _operator(node), tuple(self._read(node))) for node, name in self._names.items()
        }
        self._require_same(module, images)

    def _read(self, node: fx.Node) -> list[str]:
        known = (each for each in node.all_input_nodes if each in self._names or each.op == "placeholder")
        return [self._names.get(each, INPUT) for each in known]

    def _values(self, images: Array, names: Collection[str]) -> dict[str, Array]:
        wanted = {node: name for node, name in self._names.items() if name in names}
        recorder = _Recorder(self._graph, wanted)
        try:
            with torch.inference_mode():
                recorder.run(torch.tensor(images))
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise GraphError(f"{self.label} failed on {list(images.shape)}: {first_line(error)}") from error
        return recorder.found

    def _require_same(self, module: nn.Module, images: Array) -> None:
        last = next(reversed(self._names.values()))
        with torch.inference_mode():
            expected = module(torch.tensor(images)).numpy()
        stats = compare(expected, self._values(images, [last])[last])
        if stats.finite and stats.sqnr_db < _SAME_DB:
            raise GraphError(
                f"{self.label} computes something else when it is captured ({stats.sqnr_db:.0f} dB): export it to FP32 "
                "first, and give that file as the reference"
            )


class FileReference(Reference):
    """An ONNX file.

    Args:
        path: The file.

    Raises:
        GraphError: It cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.label = str(path)
        model, digest = read_model(path, "make one with resnet-export onnx")
        self.batch = fixed_batch(model)
        self._network = Network(model, digest)
        self._tensors = {
            node.name or node.output[0]: node.output[0]
            for node in self._network.nodes
            if node.op_type not in TRANSPARENT and self._network.is_activation(node.output[0])
        }
        made = {tensor: name for name, tensor in self._tensors.items()}
        self.layers = {
            name: Layer(name, self._network.producers[tensor].op_type, tuple(self._read(tensor, made)))
            for name, tensor in self._tensors.items()
        }
        self._probes = Probes(probed(model, self._tensors.values()), self.label)

    def __enter__(self) -> Reference:
        self._probes.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._probes.__exit__()

    def _read(self, tensor: str, made: Mapping[str, str]) -> list[str]:
        found = []
        for name in self._network.producers[tensor].input:
            if self._network.is_activation(name):
                source = through_transparent(self._network, name)
                found.append(made.get(source, INPUT))
        return found

    def _values(self, images: Array, names: Collection[str]) -> dict[str, Array]:
        values = self._probes.run({self._network.input: images})
        return {name: np.asarray(values[tensor]) for name, tensor in self._tensors.items() if name in names}


def through_transparent(network: Network, name: str) -> str:
    """The tensor that a chain of :data:`TRANSPARENT` operators began with."""
    while (node := network.producers.get(name)) is not None and node.op_type in TRANSPARENT:
        name = node.input[0]
    return name


def reference_of(reference: nn.Module | Path, images: Array) -> Reference:
    """The reference, from what the user has.

    Args:
        reference: A module in evaluation mode, or an ONNX file.
        images: A batch that it takes.
    """
    return FileReference(reference) if isinstance(reference, Path) else ModuleReference(reference, images)


class _Recorder(fx.Interpreter):
    """Copies values the moment they are made: an in-place operator behind would overwrite them."""

    def __init__(self, graph: fx.GraphModule, wanted: Mapping[fx.Node, str]) -> None:
        super().__init__(graph)
        self._wanted = wanted
        self.found: dict[str, Array] = {}

    def run_node(self, n: fx.Node) -> Any:
        """The value of a node."""
        value = super().run_node(n)
        if n in self._wanted:
            self.found[self._wanted[n]] = np.array(value.float().numpy())
        return value


def _is_flat(module: nn.Module) -> bool:
    if not isinstance(module, fx.GraphModule):
        return False
    return all(node.op not in ("call_module", "call_method") for node in module.graph.nodes)


def _names(graph: fx.GraphModule) -> dict[fx.Node, str]:
    """The names that the exporter gives to the operators that depend on the images."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    alive = {node for node in graph.graph.nodes if node.op == "placeholder"}
    for node in graph.graph.nodes:
        if node.op != "call_function" or not alive.intersection(node.all_input_nodes):
            continue
        if not isinstance(node.meta.get("val"), Tensor):  # sizes, assertions
            continue
        alive.add(node)
        name = unique(_base_name(node), taken)
        taken.add(name)
        names[node] = name
    return names


def _base_name(node: fx.Node) -> str:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path, layer = stack[-1] if stack else ("", "")
    kind = layer if isinstance(layer, str) else f"{layer.__module__}.{layer.__qualname__}"
    return base_name(str(path), kind, _aten(node))


def _aten(node: fx.Node) -> str:
    return str(getattr(node.target, "_opname", node.name)).rstrip("_")


def _operator(node: fx.Node) -> str:
    return _ONNX_NAMES.get(_aten(node), _aten(node))


def fixed_batch(model: onnx.ModelProto) -> int | None:
    """The number of images that a model is fixed to, if it is."""
    constants = {item.name for item in model.graph.initializer}
    taken = next(item for item in model.graph.input if item.name not in constants)
    dim = taken.type.tensor_type.shape.dim[0]
    return int(dim.dim_value) if dim.HasField("dim_value") and dim.dim_value > 0 else None
