"""An engine on the pretended driver: what it computes is known, and TensorRT's part of it is a list of names."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from tests.runtimes.fake_gpu import FakeDriver
from tests.runtimes.trt_fake import Fake


def put_engine(fake: Fake, driver: FakeDriver, low: int = 1, best: int = 2, high: int = 4, side: int = 8) -> list[Any]:
    """An engine ``[N, 3, side, side] -> [N, 5]`` float32 in a release: class k is k plus the sum of the image.

    Returns:
        The shapes that TensorRT was asked to compute, as the runs come.
    """
    trt = fake.module
    state: dict[str, Any] = {}
    runs: list[Any] = []

    def compute(shape: tuple[int, ...]) -> None:
        size = int(np.prod(shape))
        driver.check_memory(state["input"], 4 * size)
        driver.check_memory(state["logits"], 4 * shape[0] * 5)
        taken = (ctypes.c_float * size).from_address(state["input"])
        given = (ctypes.c_float * (shape[0] * 5)).from_address(state["logits"])
        sums = np.ctypeslib.as_array(taken).reshape(shape[0], -1).sum(axis=1)
        np.ctypeslib.as_array(given).reshape(shape[0], 5)[:] = sums[:, None] + np.arange(5)

    def execute(stream: int) -> bool:
        driver.check(stream, "stream")
        shape = state["shape"]
        runs.append(shape)
        driver.push(lambda: compute(shape))
        return True

    def reshape(name: str, shape: tuple[int, ...]) -> bool:
        least, _, most = fake.results["ICudaEngine", "get_tensor_profile_shape"](name, 0)
        inside = all(a <= size <= b for a, size, b in zip(least, shape, most, strict=True))
        if inside:
            state["shape"] = tuple(shape)
        return inside

    def address(name: str, where: int) -> bool:
        driver.check_memory(where, 1)
        state[name] = where
        return True

    driver.lives_here = fake.living
    image = (3, side, side)
    fake.values[("ICudaEngine", "num_io_tensors")] = 2
    for name in ("device_memory_size", "device_memory_size_v2"):
        fake.values[("ICudaEngine", name)] = 1_000_000
    fake.results |= {
        ("Runtime", "deserialize_cuda_engine"): lambda *_: fake.object("ICudaEngine"),
        ("ICudaEngine", "get_tensor_name"): lambda index: ("input", "logits")[index],
        ("ICudaEngine", "get_tensor_mode"): lambda name: trt.TensorIOMode.INPUT if name == "input" else "output",
        ("ICudaEngine", "get_tensor_dtype"): lambda _: trt.DataType.FLOAT,
        ("ICudaEngine", "get_tensor_format"): lambda _: trt.TensorFormat.LINEAR,
        ("ICudaEngine", "get_tensor_format_desc"): lambda _: "Row-major linear FP32 format",
        ("ICudaEngine", "get_tensor_shape"): lambda name: (-1, *image) if name == "input" else (-1, 5),
        ("ICudaEngine", "get_tensor_profile_shape"): lambda *_: [(n, *image) for n in (low, best, high)],
        ("ICudaEngine", "create_execution_context"): lambda *_: fake.object("IExecutionContext"),
        ("ICudaEngine", "create_runtime_config"): lambda *_: fake.object("IRuntimeConfig"),
        ("IRuntimeConfig", "create_runtime_cache"): lambda *_: fake.object("IRuntimeCache"),
        ("IRuntimeCache", "deserialize"): lambda data: data == b"kernels",
        ("IRuntimeCache", "serialize"): lambda *_: b"kernels",
        ("IExecutionContext", "set_input_shape"): reshape,
        ("IExecutionContext", "get_tensor_shape"): lambda _: (state["shape"][0], 5),
        ("IExecutionContext", "set_tensor_address"): address,
        ("IExecutionContext", "execute_async_v3"): execute,
    }
    return runs
