"""An engine file on a pretended release and a pretended device, to be opened by the real runtime."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from runtimes.tensorrt.device import Device, DeviceSearch
from runtimes.tensorrt.run import TensorRTRuntime
from tests.runtimes.fake_engine import put_engine
from tests.runtimes.fake_gpu import FakeDriver
from tests.runtimes.trt_fake import Fake

A100 = Device("NVIDIA A100", (8, 0), "13.0", 0, None)
NOWHERE = DeviceSearch((), "no NVIDIA driver")


def plan(fake: Fake, version: tuple[int, ...] | None = None) -> bytes:
    """The first bytes of an engine, and something after them."""
    tag = b"vtrt" if fake.package == "tensorrt_rtx" else b"ftrt"
    numbers = version or tuple(map(int, fake.version.split(".")))
    return tag + bytes(20) + bytes((*numbers, 0, 0, 0)[:4]) + b"layers"


class Bench:
    """An engine file, a release and a device, all pretended."""

    def __init__(self, folder: Path, version: str = "10.3.0", **sizes: int) -> None:
        self.fake = Fake(version)
        self.driver = FakeDriver()
        self.path = folder / "model.engine"
        self.path.write_bytes(plan(self.fake))
        self.runs = put_engine(self.fake, self.driver, **sizes)

    def load(self, name: str) -> Any:
        if name != self.fake.package:
            raise ModuleNotFoundError(name=name)
        return self.fake.module

    def describe(self, **document: Any) -> None:
        text = {"sha256": sha256(self.path.read_bytes()).hexdigest(), "flavour": self.fake.package, **document}
        self.path.with_name("model.engine.json").write_text(json.dumps(text))

    def runtime(self, **options: Any) -> TensorRTRuntime:
        search = options.pop("search", DeviceSearch((A100,), ""))
        return TensorRTRuntime(self.path, load=self.load, search=search, driver=self.driver, **options)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(count).standard_normal((count, 3, 8, 8)).astype(np.float32)


def expected(batch: np.ndarray) -> np.ndarray:
    sums: np.ndarray = batch.reshape(len(batch), -1).sum(axis=1)
    return sums[:, None] + np.arange(5, dtype=np.float32)
