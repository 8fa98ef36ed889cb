"""The linter on whole files: those that are written here are clean, those of ``quantize_static`` get what they need."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

from calibration.graph import Network
from calibration.lint import Count, Report, lint, read_quantised, report
from calibration.outcome import Options
from calibration.placement import CPUS, target
from calibration.quantise import quantise
from runtimes.errors import GraphError
from tests.calibration.lint_cases import ORT, OV, TRT, built
from tests.calibration.lint_graphs import S8, U8, residual
from tests.calibration.networks import basic, bottleneck, downsample, images
from tests.calibration.test_refine import ranges

BUILDS = {"basic": basic, "bottleneck": bottleneck, "downsample": downsample}
GOALS: list[tuple[str, dict[str, Any]]] = [
    *((TRT, {"folds": folds}) for folds in ("all", "free", "none")),
    *((ORT, {"cpu": cpu}) for cpu in CPUS if cpu != "arm"),
    *((OV, {"cpu": cpu}) for cpu in CPUS if cpu != "arm"),
]
LAYERS = {"Conv", "Gemm"}


def written(build: str, goal: str, **options: Any) -> Report:
    network = BUILDS[build]().network()
    done = quantise(network, ranges(network, images()), Options(target(goal, **options), effort="fast"))
    return report(done.model, goal)


def rules(found: Report) -> dict[str, set[str]]:
    """The nodes that each rule names."""
    return {rule: {item.node for item in found.findings if item.rule == rule} for rule in found.reasons}


@pytest.mark.parametrize(("goal", "options"), GOALS, ids=[f"{goal} {options}" for goal, options in GOALS])
@pytest.mark.parametrize("build", BUILDS)
def test_a_file_written_here_is_clean_and_wholly_in_integers(build: str, goal: str, options: dict[str, Any]) -> None:
    found = written(build, goal, **options)
    assert found.clean, found.findings
    counted = {name for name in found.counts if goal == ORT or name != "GlobalAveragePool"}
    assert LAYERS | {"Add"} <= counted
    assert all(found.counts[name].quantised == found.counts[name].total for name in counted)


@pytest.mark.parametrize("goal", [ORT, OV])
@pytest.mark.parametrize(("cpu", "said"), [("any", False), ("avx2", False), ("vnni", True)])
def test_weights_that_overflow_are_said_only_of_files_for_vnni(goal: str, cpu: str, said: bool) -> None:
    assert set(rules(written("basic", goal, cpu=cpu))) == ({"weight-overflow"} if said else set())


def test_a_file_for_arm_has_no_errors_and_is_said_to_be_right_there() -> None:
    found = written("basic", ORT, cpu="arm")
    assert found.number("error") == 0
    # On x86 int8 that goes to both the block and the shortcut keeps the layers beside it in float.
    warned = {name: nodes for name, nodes in rules(found).items() if name != "weight-overflow"}
    assert warned == {
        "signed-activations": {"relu.quantized"},
        "signed-activations-converted": {
            "input.quantized", "relu1.quantized", "conv2.quantized", "relu2.quantized", "pool.quantized",
            "flat.quantized",
        },
        "conv-types": {"stem", "conv1"},
        "add-float": {"add"},
    }  # fmt: skip
    assert "ARM" in found.reasons["signed-activations"]
    assert "ARM" in found.reasons["signed-activations-converted"]


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime has no types
    def __init__(self) -> None:
        self._batches = iter([{"input": images(4, seed)} for seed in (1, 2)])

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


def static(build: str, folder: Path, **options: Any) -> onnx.ModelProto:
    """What ``onnxruntime.quantization`` makes of a network."""
    logging.getLogger().setLevel(logging.ERROR)  # it advises pre-processing
    network: Network = BUILDS[build]().network()
    onnx.save(network.model, folder / "float.onnx")
    given = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True, **options}
    quantize_static(folder / "float.onnx", folder / "static.onnx", _Reader(), **given)
    return read_quantised(folder / "static.onnx")


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Any:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def layers(model: onnx.ModelProto) -> set[str]:
    return {node.name for node in model.graph.node if node.op_type in LAYERS}


@pytest.mark.parametrize("build", BUILDS)
def test_a_static_file_with_scales_per_channel_is_right_for_onnxruntime(build: str, tmp_path: Path) -> None:
    found = report(static(build, tmp_path), ORT)
    assert found.clean
    assert rules(found) == {"weight-overflow": {"stem"}}
    assert all(count.quantised == count.total for count in found.counts.values())


@pytest.mark.parametrize("build", BUILDS)
def test_a_static_file_as_it_is_by_default_has_one_scale_for_all_channels(build: str, tmp_path: Path) -> None:
    model = static(build, tmp_path, per_channel=False)
    assert rules(report(model, ORT)) == {"weight-per-tensor": layers(model), "weight-overflow": {"stem"}}


@pytest.mark.parametrize("build", BUILDS)
def test_a_static_file_is_refused_by_tensorrt_for_its_types(build: str, tmp_path: Path) -> None:
    model = static(build, tmp_path)
    found = report(model, TRT)
    named = rules(found)
    assert named.pop("few-channels") <= layers(model)
    kinds = {kind: {node.name for node in model.graph.node if node.op_type == f"{kind}Linear"} for kind in
             ("Quantize", "Dequantize")}  # fmt: skip
    assert named == {
        "unsigned": kinds["Quantize"],
        "int32": {name for name in kinds["Dequantize"] if ".bias" in name},
        "add-quantised-twice": {"add"},
    }
    assert found.number("error") == len(named["unsigned"]) + len(named["int32"])


def test_the_advice_makes_a_static_file_that_tensorrt_takes(tmp_path: Path) -> None:
    advised = {"ActivationSymmetric": True, "QuantizeBias": False}
    model = static("basic", tmp_path, activation_type=QuantType.QInt8, extra_options=advised)
    found = report(model, TRT)
    assert found.number("error") == 0
    # With symmetric integers quantize_static leaves the Relu in, between two pairs.
    assert set(rules(found)) == {"add-quantised-twice", "before-relu", "few-channels"}


@pytest.mark.parametrize("goal", [TRT, ORT, OV])
@pytest.mark.parametrize("kind", ["basic", "bottleneck"])
def test_a_block_placed_for_one_target_is_clean_for_it_alone(goal: str, kind: str) -> None:
    clean = {other: report(residual(other, kind), goal).clean for other in (TRT, ORT, OV)}
    # OpenVINO takes what ONNX Runtime and TensorRT take.
    assert clean == {TRT: goal != ORT, ORT: goal != TRT, OV: goal == OV}


def test_lint_gives_the_findings_of_the_report_in_the_order_of_the_table() -> None:
    model = residual(ORT, "basic")
    found = report(model, TRT)
    assert lint(model, TRT) == found.findings
    assert list(dict.fromkeys(item.rule for item in found.findings)) == list(found.reasons)
    assert (found.number("error"), found.number("warning"), found.number("note")) == (9, 1, 0)


def test_layers_inside_functions_are_looked_into(tmp_path: Path) -> None:
    model = built(lambda g: g.pair("x", S8))
    nodes, opsets = list(model.graph.node), list(model.opset_import)
    # A function has no initializers.
    inner = [helper.make_node("Constant", [], [item.name], value=item) for item in model.graph.initializer]
    model.functions.append(helper.make_function("local", "Pair", ["x"], [nodes[-1].output[0]], inner + nodes, opsets))
    del model.graph.node[:], model.graph.initializer[:]
    model.graph.node.append(helper.make_node("Pair", ["x"], [nodes[-1].output[0]], domain="local"))
    model.opset_import.append(helper.make_opsetid("local", 1))
    onnx.save(model, tmp_path / "functions.onnx")
    assert report(read_quantised(tmp_path / "functions.onnx"), TRT).clean
    assert [item.rule for item in report(model, ORT).findings] == ["signed-activations-converted"]


def test_a_node_without_a_name_is_called_by_its_output() -> None:
    model = built(lambda g: g.pair("x", U8))
    for node in model.graph.node:
        node.name = ""
    assert [item.node for item in lint(model, TRT)] == ["quantizelinear0"]


def test_operators_that_are_integer_already_count_but_not_for_tensorrt() -> None:
    model = built(lambda g: g.dequantize(g.node("QLinearAdd", g.quantize("x"), domain="com.microsoft")))
    assert [report(model, goal).counts["Add"] for goal in (TRT, ORT, OV)] == [Count(0, 1), Count(1, 1), Count(1, 1)]


def cut(inputs: int, outputs: int, operator: str) -> onnx.ModelProto:
    """A file whose last node of one kind has only so many inputs and outputs."""
    model = built(lambda g: g.pair(g.node("Relu", g.conv(g.pair("x")))))
    last = [node for node in model.graph.node if node.op_type == operator][-1]
    del last.input[inputs:], last.output[outputs:]
    return model


@pytest.mark.parametrize(
    ("model", "goal", "message"),
    [
        (built(lambda g: g.pair("x")), "tpu", "target 'tpu' is not known: expected one of tensorrt, onnxruntime"),
        (built(lambda g: g.node("Relu", "x")), ORT, "the model is not quantised: expected QuantizeLinear"),
        (onnx.ModelProto(), ORT, "has no nodes"),
        (cut(1, 1, "QuantizeLinear"), TRT, "outputs of QuantizeLinear n6 are 1 and 1, expected 2 and 1 at least"),
        (cut(1, 1, "Conv"), ORT, "not valid ONNX: inputs and outputs of Conv n4 are 1 and 1"),
        (cut(0, 1, "Relu"), ORT, "not valid ONNX: inputs and outputs of Relu n5 are 0 and 1"),
        (cut(2, 0, "DequantizeLinear"), OV, "not valid ONNX: inputs and outputs of DequantizeLinear n7 are 2 and 0"),
    ],
    ids=["target", "float", "empty", "no scale", "no weights", "no input", "no output"],
)
def test_what_cannot_be_looked_at_is_refused(model: onnx.ModelProto, goal: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        lint(model, goal)
