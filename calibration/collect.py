"""Run a network over images once, and keep statistics of its activations instead of the activations.

One ONNX Runtime session has the observed tensors as further outputs. They are reduced batch by batch, and the batch is
chosen so that the outputs of one fit into a fixed amount of memory, so memory does not depend on the number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import onnx

from calibration.graph import Network, input_size
from calibration.observers import Observer
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
        observers: Statistics to go on from, by tensor name; none: start anew.

    Raises:
        UnavailableError: ONNX Runtime or a provider is missing.
        GraphError: ONNX Runtime cannot load the model.
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
        observers: dict[str, Observer] | None = None,
    ) -> None:
        if not network.observed:
            raise GraphError("the model has no tensor to observe: expected a network with convolutions")
        if observers is not None and set(observers) != set(network.observed):
            raise DataError("the statistics to go on from are of other tensors: start the calibration anew")
        self._network = network
        self.observers = {name: (observers or {}).get(name) or Observer() for name in network.observed}
        self._session = _session(network, providers, threads)

    def update(self, batch: Tensor) -> None:
        """Run one batch and take in its activations.

        Args:
            batch: float32 ``[N, C, H, W]``, preprocessed.

        Raises:
            DataError: The batch does not fit the model, or an activation is NaN or infinite; names the first
                such tensor in the order of computation.
        """
        try:
            outputs = self._session.run(list(self.observers), {self._network.input: batch})
        except Exception as error:  # ONNX Runtime's classes share no other base
            raise DataError(f"ONNX Runtime failed on a batch {list(batch.shape)}: {first_line(error)}") from error
        # All are looked at before any is taken in: a failed batch must not count in half of the tensors.
        for name, values in zip(self.observers, outputs, strict=True):
            if not math.isfinite(float(np.sum(values, dtype=np.float32))) and not np.isfinite(values).all():
                kind = "NaN" if np.isnan(values).any() else "infinite"
                raise DataError(
                    f"the tensor {name} is {kind}: it is the first one; check the checkpoint, and that the "
                    f"preprocessing is the model's own"
                )
        for name, values in zip(self.observers, outputs, strict=True):
            self.observers[name].update(np.asarray(values).reshape(*values.shape[:2], -1))


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
        raise InputError(f"images are {height}x{width}, the model takes {size[0]}x{size[1]}")
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
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
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
    missing = [name for name in providers if name not in onnxruntime.get_available_providers()]
    if missing:
        present = ", ".join(onnxruntime.get_available_providers())
        raise UnavailableError(f"{missing[0]} is not available: this onnxruntime has {present}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # every failure is raised here, so stderr need not hold it a second time
    # The arena keeps what the largest batch needed; outputs are handed over and would be counted twice.
    options.enable_cpu_mem_arena = False
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(
            observable(network).SerializeToString(), options, providers=list(providers), enable_fallback=0
        )
    except Exception as error:  # ONNX Runtime's classes share no other base
        raise GraphError(f"ONNX Runtime cannot load the model: {first_line(error)}") from error


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
    from importlib import metadata

    return {name: metadata.version(name) for name in ("numpy", "onnx", "onnxruntime")}
