"""An ONNX file on OpenVINO.

OpenVINO computes a float32 model in BF16 wherever the CPU can, unless it is told not to. Here every hint that changes
numbers or speed is given, and what the compiled model says of itself is read back and held against it.
"""

from __future__ import annotations

import io
import re
from collections import Counter
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError, InputError, UnavailableError, first_line, missing_package

Precision = Literal["f32", "f16", "bf16"]
PRECISIONS: Final[tuple[Precision, ...]] = get_args(Precision)
_NUMPY_NAMES: Final = {
    "f32": "float32", "f16": "float16", "f64": "float64", "u8": "uint8", "i8": "int8", "i32": "int32", "i64": "int64",
}  # fmt: skip
_OUTPUT_DTYPES: Final = ("float32", "float16")
_WEIGHTED: Final = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul"})
# Where in its sources OpenVINO noticed something, and headings, which stand above what it noticed.
_WHERE: Final = re.compile(
    r"^(Exception from |Check '.*' failed at |FrontEnd API failed with |Model wasn't fully|Summary:|"
    r"Loading input model$|While validating |\S+ with a message:$)"
)
_LONGEST: Final = 240


class OpenVinoRuntime(Runtime):
    """Runs an ONNX model with one input and one output, one batch at a time.

    Args:
        model: Path of the file, or the serialised model itself.
        name: Name in messages and reports.
        device: One of OpenVINO's devices, for example ``"CPU"`` or ``"GPU.0"``.
        precision: What float layers are computed in; INT8 layers of a Q/DQ file stay INT8.
        threads: CPU threads in all; ``None`` leaves it to OpenVINO.
        streams: Batches that may be computed at a time; one batch has its share of the threads only.
        cast_input: Whether a model that takes float16 is fed float32 here, rounded on the way in; without it
            the caller has to bring float16.

    Raises:
        InputError: An unknown precision, ``threads`` or ``streams`` below 1, or threads for another device.

    Opening raises ``GraphError`` for a model that cannot be loaded, is not safe to load or has another number of
    inputs or outputs, and ``UnavailableError`` where the package or the device is missing, or the device computes in
    another precision than it was told.
    """

    def __init__(
        self,
        model: str | Path | bytes,
        name: str = "openvino",
        device: str = "CPU",
        precision: Precision = "f32",
        threads: int | None = None,
        streams: int = 1,
        cast_input: bool = False,
    ) -> None:
        super().__init__(name)
        if precision not in PRECISIONS:
            raise InputError(f"{name}: received precision '{precision}', expected one of {', '.join(PRECISIONS)}")
        for what, count in (("threads", threads), ("streams", streams)):
            if count is not None and count < 1:
                raise InputError(f"{name}: received {count} {what}, expected at least 1")
        if threads is not None and device != "CPU":
            raise InputError(f"{name}: threads are for device CPU, and the device is {device}: leave them out")
        self._model = model
        self._device = device
        self._precision = precision
        self._threads = threads
        self._streams = streams
        self._cast_input = cast_input
        self._rounds_input = False
        self._request: Any = None

    def _open(self) -> Binding:
        try:
            import openvino
        except ImportError as error:
            raise missing_package("openvino", "openvino") from error
        core = _core()
        self._require_device(core.available_devices)
        if not isinstance(self._model, bytes):
            from runtimes.reading import check_external

            check_external(Path(self._model), self.name)
        compiled = self._compiled(core)
        taken, given = self._spec(compiled.inputs, "input"), self._spec(compiled.outputs, "output")
        self._rounds_input = self._cast_input and taken.dtype == "float16"
        used = {"openvino": str(openvino.get_version()), "device": self._device, **self._read_back(core, compiled)}
        self._request = compiled.create_infer_request()
        return Binding(replace(taken, dtype="float32") if self._rounds_input else taken, given, used)

    def _run(self, batch: Array) -> Array:
        if self._rounds_input:
            batch = batch.astype(np.float16)
        try:
            # Shared both ways: nothing is written to the input, and the base class copies what comes out.
            output: Array = self._request.infer({0: batch}, share_inputs=True, share_outputs=True)[0]
        except Exception as error:  # OpenVINO's exceptions share no base
            raise self._translated(f"failed on {list(batch.shape)}", error) from error
        return output

    def _close(self) -> None:
        self._request = None

    def _compiled(self, core: Any) -> Any:
        from openvino import Type, properties
        from openvino.frontend import FrontEndManager
        from openvino.properties import hint

        mode = hint.ExecutionMode.ACCURACY if self._precision == "f32" else hint.ExecutionMode.PERFORMANCE
        wanted = {
            hint.inference_precision(): getattr(Type, self._precision),
            hint.execution_mode(): mode,
            hint.performance_mode(): hint.PerformanceMode.LATENCY,
            properties.num_streams(): self._streams,
        }
        if self._threads is not None:
            wanted[properties.inference_num_threads()] = self._threads
        source = io.BytesIO(self._model) if isinstance(self._model, bytes) else str(self._model)
        try:
            # Named: asked for any format, OpenVINO tries them all, and each complains on stderr.
            frontend = FrontEndManager().load_by_framework("onnx")
            return core.compile_model(frontend.convert(frontend.load(source)), self._device, wanted)
        except Exception as error:
            raise self._translated("cannot be loaded", error) from error

    def _read_back(self, core: Any, compiled: Any) -> dict[str, Any]:
        """What the compiled model says of itself.

        Raises:
            UnavailableError: It computes in another precision than the one that was asked for.
        """
        from openvino import properties
        from openvino.properties import device, hint

        precision = compiled.get_property(hint.inference_precision()).get_type_name()
        if precision != self._precision:
            raise UnavailableError(
                f"{self._label()}: {self._precision} was asked for, and {self._device} would compute in {precision} "
                "here: give another precision"
            )
        used = {
            "processor": core.get_property(self._device, device.full_name()),
            "precision": precision,
            "execution_mode": _name(compiled.get_property(hint.execution_mode())),
            "performance_mode": _name(compiled.get_property(hint.performance_mode())),
            "streams": int(compiled.get_property(properties.num_streams())),
            "kernels": _kernels(compiled),
        }
        if self._device == "CPU":
            used["threads"] = int(compiled.get_property(properties.inference_num_threads()))
        return used

    def _require_device(self, present: list[str]) -> None:
        if not any(self._device in (each, each.split(".")[0]) for each in present):
            raise UnavailableError(
                f"{self.name}: there is no device {self._device}: OpenVINO finds {', '.join(present) or 'none'}"
            )

    def _spec(self, ports: list[Any], role: str) -> TensorSpec:
        if len(ports) != 1:
            names = ", ".join(_port_name(port) for port in ports)
            raise GraphError(f"{self._label()} has {len(ports)} {role}s ({names}), expected exactly one")
        port, element = ports[0], ports[0].element_type.get_type_name()
        dtype = _NUMPY_NAMES.get(element)
        if dtype is None or (role == "output" and dtype not in _OUTPUT_DTYPES):
            expected = _OUTPUT_DTYPES if role == "output" else tuple(_NUMPY_NAMES.values())
            raise GraphError(
                f"{self._label()}: {role} '{_port_name(port)}' is {dtype or element}, "
                f"expected one of {', '.join(expected)}"
            )
        if port.partial_shape.rank.is_dynamic:
            return TensorSpec(_port_name(port), dtype, (None,) * (4 if role == "input" else 2))
        shape = tuple(None if size.is_dynamic else int(size.get_length()) for size in port.partial_shape)
        return TensorSpec(_port_name(port), dtype, shape)

    def _label(self) -> str:
        if isinstance(self._model, bytes):
            return f"{self.name}: the model in memory ({len(self._model)} bytes)"
        return f"{self.name}: {self._model}"

    def _translated(self, what: str, error: Exception) -> GraphError:
        return GraphError(f"{self._label()} {what}: {_reason(error)}")


