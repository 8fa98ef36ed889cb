"""The ``config.pbtxt`` of a model and of an ensemble: Triton's ``inference.ModelConfig`` in text.

Triton counts dimensions in two ways. With ``max_batch_size`` above 0, ``dims`` leave the batch out and the server puts
requests together; with 0 they hold it, and requests pass as they are, which is how a fixed batch is served::

    any batch      max_batch_size: 32   dims: [ 3, 224, 224 ]
    a batch of 8   max_batch_size: 0    dims: [ 8, 3, 224, 224 ]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from exporter.serving.pbtxt import Message, Value, Word, entries
from exporter.serving.servable import FILE_NAMES, Servable
from runtimes.base import TensorSpec
from runtimes.errors import InputError
from runtimes.remote import PREFIX

Kind = Literal["auto", "cpu", "gpu"]

LABELS: Final = "labels.txt"
#: What Triton lets a dynamic batch grow to where nobody says so.
MOST: Final = 32
_PLATFORMS: Final = {"onnxruntime": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_TYPES: Final = {
    "float16": "TYPE_FP16", "float32": "TYPE_FP32", "float64": "TYPE_FP64", "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
}  # fmt: skip


@dataclass(frozen=True)
class ServingOptions:
    """How models are served.

    Attributes:
        max_batch: Largest batch that requests are put together to; ``None``: 32, or what an engine takes.
        dynamic_batching: Whether requests of several clients become one batch.
        preferred: Batch sizes that the server waits for, as far as ``delay_us`` lets it.
        delay_us: Longest wait for more requests, in microseconds.
        instances: Copies of a model that run side by side, on each device.
        kind: Device; ``auto``: a GPU where the server has one.

    Raises:
        InputError: A number is out of range, or options contradict each other.
    """

    max_batch: int | None = None
    dynamic_batching: bool = True
    preferred: tuple[int, ...] = ()
    delay_us: int = 0
    instances: int = 1
    kind: Kind = "auto"

    def __post_init__(self) -> None:
        lowest = {"max_batch": 1, "delay_us": 0, "instances": 1}
        for name, least in lowest.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"received {name} {value}, expected at least {least}")
        if any(size < 1 for size in self.preferred):
            raise InputError(f"received the preferred batch {min(self.preferred)}, expected at least 1")
        if not self.dynamic_batching and (self.preferred or self.delay_us):
            raise InputError(
                "preferred batches and a delay are for dynamic batching, which is switched off: leave them out"
            )


@dataclass(frozen=True)
class Warmup:
    """What a model is run on before it is called ready.

    Attributes:
        name: Of the sample.
        file: Name of its bytes in the folder ``warmup`` of the model; ``None``: zeros.
    """

    name: str
    file: str | None = None


def max_batch_size(model: Servable, options: ServingOptions) -> int:
    """Triton's ``max_batch_size``; 0 for a file with a fixed batch.

    Raises:
        InputError: More was asked for than the file takes, or a preferred batch is larger.
    """
    if model.input.shape[0] is not None:
        return 0
    most = options.max_batch or min(MOST, model.most or MOST)
    if model.most is not None and most > model.most:
        raise InputError(
            f"{model.source} takes {model.most} images at most, and --max-batch is {most}: give less, or build it with "
            f"--max {most}"
        )
    if any(size > most for size in options.preferred):
        raise InputError(
            f"{model.name}: received the preferred batch {max(options.preferred)}, and --max-batch is {most}"
        )
    return most


def model_config(model: Servable, options: ServingOptions, labels: bool, warmup: Warmup | None) -> Message:
    """The configuration of one model.

    Args:
        model: What is served.
        options: How.
        labels: Whether there is a file of labels beside it.
        warmup: What it is run on first; ``None``: nothing.

    Raises:
        InputError: The options do not fit the model.
    """
    if model.backend == "tensorrt" and options.kind == "cpu":
        raise InputError(f"{model.source} is an engine, and the kind is cpu: give --kind gpu, or the ONNX file")
    most = max_batch_size(model, options)
    fields: dict[str, Value] = {
        "name": model.name,
        "platform": _PLATFORMS[model.backend],
        "backend": str(model.backend),
        "default_model_filename": FILE_NAMES[model.backend],
        "max_batch_size": most,
        "input": [tensor(model.input, most)],
        "output": [{**tensor(model.output, most), **({"label_filename": LABELS} if labels else {})}],
        "instance_group": [{"count": options.instances, "kind": _kind(model, options)}],
    }
    if most and options.dynamic_batching:
        fields["dynamic_batching"] = _batching(options)
    if warmup is not None:
        fields["model_warmup"] = _warmup(model, most, warmup, options)
    fields["parameters"] = _parameters(model.parameters)
    return fields


def ensemble_config(name: str, steps: tuple[Servable, Servable], most: int, labels: bool) -> Message:
    """Pixels in, logits out.

    Args:
        name: Of the ensemble.
        steps: The preprocessing, and the model that takes its output.
        most: ``max_batch_size`` of both.
        labels: Whether there is a file of labels beside it.
    """
    first, second = steps
    inner = "preprocessed"
    # It takes pixels: what makes tensors of images is not for it.
    told = {name: value for name, value in second.parameters.items() if not name.startswith("preprocessing")}
    own = {**told, "ensemble": [first.name, second.name]}
    return {
        "name": name,
        "platform": "ensemble",
        "max_batch_size": most,
        "input": [tensor(first.input, most)],
        "output": [{**tensor(second.output, most), **({"label_filename": LABELS} if labels else {})}],
        "ensemble_scheduling": {
            "step": [
                _step(first, {first.input.name: first.input.name}, {first.output.name: inner}),
                _step(second, {second.input.name: inner}, {second.output.name: second.output.name}),
            ]
        },
        "parameters": _parameters(own),
    }


def tensor(spec: TensorSpec, most: int) -> dict[str, Value]:
    """An input or output, its batch left out where the server does the batching."""
    if spec.dtype not in _TYPES:
        raise InputError(f"tensor '{spec.name}' is {spec.dtype}: Triton serves {', '.join(_TYPES)}")
    shape = spec.shape[1:] if most else spec.shape
    return {"name": spec.name, "data_type": Word(_TYPES[spec.dtype]), "dims": [-1 if s is None else s for s in shape]}


def sample_shape(model: Servable, most: int) -> tuple[int, ...] | None:
    """Shape of one warm-up sample; ``None`` where nothing says how large images are."""
    if model.sample is None:
        return None
    batch = model.input.shape[0]
    return model.sample if most or batch is None else (batch, *model.sample)


def _kind(model: Servable, options: ServingOptions) -> Word:
    kind: Kind = "gpu" if model.backend == "tensorrt" else options.kind
    return Word(f"KIND_{kind.upper()}")


def _batching(options: ServingOptions) -> Message:
    sizes = sorted(set(options.preferred))
    return {
        **({"preferred_batch_size": sizes} if sizes else {}),
        **({"max_queue_delay_microseconds": options.delay_us} if options.delay_us else {}),
    }


def _warmup(model: Servable, most: int, warmup: Warmup, options: ServingOptions) -> list[Message]:
    """A sample of one image, and one of the largest batch that is to be expected."""
    shape = sample_shape(model, most)
    if shape is None:
        return []
    data: Message = {"input_data_file": warmup.file} if warmup.file else {"zero_data": True}
    fed: Message = {"data_type": tensor(model.input, most)["data_type"], "dims": list(shape), **data}
    batches = sorted({1, max(options.preferred, default=most)}) if most else [1]
    return [
        {"name": f"{warmup.name}_{batch}", "batch_size": batch, "inputs": entries({model.input.name: fed})}
        for batch in batches
    ]


def _step(model: Servable, taken: Mapping[str, str], given: Mapping[str, str]) -> Message:
    return {
        "model_name": model.name,
        "model_version": -1,
        "input_map": [{"key": key, "value": value} for key, value in taken.items()],
        "output_map": [{"key": key, "value": value} for key, value in given.items()],
    }


def _parameters(values: Mapping[str, Any]) -> list[Message]:
    return entries(
        {f"{PREFIX}{name}": {"string_value": json.dumps(values[name], sort_keys=True)} for name in sorted(values)}
    )
