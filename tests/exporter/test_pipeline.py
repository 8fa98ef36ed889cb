"""The main job, end to end, and what it does when a stage goes wrong."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from exporter import pipeline
from exporter.graph.export import export
from exporter.graph.fold import fold
from exporter.graph.metadata import read_metadata
from exporter.graph.simplify import Simplified
from exporter.models.blueprint import Blueprint
from exporter.models.source import LoadedModel
from exporter.pipeline import export_onnx
from exporter.results import Listener, OnnxOptions, StageTime
from runtimes.errors import DataError, GraphError, InputError, ParityError
from tests.exporter.nets import SMALL, PreActivation, small


def _run(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(["logits"], {"input": images})[0]
    return result


def _images(count: int = 5, size: int = 32) -> np.ndarray:
    return np.random.default_rng(3).standard_normal((count, 3, size, size)).astype(np.float32)


def test_the_file_computes_what_the_module_does(tmp_path: Path) -> None:
    loaded = small()
    report = export_onnx(loaded, tmp_path / "m.onnx")
    images = _images()
    with torch.inference_mode():
        expected = loaded.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(tmp_path / "m.onnx", images), expected, rtol=1e-4, atol=1e-4)
    assert report.ops.get("BatchNormalization", 0) == 0
    assert report.ops["Conv"] == 9
    assert len(report.fold.rows) == 9


def test_the_report_is_json_and_names_every_stage(tmp_path: Path) -> None:
    report = export_onnx(small(), tmp_path / "m.onnx").to_json()
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["sha256"] == hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest()
    assert report["bytes"] == (tmp_path / "m.onnx").stat().st_size
    rows = [(row["stage"], row["reference"], row["batch"]) for row in report["parity"]]
    assert rows == [
        ("folded", "original", 1), ("folded", "original", 7),
        ("onnx", "original", 1), ("onnx", "original", 7), ("onnx", "folded", 1), ("onnx", "folded", 7),
        ("simplified", "original", 1), ("simplified", "original", 7),
        ("simplified", "onnx", 1), ("simplified", "onnx", 7),
    ]  # fmt: skip
    assert all(row["passed"] and row["sqnr_db"] >= 100 for row in report["parity"])
    assert report["exporter"] == "torch.export"


def test_the_metadata_says_what_the_file_was_made_of(tmp_path: Path) -> None:
    loaded = small()
    labels = tuple("abcdefghij")
    export_onnx(loaded, tmp_path / "m.onnx", OnnxOptions(labels=labels))
    told = read_metadata(onnx.load(tmp_path / "m.onnx"))
    assert Blueprint.from_json(told["architecture"]) == loaded.blueprint
    assert told["classes"] == {"count": 10, "labels": list(labels)}
    assert told["preprocessing"] == json.loads(json.dumps(loaded.preprocessing.to_json()))
    assert told["preprocessing_sha256"] == loaded.preprocessing.sha256()
    assert told["source_sha256"] == loaded.sha256


def test_the_input_module_is_untouched(tmp_path: Path) -> None:
    loaded = small()
    before = {name: tensor.clone() for name, tensor in loaded.module.state_dict().items()}
    export_onnx(loaded, tmp_path / "m.onnx")
    after = loaded.module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(isinstance(module, torch.nn.BatchNorm2d) for module in loaded.module.modules()) == 9


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_an_opset_is_what_was_asked_for_and_runs(tmp_path: Path, opset: int) -> None:
    loaded = small()
    export_onnx(loaded, tmp_path / "m.onnx", OnnxOptions(opset=opset))
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
    with torch.inference_mode():
        expected = loaded.module(torch.from_numpy(_images(3))).numpy()
    np.testing.assert_allclose(_run(tmp_path / "m.onnx", _images(3)), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("fp16_io", [False, True])
def test_an_fp16_file_holds_fp16_and_is_proven(tmp_path: Path, fp16_io: bool) -> None:
    report = export_onnx(small(), tmp_path / "m.onnx", OnnxOptions(precision="fp16", fp16_io=fp16_io))
    model = onnx.load(tmp_path / "m.onnx")
    floats = {t.data_type for t in model.graph.initializer if t.data_type != onnx.TensorProto.INT64}
    assert floats == {onnx.TensorProto.FLOAT16}
    io_type = model.graph.input[0].type.tensor_type.elem_type
    assert io_type == (onnx.TensorProto.FLOAT16 if fp16_io else onnx.TensorProto.FLOAT)
    halves = [row for row in report.parity if row["stage"] == "fp16"]
    assert halves
    # FP16 cannot be as close as FP32: a row that is was not measured on an FP16 graph.
    assert all(40 <= row["sqnr_db"] < 90 for row in halves)


def test_a_fixed_batch_is_fixed_and_a_free_size_is_free(tmp_path: Path) -> None:
    export_onnx(small(), tmp_path / "fixed.onnx", OnnxOptions(batch=4))
    dims = onnx.load(tmp_path / "fixed.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims] == [4, 3, 32, 32]
    report = export_onnx(small(), tmp_path / "free.onnx", OnnxOptions(dynamic_size=True))
    assert _run(tmp_path / "free.onnx", _images(2, 48)).shape == (2, 10)
    assert any("64x96" in row["inputs"] for row in report.parity)


def test_real_images_are_compared_too(tmp_path: Path) -> None:
    report = export_onnx(small(), tmp_path / "m.onnx", images=_images(21))
    assert {row["n"] for row in report.parity if row["inputs"] == "images"} == {21}


def test_images_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"\[3, 16, 16\].*\[3, 32, 32\]"):
        export_onnx(small(), tmp_path / "m.onnx", images=_images(2, 16))
    with pytest.raises(DataError, match="do not fill one batch of 4"):
        export_onnx(small(), tmp_path / "m.onnx", OnnxOptions(batch=4), images=_images(2))


def _corrupt(model: onnx.ModelProto, layer: str = "layer2.0.conv1.weight") -> onnx.ModelProto:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == layer)
    values = numpy_helper.to_array(tensor).copy()
    values[0] *= 1.5
    tensor.CopyFrom(numpy_helper.from_array(values, layer))
    return model


def test_a_wrong_fold_is_named_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fold

    def wrong(captured: Any) -> Any:
        folded = real(captured)
        with torch.no_grad():
            folded.captured.module.get_parameter("layer1.0.conv1.weight")[0].mul_(1.01)
        return folded

    monkeypatch.setattr(pipeline, "fold", wrong)
    path = tmp_path / "m.onnx"
    path.write_bytes(b"earlier")
    with pytest.raises(ParityError, match=r"stage 'folded' .* the fold itself is wrong") as caught:
        export_onnx(small(), path)
    assert not path.exists()
    assert (tmp_path / "m.onnx.previous").read_bytes() == b"earlier"
    assert any(not row["passed"] for row in caught.value.rows)


def test_a_wrong_exporter_is_replaced_by_the_older_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export

    def wrong(captured: Any, opset: int, exporter: Any) -> onnx.ModelProto:
        model = real(captured, opset, exporter)
        return _corrupt(model) if exporter == "torch.export" else model

    monkeypatch.setattr(pipeline, "export", wrong)
    report = export_onnx(small(), tmp_path / "m.onnx")
    assert report.exporter == "torchscript"
    assert any("instead of the newer one: stage 'onnx' does not compute" in note for note in report.notes), report.notes
    assert (tmp_path / "m.onnx").exists()


def test_two_wrong_exporters_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export
    monkeypatch.setattr(pipeline, "export", lambda *given: _corrupt(real(*given)))
    with pytest.raises(ParityError, match="stage 'onnx'"):
        export_onnx(small(), tmp_path / "new" / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_frozen_batch_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = export

    def frozen(captured: Any, opset: int, exporter: Any) -> onnx.ModelProto:
        model = real(captured, opset, exporter)
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
        return model

    monkeypatch.setattr(pipeline, "export", frozen)
    with pytest.raises(ParityError, match=r"its input is \[1, 3, 32, 32\], expected \[free, 3, 32, 32\]"):
        export_onnx(small(), tmp_path / "m.onnx")


def test_a_wrong_simplifier_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(model: onnx.ModelProto) -> Simplified:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        return Simplified(_corrupt(copy), {})

    monkeypatch.setattr(pipeline, "simplify", wrong)
    loaded = small()
    report = export_onnx(loaded, tmp_path / "m.onnx")
    assert not report.simplified
    assert any("simplified graph is not used" in note for note in report.notes)
    images = _images()
    with torch.inference_mode():
        expected = loaded.module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(tmp_path / "m.onnx", images), expected, rtol=1e-4, atol=1e-4)


def test_a_batchnorm_that_stays_is_reported_and_still_right(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = PreActivation()
    module.norm.running_mean.normal_()  # type: ignore[union-attr]
    module.norm.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    loaded = replace(small(), module=module.eval(), blueprint=None, name="pre")
    report = export_onnx(loaded, tmp_path / "m.onnx", OnnxOptions(opset=13, simplify=False))
    assert report.ops["BatchNormalization"] == 1
    assert [row.norm for row in report.fold.refused] == ["norm"]
    assert any("pre-activation" in note for note in report.notes)
    images = _images()
    with torch.inference_mode():
        expected = module(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(_run(tmp_path / "m.onnx", images), expected, rtol=1e-4, atol=1e-4)


def test_options_that_contradict_are_refused_before_any_work(tmp_path: Path) -> None:
    heard: list[str] = []

    class Ears(Listener):
        def started(self, name: str) -> None:
            heard.append(name)

        def finished(self, stage: StageTime) -> None:
            heard.append(stage.name)

    for options, words in (
        (OnnxOptions(opset=12), "expected 13 to"),
        (OnnxOptions(fp16_io=True), "--precision fp16"),
    ):
        with pytest.raises(GraphError, match=words):
            export_onnx(small(), tmp_path / "m.onnx", options, listener=Ears())
    assert heard == []
    with pytest.raises(InputError, match="3 names, and the model has 10 classes"):
        export_onnx(small(), tmp_path / "m.onnx", OnnxOptions(labels=("a", "b", "c")))
    assert list(tmp_path.iterdir()) == []


def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    digests = []
    for each, seed in enumerate(("1", "2")):
        path = tmp_path / str(each) / "m.onnx"
        command = [sys.executable, "-m", "exporter.cli", "onnx", SMALL, "--weights", "random", "-o", str(path), "-q"]
        environment = {"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin", "PYTHONPATH": str(Path.cwd())}
        subprocess.run(command, check=True, env=environment, cwd=tmp_path)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    assert digests[0] == digests[1]


class _Amplifier(torch.nn.Module):
    """A chaotic function of the features: rounding in their last bits moves the logits visibly."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, bias=False)
        self.norm = torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(self.conv(x)).mean((2, 3))  # [N, 4]
        return self.fc(torch.sin(1e4 * y))  # type: ignore[no-any-return]


