"""A Q/DQ model as implicit quantisation takes it: the float network, and one scale for each tensor.

TensorRT's calibrators, and every DLA before TensorRT 11, know no Q/DQ: they take a float network and a calibration
cache. So a pair of Q and DQ becomes a scale, and dequantised weights stand where integers stood; TensorRT quantises
them again, with the same result where the largest magnitude of a channel is 127 steps.

*Folded zero points.* A file of ``quantize --target tensorrt`` may store a tensor without negative values less
``c = 128 * scale``: saturation at -128 is then its ReLU, which is no node any more, and the biases around it hold the
constant. In float nothing saturates, so the ReLU comes back and the biases are put right. What the symmetric tensor
held, [-c, 127 * scale], is [0, 255 * scale] again. One symmetric scale has to reach amax = 255 * scale for it: a step
twice as wide, because half of the integers stand for negative values that do not occur. That is what implicit
quantisation costs there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from runtimes.errors import GraphError
from runtimes.tensorrt.unfolding import PASSING, Unfolding, attribute

Array = npt.NDArray[Any]

_STEPS: Final = 127  # of amax
_FOLD: Final = 128  # steps that a folded zero point is away from 0
_INTEGER_ONLY: Final = frozenset(
    {"QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear", "QGemm", "QLinearAdd"}
)
_ANEW: Final = "make the file with resnet-export quantize --target tensorrt"


@dataclass(frozen=True)
class Stripped:
    """A float network and its scales.

    Attributes:
        model: Without Q and DQ; inputs and outputs have the names that they had.
        scales: Real value of one step by tensor, amax / 127; in order of computation.
        notes: What the user should know.
    """

    model: onnx.ModelProto
    scales: Mapping[str, float]
    notes: tuple[str, ...]


def strip(model: onnx.ModelProto) -> Stripped:
    """Take Q and DQ out of a model.

    Args:
        model: With symmetric INT8 activations, one scale for each tensor; left as it is.

    Raises:
        GraphError: Activations are UINT8 or have zero points or several scales, or integers are computed with.
    """
    return _Stripper(model).done()


def spread(model: onnx.ModelProto, scales: Mapping[str, float]) -> dict[str, float]:
    """Scales also for tensors whose range is known from another one's, in order of computation.

    What an operator moves, picks or averages stays in its input's range. What only a ReLU sees may have the ReLU's
    scale: values beyond it are negative.

    Args:
        model: A float network.
        scales: Of some of its tensors.
    """
    found = dict(scales)
    nodes = model.graph.node
    for node in nodes:
        passes = node.op_type in PASSING or (node.op_type == "Pad" and _pads_with_zero(node, model))
        if passes and node.input[0] in found:
            found.setdefault(node.output[0], found[node.input[0]])
    uses = _uses(model)
    for node in reversed(nodes):
        if node.op_type == "Relu" and node.output[0] in found and uses[node.input[0]] == 1:
            found.setdefault(node.input[0], found[node.output[0]])
    order = [item.name for item in model.graph.input] + [name for node in nodes for name in node.output]
    return {name: found[name] for name in order if name in found}


def without_scale(model: onnx.ModelProto, scales: Mapping[str, float]) -> tuple[str, ...]:
    """Tensors that convolutions, classifiers and additions take or give, and that have no scale; no outputs."""
    stored = {item.name for item in model.graph.initializer}
    stored |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    outputs = {item.name for item in model.graph.output}
    seen = dict.fromkeys(
        name
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm", "MatMul", "Add")
        for name in (*node.input, *node.output)
    )
    return tuple(name for name in seen if name and name not in stored | outputs and name not in scales)


def _uses(model: onnx.ModelProto) -> dict[str, int]:
    uses = {name: 0 for node in model.graph.node for name in node.output}
    for name in (*(n for node in model.graph.node for n in node.input), *(item.name for item in model.graph.output)):
        uses[name] = uses.get(name, 0) + 1
    return uses


def _pads_with_zero(node: onnx.NodeProto, model: onnx.ModelProto) -> bool:
    if attribute(node, "mode", b"constant") != b"constant" or attribute(node, "value", 0.0):
        return False
    fill = node.input[2] if len(node.input) > 2 else ""
    stored = {item.name: item for item in model.graph.initializer}
    return not fill or (fill in stored and not numpy_helper.to_array(stored[fill]).any())


class _Stripper:
    """One pass in the order of computation; :class:`Unfolding` holds the graph that comes of it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self._model = model
        self._graph = Unfolding(model, _uses(model))
        self._steps: dict[str, float] = {}  # of a tensor of integers, by its name
        self._scales: dict[str, float] = {}  # of a float tensor, by its name in the new graph
        self._twice: list[str] = []
        self._known = {item.name for item in model.graph.input} | {n for node in model.graph.node for n in node.output}

    def done(self) -> Stripped:
        for node in self._model.graph.node:
            if node.op_type in _INTEGER_ONLY:
                raise GraphError(f"{_named(node)} computes with integers, which implicit INT8 does not take: {_ANEW}")
            if node.op_type == "QuantizeLinear":
                self._quantise(node)
            elif node.op_type == "DequantizeLinear":
                self._dequantise(node)
            elif self._steps.keys() & set(node.input):
                self._move_integers(node)
            else:
                self._graph.add(node, self._is_shift(node))
        outputs = {item.name for item in self._model.graph.output}
        if self._steps.keys() & outputs:
            raise GraphError(
                "an output of the model is integers, which no engine of a float network gives: end it in DQ"
            )
        model = self._graph.model()
        scales = spread(model, self._scales)
        return Stripped(model, scales, self._notes(model, scales))

    def _notes(self, model: onnx.ModelProto, scales: Mapping[str, float]) -> tuple[str, ...]:
        notes = []
        if self._twice:
            notes.append(f"{self._twice[0]} is quantised with several scales in the file, and got the largest")
        bare = without_scale(model, scales)
        if bare:
            notes.append(
                f"{len(bare)} tensors have no scale in the file ({bare[0]} is one), so layers at them run in FP16: "
                f"--ranges with the FP32 file has all of them"
            )
        return tuple(notes)

    def _quantise(self, node: onnx.NodeProto) -> None:
        source, made = node.input[0], node.output[0]
        if source in self._graph.values:
            self._graph.values[made] = self._rounded(node)
            return
        step = self._symmetric(node)
        reach = _STEPS * step
        relu = self._removed_relu(node)
        if relu:
            self._graph.relu(source, _FOLD * step, relu)
            self._graph.alias(made, relu, -_FOLD * step)
            self._keep(relu, reach + _FOLD * step)
        else:
            name, offset = self._graph.place(source)
            self._graph.alias(made, name, offset)
            self._keep(name, reach + abs(offset))
        self._steps[made] = step

    def _keep(self, name: str, amax: float) -> None:
        scale = float(np.float32(amax / _STEPS))
        if name in self._scales and not np.isclose(self._scales[name], scale, rtol=1e-6):
            self._twice.append(name)
        self._graph.fixed.add(name)
        self._scales[name] = max(scale, self._scales.get(name, 0.0))

    def _dequantise(self, node: onnx.NodeProto) -> None:
        source, made = node.input[0], node.output[0]
        if source in self._graph.values:
            self._graph.store(made, self._real(node))
            return
        if source not in self._steps:
            raise GraphError(f"{_named(node)} takes integers that no QuantizeLinear of the model makes: {_ANEW}")
        if not np.isclose(self._symmetric(node), self._steps[source], rtol=1e-6):
            raise GraphError(f"{_named(node)} has another scale than its QuantizeLinear: {_ANEW}")
        self._graph.alias(made, *self._graph.place(source))

    def _move_integers(self, node: onnx.NodeProto) -> None:
        if node.op_type not in PASSING or node.input[0] not in self._steps:
            raise GraphError(f"{_named(node)} takes integers, and implicit INT8 has none: {_ANEW}")
        self._graph.add(node, shifts=False)
        self._steps[node.output[0]] = self._steps[node.input[0]]

    def _removed_relu(self, node: onnx.NodeProto) -> str:
        """Name of the Relu that saturation stands for; empty without one.

        The writer of folded zero points names Q after the tensor that it quantises. Where no node makes a tensor of
        that name, it was a Relu's. To take a Q for such a one by mistake changes nothing but the width of a step: the
        lower end of its integers is the ReLU's zero.
        """
        stem, dot, _ = node.output[0].rpartition(".quantized")
        return stem if dot and stem not in self._known else ""

    def _is_shift(self, node: onnx.NodeProto) -> bool:
        """Whether an Add takes ``c`` off a tensor for the Q behind it, or gives it back to one that has it missing."""
        if node.op_type != "Add" or node.output[0] in {item.name for item in self._model.graph.output}:
            return False
        constant = self._graph.values.get(node.input[1])
        if constant is None or constant.ndim:
            return False
        if self._graph.place(node.input[0])[1]:
            return True
        takers = [each for each in self._model.graph.node if node.output[0] in each.input]
        return any(
            each.op_type == "QuantizeLinear" and np.isclose(-constant.item(), _FOLD * self._symmetric(each), rtol=1e-5)
            for each in takers
        )

    def _symmetric(self, node: onnx.NodeProto) -> float:
        """The one scale of an activation's Q or DQ."""
        scale, zero = self._scale_and_zero(node)
        if scale.size != 1:
            raise GraphError(f"{_named(node)} has {scale.size} scales, and implicit INT8 has one for a tensor: {_ANEW}")
        if zero.dtype != np.int8 or zero.any():
            kind = zero.dtype.name if zero.dtype != np.int8 else f"INT8 with the zero point {zero.reshape(-1)[0]}"
            raise GraphError(
                f"{_named(node)} is not symmetric INT8 ({kind}), and a calibration cache holds scales alone: {_ANEW}"
            )
        step = float(scale.reshape(-1)[0])
        if not (np.isfinite(step) and step > 0):
            raise GraphError(f"{_named(node)} has the scale {step}, expected a positive number: {_ANEW}")
        return step

    def _scale_and_zero(self, node: onnx.NodeProto) -> tuple[Array, Array]:
        values = self._graph.values
        given = list(node.input[1:]) + [""] * (3 - len(node.input))
        if given[0] not in values or (given[1] and given[1] not in values):
            raise GraphError(f"{_named(node)} has a scale or zero point that is computed: {_ANEW}")
        if attribute(node, "block_size", 0):
            raise GraphError(f"{_named(node)} has a scale for each block, which no convolution takes: {_ANEW}")
        if given[1]:
            return values[given[0]], values[given[1]]
        kind = attribute(node, "output_dtype", 0) if node.op_type == "QuantizeLinear" else 0
        if node.op_type == "DequantizeLinear":  # it takes what Q gave
            return values[given[0]], np.zeros((), np.int8 if node.input[0] in self._steps else np.uint8)
        return values[given[0]], np.zeros((), helper.tensor_dtype_to_np_dtype(kind) if kind else np.uint8)

    def _real(self, node: onnx.NodeProto) -> Array:
        scale, zero = self._scale_and_zero(node)
        data = self._graph.values[node.input[0]]
        steps = data.astype(np.float64) - _along(zero.astype(np.float64), data.ndim, node)
        found: Array = (steps * _along(scale.astype(np.float64), data.ndim, node)).astype(scale.dtype)
        return found

    def _rounded(self, node: onnx.NodeProto) -> Array:
        """Stored weights that a Q in the graph would round."""
        scale, zero = self._scale_and_zero(node)
        if zero.dtype.kind not in "iu":
            raise GraphError(f"{_named(node)} makes {zero.dtype.name}, expected 8-bit integers: {_ANEW}")
        data, ends = self._graph.values[node.input[0]], np.iinfo(zero.dtype)
        steps = np.rint(data / _along(scale, data.ndim, node)) + _along(zero.astype(np.float64), data.ndim, node)
        found: Array = np.clip(steps, ends.min, ends.max).astype(zero.dtype)
        return found


def _along(values: Array, rank: int, node: onnx.NodeProto) -> Array:
    """Per-channel values, shaped for the weights' axis."""
    if values.size == 1:
        return values.reshape(())
    axis = attribute(node, "axis", 1) % rank
    return values.reshape([-1 if dim == axis else 1 for dim in range(rank)])


def _named(node: onnx.NodeProto) -> str:
    return f"{node.op_type} {node.name or next(iter(node.output), '')}".strip()
