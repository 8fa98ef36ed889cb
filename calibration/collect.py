"""Run a network over images once, and keep statistics of its activations instead of the activations.

One ONNX Runtime session has the observed tensors as further outputs. They are reduced batch by batch, and the batch is
chosen so that the outputs of one fit into a fixed amount of memory, so memory does not depend on the number of images.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from calibration.graph import Network, input_size, with_shapes
from calibration.observers import Observer, Reading
from runtimes.errors import DataError, GraphError, InputError, UnavailableError, first_line, missing_package

if TYPE_CHECKING:
    import onnxruntime

Tensor = npt.NDArray[np.float32]
#: Hears of the number of images done after each batch.
Progress = Callable[[int], None]

# Bytes of activations that one batch may give: far above a core's cache, far below any device's memory.
_BUDGET: Final = 96 << 20
_LARGEST_BATCH: Final = 64


class Collector:
    """A network whose activations are observed.

    Args:
        network: The float model.
        providers: ONNX Runtime's execution providers, first choice first.
        threads: Threads of one operator; ``None``: one per core.
        observers: Statistics to go on from, by tensor name, which stay as they are; none: start anew.

    Raises:
        UnavailableError: ONNX Runtime or a provider is missing.
        GraphError: There is nothing to observe, or ONNX Runtime cannot load the model.
        DataError: ``observers`` are of other tensors.

    Attributes:
        observers: Observer by tensor name, in the order of the graph.
    """

    def __init__(
        self,
        network: Network,
        *,
        providers: Sequence[str] = ("CPUExecutionProvider",),
        threads: int | None = None,
        observers: Mapping[str, Observer] | None = None,
    ) -> None:
        if not network.observed:
            raise GraphError("the model has no tensor to observe: expected a network with convolutions")
        if observers and set(observers) != set(network.observed):
            raise DataError("the statistics to go on from are of other tensors: start the calibration anew")
        self._input = network.input
        self._sizes = input_size(network)
        # Copies: they are of somebody else's ranges, whose number of images would not be true any more.
        self.observers = {name: Observer().merged((observers or {}).get(name, Observer())) for name in network.observed}
        self._session = _session(network, providers, threads)
        self._threads = threads or _processors()
        self._outputs: dict[str, Tensor] = {}  # of the last batch
        self._shape: tuple[int, ...] = ()  # and what it was

    def update(self, batch: Tensor) -> None:
        """Run one batch and take in its activations.

        Args:
            batch: float32 ``[N, C, H, W]``, preprocessed. Where the model's batch is fixed, ``N`` can be less.

        Raises:
            DataError: The batch does not fit the model or the statistics to go on from, or an activation is NaN or
                infinite; names the first such tensor in the order of computation. No statistics have changed then.
        """
        fed = self._filled(batch)
        try:
            outputs = self._run(fed)
        except Exception as error:  # ONNX Runtime's classes share no other base
            raise DataError(f"ONNX Runtime failed on a batch {list(batch.shape)}: {first_line(error)}") from error
        rows = [self._rows(name, each, fed)[: len(batch)] for name, each in zip(self.observers, outputs, strict=True)]
        with ThreadPoolExecutor(self._threads) as pool:  # numpy lets go of the lock in all that takes long
            # All are looked at before any is taken in: a failed batch must not count in half of the tensors.
            readings = list(pool.map(_reading, self.observers, self.observers.values(), rows))
            list(pool.map(Observer.add, self.observers.values(), readings))

    def restart(self) -> dict[str, Observer]:
        """Begin anew, in the session that is there.

        Returns:
            What was observed so far, which no later batch changes.
        """
        observed = self.observers
        self.observers = {name: Observer() for name in observed}
        return observed

    def _run(self, fed: Tensor) -> list[Tensor]:
        """All observed tensors, which the next batch of the same shape overwrites.

        Written into the memory of the batch before: a hundred megabytes that are given back and taken anew each time
        cost, page by page, as much as observing them.
        """
        names = [name for name in self.observers if name != self._input]  # that one, ONNX Runtime would not copy
        if fed.shape != self._shape or not names:
            found = self._session.run(names or None, {self._input: fed})
            self._outputs = dict(zip(names, found, strict=False))  # without a name, all outputs came
            self._shape = fed.shape
        else:
            binding = self._session.io_binding()
            binding.bind_cpu_input(self._input, fed)
            for name, output in self._outputs.items():
                binding.bind_output(name, "cpu", 0, output.dtype, output.shape, output.ctypes.data)
            self._session.run_with_iobinding(binding)
        values = {**self._outputs, self._input: fed}
        return [values[name] for name in self.observers]

    def _filled(self, batch: Tensor) -> Tensor:
        """A batch that fits the model: the last one of a set may be short where the model's own is fixed."""
        fixed, *image = self._sizes
        fits = batch.ndim == 4 and batch.size > 0 and (fixed is None or len(batch) <= fixed)
        fits = fits and all(own in (None, given) for own, given in zip(image, batch.shape[1:], strict=True))
        if not fits or batch.dtype != np.float32:
            expected = ", ".join("any" if size is None else str(size) for size in self._sizes)
            raise DataError(f"a batch is {batch.dtype} {list(batch.shape)}: the model takes float32 [{expected}]")
        if fixed is None or len(batch) == fixed:
            return batch
        return np.concatenate([batch, np.repeat(batch[-1:], fixed - len(batch), axis=0)])

    def _rows(self, name: str, values: Tensor, fed: Tensor) -> Tensor:
        """The activations of one tensor as ``[N, C, M]``."""
        if values.ndim == 0 or values.size == 0 or len(values) != len(fed):
            raise DataError(
                f"the tensor {name} has the shape {list(values.shape)} for a batch of {len(fed)}: "
                f"expected values for each image"
            )
        rows = values.reshape(*values.shape[:2], -1)
        known = len(self.observers[name].channel_low)
        if known not in (0, rows.shape[1]):
            raise DataError(
                f"the tensor {name} has {rows.shape[1]} channels, the statistics to go on from have {known}: "
                f"start the calibration anew"
            )
        return rows


