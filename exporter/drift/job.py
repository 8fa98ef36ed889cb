"""The drift of one file: its layers beside those of a reference, image by image.

Two probed copies of the file run on the same images. The first runs as the file does and shows every compared tensor:
the accumulated difference. The second is cut at every compared tensor and given the reference's values there: each
layer's own difference (:mod:`runtimes.drift` has the equations). The file itself is not touched.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import onnx

from calibration.graph import SHARING, Network
from exporter.drift.forms import PLAIN, Form, forms, input_of, pixels_as_input, with_half_the_scale
from exporter.drift.match import Matching, Point, depths, match
from exporter.drift.reference import INPUT, Reference, fixed_batch, reference_of
from exporter.graph.metadata import read_metadata
from runtimes.base import Array
from runtimes.drift import BOUNDS, COARSE_IMAGES, Drift, LayerDrift, layer_drift
from runtimes.errors import GraphError, TensorError, first_line
from runtimes.noise import ChannelNoise
from runtimes.probes import Edge, Probes, cut, probed
from runtimes.reading import read_model

if TYPE_CHECKING:
    from torch import nn

# Bytes of activations that one run may hold, of the reference and of both copies together.
_AT_ONCE: Final = 512 << 20
_WEIGHTED: Final = frozenset({"Conv", "Gemm", "MatMul"})


def drift_of(
    judged: Path | bytes,
    reference: nn.Module | Path,
    batches: Iterable[Array],
    *,
    judged_batches: Iterable[Array] | None = None,
    threads: int | None = None,
) -> Drift:
    """Compare every layer of an ONNX file with a reference's.

    Args:
        judged: The file, FP32, FP16 or with Q/DQ, or the serialised model itself.
        reference: A module in evaluation mode on the CPU, or a float ONNX file.
        batches: Images ``[N, C, H, W]`` float32, preprocessed for the reference.
        judged_batches: The same images as the judged file is fed; None: the same arrays. Where they differ, the row
            ``input`` says by how much.
        threads: Threads of one operator; None: one per core.

    Raises:
        GraphError: A side cannot be read or run, no layer has the same name on both, or the reference is not finite.
        TensorError: Images that do not fit, or none at all.
    """
    name, model = _read(judged)
    pairs = _pairs(iter(batches), None if judged_batches is None else iter(judged_batches))
    first = next(pairs, None)
    if first is None:
        raise TensorError(f"{name}: no images were given for its drift, expected at least one")
    with ExitStack() as stack:
        known = stack.enter_context(reference_of(reference, first[0][:1] if fixed_batch(model) is None else first[0]))
        job = _Job(name, model, known, threads, stack)
        for exact, given in chain([first], pairs):
            job.update(exact, given)
        return job.drift()


@dataclass
class _Row:
    """One compared tensor and what has been seen of it."""

    point: Point
    accumulated: ChannelNoise = field(default_factory=ChannelNoise)
    own: ChannelNoise = field(default_factory=ChannelNoise)
    finer: ChannelNoise | None = None  # of a pair of Q/DQ, with half its scale


class _Job:
    def __init__(
        self, name: str, model: onnx.ModelProto, reference: Reference, threads: int | None, stack: ExitStack
    ) -> None:
        self._name, self._model, self._reference = name, model, reference
        self._threads, self._stack = threads, stack
        self._network = Network(model, "")
        self._metadata = read_metadata(model)
        self._matching = self._matched(())
        self._pixels = pixels_as_input(self._network, self._metadata.get("preprocessing") or {})
        self._free = self._opened(probed(model, self._tensors()))
        self._forms: dict[str, Form] = {}
        self._cut: Probes | None = None
        self._fed: dict[str, tuple[str, str, np.dtype[Any]]] = {}  # input of the cut copy -> tensor, layer, dtype
        self._rows: list[_Row] = []
        self._kinds: dict[Point, str] = {}
        self._images = 0
        self._per_image = 0

    def update(self, exact: Array, given: Array) -> None:
        """Take in images, as many at a time as memory is set aside for."""
        fixed, other = fixed_batch(self._model), self._reference.batch
        if fixed and other and fixed != other:
            raise TensorError(f"{self._name} takes {fixed} images at a time, and {self._reference.label} {other}")
        fixed = fixed or other
        if fixed is not None and len(given) % fixed:
            raise TensorError(f"drift of {self._name}: {fixed} images are taken at a time, received {len(given)}")
        begin = 0
        while begin < len(given):
            count = fixed or (max(1, _AT_ONCE // self._per_image) if self._per_image else 1)
            self._update(exact[begin : begin + count], given[begin : begin + count])
            begin += count

    def drift(self) -> Drift:
        depth = depths(self._network, self._matching.points)
        rows = [self._row(row, depth[row.point.tensor]) for row in self._rows]
        sentence = (
            f"copies of {self._name} with {len(rows) - 1} more outputs ran beside it on {self._images} images, node by "
            "node and unfused, once as it is and once with the reference's values before each layer; the judged run "
            "itself kept its fusions"
        )
        return Drift(f"onnxruntime {self._free.version}, unfused", self._name, tuple(rows), sentence)

    def _update(self, exact: Array, given: Array) -> None:
        judged = self._free.run({self._network.input: self._cast(given)})
        judged[self._network.input] = given
        keys = {point.key for point in self._matching.points} | {key for _, key in self._matching.edges.values()}
        values = {INPUT: exact, **self._reference.values(exact, keys)}
        if self._cut is None:
            judged = self._prepare(judged, values, given)
        for row in self._rows:
            row.accumulated.update(values[row.point.key], self._real(row.point, judged))
        self._per_image = sum(item.nbytes for item in (*judged.values(), *values.values())) * 2 // len(given) + 1
        del judged
        assert self._cut is not None
        feeds = {
            name: _stored(self._forms.get(tensor, PLAIN), values[key], dtype)
            for name, (tensor, key, dtype) in self._fed.items()
        }
        own = self._cut.run({self._network.input: self._cast(given), **feeds})
        own[self._network.input] = given
        for row in self._rows:
            signal = values[row.point.key]
            row.own.update(signal, self._real(row.point, own))
            if row.finer is not None:
                form = self._forms.get(row.point.tensor, PLAIN)
                finer = with_half_the_scale(self._network, row.point, form, signal)
                row.finer.update(signal, finer)
        self._images += len(given)

    def _prepare(self, judged: dict[str, Array], values: dict[str, Array], given: Array) -> dict[str, Array]:
        """What only the first images show: shapes, element types and how values are stored."""
        others = [
            point.key
            for point in self._matching.points
            if point.op in SHARING and judged[point.tensor].shape != values[point.key].shape
        ]
        if others:
            self._matching = self._matched(others)
            self._free = self._opened(probed(self._model, self._tensors()))
            judged = {**self._free.run({self._network.input: self._cast(given)}), self._network.input: given}
            keys = {point.key for point in self._matching.points}
            values.update(self._reference.values(values[INPUT], keys - {INPUT}))
        points = self._matching.points
        self._forms = forms(self._network, points, judged, values, self._metadata.get("quantisation") or {})
        self._rows = [_Row(point, finer=self._finer(point)) for point in points]
        self._kinds = {point: self._kind(point, judged[point.tensor]) for point in points}
        edges: dict[Edge, str] = {}
        for edge, (tensor, key) in self._matching.edges.items():
            if judged[tensor].shape != values[key].shape:
                continue  # the row of that layer says so; what comes after it can only be given the file's own
            name = f"{tensor}|{key}"
            edges[edge] = name
            self._fed[name] = (tensor, key, judged[tensor].dtype)
        types = {name: dtype for name, (_, _, dtype) in self._fed.items()}
        self._cut = self._opened(cut(probed(self._model, self._tensors()), edges, types))
        return judged

    def _matched(self, others: Iterable[str]) -> Matching:
        matching = match(self._network, self._reference.layers, frozenset(others))
        if len(matching.points) < 2:
            raise GraphError(
                f"{self._name} and {self._reference.label} have no layer of the same name: give two of one model, "
                "exported by resnet-export onnx"
            )
        return matching

    def _tensors(self) -> list[str]:
        found = [point.tensor for point in self._matching.points if point.tensor != self._network.input]
        return found + ([self._pixels[0]] if self._pixels else [])

    def _opened(self, model: onnx.ModelProto) -> Probes:
        return self._stack.enter_context(Probes(model, self._name, self._threads))

    def _cast(self, given: Array) -> Array:
        kind = next(item for item in self._model.graph.input if item.name == self._network.input)
        half = kind.type.tensor_type.elem_type == onnx.TensorProto.FLOAT16
        return np.ascontiguousarray(given, np.float16 if half else np.float32)

    def _real(self, point: Point, judged: Mapping[str, Array]) -> Array:
        if point.op == "Input" and self._pixels:
            tensor, how = self._pixels
            return input_of(judged[tensor], how)
        return self._forms.get(point.tensor, PLAIN).real(judged[point.tensor])

    def _kind(self, point: Point, values: Array) -> str:
        node = self._network.producers.get(point.tensor)
        quantised = any(node.op_type == "QuantizeLinear" for node in self._network.nodes)
        if point.op == "QuantizeLinear" or (quantised and node is None):
            return "qdq"
        # Where factors of channels were fitted, no layer is given values that are exact.
        fitted = any(form.gains is not None for form in self._forms.values())
        if fitted or (quantised and point.op in _WEIGHTED):
            return "int8"
        return "fp16" if values.dtype == np.float16 else "fp32"

    def _finer(self, point: Point) -> ChannelNoise | None:
        """Only where the range was fitted: that of ``minmax`` is as wide as the widest image, however rare."""
        method = (self._metadata.get("quantisation") or {}).get("method", "minmax")
        node = self._network.producers.get(point.tensor)
        if point.op != "QuantizeLinear" or method == "minmax" or node is None or node.op_type != "DequantizeLinear":
            return None
        scale = self._network.initializers.get(node.input[1])
        return ChannelNoise() if scale is not None and scale.size == 1 else None

    def _row(self, row: _Row, depth: int) -> LayerDrift:
        bound = BOUNDS[self._kinds[row.point]]
        point = row.point
        whole = BOUNDS[max(self._kinds.values(), key=lambda kind: -BOUNDS[kind].own_db)]
        return layer_drift(
            point.layer, point.op, depth, accumulated=row.accumulated, own=row.own, bound=bound, whole=whole,
            finer_db=row.finer.total_db() if row.finer is not None and self._images >= COARSE_IMAGES else None,
        )  # fmt: skip


def _stored(form: Form, real: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes Inf, as in the file
        return np.ascontiguousarray(form.stored(real).astype(dtype))


def _read(judged: Path | bytes) -> tuple[str, onnx.ModelProto]:
    if isinstance(judged, Path):
        return str(judged), read_model(judged, "make one with resnet-export onnx")[0]
    name = "the model in memory"
    try:
        model = onnx.load_model_from_string(judged)
    except Exception as error:  # protobuf's DecodeError has no public base
        raise GraphError(f"{name} is not an ONNX model: {first_line(error)}") from error
    if not model.graph.node:
        raise GraphError(f"{name} is not an ONNX model: it holds no operator")
    return name, model


def _pairs(batches: Iterator[Array], others: Iterator[Array] | None) -> Iterator[tuple[Array, Array]]:
    """Batches of the reference beside those of the judged file; empty ones are left out."""
    for batch in batches:
        given = batch if others is None else next(others, None)
        for images in (batch, given):
            if not isinstance(images, np.ndarray) or images.ndim != 4 or images.dtype != np.float32:
                shown = f"{images.dtype} {list(images.shape)}" if isinstance(images, np.ndarray) else "no array"
                raise TensorError(f"images for drift: received {shown}, expected float32 [N, C, H, W]")
        assert given is not None
        if batch.shape != given.shape:
            raise TensorError(
                f"images for drift: the judged file is given {list(given.shape)}, and the reference {list(batch.shape)}"
            )
        if len(batch):
            yield batch, given
