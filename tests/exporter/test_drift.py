"""What drift takes and refuses, and how it splits its work."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from exporter.drift import drift_of
from exporter.drift import job as module
from exporter.graph.capture import InputShape, capture
from exporter.graph.export import export
from exporter.graph.fold import fold
from exporter.graph.precision import to_fp16
from runtimes.errors import GraphError, TensorError
from tests.exporter.drift_models import fp32, images, network
from tests.exporter.faults import planted
from tests.exporter.nets import PreActivation
from tests.exporter.networks import scramble


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def exported(net: nn.Module, batch: int | None = None, *, folds: bool = True) -> onnx.ModelProto:
    captured = capture(net, InputShape(3, 32, 32, batch))
    return export(fold(captured).captured if folds else captured, 17, "torch.export")


def test_the_result_does_not_depend_on_how_images_are_batched(monkeypatch: pytest.MonkeyPatch) -> None:
    data = fp32("A").SerializeToString()
    whole = drift_of(data, network("A"), [images()[:6]], threads=1)
    monkeypatch.setattr(module, "_AT_ONCE", 1)
    parts = drift_of(data, network("A"), [images()[:1], images()[1:1], images()[1:6]], threads=1)
    assert [row.layer for row in parts.layers] == [row.layer for row in whole.layers]
    for one, other in zip(parts.layers, whole.layers, strict=True):
        assert one.rms == pytest.approx(other.rms, rel=1e-6)
    assert parts.first is None


def test_a_fixed_batch_is_kept_to(tmp_path: Path) -> None:
    model = exported(network("B"), 2)
    found = drift_of(model.SerializeToString(), network("B"), [images()[:4]], threads=1)
    assert found.first is None
    with pytest.raises(TensorError, match="2 images are taken at a time, received 3"):
        drift_of(model.SerializeToString(), network("B"), [images()[:3]], threads=1)
    path = tmp_path / "fixed.onnx"
    path.write_bytes(model.SerializeToString())
    assert drift_of(fp32("B").SerializeToString(), path, [images()[:4]], threads=1).first is None


def test_a_file_that_takes_fp16_is_fed_fp16() -> None:
    model = to_fp16(fp32("B"), keep_io=False).model
    assert drift_of(model.SerializeToString(), network("B"), [images()[:2]], threads=1).first is None


@pytest.mark.parametrize("folds", [True, False])
def test_batchnorms_that_stay_are_compared_as_such(folds: bool) -> None:
    net = scramble(PreActivation())
    found = drift_of(exported(net, folds=folds).SerializeToString(), net, [images()[:2]], threads=1)
    assert found.first is None
    assert "norm" in [row.layer for row in found.layers]


def test_a_file_with_batchnorms_is_held_against_one_without(tmp_path: Path) -> None:
    path = tmp_path / "folded.onnx"
    path.write_bytes(fp32("B").SerializeToString())

    def unfold(model: onnx.ModelProto, shift: float = 0.0) -> None:
        names = ["bn.scale", "bn.shift", "bn.mean", "bn.variance"]
        for name, value in zip(names, (1.0, shift, 0.0, 1.0), strict=True):
            model.graph.initializer.append(numpy_helper.from_array(np.full(16, value, np.float32), name))
        norm = helper.make_node("BatchNormalization", ["conv1.raw", *names], ["conv1"], "bn1", epsilon=0.0)
        place = next(place for place, node in enumerate(model.graph.node) if node.name == "conv1")
        model.graph.node[place].output[0] = "conv1.raw"
        model.graph.node.insert(place + 1, norm)

    sound = planted(fp32("B"), unfold).SerializeToString()
    assert drift_of(sound, path, [images()[:2]], threads=1).first is None
    shifted = planted(fp32("B"), lambda model: unfold(model, 0.1)).SerializeToString()
    assert drift_of(shifted, path, [images()[:2]], threads=1).first == "conv1"


def test_one_class_is_enough() -> None:
    net = scramble(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1)))
    assert drift_of(exported(net).SerializeToString(), net, [images()[:1]], threads=1).first is None


@pytest.mark.parametrize(
    ("batches", "said"),
    [
        ([], "no images"),
        ([np.zeros((0, 3, 32, 32), np.float32)], "no images"),
        ([np.zeros((3, 32, 32), np.float32)], r"received float32 \[3, 32, 32\]"),
        ([np.zeros((1, 3, 32, 32), np.uint8)], "received uint8"),
    ],
)
def test_images_that_cannot_be_compared_are_refused(batches, said: str) -> None:
    with pytest.raises(TensorError, match=said):
        drift_of(fp32("B").SerializeToString(), network("B"), batches)


def test_both_sides_need_the_same_images() -> None:
    with pytest.raises(TensorError, match="judged file is given"):
        drift_of(fp32("B").SerializeToString(), network("B"), [images()], judged_batches=[images()[:2]])


def test_a_file_that_shares_no_name_is_refused() -> None:
    def rename(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            node.name = f"/{node.name}/"

    with pytest.raises(GraphError, match="no layer of the same name"):
        drift_of(planted(fp32("B"), rename).SerializeToString(), network("B"), [images()[:1]])


def test_layers_of_one_name_and_two_shapes_are_at_fault() -> None:
    found = drift_of(fp32("B").SerializeToString(), scramble(PreActivation()), [images()[:1]])
    row = next(row for row in found.layers if row.layer == "fc")
    assert row.at_fault
    assert row.finding is not None
    assert "it is [1, 10], and [1, 5] in the reference" in row.finding


def test_a_reference_that_is_not_finite_is_refused_by_layer() -> None:
    net = scramble(PreActivation())
    with torch.no_grad():
        net.conv.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(GraphError, match="the module gives NaN or Inf in conv: it cannot be the reference"):
        drift_of(exported(scramble(PreActivation())).SerializeToString(), net, [images()[:1]])


@pytest.mark.parametrize("data", [b"", b"no model"])
def test_what_is_no_model_is_refused(data: bytes) -> None:
    with pytest.raises(GraphError, match="is not an ONNX model"):
        drift_of(data, network("B"), [images()[:1]])


def test_the_first_layer_is_the_one_at_fault_and_not_one_that_inherits() -> None:
    found = drift_of(fp32("B").SerializeToString(), network("B"), [images()[:2]], threads=1)
    rows = list(found.layers)
    rows[3] = replace(rows[3], passed=False, sqnr_db=-1.0)
    assert replace(found, layers=tuple(rows)).first == rows[3].layer
    rows[7] = replace(rows[7], passed=False, own_db=-1.0)
    assert replace(found, layers=tuple(rows)).first == rows[7].layer