def _reading(name: str, observer: Observer, rows: Tensor) -> Reading:
    """Of one tensor, whose values have to be finite."""
    try:
        return observer.read(rows)
    except DataError as error:
        kind = "NaN" if np.isnan(rows).any() else "infinite"
        raise DataError(
            f"the tensor {name} is {kind}: it is the first one; check the checkpoint, and that the "
            f"preprocessing is the model's own"
        ) from error


def collect(collector: Collector, batches: Iterable[Tensor], progress: Progress | None = None) -> int:
    """Observe all batches.

    Args:
        collector: Where the statistics go.
        batches: float32 ``[N, C, H, W]`` each.
        progress: Hears of the number of images done after each batch.

    Returns:
        Number of images.

    Raises:
        DataError: See :meth:`Collector.update`.
    """
    done = 0
    for batch in batches:
        collector.update(batch)
        done += len(batch)
        if progress:
            progress(done)
    return done


def batch_size(network: Network, height: int, width: int) -> int:
    """Images in a batch whose observed activations fit into the memory set aside for them.

    Args:
        network: The model.
        height: Of the images, in pixels.
        width: Of the images, in pixels.

    Returns:
        The model's own batch where it is fixed, else from 1 to 64.

    Raises:
        InputError: The images do not have the model's fixed size.
    """
    fixed, channels, *size = input_size(network)
    if any(own not in (None, given) for own, given in zip(size, (height, width), strict=True)):
        own_height, own_width = ("any" if own is None else own for own in size)
        raise InputError(f"images are {height}x{width}, the model takes {own_height}x{own_width}")
    if fixed is not None:
        return fixed
    values = _values_per_image(network, (1, channels, height, width))
    return max(1, min(_LARGEST_BATCH, _BUDGET // max(4 * values, 1)))


def _values_per_image(network: Network, shape: Sequence[int]) -> int:
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for item in model.graph.input:
        if item.name == network.input:
            for dim, value in zip(item.type.tensor_type.shape.dim, shape, strict=True):
                dim.dim_value = value
    del model.graph.value_info[:]
    for item in model.graph.output:
        item.type.tensor_type.ClearField("shape")
    inferred = with_shapes(model, data_prop=True)
    sizes = {
        item.name: math.prod(dim.dim_value or 1 for dim in item.type.tensor_type.shape.dim)
        for item in (*inferred.value_info, *inferred.input)
    }
    return sum(sizes.get(name, 0) for name in network.observed)


def _session(network: Network, providers: Sequence[str], threads: int | None) -> onnxruntime.InferenceSession:
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime") from error
    _require(providers, onnxruntime.get_available_providers(), "this onnxruntime has")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # every failure is raised here, so stderr need not hold it a second time
    # Threads that wait for the next operator in a loop would take the cores from the observers.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        session = onnxruntime.InferenceSession(
            observable(network).SerializeToString(), options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's classes share no other base
        raise GraphError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error
    # A provider can be compiled in and still fail to start, for want of a driver: the session runs without it then.
    _require(providers, session.get_providers(), "the session started with")
    return session


def _processors() -> int:
    """Processors that this process may use: a container may have two of a machine's hundred."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _require(providers: Sequence[str], present: Sequence[str], where: str) -> None:
    missing = [name for name in providers if name not in present]
    if missing:
        raise UnavailableError(f"{missing[0]} is not available: {where} {', '.join(present)}")


def observable(network: Network) -> onnx.ModelProto:
    """A copy of the model that gives the observed tensors as outputs too."""
    model = onnx.ModelProto()
    model.CopyFrom(network.model)
    for name in network.observed:
        if name not in network.outputs:
            model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    return model


def tool_versions() -> dict[str, Any]:
    """Versions of the packages whose arithmetic shapes the ranges."""
    import onnxruntime

    # Asked of the modules: what imports as onnxruntime may be installed as onnxruntime-gpu.
    return {module.__name__: module.__version__ for module in (np, onnx, onnxruntime)}
