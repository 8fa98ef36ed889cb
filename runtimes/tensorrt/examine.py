"""The layer table of an engine, asked of TensorRT itself. It loads the engine for that, and so needs the GPU."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from runtimes.errors import GraphError, UnavailableError
from runtimes.tensorrt.device import Device, DeviceSearch
from runtimes.tensorrt.engine_io import read_io
from runtimes.tensorrt.flavour import Flavour, module
from runtimes.tensorrt.inspect import EngineLayers, read_layers
from runtimes.tensorrt.loading import Loaded, load_engine
from runtimes.tensorrt.messages import Messages, listening, translated


def examine(
    plan: bytes,
    flavour: Flavour,
    search: DeviceSearch,
    label: str,
    *,
    host_code: bool = False,
    dla_core: int | None = None,
) -> EngineLayers:
    """Load an engine and read what its layers are, for the shape that its kernels were chosen for.

    Args:
        plan: The engine.
        flavour: What runs it.
        search: The GPUs of this machine.
        label: What the engine is called in messages.
        host_code: Let a version-compatible engine run the program that it brings.
        dla_core: Deep learning accelerator that it was built for; ``None``: the GPU.

    Raises:
        UnavailableError: There is no GPU, or not enough of its memory.
        InputError: The engine is of another version or GPU.
        GraphError: TensorRT refuses the engine, or tells nothing of its layers.
    """
    device_of(search, label)
    trt = module(flavour)
    with ExitStack() as stack, listening(trt) as messages:
        loaded = load_engine(trt, flavour.generation, plan, label, messages, host_code=host_code, dla_core=dla_core)
        stack.callback(loaded.close)
        with translated(f"TensorRT tells nothing of the layers of {label}"):
            document = _document(trt, loaded, label, messages)
    return read_layers(document)


def device_of(search: DeviceSearch, label: str) -> Device:
    """The GPU that is asked for an engine's layers.

    Raises:
        UnavailableError: There is none.
    """
    if not search.devices:
        raise UnavailableError(f"the layers of {label} are told only where an NVIDIA GPU is: {search.reason}")
    return search.devices[0]


def _document(trt: Any, loaded: Loaded, label: str, messages: Messages) -> str:
    io = read_io(trt, loaded, label)
    # Without a shape, formats and tactics of a dynamic engine are "N/A due to dynamic shapes".
    if not loaded.context.set_input_shape(io.input.name, io.optimum):
        raise GraphError(f"{label}: TensorRT refuses the shape {list(io.optimum)}: {messages.last()}")
    inspector = loaded.engine.create_engine_inspector()
    try:
        inspector.execution_context = loaded.context
        document: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    finally:
        del inspector  # it refers to the context, which goes next, and a traceback would keep it
    return document
