"""``run.py`` with engines, where there is no GPU: a driver of 12 functions in C, and a TensorRT that runs ONNX Runtime.

The driver holds the calls to their types and order; the TensorRT reads and writes the memory that it is given, as the
real one does. What they cannot show is that the real ones accept the same, which needs a GPU.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.exporter.bundles import bundle, copied, made

__all__ = ["bundle", "made"]
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")

DRIVER = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int context, stream, retained, blocks;
int cuInit(unsigned flags) { return flags ? 1 : 0; }
int cuDeviceGet(int *device, int index) { if (index) return 101; *device = 7; return 0; }
int cuDevicePrimaryCtxRetain(void **out, int device) {
  if (device != 7) return 101;
  retained++;
  *out = &context;
  return 0;
}
int cuDevicePrimaryCtxRelease_v2(int device) {
  if (device != 7 || blocks || !retained) return 201;
  fprintf(stderr, "released %d\n", --retained);
  return 0;
}
int cuCtxSetCurrent(void *given) { return given == &context ? 0 : 201; }
int cuStreamCreate(void **out, unsigned flags) { *out = &stream; return flags == 1 ? 0 : 1; }
int cuStreamDestroy_v2(void *given) { return given == &stream ? 0 : 400; }
int cuStreamSynchronize(void *given) { return given == &stream ? 0 : 400; }
int cuMemAlloc_v2(uint64_t *out, size_t size) { *out = (uint64_t)malloc(size); blocks++; return *out ? 0 : 2; }
int cuMemFree_v2(uint64_t memory) { free((void *)memory); blocks--; return 0; }
int cuMemcpyHtoDAsync_v2(uint64_t to, const void *from, size_t size, void *given) {
  memcpy((void *)to, from, size);
  return given == &stream ? 0 : 400;
}
int cuMemcpyDtoHAsync_v2(void *to, uint64_t from, size_t size, void *given) {
  memcpy(to, (void *)from, size);
  return given == &stream ? 0 : 400;
}
int cuGetErrorString(int code, const char **text) { *text = "invalid device ordinal"; return code == 101 ? 0 : 1; }
"""

TENSORRT = '''
"""An engine is the ONNX file that it was built from, with the sizes of its profile before it."""
import ctypes, json, math
import numpy as np
__version__ = "10.3.0"
class _Flags:
    def __getattr__(self, name): return 1
class NetworkDefinitionCreationFlag: STRONGLY_TYPED = 1; EXPLICIT_BATCH = 0
class BuilderFlag: TF32 = "TF32"; FP16 = "FP16"; INT8 = "INT8"
class TensorIOMode: INPUT = "in"
class Logger:
    ERROR, WARNING = 1, 2
    def __init__(self, severity): pass
def nptype(kind): return kind
class OnnxParser:
    num_errors = 0
    def __init__(self, network, logger): self.network = network
    def parse_from_file(self, path): self.network["model"] = open(path, "rb").read(); return True
class Profile:
    def set_shape(self, name, low, best, high): self.sizes = [low, best, high]
class Config:
    def set_flag(self, flag): pass
    def clear_flag(self, flag): pass
    def add_optimization_profile(self, profile): self.profile = profile; return 0
class Builder:
    def __init__(self, logger): pass
    def create_network(self, flags): return {}
    def create_builder_config(self): return Config()
    def create_optimization_profile(self): return Profile()
    def build_serialized_network(self, network, config):
        return json.dumps(config.profile.sizes).encode() + b"\\n" + network["model"]
class Runtime:
    def __init__(self, logger): pass
    def deserialize_cuda_engine(self, plan):
        sizes, _, model = plan.partition(b"\\n")
        return Engine(json.loads(sizes), model) if sizes.startswith(b"[") else None
class Engine:
    num_io_tensors = 2
    def __init__(self, sizes, model): self.sizes, self.model = sizes, model
    def get_tensor_name(self, index): return ("logits", "input")[index]
    def get_tensor_mode(self, name): return "in" if name == "input" else "out"
    def get_tensor_dtype(self, name): return np.float32
    def get_tensor_profile_shape(self, name, index): assert name == "input"; return self.sizes
    def create_execution_context(self): return Context(self)
class Context:
    def __init__(self, engine):
        import onnxruntime
        self.engine, self.places = engine, {}
        self.session = onnxruntime.InferenceSession(engine.model, providers=["CPUExecutionProvider"])
    def set_input_shape(self, name, shape):
        low, _, high = self.engine.sizes
        self.shape = shape
        return all(a <= b <= c for a, b, c in zip(low, shape, high))
    def get_tensor_shape(self, name): return (self.shape[0], 10)
    def set_tensor_address(self, name, address): self.places[name] = address; return True
    def execute_async_v3(self, stream):
        assert stream
        def at(name, shape):
            memory = (ctypes.c_float * math.prod(shape)).from_address(self.places[name])
            return np.frombuffer(memory, np.float32).reshape(shape)
        at("logits", (self.shape[0], 10))[:] = self.session.run(None, {"input": at("input", self.shape)})[0]
        return True
'''


