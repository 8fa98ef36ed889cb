"""Values inside an ONNX graph: copies of it with more outputs, and with more inputs.

A probed copy shows tensors that a fused kernel never writes. To see one breaks the fusion, so a copy is only ever run
*beside* the file that is judged, node by node as the file is written; what the file itself gives is measured apart.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper

from runtimes.base import Array
from runtimes.errors import GraphError, first_line, missing_package
from runtimes.ort import failure_classes

if TYPE_CHECKING:
    import onnxruntime

Edge = tuple[int, int]
"""Index of a node in its graph, and of one of its inputs."""

_FATAL_ONLY = 4


def probed(model: onnx.ModelProto, tensors: Iterable[str]) -> onnx.ModelProto:
    """A copy that gives the named tensors beside its own outputs.

    Args:
        model: Untouched.
        tensors: Names of tensors that its nodes make.
    """
    copy = _copy(model)
    known = {item.name for item in copy.graph.output}
    wanted = [name for name in dict.fromkeys(tensors) if name not in known]
    copy.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in wanted)
    return copy


def cut(model: onnx.ModelProto, edges: Mapping[Edge, str], types: Mapping[str, np.dtype[Any]]) -> onnx.ModelProto:
    """A copy in which inputs of nodes are inputs of the graph, so that each piece between can be given its own.

    Args:
        model: Untouched.
        edges: What each cut input is to be called; one name may serve several.
        types: Element type of each name.
    """
    copy = _copy(model)
    for (node, place), name in edges.items():
        copy.graph.node[node].input[place] = name
    for name in dict.fromkeys(edges.values()):
        element = helper.np_dtype_to_tensor_dtype(types[name])
        copy.graph.input.append(helper.make_tensor_value_info(name, element, None))
    return copy


class Probes:
    """A model with any number of inputs and outputs on ONNX Runtime's CPU kernels, unfused; a context manager.

    Args:
        model: The model.
        label: What it is called in messages.
        threads: Threads of one operator; ``None``: one per core.

    Opening raises ``GraphError`` for a model that cannot be loaded, and ``UnavailableError`` without the package.
    """

    def __init__(self, model: onnx.ModelProto, label: str, threads: int | None = None) -> None:
        self._model, self._label, self._threads = model, label, threads
        self._session: onnxruntime.InferenceSession | None = None
        self.outputs = tuple(item.name for item in model.graph.output)
        self.version = ""

    def __enter__(self) -> Probes:
        try:
            import onnxruntime
        except ImportError as error:
            raise missing_package("onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _FATAL_ONLY
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        self.version = str(onnxruntime.__version__)
        try:
            data = self._model.SerializeToString()
            self._session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except failure_classes() as error:
            raise GraphError(f"{self._label}: its probed copy cannot be loaded: {first_line(error)}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Every output by name.

        Args:
            feeds: Every input by name.

        Raises:
            GraphError: ONNX Runtime could not run the model.
            RuntimeError: The probes are not open.
        """
        import onnxruntime

        if self._session is None:
            raise RuntimeError(f"{self._label}: probes are not open: use them in a with statement")
        options = onnxruntime.RunOptions()
        options.log_severity_level = _FATAL_ONLY
        try:
            values = self._session.run(None, dict(feeds), options)
        except failure_classes() as error:
            raise GraphError(f"{self._label}: its probed copy failed: {first_line(error)}") from error
        return dict(zip(self.outputs, values, strict=True))


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.value_info[:]  # they say what fed tensors were before
    return copy
