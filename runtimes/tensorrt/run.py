"""An engine on a GPU: TensorRT 8.5 to 11 and TensorRT-RTX, through the one interface that all of them have.

Opening checks what can be told in words before the device sees anything: whose engine it is, of which version, for
which GPU and of which model. :mod:`runtimes.tensorrt.executor` then runs it.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256
from pathlib import Path
from typing import Any

from runtimes.base import Array, Binding, Runtime
from runtimes.errors import InputError, UnavailableError
from runtimes.tensorrt.cuda import Gpu
from runtimes.tensorrt.device import Device, DeviceSearch, find_devices
from runtimes.tensorrt.engine_io import EngineIO, read_io
from runtimes.tensorrt.executor import Executor
from runtimes.tensorrt.flavour import Flavour, Load, flavour, module
from runtimes.tensorrt.loading import Loaded, load_engine
from runtimes.tensorrt.messages import listening
from runtimes.tensorrt.plan import PlanHeader, read_header
from runtimes.tensorrt.runtime_cache import RuntimeCache
from runtimes.tensorrt.sidecar import (
    check_device,
    check_host_code,
    check_source,
    check_version,
    check_weights,
    dla_core_of,
    read_sidecar,
)


class TensorRTRuntime(Runtime):
    """Runs an engine with one input and one output.

    Args:
        engine: Path of the plan.
        name: Name in messages and reports, ``"tensorrt"`` or ``"tensorrt-rtx"``.
        flavour: Package that is to run it; ``None``: the one that built it.
        device: Index of the GPU.
        cuda_graph: Whether kernels may be launched as graphs.
        source_sha256: Of the ONNX file that it has to be made from; ``None`` asks nothing.
        host_code: Whether a version-compatible engine may run the program that it brings: whoever made it is trusted.
        cache: Whether kernels that TensorRT-RTX compiles are kept for the next process.
        load: Imports a package by name.
        search: The GPUs of this machine; ``None`` looks for them.
        driver: ``cuda.bindings.driver``; ``None`` imports it.

    Opening raises ``InputError`` for what is no engine, or one of another version, GPU or model, or without weights, or
    one that brings a program and is not trusted; ``UnavailableError`` where the package, a GPU or memory is missing;
    ``GraphError`` for an engine that cannot be loaded or has other inputs and outputs.
    """

    def __init__(
        self,
        engine: str | Path,
        name: str = "tensorrt",
        *,
        flavour: str | None = None,
        device: int = 0,
        cuda_graph: bool = True,
        source_sha256: str | None = None,
        host_code: bool = False,
        cache: bool = True,
        load: Load = importlib.import_module,
        search: DeviceSearch | None = None,
        driver: Any = None,
    ) -> None:
        super().__init__(name)
        self._path = Path(engine)
        self._flavour_name = flavour
        self._index = device
        self._graphs = cuda_graph
        self._source_sha256 = source_sha256
        self._host_code = host_code
        self._caches = cache
        self._load, self._search, self._driver = load, search, driver
        self._stack = ExitStack()
        self._trt: Any = None
        self._loaded: Loaded | None = None
        self._executor: Executor | None = None

    def _open(self) -> Binding:
        self._loaded = None
        label = str(self._path)
        plan = self._read()
        document = read_sidecar(self._path, sha256(plan).hexdigest())
        header = read_header(plan, label, document)
        found = flavour(self._flavour_name or header.package, self._load)
        self._refuse_other(header, document, found, label)
        place = self._device()
        check_device(document, place, label)
        self._trt = module(found, self._load)
        gpu = self._stack.enter_context(Gpu(self._index, self._driver))
        cache = RuntimeCache.of(plan, found, place) if self._caches and found.generation.runtime_cache else None
        with gpu.active(), listening(self._trt) as messages:
            self._loaded = load_engine(
                self._trt, found.generation, plan, label, messages,
                host_code=self._host_code, dla_core=dla_core_of(document), graphs=self._graphs, cache=cache,
            )  # fmt: skip
            self._stack.callback(_let_go, gpu, self._loaded)  # before the context and the memory that it lives in
            io = read_io(self._trt, self._loaded, label)
            self._executor = Executor(gpu, self._loaded, io, label, messages)
        used = {found.name: found.version, "built by": str(header), **_used(place, document, self._loaded, io)}
        return Binding(io.input, io.output, used, (io.minimum[0], io.maximum[0]))

    def _refuse_other(self, header: PlanHeader, document: Mapping[str, Any] | None, found: Flavour, label: str) -> None:
        check_version(header, document, found, label)
        check_source(document, self._source_sha256, label)
        check_weights(document, label)
        check_host_code(document, self._host_code, label, "host_code=true")

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise InputError(f"{self._path} cannot be read: {error.strerror or error}") from error

    def _device(self) -> Device:
        search = self._search or find_devices()
        if not search.devices:
            raise UnavailableError(f"{self.name}: running an engine needs an NVIDIA GPU: {search.reason}")
        if not 0 <= self._index < len(search.devices):
            raise UnavailableError(f"{self.name}: received device {self._index}, and there are {len(search.devices)}")
        return search.devices[self._index]

    @property
    def used(self) -> dict[str, Any]:
        """As read back from TensorRT, with what came of graphs and kept kernels up to now, or up to the closing."""
        now = self._loaded
        told = {} if now is None else {"cuda_graph": now.graphs, "runtime_cache": now.cache_note}
        return {**super().used, **told}

    def _run(self, batch: Array) -> Array:
        assert self._executor is not None  # the base class runs nothing before _open
        with listening(self._trt) as messages:
            return self._executor.run(batch, messages)

    def _close(self) -> None:
        self._executor = None
        self._stack.close()


def _let_go(gpu: Gpu, loaded: Loaded) -> None:
    with gpu.settled():
        loaded.close()


def _used(place: Device, document: Mapping[str, Any] | None, loaded: Loaded, io: EngineIO) -> dict[str, Any]:
    return {
        "device": place.name,
        "compute_capability": "{}.{}".format(*place.compute_capability),
        "precision": None if document is None else document.get("precision"),
        "profile": {"min": list(io.minimum), "opt": list(io.optimum), "max": list(io.maximum)},
        "device_memory_bytes": loaded.device_memory,
    }
