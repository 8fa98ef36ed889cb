"""What a TensorRT engine runs: the layer table in ``IEngineInspector.get_engine_information(JSON)``.

The document is ``{"Layers": [...], "Bindings": [names]}`` in TensorRT 8.x and 10.x; in 11.x, objects under
``I/O Tensors`` stand in place of the bindings. A layer is an object when the engine was built with
``ProfilingVerbosity.DETAILED``, else its name alone. A layer made of convolution and pooling prefixes the keys of the
former with ``Conv``. Nothing in the document names the version, so that its form is read, not its origin.
(TensorRT's developer guide, "Engine Inspector", and its migration guide from 10.x to 11.x; the engines in
NVIDIA/TensorRT's ``trt-engine-explorer``.)

:mod:`runtimes.tensorrt.inspect_summary` holds the table against the network that the engine was built from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from runtimes.errors import GraphError, first_line
from runtimes.tensorrt import inspect_names as names
from runtimes.tensorrt.inspect_types import EngineTensor, precision_of, read_tensor, type_in

_ADVICE: Final = "build the engine with profiling verbosity DETAILED"

_WEIGHTED: Final = re.compile(r"conv(?!ert)|gemm|matmul|matrixmultiply|fullyconnected", re.IGNORECASE)
_CONVOLUTION: Final = frozenset({"Convolution", "Deconvolution"})
_OPERATORS: Final = {
    "Convolution": "Conv",
    "Deconvolution": "ConvTranspose",
    "FullyConnected": "Gemm",
    "MatrixMultiply": "MatMul",
    "SoftMax": "Softmax",
}
_ACTIVATIONS: Final = {"RELU": "Relu", "CLIPPED_RELU": "Clip", "CLIP": "Clip", "SIGMOID": "Sigmoid", "TANH": "Tanh"}
_POOLING: Final = {"MAX": "MaxPool", "AVERAGE": "AveragePool"}
_POINTWISE: Final = {"Plus": "Add", "Minus": "Sub"}
#: Kernels of Myelin that only move and convert: what a Reformat layer is elsewhere.
_MOVES: Final = frozenset({"Cast", "Move", "Tran", "Resh"})
_NO_WORK: Final = frozenset({"noop", "signal", "wait"})


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine: one kernel, or a few, that TensorRT launches as a unit.

    Attributes:
        name: The inspector's name of it.
        kind: Its ``LayerType`` (``CaskConvolution``, ``Reformat``, ``kgen``); empty where only the name is told.
        nodes: ONNX nodes that it stands for, with Q/DQ and constants; for a copy, those that it is made for.
        spans: First and last node of parts that another compiler took, of which no other node is named.
        precision: What it computes with (:func:`runtimes.tensorrt.inspect_types.precision_of`); ``None``: not told.
        inputs: Tensors that it reads, in the order of its arguments.
        outputs: Tensors that it writes.
        tactic: Name of the kernel, or its number where it has no name; empty where neither is told.
        weighted: Whether it multiplies by weights.
        operators: ONNX names of the operators that its parameters describe, abbreviated ones for kernels of Myelin.
        is_reformat: It only copies a tensor into another layout or type; a copy that costs nothing (``NoOp``) is none.
        is_quantiser: It only quantises or dequantises: a Q/DQ of the network that was not fused.
    """

    name: str
    kind: str
    nodes: tuple[str, ...]
    spans: tuple[tuple[str, str], ...]
    precision: str | None
    inputs: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    tactic: str
    weighted: bool
    operators: tuple[str, ...]
    is_reformat: bool
    is_quantiser: bool

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Module paths among :attr:`nodes`: without Q/DQ and constants."""
        return names.modules_of(self.nodes)

    @property
    def computes(self) -> bool:
        """Whether it does arithmetic of the network, rather than move, convert or wait."""
        return not self.is_reformat and not self.is_quantiser and self.kind.lower() not in _NO_WORK

    def to_json(self) -> dict[str, Any]:
        """A row of the layer table, with the same keys for every generation of TensorRT."""
        return {
            "name": self.name,
            "kind": self.kind,
            "modules": list(self.modules),
            "precision": self.precision,
            "inputs": [tensor.to_json() for tensor in self.inputs],
            "outputs": [tensor.to_json() for tensor in self.outputs],
            "tactic": self.tactic,
            "operators": list(self.operators),
            "is_reformat": self.is_reformat,
            "is_quantiser": self.is_quantiser,
        }


@dataclass(frozen=True)
class EngineLayers:
    """All layers of an engine, for its first optimisation profile.

    Attributes:
        layers: In the order in which they run.
        tensors: Names of the engine's own inputs and outputs; empty where the document does not list them.
    """

    layers: tuple[EngineLayer, ...]
    tensors: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values for a sidecar, with the same keys for every generation of TensorRT."""
        return {"tensors": list(self.tensors), "layers": [layer.to_json() for layer in self.layers]}


