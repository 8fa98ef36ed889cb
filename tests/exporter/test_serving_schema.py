"""Every configuration is parsed by the schema that Triton itself is built with."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from PIL import Image

from calibration.preprocess import Preprocessing
from exporter.serving.config import ServingOptions
from exporter.serving.repository import RepositoryOptions, write_repository
from tests.exporter.serving_models import CLASSES, CONTRACT, LABELS, engine, network

pytest.importorskip("tritonclient.grpc", reason="tritonclient[http,grpc] is not installed")


def configs(sources: list[str], output: Path, options: RepositoryOptions | None = None):
    """The configurations of a new repository by name, as Triton reads them."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    report = write_repository(sources, output, options)
    found = {}
    for row in report.models:
        text = (output / row["name"] / "config.pbtxt").read_text(encoding="utf-8")
        found[row["name"]] = text_format.Parse(text, model_config_pb2.ModelConfig())
        assert found[row["name"]].name == row["name"]
    return found


def types():
    from tritonclient.grpc import model_config_pb2

    return model_config_pb2


def told(config) -> dict[str, Any]:
    return {
        key.removeprefix("resnet_export."): json.loads(value.string_value) for key, value in config.parameters.items()
    }


def test_a_file_of_any_batch_is_batched_by_the_server(tmp_path):
    serving = ServingOptions(max_batch=16, preferred=(8, 4, 8), delay_us=300, instances=3, kind="cpu")
    found = configs([str(network(tmp_path / "r20.onnx", labels=LABELS))], tmp_path / "out", RepositoryOptions(serving))
    config = found["r20"]
    assert (config.platform, config.backend, config.default_model_filename) == (
        "onnxruntime_onnx",
        "onnxruntime",
        "model.onnx",
    )
    assert config.max_batch_size == 16
    (taken,), (given,) = config.input, config.output
    assert (taken.name, taken.data_type, list(taken.dims)) == ("input", types().TYPE_FP32, [3, 8, 6])
    assert (given.name, given.data_type, list(given.dims)) == ("logits", types().TYPE_FP32, [CLASSES])
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 8]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, types().ModelInstanceGroup.KIND_CPU)
    assert [(each.name, each.batch_size) for each in config.model_warmup] == [("zero_1", 1), ("zero_8", 8)]
    fed = config.model_warmup[1].inputs["input"]
    assert (fed.data_type, list(fed.dims), fed.zero_data) == (types().TYPE_FP32, [3, 8, 6], True)


def test_parameters_carry_what_a_client_has_to_know(tmp_path):
    config = configs([str(network(tmp_path / "r20.onnx", labels=LABELS))], tmp_path / "out")["r20"]
    values = told(config)
    assert Preprocessing.from_json(values["preprocessing"]) == CONTRACT
    assert (values["precision"], values["preprocessing_sha256"]) == ("fp32", CONTRACT.sha256())
    assert values["sha256"] == values["source_sha256"]
    assert values["classes"]["labels"] == [" ".join(label.split()) for label in LABELS]


def test_a_fixed_batch_is_in_the_dimensions_and_nothing_is_batched(tmp_path):
    config = configs([str(network(tmp_path / "r20.onnx", batch=8))], tmp_path / "out")
    model, first, ensemble = config["r20"], config["r20_preprocessing"], config["r20_ensemble"]
    assert [each.max_batch_size for each in (model, first, ensemble)] == [0, 0, 0]
    assert (list(model.input[0].dims), list(model.output[0].dims)) == ([8, 3, 8, 6], [8, CLASSES])
    assert (list(first.input[0].dims), list(first.output[0].dims)) == ([8, 8, 6, 3], [8, 3, 8, 6])
    assert list(ensemble.input[0].dims) == [8, 8, 6, 3]
    assert not model.HasField("dynamic_batching")
    assert not first.HasField("dynamic_batching")
    (warmup,) = model.model_warmup
    assert (warmup.batch_size, list(warmup.inputs["input"].dims)) == (1, [8, 3, 8, 6])


def test_half_precision_io_has_its_own_type(tmp_path):
    found = configs([str(network(tmp_path / "r20.onnx", elements=TensorProto.FLOAT16))], tmp_path / "out")
    assert {each.data_type for each in (found["r20"].input[0], found["r20"].output[0])} == {types().TYPE_FP16}
    assert found["r20_preprocessing"].output[0].data_type == types().TYPE_FP16
    assert told(found["r20"])["precision"] == "fp16"


@pytest.mark.parametrize("contract", [CONTRACT, None], ids=["contract", "none"])
def test_a_free_size_is_minus_one_and_warmed_up_where_the_usual_size_is_known(tmp_path, contract):
    path = network(tmp_path / "r20.onnx", size=(None, None), contract=contract)
    found = configs([str(path)], tmp_path / "out")
    assert list(found["r20"].input[0].dims) == [3, -1, -1]
    assert [list(each.inputs["input"].dims) for each in found["r20"].model_warmup] == (
        [[3, 8, 6]] * 2 if contract else []
    )
    if contract:
        assert list(found["r20_ensemble"].input[0].dims) == [-1, -1, 3]


