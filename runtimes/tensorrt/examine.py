"""The layer table of an engine, asked of TensorRT itself. It loads the engine for that, and so needs the GPU."""

from __future__ import annotations

from contextlib import ExitStack

from runtimes.errors import GraphError, UnavailableError, first_line
from runtimes.tensorrt.device import DeviceSearch
from runtimes.tensorrt.engine_io import read_io
from runtimes.tensorrt.flavour import Flavour, module
from runtimes.tensorrt.inspect import EngineLayers, read_layers
from runtimes.tensorrt.loading import load_engine
from runtimes.tensorrt.messages import listening


def examine(
    plan: bytes, flavour: Flavour, search: DeviceSearch, label: str, *, host_code: bool = False
) -> EngineLayers:
    """Load an engine and read what its layers are, for the shape that its kernels were chosen for.

    Args:
        plan: The engine.
        flavour: What runs it.
        search: The GPUs of this machine.
        label: What the engine is called in messages.
        host_code: Let a version-compatible engine bring its own runtime.

    Raises:
        UnavailableError: There is no GPU, or not enough of its memory.
        InputError: The engine is of another version or GPU.
        GraphError: TensorRT refuses the engine, or tells nothing of its layers.
    """
    if not search.devices:
        raise UnavailableError(f"the layers of {label} are told only where an NVIDIA GPU is: {search.reason}")
    trt = module(flavour)
    with ExitStack() as stack, listening(trt) as messages:
        loaded = load_engine(
            trt, flavour.generation, plan, label, messages, runs_host_code=host_code, graphs=False, cache=None
        )
        stack.callback(loaded.close)
        io = read_io(trt, loaded.engine, label)
        # Without a shape, formats and tactics of a dynamic engine are "N/A due to dynamic shapes".
        loaded.context.set_input_shape(io.input.name, io.optimum)
        try:
            inspector = loaded.engine.create_engine_inspector()
            inspector.execution_context = loaded.context
            document = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            del inspector  # it refers to the context, which goes next
        except Exception as error:  # pybind's exceptions have no common base
            raise GraphError(f"TensorRT tells nothing of the layers of {label}: {first_line(error)}") from error
    return read_layers(document)