def test_a_network_that_amplifies_rounding_is_told_from_a_wrong_fold(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = _Amplifier().eval()
    module.norm.running_mean.normal_()  # type: ignore[union-attr]
    loaded = replace(small(), module=module, blueprint=None, name="amplifier")
    with pytest.raises(ParityError, match="so it is right, and this network amplifies rounding"):
        export_onnx(loaded, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def _as_small(module: torch.nn.Module, name: str) -> LoadedModel:
    return replace(small(), module=module.eval(), blueprint=None, name=name)


class _Noisy(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)
        self.fc = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.dropout(self.conv(x).mean((2, 3)), 0.5, training=True)
        return self.fc(y)  # type: ignore[no-any-return]


def test_a_network_that_draws_random_numbers_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="draws random numbers"):
        export_onnx(_as_small(_Noisy(), "noisy"), tmp_path / "m.onnx")


class _Constant(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) * 0 + 1.5  # type: ignore[no-any-return]


def test_a_network_that_says_the_same_of_every_image_proves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ParityError, match="same logits for every image"):
        export_onnx(_as_small(_Constant(), "constant"), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("offset", [1e2, 1e4, 1e6])
def test_a_constant_in_the_logits_hides_no_wrong_fold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offset: float
) -> None:
    loaded = small()
    with torch.no_grad():
        loaded.module.get_parameter("fc.bias").add_(offset)

    def wrong(captured: Any) -> Any:
        folded = fold(captured)
        with torch.no_grad():
            folded.captured.module.get_parameter("conv1.weight").neg_()
        return folded

    monkeypatch.setattr(pipeline, "fold", wrong)
    with pytest.raises(ParityError, match="stage 'folded'"):
        export_onnx(loaded, tmp_path / "m.onnx")