def read_layers(document: str | bytes) -> EngineLayers:
    """The layer table of an engine, from any generation's JSON.

    Args:
        document: What ``get_engine_information(LayerInformationFormat.JSON)`` returns, or a file that ``trtexec``
            wrote with ``--exportLayerInfo``.

    Raises:
        GraphError: It is something else, it holds no layers, or it holds nothing but their names.
    """
    raw = _parse(document)
    entries = raw.get("Layers")
    if not isinstance(entries, list):
        raise GraphError(f"this is no engine information: it has no list of Layers, only {', '.join(raw) or 'nothing'}")
    if not entries:
        raise GraphError(f"the engine tells nothing of its layers: {_ADVICE}")
    described = [entry for entry in entries if isinstance(entry, dict)]
    if not described:
        if not all(isinstance(entry, str) for entry in entries):
            raise GraphError("this is no engine information: its Layers are neither objects nor names")
        raise GraphError(f"the engine tells only the names of its {len(entries)} layers: {_ADVICE}")
    layers = [_layer(entry if isinstance(entry, dict) else {"Name": str(entry)}) for entry in entries]
    tensors = raw.get("I/O Tensors", raw.get("Bindings"))
    listed = [read_tensor(item).name for item in tensors] if isinstance(tensors, list) else []
    return EngineLayers(
        # Later profiles repeat the whole network: counted twice, no number would be true.
        tuple(layer for layer in layers if names.profile_of(layer.name) == 0),
        tuple(name for name in listed if name and names.profile_of(name) == 0),
    )


def _parse(document: str | bytes) -> Mapping[str, Any]:
    text = document.decode("utf-8", "replace") if isinstance(document, bytes) else document
    try:
        # Not strict: TensorRT 8.6 puts U+001E into its strings as it is (NVIDIA/TensorRT issue 2779).
        raw = json.loads(text.lstrip("\ufeff").rstrip("\0 \r\n\t"), strict=False)
    except (ValueError, RecursionError) as error:
        raise GraphError(f"the engine information is not JSON: {first_line(error)}") from error
    if not isinstance(raw, dict):
        raise GraphError(f"this is no engine information: expected a JSON object with Layers, got {type(raw).__name__}")
    return raw


def _layer(raw: Mapping[str, Any]) -> EngineLayer:
    name, kind, parameters = _str(raw, "Name"), _str(raw, "LayerType"), _str(raw, "ParameterType")
    inputs, outputs = _tensors(raw, "Inputs"), _tensors(raw, "Outputs")
    nodes = names.nodes_of(name, _str(raw, "Metadata"))
    operators = names.kernel_operators(name)
    weights = raw.get("Weights", raw.get("ConvWeights"))
    moves = kind.lower() == "reformat" or names.is_reformat_name(name) or (bool(operators) and set(operators) <= _MOVES)
    # TensorRT makes Q and DQ of the same kernel as its own copies, and tells their origin.
    quantises = _str(raw, "Origin") == "QDQ" or (
        bool(nodes)
        and all(map(names.is_quantiser, nodes))
        and not names.is_reformat_name(name)
        and not isinstance(weights, dict)
    )
    weighted = not moves and (
        isinstance(weights, dict) or bool(_WEIGHTED.search(f"{kind} {parameters} {' '.join(operators)}"))
    )
    tactic = _str(raw, "TacticName") or _str(raw, "TacticValue")
    spans = names.spans_of(name)
    return EngineLayer(
        name=name,
        kind=kind,
        nodes=nodes,
        spans=spans,
        # The tensors at the borders of another compiler's part tell nothing of what it computes with inside.
        precision=None
        if spans
        else precision_of(
            [tensor.type for tensor in inputs],
            [tensor.type for tensor in outputs],
            weighted=weighted,
            weights=type_in(_str(weights, "Type")) if isinstance(weights, dict) else None,
            tactic=tactic,
        ),
        inputs=inputs,
        outputs=outputs,
        tactic=tactic,
        weighted=weighted,
        operators=operators or _operators(raw, parameters, len(inputs)),
        is_reformat=moves and not quantises and kind.lower() not in _NO_WORK,
        is_quantiser=quantises,
    )


def _operators(raw: Mapping[str, Any], parameters: str, inputs: int) -> tuple[str, ...]:
    if parameters == "ConvActPool":
        found = ["Conv", _activation(raw, "ConvActivation"), _POOLING.get(_str(raw, "PoolingPoolingType"), "")]
    elif parameters in _CONVOLUTION:
        # Weights are no input of such a layer unless it says so: a second one is the other side of a residual Add.
        residual = inputs > 1 and not raw.get("HasDynamicFilter") and not raw.get("HasDynamicBias")
        found = [_OPERATORS[parameters], "Add" if residual else "", _activation(raw, "Activation")]
    elif parameters == "Pooling":
        found = [_POOLING.get(_str(raw, "PoolingType"), "")]
    elif parameters == "PointWise":
        words = re.findall(r"pwgen::i([A-Z]\w*)\(", str(raw.get("Operations")))
        found = [_POINTWISE.get(word, word) for word in words]
    else:
        found = [_OPERATORS.get(parameters, parameters)]
    return tuple(item for item in found if item)


def _activation(raw: Mapping[str, Any], key: str) -> str:
    value = _str(raw, key)
    return "" if value in ("", "NONE") else _ACTIVATIONS.get(value, value.title())


def _tensors(raw: Mapping[str, Any], key: str) -> tuple[EngineTensor, ...]:
    items = raw.get(key)
    return tuple(map(read_tensor, items)) if isinstance(items, list) else ()


def _str(raw: Mapping[str, Any], key: str) -> str:
    value = raw.get(key)
    return value if isinstance(value, str) else ""
