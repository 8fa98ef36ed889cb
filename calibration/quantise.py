"""From a float network and its ranges to a quantised model: place, choose, refine, leave out what hurts, write.

One function, :func:`quantise`. Every step of refinement is measured on images that it did not see, and taken only if it
helps there. A network that cannot be simulated gets what needs no images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx

from calibration.collect import Collector, collect
from calibration.equalise import equalised
from calibration.graph import WEIGHTED, Network, input_size, with_shapes
from calibration.grids import Affine
from calibration.lattice import PIXELS, on_lattice
from calibration.observers import Observer
from calibration.parameters import Parameters, initial
from calibration.placement import Placement, Target, place
from calibration.qdq import write
from calibration.ranges import Ranges
from calibration.refine import Schedule, learned, with_corrected_biases, with_least_error
from calibration.sensitivity import Sensitivity, sensitivities
from calibration.simulate import Images, Simulation, in_batches, numbers_of
from calibration.thresholds import Method
from runtimes.errors import DataError, GraphError, InputError, first_line
from runtimes.statistics import DifferenceStatistics, compare

Effort = Literal["fast", "balanced", "best"]
EFFORTS: Final[tuple[Effort, ...]] = get_args(Effort)
#: Fewest images that refinement is worth: some to learn from, some to judge by.
FEWEST_IMAGES: Final = 10
# It moves every layer: what gains less, in dB, has as often lost as much on other images.
_LEAST_OF_EQUALISATION: Final = 0.25
# One in so many images is held back from refinement, to judge its steps by.
_HELD_BACK: Final = 5
_MOST_HELD_BACK: Final = 128
# Multiply-accumulates forward that learning may take, within so many images: minutes for small networks, a quarter of
# an hour for ResNet-50 on two cores. Fixed, not timed: the same input has to give the same file.
_LEARNING: Final = 1.0e12
_FEWEST_PASSES, _MOST_PASSES = 1_500, 8_000
_LARGEST_BATCH: Final = 50
# Bytes of one pass's activations, for learning and for correcting biases.
_MEMORY: Final = 1 << 30


@dataclass(frozen=True)
class Options:
    """What is asked for.

    Attributes:
        target: The runtime.
        method: How ranges are chosen from their statistics.
        effort: ``fast`` needs no images; ``balanced`` corrects biases; ``best`` learns.
        keep: Names of layers to leave in float.
        keep_worst: So many of the most sensitive layers are left in float.
        max_drop: Percentage points of agreement that may be lost; layers are left in float until it holds.
        seed: Of everything random.
    """

    target: Target
    method: Method = "mse"
    effort: Effort = "balanced"
    keep: frozenset[str] = frozenset()
    keep_worst: int = 0
    max_drop: float | None = None
    seed: int = 0


@dataclass(frozen=True)
class Step:
    """A step of refinement and what it gained on the images held back.

    Attributes:
        name: What was done.
        before_db: SQNR of the logits before, in decibels.
        after_db: And after.
        applied: Whether it was kept.
        seconds: It took.
        note: What else there is to say.
    """

    name: str
    before_db: float | None
    after_db: float | None
    applied: bool
    seconds: float
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Quantised:
    """A quantised model, and how it came about.

    Attributes:
        model: The Q/DQ model.
        placement: What of it is 8 bits.
        parameters: Its numbers.
        steps: Refinement.
        sensitivity: Layers, the worst first; empty where there were no images.
        notes: What the user should know.
        effort: What was done: ``fast`` also where the network cannot be simulated.
    """

    model: onnx.ModelProto
    placement: Placement
    parameters: Parameters
    steps: tuple[Step, ...]
    sensitivity: tuple[Sensitivity, ...]
    notes: tuple[str, ...]
    effort: Effort


class Listener:
    """Hears of the work; this one keeps quiet."""

    def started(self, name: str) -> None:
        """A step begins."""

    def progress(self, done: int, total: int) -> None:
        """So much of the step is done."""

    def finished(self, step: Step) -> None:
        """A step has ended."""


def quantise(
    network: Network,
    ranges: Ranges,
    options: Options,
    images: Images | None = None,
    listener: Listener | None = None,
) -> Quantised:
    """Make a quantised model.

    Args:
        network: The float network that the ranges are of.
        ranges: Statistics of its activations.
        options: What is asked for.
        images: float32 ``[N, C, H, W]``, preprocessed; for every effort but ``fast``, and for sensitivity.
        listener: Hears of each step.

    Raises:
        DataError: The ranges are of another model, a weight is not finite, the images do not fit the network, or there
            are too few of them for what is asked.
        GraphError: Nothing of the network can be quantised, or it cannot be simulated and layers are to be chosen.
        InputError: A layer that is to be kept does not exist, none is left for INT8, or a number is out of range.
    """
    _check_numbers(options)
    ranges.require(model_sha256=network.sha256)
    _check_weights(network)
    needs = options.effort != "fast" or options.keep_worst or options.max_drop is not None
    if needs and (images is None or len(images) < FEWEST_IMAGES):
        count = 0 if images is None else len(images)
        raise DataError(
            f"there are {count} images, and effort {options.effort} or a choice of layers needs {FEWEST_IMAGES} at "
            f"least: give more with --data, or --effort fast"
        )
    notes: tuple[str, ...] = ()
    if images is not None and needs:
        _check_images(network, images)
        reason = _unsimulated(network, options.target, images)
        if reason:
            options, notes = _without_images(options, reason)
    images = None if notes or not needs else images
    return _Work(network, ranges, options, images, listener or Listener(), notes).done()


def _check_numbers(options: Options) -> None:
    if options.keep_worst < 0:
        raise InputError(f"received {options.keep_worst} layers to leave in float, expected 0 or more")
    if options.max_drop is not None and not options.max_drop >= 0:  # NaN is not
        raise InputError(f"received a drop of at most {options.max_drop} points, expected 0 or more")


def _check_weights(network: Network) -> None:
    """Before the network is rewritten, so that a tensor is named as its owner knows it."""
    for node in network.nodes:
        for name in node.input[1:] if node.op_type in WEIGHTED else ():
            if name in network.initializers and not np.isfinite(network.initializers[name]).all():
                raise DataError(f"the weights {name} hold NaN or infinity: check the checkpoint")


def _check_images(network: Network, images: Images) -> None:
    expected = input_size(network)[1:]
    fits = images.ndim == 4 and all(own in (None, n) for own, n in zip(expected, images.shape[1:], strict=True))
    if not fits or images.dtype != np.float32:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise DataError(f"the images are {images.dtype} {list(images.shape)}: the model takes float32 [N, {sizes}]")
    if not np.isfinite(images).all():
        raise DataError("the images hold NaN or infinity: check the preprocessing")


def _unsimulated(network: Network, target: Target, images: Images) -> str:
    """Why a network cannot be refined here; empty where it can."""
    if len(network.outputs) > 1:
        return f"the model has {len(network.outputs)} outputs, and which are the logits is not known"
    try:
        logits = in_batches(Simulation(network, place(network, target)).reference, images[:2], 2)
    except GraphError as error:
        return str(error)
    except RuntimeError as error:  # of shapes: a batch that is fixed may be written into a Reshape
        if input_size(network)[0] is None:
            raise
        return f"the model computes only on a batch of {input_size(network)[0]} ({first_line(error)})"
    return "" if logits.ndim == 2 and len(logits) == 2 else f"the model gives {list(logits.shape)} for 2 images"


def _without_images(options: Options, reason: str) -> tuple[Options, tuple[str, ...]]:
    if options.keep_worst or options.max_drop is not None:
        raise GraphError(
            f"{reason}, so it is not known which layers lose most: name those to leave in float (--keep-fp NAMES), and "
            f"give no --max-drop"
        )
    note = f"effort {options.effort} was not possible, and fast was taken: {reason}"
    return replace(options, effort="fast"), (note,)


@dataclass(frozen=True)
class _State:
    network: Network
    placement: Placement
    parameters: Parameters


class _Work:
    """One run of :func:`quantise`."""

    def __init__(
        self,
        network: Network,
        ranges: Ranges,
        options: Options,
        images: Images | None,
        listener: Listener,
        notes: Sequence[str],
    ) -> None:
        self._options, self._listener, self._ranges = options, listener, ranges
        self._steps: list[Step] = []
        self._notes = list(notes)
        self._fixed: dict[str, Affine] = {}
        self._network = self._with_lattice(network)
        held = 0 if images is None else min(max(len(images) // _HELD_BACK, 2), _MOST_HELD_BACK)
        # Every so many-th image, so that both parts have all classes of a sorted folder.
        chosen = np.zeros(0 if images is None else len(images), bool)
        chosen[np.linspace(0, len(chosen) - 1, held).astype(int)] = True
        self._held = None if images is None else images[chosen]
        self._images = None if images is None else images[~chosen]
        self._exact: npt.NDArray[np.float32] | None = None
        self._batch = 1 if images is None else _batch(network, images.shape, _MEMORY)

    def done(self) -> Quantised:
        options = self._options
        self._check_names(options.keep)
        state = self._start(self._network, self._ranges.tensors, options.keep)
        if options.keep_worst >= len(state.placement.weights):
            raise InputError(
                f"{options.keep_worst} layers are to be left in float, and there are {len(state.placement.weights)} to "
                f"quantise: leave at least one to INT8"
            )
        state = self._refined(state)
        sensitivity: tuple[Sensitivity, ...] = ()
        if self._held is not None:
            sensitivity = self._sensitivity(state)
            state, sensitivity = self._without_the_worst(state, sensitivity)
        model = write(state.network, state.placement, state.parameters)
        self._notes.extend(f"{name} stays in float: {reason}" for name, reason in state.placement.left.items())
        return Quantised(
            model, state.placement, state.parameters, tuple(self._steps), sensitivity, tuple(self._notes),
            options.effort,
        )  # fmt: skip

    def _with_lattice(self, network: Network) -> Network:
        begin = time.perf_counter()
        seen = self._ranges.tensors.get(network.input)
        if seen is None:
            return network
        lattice = on_lattice(network, self._ranges.preprocessing, self._options.target, seen)
        if lattice.quantisation is not None:
            self._fixed[PIXELS] = lattice.quantisation
        self._told("lossless input", None, None, not lattice.reason, begin, lattice.reason)
        return lattice.network

    def _check_names(self, names: frozenset[str]) -> None:
        placement = place(self._network, self._options.target)
        known = {*placement.weights, *placement.left}  # to keep what stays in float anyway is no mistake
        unknown = sorted(names - known)
        if unknown:
            import difflib

            near = difflib.get_close_matches(unknown[0], sorted(known), 3, 0.3) or sorted(known)[:3]
            raise InputError(f"there is no layer {unknown[0]!r} to keep in float: did you mean {', '.join(near)}?")

    def _start(self, network: Network, tensors: Mapping[str, Observer], keep: frozenset[str]) -> _State:
        placement = place(network, self._options.target, keep)
        if not placement.weights:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.left.items())[:3])
            raise GraphError(f"nothing of the model can be quantised ({reasons or 'it has no layers with weights'})")
        return _State(network, placement, initial(network, placement, tensors, self._options.method, self._fixed))

    def _refined(self, state: _State) -> _State:
        state = self._tried("weight scales", state, lambda: self._changed(state, with_least_error))
        if self._options.effort == "fast":
            return state
        before = state
        state = self._tried("equalisation", state, lambda: self._equalised(before), _LEAST_OF_EQUALISATION)
        corrected = state
        state = self._tried("bias correction", state, lambda: self._corrected(corrected))
        if self._options.effort == "best":
            start = state
            state = self._tried("learned rounding", state, lambda: self._learned(start))
        return state

    def _tried(self, name: str, state: _State, change: Callable[[], _State], least: float = 0.0) -> _State:
        """Take a change if it gains more than ``least`` dB on the images held back; without images, on trust."""
        begin = time.perf_counter()
        self._listener.started(name)
        before = self._sqnr(state)
        new = change()
        after = self._sqnr(new)
        applied = before is None or after is None or after > before + least
        self._told(name, before, after, applied, begin)
        return new if applied else state

    def _told(
        self, name: str, before: float | None, after: float | None, applied: bool, begin: float, note: str = ""
    ) -> None:
        self._steps.append(Step(name, before, after, applied, time.perf_counter() - begin, note))
        self._listener.finished(self._steps[-1])

    def _sqnr(self, state: _State) -> float | None:
        return None if self._held is None else self._measured(state).sqnr_db

    def _measured(self, state: _State) -> DifferenceStatistics:
        assert self._held is not None  # callers look first
        simulation = Simulation(state.network, state.placement)
        if self._exact is None:
            self._exact = in_batches(simulation.reference, self._held, self._batch)
        numbers = numbers_of(state.placement, state.parameters)
        activations = state.parameters.activations
        rough = in_batches(lambda x: simulation.quantised(x, numbers, activations), self._held, self._batch)
        return compare(self._exact, rough)

    def _changed(self, state: _State, change: Callable[[Parameters, Placement], Parameters]) -> _State:
        return replace(state, parameters=change(state.parameters, state.placement))

    def _equalised(self, state: _State) -> _State:
        assert self._images is not None
        network, count = equalised(state.network, self._ranges.tensors, 1.0)
        if not count:
            return state
        collector = Collector(network)
        limit = 128  # enough to see whether it helps; all of the ranges' images would take as long as calibrating
        images = self._images[:limit] if len(self._images) <= limit else self._images[:: len(self._images) // limit]
        batch = min(self._batch, input_size(network)[0] or self._batch)  # a fixed one is the most
        collect(collector, (images[i : i + batch] for i in range(0, len(images), batch)))
        new = self._start(network, collector.observers, self._options.keep)
        return self._changed(new, with_least_error)

    def _corrected(self, state: _State) -> _State:
        assert self._images is not None
        simulation = Simulation(state.network, state.placement)
        count = max(4, min(len(self._images), 400, _batch(state.network, self._images.shape, 2 * _MEMORY, most=400)))
        images = self._images[:: max(1, len(self._images) // count)][:count]
        return replace(
            state,
            parameters=with_corrected_biases(simulation, state.parameters, images, self._listener.progress),
        )

    def _learned(self, state: _State) -> _State:
        assert self._images is not None
        simulation = Simulation(state.network, state.placement)
        passes = int(
            np.clip(_LEARNING / _multiplications(state.network, self._images.shape), _FEWEST_PASSES, _MOST_PASSES)
        )
        batch = min(self._batch, len(self._images))
        parameters = learned(
            simulation,
            state.parameters,
            self._images,
            Schedule(math.ceil(passes / batch), batch),
            fixed=frozenset(self._fixed),
            seed=self._options.seed,
            judge=lambda parameters: self._measured(replace(state, parameters=parameters)).sqnr_db,
            progress=self._listener.progress,
        )
        return replace(state, parameters=parameters)

    def _sensitivity(self, state: _State) -> tuple[Sensitivity, ...]:
        assert self._held is not None
        begin = time.perf_counter()
        self._listener.started("sensitivity")
        count = min(len(self._held), 32)
        rows = sensitivities(
            Simulation(state.network, state.placement),
            state.parameters,
            self._held[:: len(self._held) // count][:count],
            min(self._batch, 8),
            self._options.seed,
        )
        self._told("sensitivity", None, None, True, begin, f"{rows[0].layer} {rows[0].share:.0%} of the damage")
        return rows

    def _without_the_worst(
        self, state: _State, rows: tuple[Sensitivity, ...]
    ) -> tuple[_State, tuple[Sensitivity, ...]]:
        names = [row.layer for row in rows]
        count = self._options.keep_worst
        if self._options.max_drop is not None:
            count = max(count, self._fewest(state, names, self._options.max_drop))
        if not count:
            return state, rows
        kept = self._kept(state, names[:count])
        marked = tuple(replace(row, kept=place < count) for place, row in enumerate(rows))
        return kept, marked

    def _kept(self, state: _State, names: Sequence[str]) -> _State:
        """The same numbers with some layers left in float."""
        placement = place(state.network, self._options.target, self._options.keep | frozenset(names))
        parameters = state.parameters
        # What a layer had in 8 bits is not what it has in float; sites that only it needed are gone.
        activations = {name: parameters.activations[name] for name in placement.sites}
        weights = {each.name for each in placement.weights.values()}
        return _State(
            state.network,
            placement,
            Parameters(
                activations,
                {name: value for name, value in parameters.weights.items() if name in weights},
                {name: value for name, value in parameters.scales.items() if name in weights},
                {name: value for name, value in parameters.biases.items() if name in placement.weights},
            ),
        )

    def _fewest(self, state: _State, names: Sequence[str], allowed: float) -> int:
        """How many of the worst layers have to stay in float; found by halving."""
        begin = time.perf_counter()
        self._listener.started("mixed precision")

        def drop(count: int) -> float:
            return 100.0 * (1.0 - self._measured(self._kept(state, names[:count])).top1_agreement)

        low, high = 0, len(names) - 1
        if drop(0) <= allowed:
            high = 0
        elif drop(high) > allowed:
            self._notes.append(
                f"with all but one layer in float, {drop(high):.2f} points of agreement are still lost, "
                f"{allowed:g} were allowed"
            )
            low = high
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if drop(middle) <= allowed else (middle + 1, high)
        self._told("mixed precision", None, None, True, begin, f"{high} of {len(names)} layers stay in float")
        return high


def _batch(network: Network, shape: Sequence[int], memory: int, most: int = _LARGEST_BATCH) -> int:
    """Images whose activations, in a pass that keeps them all, fit into ``memory`` bytes."""
    values = sum(math.prod(dims) for dims in _shapes(network, shape).values())
    # Float and 8-bit form, and what the backward pass needs of both.
    return int(np.clip(memory // max(1, 4 * 3 * values), 1, most))


def _multiplications(network: Network, shape: Sequence[int]) -> float:
    """Multiply-accumulates of one image."""
    shapes = _shapes(network, shape)
    total = 0.0
    for node in network.nodes:
        if node.op_type in ("Conv", "Gemm", "MatMul") and node.input[1] in network.initializers:
            weight = network.initializers[node.input[1]]
            spatial = math.prod(shapes.get(node.output[0], ())[2:])
            total += weight.size * spatial
    return max(total, 1.0)


def _shapes(network: Network, shape: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Shape of every activation for one image."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for item in model.graph.input:
        if item.name == network.input:
            for dim, value in zip(item.type.tensor_type.shape.dim, (1, *shape[1:]), strict=True):
                dim.dim_value = int(value)
    del model.graph.value_info[:]
    graph = with_shapes(model, data_prop=True)
    return {
        item.name: tuple(max(dim.dim_value, 1) for dim in item.type.tensor_type.shape.dim)
        for item in (*graph.input, *graph.value_info)
        if network.is_activation(item.name)
    }
