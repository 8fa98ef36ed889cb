"""Every runtime that needs no GPU, on one CIFAR network: they compute the same, and commands learn what it takes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from calibration.preprocess import PRESETS, Preprocessing
from exporter.graph.metadata import read_metadata, write_metadata
from exporter.models.resnet import ResNet, build_random
from exporter.models.source import load_model
from exporter.models.variants import blueprint_for
from exporter.opening import load_module, prepare
from exporter.pipeline import export_onnx
from exporter.results import OnnxOptions
from runtimes.base import Floats
from runtimes.errors import CheckpointError, GraphError, InputError, ModelSourceError
from runtimes.registry import parse
from runtimes.statistics import compare

LABELS = tuple(f"class {index}" for index in range(10))


class Files(NamedTuple):
    module: ResNet
    checkpoint: Path
    fp32: Path
    fixed: Path
    fp16: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("opening")
    module = build_random(blueprint_for("cifar_resnet8_b"), 1)
    checkpoint = folder / "net.pth"
    torch.save(module.state_dict(), checkpoint)
    loaded = load_model(str(checkpoint))
    paths = [folder / f"{name}.onnx" for name in ("fp32", "fixed", "fp16")]
    export_onnx(loaded, paths[0], OnnxOptions(labels=LABELS))
    export_onnx(loaded, paths[1], OnnxOptions(batch=2))
    export_onnx(loaded, paths[2], OnnxOptions(precision="fp16", fp16_io=True))
    return Files(module, checkpoint, *paths)


def images(count: int = 4) -> Floats:
    return np.random.default_rng(5).standard_normal((count, 3, 32, 32)).astype(np.float32)


def outputs(text: str, count: int = 4) -> Floats:
    with prepare(text).runtime as runtime:
        return runtime.run(images(count))


FP32 = (
    "eager:{0.checkpoint}",
    "eager:{0.checkpoint}@folded=true,threads=1",
    "torch-compile:{0.checkpoint}@folded=true,freezing=true,channels_last=true",
    "onnxruntime:{0.fp32}",
    "onnxruntime:{0.fp32}@optimize=false,threads=1",
    "openvino:{0.fp32}@threads=1",
)


@pytest.mark.parametrize("text", FP32)
def test_every_runtime_computes_what_the_module_does(files, text):
    if text.startswith("openvino"):
        pytest.importorskip("openvino")
    prepared = prepare(text.format(files))
    assert prepared.precision == "fp32"
    with torch.no_grad():
        expected = files.module(torch.from_numpy(images())).numpy()
        one = files.module(torch.from_numpy(images(1))).numpy()
    with prepared.runtime as runtime:
        assert compare(expected, runtime.run(images())).sqnr_db >= 100
        assert compare(one, runtime.run(images(1))).sqnr_db >= 100


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_files_of_a_fixed_batch_and_of_float16_are_fed_the_same_images(files, runtime):
    pytest.importorskip(runtime)
    expected = outputs(f"eager:{files.checkpoint}", 2)
    assert compare(expected, outputs(f"{runtime}:{files.fixed}", 2)).sqnr_db >= 100
    half = prepare(f"{runtime}:{files.fp16}")
    assert half.precision == "fp16"
    assert 40 < compare(expected, outputs(half.label, 2)).sqnr_db < 100


def test_a_folded_module_is_another_graph_with_the_same_weights_as_source(files):
    plain, folded = (load_module(parse(f"eager:{files.checkpoint}@folded={word}")) for word in ("no", "yes"))
    assert any(isinstance(part, torch.nn.BatchNorm2d) for part in plain.module.modules())
    assert isinstance(folded.module, torch.fx.GraphModule)
    assert not [node for node in folded.module.graph.nodes if "batch_norm" in str(node.target)]
    assert plain.sha256 == folded.sha256


def test_what_a_command_has_to_know_comes_with_each_kind_of_model(files):
    of_module, of_file = prepare(str(files.checkpoint)), prepare(str(files.fp32))
    assert of_module.preprocessing == of_file.preprocessing == PRESETS["cifar"].for_input(3, 32, 32)
    assert (of_module.labels, of_file.labels) == ((), LABELS)
    for prepared, path in ((of_module, files.checkpoint), (of_file, files.fp32)):
        assert prepared.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert prepared.size == path.stat().st_size
    assert of_module.label == f"eager:{files.checkpoint}"
    assert of_file.label == f"onnxruntime:{files.fp32}"


def test_weights_in_other_files_count(files, tmp_path):
    path = tmp_path / "outside.onnx"
    model = onnx.load(files.fp32)
    onnx.save(model, path, save_as_external_data=True, location="w.bin", size_threshold=0)
    first = prepare(str(path))
    assert first.size == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    (tmp_path / "w.bin").write_bytes((tmp_path / "w.bin").read_bytes()[::-1])
    assert prepare(str(path)).sha256 != first.sha256


def test_a_file_from_elsewhere_says_nothing_of_its_images(files, tmp_path):
    model = onnx.load(files.fp32)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    prepared = prepare(str(tmp_path / "bare.onnx"))
    assert (prepared.preprocessing, prepared.labels) == (None, ())


def test_metadata_that_are_damaged_or_were_changed_are_refused(files, tmp_path):
    model = onnx.load(files.fp32)
    told = read_metadata(model)
    told["preprocessing"]["scale"] = 1.0
    write_metadata(model, told)
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(InputError, match="was changed after it was exported"):
        prepare(str(tmp_path / "changed.onnx"))
    model.metadata_props[0].value = "{"
    onnx.save(model, tmp_path / "damaged.onnx")
    with pytest.raises(GraphError, match="has damaged metadata"):
        prepare(str(tmp_path / "damaged.onnx"))


def test_the_precision_is_that_of_the_file_or_the_one_that_was_asked_for(files):
    assert prepare(f"openvino:{files.fp32}@precision=bf16").precision == "bf16"
    assert prepare(f"eager:{files.checkpoint}@dtype=float16").precision == "fp16"
    assert prepare(f"openvino:{files.fp16}").precision == "fp16"


def test_a_network_that_is_no_file_has_a_hash_and_no_size():
    prepared = prepare("eager:cifar_resnet8@weights=random,seed=1,num_classes=3,input_size=40x36")
    assert prepared.preprocessing is not None
    assert (prepared.size, len(prepared.sha256 or ""), prepared.preprocessing.size) == (None, 64, (40, 36))
    assert prepared.notes == ("random weights, seed 1",)
    with prepared.runtime as runtime:
        assert runtime.run(images(2)).shape == (2, 3)
    assert prepare("eager:cifar_resnet8@weights=random,seed=2").sha256 != prepared.sha256


def test_a_factory_and_timm_go_with_their_colons(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    code = "import torch\ndef make():\n    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten())\n"
    (tmp_path / "of_opening.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    assert prepare("of_opening:make@input_size=8").label == "eager:of_opening:make@input_size=8"
    prepared = prepare("eager:timm:test_resnet@weights=random")
    assert prepared.spec.file == "timm:test_resnet"
    assert prepared.preprocessing is not None


def test_faults_of_a_model_are_told_in_the_words_of_a_spec(files):
    with pytest.raises(ModelSourceError, match="resnet20 needs weights: give weights=FILE, weights=random or"):
        prepare("eager:resnet20")
    with pytest.raises(CheckpointError, match=r"has 10 classes, and num_classes says 3: leave num_classes out"):
        prepare(f"eager:{files.checkpoint}@num_classes=3")
    with pytest.raises(ModelSourceError, match="unknown model 'resnet21': the nearest are"):
        prepare("resnet21")


@pytest.mark.parametrize("magic", [b"ftrt", b"vtrt"])
def test_an_engine_is_told_by_the_document_beside_it(tmp_path, monkeypatch, magic):
    made = []
    monkeypatch.setattr("exporter.opening.open_runtime", lambda spec: made.append(spec.name))
    path = tmp_path / "r.engine"
    path.write_bytes(magic + bytes(100))
    bare = prepare(str(path))
    assert (bare.precision, bare.preprocessing, bare.labels, bare.size) == (None, None, (), 104)
    assert bare.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    contract = PRESETS["cifar"].for_input(3, 32, 32)
    document = {
        "sha256": bare.sha256,
        "precision": "int8",
        "preprocessing": contract.to_json(),
        "classes": {"labels": ["a", "b"]},
    }
    (tmp_path / "r.engine.json").write_text(json.dumps(document))
    told = prepare(str(path))
    assert (told.precision, told.labels) == ("int8", ("a", "b"))
    assert isinstance(told.preprocessing, Preprocessing)
    assert told.preprocessing == contract
    assert set(made) == {"tensorrt" if magic == b"ftrt" else "tensorrt-rtx"}


def test_an_engine_may_name_the_file_that_it_has_to_be_made_from(files, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("runtimes.tensorrt.run.TensorRTRuntime", lambda path, **given: asked.append(given))
    path = tmp_path / "r.engine"
    path.write_bytes(b"ftrt" + bytes(100))
    prepared = prepare(f"tensorrt:{path}@model={files.fp16},cuda_graph=no")
    assert asked == [{"cuda_graph": False, "source_sha256": hashlib.sha256(files.fp16.read_bytes()).hexdigest()}]
    assert (prepared.onnx, prepared.precision) == (files.fp16, "fp16")
    assert prepared.preprocessing == PRESETS["cifar"].for_input(3, 32, 32)
    assert prepare(str(path)).onnx is None


def test_what_a_quantised_file_was_made_for_is_told(files, tmp_path):
    model = onnx.load(files.fp32)
    write_metadata(model, {**read_metadata(model), "quantisation": {"target": "openvino"}})
    onnx.save(model, tmp_path / "q.onnx")
    prepared = prepare(str(tmp_path / "q.onnx"))
    assert (prepared.target, prepared.onnx) == ("openvino", tmp_path / "q.onnx")
    assert prepare(str(files.fp32)).target is None
    assert prepare(str(files.checkpoint)).onnx is None


def test_an_unsafe_file_is_refused_before_anything_is_made_of_it(files, tmp_path):
    path = tmp_path / "model" / "unsafe.onnx"
    path.parent.mkdir()
    model = onnx.load(files.fp32)
    item = model.graph.initializer[0]
    (tmp_path / "secret").write_bytes(numpy_helper.to_array(item).tobytes())
    item.ClearField("raw_data")
    item.data_location = onnx.TensorProto.EXTERNAL
    item.external_data.add(key="location", value="../secret")
    path.write_bytes(model.SerializeToString())
    with pytest.raises(GraphError, match=r"'\.\./secret' is outside of its folder"):
        prepare(str(path))