def test_an_int8_file_takes_and_gives_floats_and_says_int8(tmp_path):
    path = network(tmp_path / "r20.onnx")
    model = onnx.load(str(path))
    scale = [
        onnx.numpy_helper.from_array(np.array(0.1, np.float32), "scale"),
        onnx.numpy_helper.from_array(np.array(0, np.int8), "zero"),
    ]
    model.graph.initializer.extend(scale)
    model.graph.node[0].input[0] = "dequantized"
    for node in (
        onnx.helper.make_node("DequantizeLinear", ["quantized", "scale", "zero"], ["dequantized"]),
        onnx.helper.make_node("QuantizeLinear", ["input", "scale", "zero"], ["quantized"]),
    ):
        model.graph.node.insert(0, node)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    config = configs([str(path)], tmp_path / "out")["r20"]
    assert {config.input[0].data_type, config.output[0].data_type} == {types().TYPE_FP32}
    assert told(config)["precision"] == "int8"


def test_an_engine_is_a_plan_on_a_gpu_with_the_batches_of_its_profile(tmp_path):
    config = configs([str(engine(tmp_path / "r20.engine"))], tmp_path / "out")["r20"]
    assert (config.platform, config.backend, config.default_model_filename) == (
        "tensorrt_plan",
        "tensorrt",
        "model.plan",
    )
    assert (config.max_batch_size, list(config.input[0].dims)) == (16, [3, 8, 6])
    assert config.instance_group[0].kind == types().ModelInstanceGroup.KIND_GPU
    values = told(config)
    assert (values["precision"], values["source_sha256"]) == ("int8", "a" * 64)


def test_an_engine_of_one_batch_is_served_as_a_fixed_batch(tmp_path):
    config = configs([str(engine(tmp_path / "r20.engine", batches=(4, 4, 4)))], tmp_path / "out")["r20"]
    assert (config.max_batch_size, list(config.input[0].dims), list(config.output[0].dims)) == (
        0, [4, 3, 8, 6], [4, CLASSES],
    )  # fmt: skip


def test_an_ensemble_leads_pixels_through_preprocessing_to_the_model(tmp_path):
    found = configs([str(network(tmp_path / "r20.onnx", labels=LABELS))], tmp_path / "out")
    ensemble = found["r20_ensemble"]
    assert (ensemble.platform, ensemble.max_batch_size) == ("ensemble", found["r20"].max_batch_size)
    (taken,), (given,) = ensemble.input, ensemble.output
    assert (taken.name, taken.data_type, list(taken.dims)) == ("pixels", types().TYPE_UINT8, [8, 6, 3])
    assert (given.name, given.label_filename) == ("logits", "labels.txt")
    first, second = ensemble.ensemble_scheduling.step
    assert (first.model_name, dict(first.input_map)) == ("r20_preprocessing", {"pixels": "pixels"})
    assert (second.model_name, dict(second.output_map)) == ("r20", {"logits": "logits"})
    assert first.output_map["input"] == second.input_map["input"]
    assert not ensemble.instance_group
    assert told(ensemble)["ensemble"] == ["r20_preprocessing", "r20"]
    assert "preprocessing" not in told(ensemble)


def test_labels_are_one_line_for_each_class(tmp_path):
    config = configs([str(network(tmp_path / "r20.onnx", labels=LABELS))], tmp_path / "out")["r20"]
    assert config.output[0].label_filename == "labels.txt"
    lines = (tmp_path / "out" / "r20" / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines == ["cat", 'the "dog"', "Ωmega line", "back\\slash"]


def test_a_file_without_labels_has_no_label_file(tmp_path):
    config = configs([str(network(tmp_path / "r20.onnx"))], tmp_path / "out")["r20"]
    assert not config.output[0].label_filename
    assert not (tmp_path / "out" / "r20" / "labels.txt").exists()


@pytest.mark.parametrize("batch", [None, 2])
def test_an_image_warms_up_with_the_bytes_of_its_tensor(tmp_path, batch):
    picture = Image.linear_gradient("L").resize((6, 8)).convert("RGB")
    picture.save(tmp_path / "image.png")
    options = RepositoryOptions(warmup=str(tmp_path / "image.png"))
    config = configs([str(network(tmp_path / "r20.onnx", batch=batch))], tmp_path / "out", options)["r20"]
    fed = config.model_warmup[0].inputs["input"]
    assert (fed.input_data_file, list(fed.dims)) == ("image.bin", [3, 8, 6] if batch is None else [2, 3, 8, 6])
    stored = (tmp_path / "out" / "r20" / "warmup" / "image.bin").read_bytes()
    assert stored == CONTRACT.apply(picture).tobytes() * (batch or 1)


def test_without_warm_up_and_dynamic_batching_neither_is_written(tmp_path):
    options = RepositoryOptions(ServingOptions(dynamic_batching=False), ensemble=False, warmup="none")
    found = configs([str(network(tmp_path / "r20.onnx"))], tmp_path / "out", options)
    assert list(found) == ["r20"]
    assert not found["r20"].model_warmup
    assert not found["r20"].HasField("dynamic_batching")


def test_grey_images_and_raw_tensors_have_as_many_channels_as_they_need(tmp_path):
    grey = CONTRACT.for_input(1, 8, 6)
    found = configs([str(network(tmp_path / "grey.onnx", channels=1, contract=grey))], tmp_path / "a")
    assert list(found["grey_ensemble"].input[0].dims) == [8, 6, 1]
    raw = CONTRACT.for_input(5, 8, 6)
    found = configs([str(network(tmp_path / "raw.onnx", channels=5, contract=raw))], tmp_path / "b")
    assert list(found["raw_ensemble"].input[0].dims) == [8, 6, 5]
    assert replace(raw, color="raw") == raw