class Device(NamedTuple):
    """Where the stand-ins lie."""

    folder: Path

    def run(self, bundle: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        env = {**kept, "LD_LIBRARY_PATH": str(self.folder), "PYTHONPATH": str(self.folder)}
        command = [sys.executable, str(bundle / "run.py"), *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=self.folder)


@pytest.fixture(scope="module")
def device(tmp_path_factory: pytest.TempPathFactory) -> Device:
    folder = tmp_path_factory.mktemp("device")
    (folder / "driver.c").write_text(DRIVER)
    library = folder / "libcuda.so.1"
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(library), str(folder / "driver.c")], check=True)
    (folder / "tensorrt.py").write_text(TENSORRT)
    return Device(folder)


@pytest.mark.parametrize(("best", "most"), [(1, 1), (2, 4), (3, 8)])
def test_an_engine_is_built_checked_timed_and_asked(
    bundle: Path, tmp_path: Path, device: Device, best: int, most: int
) -> None:
    """Six images through engines of at most 1, 4 and 8: in pieces, the last one short."""
    here = copied(bundle, tmp_path / "b")
    done = device.run(here, "build", "--model", "fp32", "--batch", str(best), "--max-batch", str(most))
    assert done.returncode == 0, done.stderr
    plan = (tmp_path / "b.local" / "fp32.engine").read_bytes()
    assert json.loads(plan.partition(b"\n")[0]) == [[size, 3, 32, 32] for size in (1, best, most)]
    done = device.run(here, "check", "--model", "fp32")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fp32 on tensorrt, against the reference" in done.stdout
    assert done.stderr.count("released 0") == 1  # memory first, the context last
    done = device.run(here, "classify", here / "goldens/input.npy")
    assert "fp32 on tensorrt" in done.stderr  # an engine goes first
    assert len(done.stdout.splitlines()) == 6
    assert "on tensorrt: " in device.run(here, "bench", "--model", "fp32", "--seconds", "0.05").stdout


def test_an_engine_that_computes_something_else_fails(bundle: Path, tmp_path: Path, device: Device) -> None:
    here = copied(bundle, tmp_path / "b")
    assert device.run(here, "build", "--model", "onnxruntime-int8", "-o", tmp_path / "e.engine").returncode == 0
    engine = tmp_path / "e.engine"
    document = engine.with_name("e.engine.json")
    assert device.run(here, "check", "--engine", engine, "--model", "onnxruntime-int8").returncode == 0
    # INT8 that says of itself that it is the FP32 model.
    told = json.loads(document.read_text())
    from tests.exporter.bundles import manifest_of

    told.update(source_sha256=manifest_of(here)["models"][0]["sha256"], precision="fp32")
    document.write_text(json.dumps(told))
    done = device.run(here, "check", "--engine", engine, "--model", "fp32")
    assert done.returncode == 1
    assert "fp32 on tensorrt, against the reference" in done.stdout
    document.write_text(json.dumps({**told, "source_sha256": "0" * 64}))
    done = device.run(here, "check", "--engine", engine)
    assert (done.returncode, "not in this bundle" in done.stderr) == (2, True)


def test_a_gpu_that_is_not_there_is_told_in_the_drivers_words(bundle: Path, tmp_path: Path, device: Device) -> None:
    here = copied(bundle, tmp_path / "b")
    assert device.run(here, "build", "--model", "fp32").returncode == 0
    done = device.run(here, "check", "--model", "fp32", "--device", "3")
    assert done.returncode == 0  # ONNX Runtime did run it
    assert "not run: the GPU cannot be used: invalid device ordinal (cuDeviceGet: 101)" in done.stdout
