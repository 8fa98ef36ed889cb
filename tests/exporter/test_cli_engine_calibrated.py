"""``resnet-export engine`` on a TensorRT with calibrators: ranges, DLA and cache, on bindings by name only."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

import exporter.engine
from calibration.graph import read_network
from calibration.implicit import scales
from calibration.preprocess import PRESETS
from calibration.ranges import Ranges
from runtimes.tensorrt import build
from runtimes.tensorrt.calibration_cache import read_cache
from runtimes.tensorrt.flavour import Flavour
from runtimes.tensorrt.generations import generation
from tests.calibration.networks import basic, images, observers_of
from tests.exporter.test_cli_engine import cli
from tests.exporter.test_cli_quantize import assert_refused
from tests.runtimes.test_tensorrt_build import saved
from tests.runtimes.trt_fake import Fake

__all__ = ["cli"]  # a fixture


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(version: str) -> Fake:
        fake = Fake(version)
        row = generation(fake.package, fake.version)
        found = Flavour(fake.package, fake.version, row, can_build=True, can_run=True)
        monkeypatch.setattr(build, "module", lambda _: fake.module)
        monkeypatch.setattr(exporter.engine, "flavour", lambda _: found)
        return fake

    return make


def with_ranges(folder: Path, of: str = "") -> tuple[Path, Path, Ranges]:
    path = folder / "m.onnx"
    onnx.save(basic().network().model, path)
    network = read_network(path)
    ranges = Ranges(of or network.sha256, PRESETS["cifar"], 4, "", observers_of(network, images()), {})
    (folder / "r.json").write_bytes(ranges.dumps())
    return path, folder / "r.json", ranges


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.7.0"])
def test_ranges_make_an_int8_engine_and_the_cache_is_what_it_was_given(
    version: str, tmp_path: Path, cli: Any, tensorrt: Any
) -> None:
    fake = tensorrt(version)
    model, ranges, known = with_ranges(tmp_path)
    done = cli(
        "engine", model, "--ranges", ranges, "-o", tmp_path / "e", "--calibration-cache", tmp_path / "c", "--json"
    )
    assert (done.code, done.err) == (0, "")
    data = (tmp_path / "c").read_bytes()
    ((calibrator,),) = fake.names("IBuilderConfig", "int8_calibrator")
    assert calibrator.read_calibration_cache() == data
    number, read = read_cache(data)
    assert number == {"8.6.1": 8601, "10.3.0": 100300, "10.7.0": 100700}[version]
    for name, scale in scales(known, "mse").items():  # the default of quantize
        assert read[name] == np.float32(scale)
    told = done.document
    assert told["precision"] == "int8"
    assert told["calibration"] == {"source": "ranges", "tensors": len(read), "sha256": sha256(data).hexdigest()}
    beside = json.loads((tmp_path / "e.json").read_text())
    assert {name: beside[name] for name in told} == told


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "10.7.0"])
def test_a_dla_strips_q_dq_by_itself_and_says_so(version: str, tmp_path: Path, cli: Any, tensorrt: Any) -> None:
    fake = tensorrt(version)
    source = saved(tmp_path, "int8")
    words = ("engine", source, "-o", tmp_path / "e", "--dla-core", "0", "--calibration-cache", tmp_path / "c")
    done = cli(*words, "--json")
    assert (done.code, done.err) == (0, "")
    assert done.document["calibration"]["source"] == "qdq"
    assert any("takes no Q/DQ" in note for note in done.document["notes"])
    assert any("one fixed shape" in note for note in done.document["notes"])
    assert read_cache((tmp_path / "c").read_bytes())[1] == {"input": np.float32(0.05)}
    ((data,),) = fake.names("OnnxParser", "parse")
    assert {node.op_type for node in onnx.load_model_from_string(data).graph.node} == {"Conv", "Relu"}
    shown = cli(*words).out
    assert "1 tensors, from the file's Q/DQ" in shown


def test_ranges_of_another_model_are_refused(tmp_path: Path, cli: Any, tensorrt: Any) -> None:
    tensorrt("10.3.0")
    model, ranges, _ = with_ranges(tmp_path, of="1" * 64)
    assert_refused(cli("engine", model, "--ranges", ranges, "-o", tmp_path / "e"), "ranges are of another model")
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize("version", ["11.4.0", "rtx-1.7.1"])
def test_a_tensorrt_without_calibrators_says_what_to_do_instead(
    version: str, tmp_path: Path, cli: Any, tensorrt: Any
) -> None:
    tensorrt(version)
    model, ranges, _ = with_ranges(tmp_path)
    done = cli("engine", model, "--ranges", ranges, "-o", tmp_path / "e")
    assert_refused(done, "no calibrators", "quantize --target tensorrt --ranges")


@pytest.mark.parametrize("version", ["10.16.1.11", "11.4.0", "rtx-1.7.1"])
def test_a_tensorrt_without_a_dla_refuses_one(version: str, tmp_path: Path, cli: Any, tensorrt: Any) -> None:
    tensorrt(version)
    done = cli("engine", saved(tmp_path, "int8"), "-o", tmp_path / "e", "--dla-core", "0")
    assert_refused(done, "has no --dla-core")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("--precision", "fp16"), "fp16 was asked for"),
        (("--dla-core", "0", "--min", "1", "--max", "8"), "one fixed shape"),
        (("--calibration-cache", "{ranges}"), "same file as the input"),
        (("-o", "{ranges}"), "same file as the input"),
    ],
)
def test_options_that_contradict_ranges_get_one_line_and_leave_nothing(
    given: tuple[str, ...], told: str, tmp_path: Path, cli: Any, tensorrt: Any
) -> None:
    tensorrt("10.3.0")
    model, ranges, _ = with_ranges(tmp_path)
    before = ranges.read_bytes()
    out = () if "-o" in given else ("-o", tmp_path / "e")
    words = [each.format(ranges=ranges) for each in given]
    assert_refused(cli("engine", model, "--ranges", ranges, *out, *words), told)
    assert {path.name for path in tmp_path.iterdir()} == {"m.onnx", "r.json"}
    assert ranges.read_bytes() == before


def test_asymmetric_q_dq_is_refused_for_a_dla_with_the_next_step(tmp_path: Path, cli: Any, tensorrt: Any) -> None:
    tensorrt("10.3.0")
    source = saved(tmp_path, "int8", zero=128, dtype=np.uint8)
    done = cli("engine", source, "-o", tmp_path / "e", "--dla-core", "0")
    assert_refused(done, "not symmetric INT8", "resnet-export quantize --target tensorrt")


def test_an_interrupted_build_of_a_tensorrt_without_monitor_leaves_nothing(
    tmp_path: Path, cli: Any, tensorrt: Any
) -> None:
    fake = tensorrt("8.6.1")

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    fake.results["Builder", "build_serialized_network"] = interrupted
    done = cli("engine", saved(tmp_path), "-o", tmp_path / "out" / "e", "--timing-cache", tmp_path / "k" / "t")
    assert done.code == 130
    assert [path.name for path in tmp_path.iterdir()] == ["fp32.onnx"]


def test_scales_of_the_cache_are_those_of_the_stored_q(tmp_path: Path, cli: Any, tensorrt: Any) -> None:
    tensorrt("10.7.0")
    source = saved(tmp_path, "int8")
    model = onnx.load(source)
    for item in model.graph.initializer:
        if item.name == "s":
            item.CopyFrom(numpy_helper.from_array(np.float32(2.0), "s"))
    onnx.save(model, source)
    cli("engine", source, "-o", tmp_path / "e", "--dla-core", "0", "--calibration-cache", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "TRT-100700-EntropyCalibration2\ninput: 40000000\n"
