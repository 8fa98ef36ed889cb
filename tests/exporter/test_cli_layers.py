"""``resnet-export layers``, and the layer table beside an engine."""

from __future__ import annotations

import errno
import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from exporter import engine as engine_module
from exporter import layers as layers_module
from runtimes.errors import UnavailableError
from runtimes.tensorrt import build as build_module
from runtimes.tensorrt import examine as examine_module
from runtimes.tensorrt.build import BuildOptions
from runtimes.tensorrt.device import Device, DeviceSearch
from runtimes.tensorrt.flavour import Flavour
from runtimes.tensorrt.generations import generation
from tests.exporter.test_cli_engine import cli
from tests.runtimes.engine_documents import GENERATIONS, Generation, convolution, document, reformat
from tests.runtimes.fake_engine import put_engine
from tests.runtimes.fake_gpu import FakeDriver
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


class Workshop:
    """A pretended release on a pretended GPU that builds one engine, and whose inspector tells of INT8."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch, version: str = "10.3.0") -> None:
        self.engine, self.sidecar = folder / "net.engine", folder / "net.engine.json"
        self.source = saved(folder, "int8")
        self.fake = Fake(version)
        put_engine(self.fake, FakeDriver())
        self.plan = self.header() + b"layers"
        self.told = document(_LAYERS)
        results = self.fake.results
        results["Builder", "build_serialized_network"] = lambda *_: self.plan
        results["ICudaEngine", "create_engine_inspector"] = lambda *_: self.fake.object("EngineInspector")
        results["EngineInspector", "get_engine_information"] = lambda _: self.told
        row = generation(self.fake.package, self.fake.version)
        found = Flavour(self.fake.package, self.fake.version, row, can_build=True, can_run=True)
        for module in (build_module, examine_module):
            patch.setattr(module, "module", lambda _: self.fake.module)
        patch.setattr(engine_module, "flavour", lambda _: found)
        patch.setattr(layers_module, "flavour", lambda _: found)
        patch.setattr(engine_module, "find_devices", lambda: DeviceSearch((GPU,), ""))

    def header(self) -> bytes:
        tag = b"vtrt" if self.fake.package == "tensorrt_rtx" else b"ftrt"
        return tag + bytes(20) + bytes((*map(int, self.fake.version.split(".")), 0)[:4])

    def build(self, **options: Any) -> dict[str, Any]:
        """Build it; what lies beside it."""
        engine_module.build_engine(self.source, self.engine, BuildOptions(**options))
        return self.beside()

    def beside(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.sidecar.read_text())
        return found


@pytest.fixture
def built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Builds an engine, and gives its path."""

    def make(version: str, told: str | None = None) -> Path:
        shop = Workshop(tmp_path, monkeypatch, version)
        shop.told = told or shop.told
        shop.build()
        return shop.engine

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


def _trusting(shop: Workshop) -> None:
    """Refuse an engine as a real TensorRT refuses a version-compatible one."""

    def load(_: bytes) -> Any:
        return shop.fake.object("ICudaEngine") if shop.fake.names("Runtime", "engine_host_code_allowed") else None

    shop.fake.results["Runtime", "deserialize_cuda_engine"] = load


def test_the_program_in_an_engine_is_trusted_where_it_was_built_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Any
) -> None:
    shop = Workshop(tmp_path, monkeypatch)
    _trusting(shop)
    told = shop.build(version_compatible=True)
    assert told["no_layers"] is None
    assert told["summary"]["sentences"] == ["1 of 1 Conv in INT8"]
    shop.fake.calls.clear()
    assert "cannot be loaded" in shop.build()["no_layers"]  # TensorRT's own gate is left as it is

    monkeypatch.setattr(layers_module, "find_devices", lambda: DeviceSearch((GPU,), ""))
    shop.sidecar.write_text(json.dumps({**told, "layers": None}))
    shop.fake.calls.clear()
    done = cli("layers", shop.engine)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "brings a program that runs here with your rights: give --trust-host-code if you trust" in done.err
    assert not shop.fake.calls
    assert "1 of 1 Conv in INT8" in cli("layers", shop.engine, "--trust-host-code").out


def test_the_layers_of_a_dla_are_asked_of_that_dla(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Workshop(tmp_path, monkeypatch)
    assert shop.build(dla_core=1)["layers"]
    assert shop.fake.names("Runtime", "DLA_core") == [(1,)]


def _pybind(*_: Any) -> None:
    raise RuntimeError("pybind: CUDA error\nand a second line")


@pytest.mark.parametrize(
    ("cls", "name", "result", "words"),
    [
        ("Runtime", "deserialize_cuda_engine", _pybind, "cannot be loaded: pybind: CUDA error"),
        ("Runtime", "deserialize_cuda_engine", lambda *_: None, "cannot be loaded"),
        ("IExecutionContext", "set_input_shape", _pybind, "nothing of the layers of .*: pybind: CUDA error"),
        ("IExecutionContext", "set_input_shape", lambda *_: False, r"refuses the shape \[2, 3, 8, 8\]"),
        ("ICudaEngine", "get_tensor_mode", _pybind, "does not tell its inputs and outputs: pybind: CUDA error"),
        ("ICudaEngine", "create_engine_inspector", _pybind, "nothing of the layers of .*: pybind: CUDA error"),
        ("EngineInspector", "get_engine_information", _pybind, "nothing of the layers of .*: pybind: CUDA error"),
        ("EngineInspector", "get_engine_information", lambda *_: None, "."),
        ("EngineInspector", "get_engine_information", lambda *_: '{"Layers": [{"Name": 7}]}', ""),
    ],
)
def test_a_finished_build_is_not_lost_for_its_layer_table(
    cls: str, name: str, result: Any, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(tmp_path, monkeypatch)
    shop.fake.results[cls, name] = result
    told = shop.build()
    assert shop.engine.read_bytes() == shop.plan
    if words:
        assert told["layers"] is None
        assert re.search(words, told["no_layers"])
        assert "\n" not in told["no_layers"]
    assert not shop.fake.living()


def test_a_finished_build_is_not_lost_for_a_fault_in_its_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(tmp_path, monkeypatch)

    def broken(*_: Any) -> None:
        raise KeyError("modules")

    monkeypatch.setattr(layers_module, "summary", broken)
    assert shop.build()["no_layers"] == "'modules'"
    assert shop.engine.read_bytes() == shop.plan


def test_a_full_disk_leaves_the_old_engine_with_its_own_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = Workshop(tmp_path, monkeypatch)
    old, plan = shop.build(), shop.plan
    shop.plan = shop.header() + b"other layers"
    calls = []

    def full(_descriptor: int) -> None:
        calls.append(1)
        if len(calls) == 2:  # the engine fits, and the document does not
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("exporter.files.os.fsync", full)
    before = set(tmp_path.iterdir())
    with pytest.raises(UnavailableError, match="is full"):
        shop.build()
    assert shop.engine.read_bytes() == plan
    assert shop.beside() == old
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "damaged", [{"layers": [{"name": "x"}]}, {"layers": 7}, {"summary": {}}, {"targets": 5}, {"network": [7]}]
)
def test_a_damaged_document_is_one_line(damaged: dict[str, Any], built: Any, cli: Any) -> None:
    engine = built("10.3.0")
    path = engine.with_name("net.engine.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), **damaged}))
    for words in (("layers", engine), ("bench", engine), ("parity", engine, engine, "--data", engine.parent)):
        done = cli(*words)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert f"is damaged at {next(iter(damaged))}: remove it" in done.err