@cache
def _core() -> Any:
    """One for the whole process.

    Each ``Core`` gives the thread a stack of its own for signals, and unmaps it when it goes. Where they do not go in
    the reverse order of their making, one that is gone stays in use, and Ctrl-C is a segmentation fault (2026.4).
    """
    import openvino

    return openvino.Core()


def _port_name(port: Any) -> str:
    return str(port.any_name) if port.names else "without a name"


def _name(value: Any) -> str:
    """An enumeration's member, which some properties give as text."""
    return str(getattr(value, "name", value))


def _kernels(compiled: Any) -> dict[str, int]:
    """How many layers with weights run in which element type, for example ``{"u8": 20, "f32": 1}``."""
    nodes = (node.get_rt_info() for node in compiled.get_runtime_model().get_ops())
    types = Counter(_text(info["runtimePrecision"]) for info in nodes if _text(info["layerType"]) in _WEIGHTED)
    return dict(sorted(types.items()))


def _text(value: Any) -> str:
    return str(getattr(value, "value", value))


def _reason(error: Exception) -> str:
    """The first line of a message that says more than where in OpenVINO's sources it was made."""
    lines = (line.strip(" -") for line in str(error).splitlines())
    told = next((line for line in lines if line and not _WHERE.match(line)), "") or _condition(error)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST].rstrip()}…"


def _condition(error: Exception) -> str:
    """Where nothing is said besides places: the condition that did not hold, else the first line."""
    checks = re.findall(r"^Check '(.+)' failed at ", str(error), re.M)
    return f"OpenVINO's check '{checks[-1]}' failed" if checks else first_line(error)