def test_images_that_do_not_fill_a_batch_are_told(tmp_path: Path) -> None:
    report = export_onnx(small(), tmp_path / "m.onnx", OnnxOptions(batch=3), images=_images(5))
    assert any(note.startswith("2 of the images") for note in report.notes)
    assert {row["n"] for row in report.parity if row["inputs"] == "images"} == {3}


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_network_that_ends_in_probabilities_is_told(tmp_path: Path, precision: Literal["fp32", "fp16"]) -> None:
    module = torch.nn.Sequential(small().module, torch.nn.Softmax(dim=1))
    report = export_onnx(_as_small(module, "soft"), tmp_path / "m.onnx", OnnxOptions(precision=precision))
    assert any("ends in Softmax" in note for note in report.notes)


class _TwoMeans(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Conv2d(3, 4, 3), torch.nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.first(x).mean((2, 3)) - self.second(x).mean((2, 3))  # type: ignore[no-any-return]


def test_several_means_that_drop_their_dimensions_each_become_a_pool(tmp_path: Path) -> None:
    report = export_onnx(_as_small(_TwoMeans(), "means"), tmp_path / "m.onnx")
    assert (report.exporter, report.ops["GlobalAveragePool"], report.ops["Flatten"]) == ("torch.export", 2, 2)
    assert "ReduceMean" not in report.ops
