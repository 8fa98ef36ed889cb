"""Planted faults: the statistics of the logits see each, and drift names its place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.equalise import equalised
from calibration.graph import Network
from exporter.drift import drift_of
from exporter.graph.metadata import write_metadata
from runtimes.drift import Drift
from runtimes.eager import EagerRuntime
from runtimes.ort import OrtRuntime
from runtimes.statistics import DifferenceStatistics, compare
from runtimes.tolerance import Tolerance, tolerance_for
from tests.calibration.networks import observers_of
from tests.exporter import drift_models as models
from tests.exporter import faults
from tests.exporter.faults import Fault, planted

INT8_TARGETS = [
    ("tensorrt", "free"),
    ("tensorrt", "all"),
    ("tensorrt", "none"),
    ("onnxruntime", None),
    ("openvino", None),
]


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def drift(model: onnx.ModelProto, kind: str = "B", **options) -> Drift:
    return drift_of(model.SerializeToString(), models.network(kind), [models.images()], threads=1, **options)


def _as_good_as(sound: DifferenceStatistics) -> Tolerance:
    bound = sound.decision_sqnr_db - 1.0
    return Tolerance(min_sqnr_db=None, min_decision_db=bound, max_ulp=None, min_top1=None, reason="a sound file")


def logits(model: onnx.ModelProto, kind: str = "B") -> DifferenceStatistics:
    with (
        EagerRuntime(models.network(kind)) as eager,
        OrtRuntime(model.SerializeToString(), threads=1, optimize=False) as judged,
    ):
        return compare(eager.run(models.images()), judged.run(models.images()))


FLOAT_FAULTS: dict[str, tuple[Fault, str]] = {
    "one weight": (faults.one_weight("layer2.0.conv1"), "layer2.0.conv1"),
    "one channel": (faults.one_channel("layer2.0.conv2"), "layer2.0.conv2"),
    "BGR": (faults.swapped_inputs("conv1.weight"), "conv1"),
    "channels permuted": (faults.rolled("layer1.0.conv2.weight", 1), "layer1.0.conv2"),
    "pad at one side": (faults.attribute("layer1.0.conv1", "pads", [2, 2, 0, 0]), "layer1.0.conv1"),
    "pad behind, not before": (faults.attribute("layer2.0.conv1", "pads", [0, 0, 1, 1]), "layer2.0.conv1"),
    "ReLU dropped": (faults.dropped("layer2.0.relu"), "layer2.0.relu"),
    "last ReLU dropped": (faults.dropped("layer3.0.relu_1"), "layer3.0.relu_1"),
    "sum dropped": (faults.dropped("layer1.0.add"), "layer1.0.add"),
    "shortcut of another": (faults.rewired("layer1.0.add", 1, "layer1.0.conv1"), "layer1.0.add"),
    "branch for projection": (faults.rewired("layer3.0.add", 1, "layer3.0.conv2"), "layer3.0.add"),
    "fold without shift": (faults.without_bias("layer3.0.conv1"), "layer3.0.conv1"),
    "fold without scale": (faults.times("layer1.0.conv1.weight", 1.01), "layer1.0.conv1"),
    "NaN": (faults.not_finite("layer2.0.conv2"), "layer2.0.conv2"),
    "Inf": (faults.not_finite("conv1", np.inf), "conv1"),
    "classes permuted": (faults.rolled("fc.weight"), "fc"),
    "class biases permuted": (faults.rolled("fc.bias"), "fc"),
}


@pytest.mark.parametrize("name", FLOAT_FAULTS)
def test_a_fault_in_a_float_file_is_seen_and_named(name: str) -> None:
    fault, place = FLOAT_FAULTS[name]
    model = planted(models.fp32("B"), fault)
    passed, _ = tolerance_for("onnxruntime", "fp32").judge(logits(model))
    assert not passed
    found = drift(model)
    assert found.first == place
    assert not found.passed


def test_a_dilation_that_keeps_the_shapes_is_named() -> None:
    def dilate(model: onnx.ModelProto) -> None:
        faults.attribute("layer1.0.conv1", "dilations", [2, 2])(model)
        faults.attribute("layer1.0.conv1", "pads", [2, 2, 2, 2])(model)

    model = planted(models.fp32("B"), dilate)
    assert not tolerance_for("onnxruntime", "fp32").judge(logits(model))[0]
    assert drift(model).first == "layer1.0.conv1"


def test_an_identity_where_option_a_pads_the_other_side_is_named() -> None:
    pads = next(node for node in models.fp32("A").graph.node if node.name == "layer2.0.downsample.pad").input[1]

    def shift(values):
        values[1], values[5] = values[1] + values[5], 0
        return values

    model = planted(models.fp32("A"), faults.rewritten(pads, shift))
    assert not tolerance_for("onnxruntime", "fp32").judge(logits(model, "A"))[0]
    assert drift(model, "A").first == "layer2.0.downsample.pad"


@pytest.mark.parametrize(
    "name", ["one channel", "BGR", "ReLU dropped", "shortcut of another", "NaN", "classes permuted"]
)
def test_a_fault_in_an_fp16_file_is_seen_and_named(name: str) -> None:
    fault, place = FLOAT_FAULTS[name]
    model = planted(models.fp16("B"), fault)
    assert not tolerance_for("onnxruntime", "fp16").judge(logits(model))[0]
    assert drift(model).first == place


def test_a_layer_that_overflows_fp16_is_named_although_all_after_it_are_lost() -> None:
    model = planted(models.fp16("B"), faults.times("layer2.0.conv1.weight", 60000.0))
    assert not tolerance_for("onnxruntime", "fp16").judge(logits(model))[0]
    found = drift(model)
    assert found.first == "layer2.0.conv1"
    row = next(row for row in found.layers if row.layer == found.first)
    assert row.max_abs is None
    assert row.finding is not None
    assert "NaN or Inf" in row.finding


INT8_FAULTS: dict[str, tuple[Fault, str]] = {
    "weights of a channel": (
        faults.rewritten("layer2.0.conv2.weight.quantized", lambda w: np.concatenate([w[1:2], w[1:]])),
        "layer2.0.conv2",
    ),
    "scales of the weights doubled": (faults.times("layer1.0.conv2.weight.scale", 2.0), "layer1.0.conv2"),
    "one scale of the weights doubled": (
        faults.rewritten("layer1.0.conv1.weight.scale", lambda s: s * np.where(np.arange(len(s)) == 3, 2, 1)),
        "layer1.0.conv1",
    ),
    "scales of another channel": (faults.rolled("layer2.0.downsample.0.weight.scale"), "layer2.0.downsample.0"),
    "DQ doubled": (faults.own_scale("layer1.0.relu.dequantized", 2.0), "layer1.0.relu.quantized"),
    "scale halved": (faults.times("layer2.0.relu.scale", 0.25), "layer2.0.relu.quantized"),
    "scale doubled": (faults.times("layer2.0.relu.scale", 2.0), "layer2.0.relu.quantized"),
    "classes permuted": (faults.rolled("fc.weight.quantized"), "fc"),
}


@pytest.mark.parametrize(("goal", "folds"), INT8_TARGETS)
@pytest.mark.parametrize("name", INT8_FAULTS)
def test_a_fault_in_an_int8_file_is_named(name: str, goal: str, folds) -> None:
    fault, place = INT8_FAULTS[name]
    assert drift(planted(models.int8("B", goal, folds), fault)).first == place


@pytest.mark.parametrize("name", ["BGR", "pad at one side", "branch for projection", "fold without shift"])
@pytest.mark.parametrize("goal", ["tensorrt", "onnxruntime", "openvino"])
def test_a_fault_before_quantisation_is_named_in_the_int8_file(name: str, goal: str, monkeypatch) -> None:
    fault, place = FLOAT_FAULTS[name]
    sound = logits(models.int8("B", goal))
    faulty = planted(models.fp32("B"), fault)
    monkeypatch.setattr(models, "fp32", lambda kind: faulty)
    model = models.int8.__wrapped__("B", goal)
    # How far a sound file gets depends on the network: a faulty one is told by the sound one.
    assert not _as_good_as(sound).judge(logits(model))[0]
    # Quantisation leaves out a projection that nothing reads: it is missing, where the float file sums up wrong.
    assert drift(model).first in {place, "layer3.0.downsample.0" if name == "branch for projection" else place}


@pytest.mark.parametrize("goal", ["tensorrt", "openvino"])
def test_a_wrong_mean_inside_the_file_is_the_inputs_fault(goal: str) -> None:
    model = planted(models.int8("B", goal), faults.rewritten("input.offsets", lambda values: values + 40))
    assert drift(model).first == "input"


def test_a_wrong_mean_before_the_file_is_the_inputs_fault() -> None:
    found = drift(models.fp32("B"), judged_batches=[models.images(mean_shift=0.05)])
    assert found.first == "input"


@pytest.mark.parametrize("kind", ["A", "B", "deep", "bottleneck"])
def test_sound_float_files_pass(kind: str) -> None:
    for model, precision in ((models.fp32(kind), "fp32"), (models.fp16(kind), "fp16")):
        found = drift(model, kind)
        assert found.first is None, [row.finding for row in found.layers if not row.passed]
        assert tolerance_for("onnxruntime", precision).judge(logits(model, kind)) == (True, "")


@pytest.mark.parametrize("kind", ["A", "B", "deep", "bottleneck"])
@pytest.mark.parametrize(("goal", "folds"), INT8_TARGETS)
def test_sound_int8_files_pass(kind: str, goal: str, folds) -> None:
    model = models.int8(kind, goal, folds)
    found = drift(model, kind)
    assert found.first is None, [row.finding for row in found.layers if not row.passed]
    assert logits(model, kind).decision_sqnr_db > 15.0


def test_channels_that_were_equalised_are_no_fault_and_a_wrong_one_among_them_is() -> None:
    network = Network(models.fp32("B"), "")
    other, count = equalised(network, observers_of(network, models.images()), 1.0)
    assert count > 50
    sound = planted(other.model, lambda model: None)
    assert drift(sound).first is not None  # what the file says of itself is not there yet
    write_metadata(sound, {"quantisation": {"effort": "best"}})
    assert drift(sound).first is None
    weight = next(node for node in sound.graph.node if node.name == "layer2.0.conv2").input[1]
    faulty = planted(sound, faults.rewritten(weight, lambda values: np.roll(values, 1, 1)))
    assert drift(faulty).first == "layer2.0.conv2"


def test_the_fold_the_exporter_and_a_file_give_the_same_layers(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    path.write_bytes(models.fp32("B").SerializeToString())
    model = planted(models.fp32("B"), faults.one_channel("layer2.0.conv2")).SerializeToString()
    references = (models.network("B"), models.folded("B").module, path)
    found = [drift_of(model, each, [models.images()], threads=1) for each in references]
    assert {each.first for each in found} == {"layer2.0.conv2"}
    convolutions = [[row.layer for row in each.layers if row.op == "Conv"] for each in found]
    assert convolutions[0] == convolutions[1] == convolutions[2]


def test_every_weighted_layer_and_every_sum_has_a_row() -> None:
    model = models.fp32("bottleneck")
    wanted = [node.name for node in model.graph.node if node.op_type in ("Conv", "Gemm", "Add", "Relu")]
    found = drift(model, "bottleneck")
    assert [row.layer for row in found.layers if row.op in ("Conv", "Gemm", "Add", "Relu")] == wanted


def test_the_document_is_json_and_says_how_it_was_had() -> None:
    document = json.loads(json.dumps(drift(models.fp32("B")).to_json()))
    assert document["first"] is None
    assert "beside" in document["probed"]
    assert {"layer", "op", "depth", "sqnr_db", "mean_abs", "max_abs", "rms", "bound_db", "passed"} <= set(
        document["layers"][0]
    )


def test_a_layers_own_noise_does_not_grow_with_depth_and_the_accumulated_does() -> None:
    rows = [row for row in drift(models.int8("deep", "openvino"), "deep").layers if row.op == "Conv"]
    first, last = rows[1], rows[-1]
    assert last.sqnr_db < first.sqnr_db
    assert abs(last.own_db - first.own_db) < 12
