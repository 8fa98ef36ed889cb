"""From a float network and its ranges to a quantised model: place, choose, refine, leave out what hurts, write.

One function, :func:`quantise`. Every step of refinement is measured on images that it did not see, and taken only if it
helps there. A network that cannot be simulated gets what needs no images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from calibration.collect import Collector, collect
from calibration.equalise import equalised
from calibration.graph import Network, input_size
from calibration.grids import Affine
from calibration.judge import Judge, Labels
from calibration.lattice import PIXELS, on_lattice
from calibration.mixed import fewest_in_float
from calibration.observers import Observer
from calibration.outcome import Listener, Options, Quantised, Step
from calibration.parameters import Parameters, initial
from calibration.placement import Placement, place
from calibration.qdq import write
from calibration.ranges import Ranges
from calibration.refine import Schedule, learned, with_corrected_biases, with_least_error
from calibration.requirements import check_images, check_weights, unsimulated
from calibration.sensitivity import Sensitivity, sensitivities
from calibration.simulate import Images
from calibration.state import State
from calibration.workload import batch_within, multiplications
from runtimes.errors import DataError, GraphError, InputError

#: Fewest images that refinement is worth: some to learn from, some to judge by.
FEWEST_IMAGES: Final = 10
# It moves every layer: what gains less, in dB, has as often lost as much on other images.
_LEAST_OF_EQUALISATION: Final = 0.25
# One in so many images is held back from refinement, to judge its steps by.
_HELD_BACK: Final = 5
_MOST_HELD_BACK: Final = 128
# Multiply-accumulates forward that learning may take, within so many images: minutes for small networks, a quarter of
# an hour for ResNet-50 on two cores. Fixed, not timed: the same input has to give the same file.
_LEARNING: Final = 4.0e12
_FEWEST_PASSES, _MOST_PASSES = 1_500, 32_000
# Bytes of one pass's activations, for learning and for correcting biases.
_MEMORY: Final = 1 << 30


def quantise(
    network: Network,
    ranges: Ranges,
    options: Options,
    images: Images | None = None,
    listener: Listener | None = None,
    labels: Labels | None = None,
) -> Quantised:
    """Make a quantised model.

    Args:
        network: The float network that the ranges are of.
        ranges: Statistics of its activations.
        options: What is asked for.
        images: float32 ``[N, C, H, W]``, preprocessed; for every effort but ``fast``, and for sensitivity.
        listener: Hears of each step.
        labels: Class of each image, int64 ``[N]``; what may be lost is then accuracy instead of agreement.

    Raises:
        DataError: The ranges are of another model, a weight is not finite, the images do not fit the network, or there
            are too few of them for what is asked.
        GraphError: Nothing of the network can be quantised, or it cannot be simulated and layers are to be chosen.
        InputError: A layer that is to be kept does not exist, none is left for INT8, or a number is out of range.
    """
    _check_numbers(options)
    ranges.require(model_sha256=network.sha256)
    check_weights(network)
    needs = options.effort != "fast" or options.keep_worst or options.max_drop is not None
    if needs and (images is None or len(images) < FEWEST_IMAGES):
        count = 0 if images is None else len(images)
        raise DataError(
            f"there are {count} images, and effort {options.effort} or a choice of layers needs {FEWEST_IMAGES} at "
            f"least: give more with --data, or --effort fast"
        )
    notes: tuple[str, ...] = ()
    if images is not None and needs:
        check_images(network, images)
        reason = unsimulated(network, options.target, images)
        if reason:
            options, notes = _without_images(options, reason)
    images = None if notes or not needs else images
    return _Work(network, ranges, options, images, labels, listener or Listener(), notes).done()


def _check_numbers(options: Options) -> None:
    if options.keep_worst < 0:
        raise InputError(f"received {options.keep_worst} layers to leave in float, expected 0 or more")
    if options.max_drop is not None and not options.max_drop >= 0:  # NaN is not
        raise InputError(f"received a drop of at most {options.max_drop} points, expected 0 or more")


def _without_images(options: Options, reason: str) -> tuple[Options, tuple[str, ...]]:
    if options.keep_worst or options.max_drop is not None:
        raise GraphError(
            f"{reason}, so it is not known which layers lose most: name those to leave in float (--keep-fp NAMES), and "
            f"give no --max-drop"
        )
    note = f"effort {options.effort} was not possible, and fast was taken: {reason}"
    return replace(options, effort="fast"), (note,)


class _Work:
    """One run of :func:`quantise`."""

    def __init__(
        self,
        network: Network,
        ranges: Ranges,
        options: Options,
        images: Images | None,
        labels: Labels | None,
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
        self._batch = 1 if images is None else batch_within(network, images.shape, _MEMORY)
        self._judge = None if self._held is None else Judge(self._held, self._batch)
        # Points of a per cent need all images there are: among a hundred, one is a point already.
        self._everything = None if images is None else Judge(images, self._batch)
        self._labels = labels

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

    def _start(self, network: Network, tensors: Mapping[str, Observer], keep: frozenset[str]) -> State:
        placement = place(network, self._options.target, keep)
        if not placement.weights:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in list(placement.left.items())[:3])
            raise GraphError(f"nothing of the model can be quantised ({reasons or 'it has no layers with weights'})")
        return State(network, placement, initial(network, placement, tensors, self._options.method, self._fixed))

    def _refined(self, state: State) -> State:
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

    def _tried(self, name: str, state: State, change: Callable[[], State], least: float = 0.0) -> State:
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

    def _sqnr(self, state: State) -> float | None:
        return None if self._judge is None else self._judge.measured(state).sqnr_db

    def _changed(self, state: State, change: Callable[[Parameters, Placement], Parameters]) -> State:
        return replace(state, parameters=change(state.parameters, state.placement))

    def _equalised(self, state: State) -> State:
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

    def _corrected(self, state: State) -> State:
        assert self._images is not None
        count = max(
            4, min(len(self._images), 400, batch_within(state.network, self._images.shape, 2 * _MEMORY, most=400))
        )
        images = self._images[:: max(1, len(self._images) // count)][:count]
        return replace(
            state,
            parameters=with_corrected_biases(state.simulation, state.parameters, images, self._listener.progress),
        )

    def _learned(self, state: State) -> State:
        assert self._images is not None
        assert self._held is not None
        # By as many images again as those held back: the best of several looks at a hundred images is mostly luck. That
        # those were learned from does no harm here, as all looks are at the same schedule.
        seen = self._images[:: max(1, len(self._images) // len(self._held))]
        several = Judge(np.concatenate([self._held, seen]), self._batch)
        passes = int(
            np.clip(_LEARNING / multiplications(state.network, self._images.shape), _FEWEST_PASSES, _MOST_PASSES)
        )
        batch = min(self._batch, len(self._images))
        parameters = learned(
            state.simulation,
            state.parameters,
            self._images,
            Schedule(math.ceil(passes / batch), batch),
            fixed=frozenset(self._fixed),
            seed=self._options.seed,
            judge=lambda parameters: several.measured(replace(state, parameters=parameters)).sqnr_db,
            progress=self._listener.progress,
        )
        return replace(state, parameters=parameters)

    def _sensitivity(self, state: State) -> tuple[Sensitivity, ...]:
        assert self._held is not None
        begin = time.perf_counter()
        self._listener.started("sensitivity")
        count = min(len(self._held), 32)
        rows = sensitivities(
            state.simulation,
            state.parameters,
            self._held[:: len(self._held) // count][:count],
            min(self._batch, 8),
            self._options.seed,
        )
        self._told("sensitivity", None, None, True, begin, f"{rows[0].layer} {rows[0].share:.0%} of the damage")
        return rows

    def _without_the_worst(self, state: State, rows: tuple[Sensitivity, ...]) -> tuple[State, tuple[Sensitivity, ...]]:
        names = [row.layer for row in rows]
        count = self._options.keep_worst
        if self._options.max_drop is not None:
            count = max(count, self._fewest(state, names, self._options.max_drop))
        if not count:
            return state, rows
        kept = state.without(self._options.keep | set(names[:count]))
        marked = tuple(replace(row, kept=place < count) for place, row in enumerate(rows))
        return kept, marked

    def _fewest(self, state: State, names: Sequence[str], allowed: float) -> int:
        assert self._everything is not None  # asked for only where there are images
        begin = time.perf_counter()
        self._listener.started("mixed precision")
        found = fewest_in_float(self._everything, state, names, self._options.keep, allowed, self._labels)
        self._notes.extend(found.notes)
        note = f"{found.layers} of {len(names)} layers stay in float, by {found.measure}"
        self._told("mixed precision", None, None, True, begin, note)
        return found.layers
