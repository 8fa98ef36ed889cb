"""``resnet-export layers``, and the layer table beside an engine."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from exporter import engine as engine_module
from exporter import layers as layers_module
from runtimes.tensorrt import build as build_module
from runtimes.tensorrt import examine as examine_module
from runtimes.tensorrt.build import BuildOptions
from runtimes.tensorrt.device import Device, DeviceSearch
from runtimes.tensorrt.flavour import Flavour
from runtimes.tensorrt.generations import generation
from tests.exporter.test_cli_engine import cli
from tests.runtimes.engine_documents import GENERATIONS, Generation, convolution, document, reformat
from tests.runtimes.fake_gpu import FakeDriver, put_engine
from tests.runtimes.test_tensorrt_build import saved
from tests.runtimes.trt_fake import VERSIONS, Fake

__all__ = ["cli"]
GPU = Device("NVIDIA A100", (8, 0), "13.0", 0, None)
_LAYERS = [reformat("layer1.0.conv1", "FP32", "INT8"), convolution("layer1.0.conv1", "layer1.0.relu", shape=(8, 16))]


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers_module, "find_devices", lambda: DeviceSearch((), "no NVIDIA driver"))


@pytest.mark.parametrize("generation", GENERATIONS)
def test_what_trtexec_wrote_is_held_against_the_model(generation: Generation, tmp_path: Path, cli: Any) -> None:
    told = tmp_path / "layers.json"
    told.write_text(document(_LAYERS, generation))
    done = cli("layers", told, "--model", saved(tmp_path, "int8"), "--json")
    assert done.code == 0, done.err
    assert done.document["summary"]["sentences"] == ["1 of 1 Conv in INT8"]
    assert [row["modules"] for row in done.document["layers"]][-1] == ["layer1.0.conv1", "layer1.0.relu"]
    shown = cli("layers", told, "--model", saved(tmp_path, "int8")).out
    assert "1 of 1 Conv in INT8" in shown
    assert "copies" in shown


def test_without_a_model_the_layers_are_shown_and_nothing_is_claimed(tmp_path: Path, cli: Any) -> None:
    told = tmp_path / "layers.json"
    told.write_text(document(_LAYERS))
    done = cli("layers", told, "--json")
    assert (done.code, done.document["summary"]) == (0, None)
    shown = cli("layers", told).out
    assert "no --model" in shown
    assert "layer1.0.conv1" in shown


def test_without_a_gpu_and_a_table_it_is_said_in_one_line(tmp_path: Path, cli: Any, no_gpu: None) -> None:
    engine = tmp_path / "net.engine"
    engine.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)))
    done = cli("layers", engine)
    assert (done.code, done.out) == (3, "")
    assert done.err.count("\n") == 1
    assert "only where an NVIDIA GPU is: no NVIDIA driver" in done.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no TensorRT engine"),
        (b"{}", "no list of Layers"),
        (b"[1]", "expected a JSON object"),
        (None, "cannot be"),
    ],
)
def test_what_is_neither_engine_nor_layer_information_is_refused(
    data: bytes | None, message: str, tmp_path: Path, cli: Any
) -> None:
    path = tmp_path / "given"
    if data is not None:
        path.write_bytes(data)
    done = cli("layers", path)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert message in done.err


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds an engine by a pretended release on a pretended GPU, whose inspector tells of INT8."""

    def make(version: str, told: str | None = None) -> Path:
        fake, driver = Fake(version), FakeDriver()
        put_engine(fake, driver)
        header = b"vtrt" if fake.package == "tensorrt_rtx" else b"ftrt"
        numbers = (*map(int, fake.version.split(".")), 0)
        plan = header + bytes(20) + bytes(numbers[:4]) + b"layers"
        fake.results[("Builder", "build_serialized_network")] = lambda *_: plan
        fake.results[("ICudaEngine", "create_engine_inspector")] = lambda *_: fake.object("EngineInspector")
        text = document(_LAYERS) if told is None else told
        fake.results[("EngineInspector", "get_engine_information")] = lambda _: text
        row = generation(fake.package, fake.version)
        found = Flavour(fake.package, fake.version, row, can_build=True, can_run=True)
        for module in (build_module, examine_module):
            monkeypatch.setattr(module, "module", lambda _: fake.module)
        monkeypatch.setattr(engine_module, "flavour", lambda _: found)
        monkeypatch.setattr(engine_module, "find_devices", lambda: DeviceSearch((GPU,), ""))
        engine_module.build_engine(saved(tmp_path, "int8"), tmp_path / "net.engine", BuildOptions())
        return tmp_path / "net.engine"

    return make


@pytest.mark.parametrize("version", VERSIONS)
def test_where_a_gpu_is_the_table_lies_beside_the_engine(version: str, built: Any, cli: Any, no_gpu: None) -> None:
    engine = built(version)
    told = json.loads(engine.with_name("net.engine.json").read_text())
    assert told["gpu"] == {"name": "NVIDIA A100", "compute_capability": "8.0", "cuda": "13.0", "dla_cores": 0}
    assert told["summary"]["sentences"] == ["1 of 1 Conv in INT8"]
    assert [row["kind"] for row in told["layers"]] == ["Reformat", "CaskConvolution"]
    assert "1 of 1 Conv in INT8" in cli("layers", engine).out  # on a machine without a GPU


def test_an_engine_that_tells_nothing_of_its_layers_is_good_all_the_same(built: Any, cli: Any) -> None:
    engine = built("10.3.0", '{"Layers": []}')
    told = json.loads(engine.with_name("net.engine.json").read_text())
    assert told["layers"] is None
    assert "nothing of its layers" in told["no_layers"]


def test_a_table_is_not_held_against_another_model(built: Any, tmp_path: Path, cli: Any) -> None:
    engine = built("10.3.0")
    done = cli("layers", engine, "--model", saved(tmp_path, "fp32"))
    assert done.code == 2
    assert "was not built from" in done.err


def test_a_sidecar_of_another_engine_is_refused(built: Any, cli: Any) -> None:
    engine = built("10.3.0")
    engine.write_bytes(engine.read_bytes() + b"more")
    assert sha256(engine.read_bytes()).hexdigest() not in engine.with_name("net.engine.json").read_text()
    done = cli("layers", engine)
    assert done.code == 2
    assert "is not about the engine" in done.err
