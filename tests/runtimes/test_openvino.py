from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import GraphError, InputError, TensorError, UnavailableError
from runtimes.openvino import OpenVinoRuntime
from runtimes.ort import OrtRuntime
from runtimes.statistics import compare
from tests.runtimes.models import images, linear, model, onnx_linear, weights

openvino = pytest.importorskip("openvino")


def refusal(source, **options) -> GraphError:
    """The GraphError that opening ``source`` ends with: one line, with its cause."""
    with pytest.raises(GraphError) as caught, OpenVinoRuntime(source, **options):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


def value(name: str, shape: list[str | int], elements: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elements, shape)


def convolutional(batch: str | int = "N", quantised: bool = False) -> onnx.ModelProto:
    """Two convolutions, whose sums are long enough to tell float32 from BF16."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 3, 3, 3), (16, 16, 3, 3)))
    nodes: list[onnx.NodeProto] = []
    stored = []

    def linked(name: str, data: str, kernel: np.ndarray) -> str:
        weight = f"{name}_w"
        if quantised:
            scale = np.float32(np.abs(kernel).max() / 127)
            stored.extend(
                [
                    numpy_helper.from_array(np.round(kernel / scale).astype(np.int8), f"{name}_q"),
                    numpy_helper.from_array(scale, f"{name}_s"),
                    numpy_helper.from_array(np.float32(0.1), f"{name}_x"),
                    numpy_helper.from_array(np.int8(0), f"{name}_z"),
                ]
            )
            nodes.extend(
                [
                    helper.make_node("DequantizeLinear", [f"{name}_q", f"{name}_s", f"{name}_z"], [weight]),
                    helper.make_node("QuantizeLinear", [data, f"{name}_x", f"{name}_z"], [f"{name}_i"]),
                    helper.make_node("DequantizeLinear", [f"{name}_i", f"{name}_x", f"{name}_z"], [f"{name}_d"]),
                ]
            )
            data = f"{name}_d"
        else:
            stored.append(numpy_helper.from_array(kernel, weight))
        nodes.append(helper.make_node("Conv", [data, weight], [name], pads=[1] * 4))
        return name

    last = linked("c2", linked("c1", "input", first), second)
    nodes += [helper.make_node("GlobalAveragePool", [last], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    return model(nodes, [value("input", [batch, 3, 8, 8])], [value("logits", [batch, 16])], stored)


def pictures(count: int = 3) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((count, 3, 8, 8)).astype(np.float32)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(onnx_linear(weights()), file)
    return file


def test_it_computes_what_the_model_says(path):
    with OpenVinoRuntime(path) as runtime:
        output = runtime.run(images())
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, linear(weights())(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["path", "string", "bytes"])
def test_a_path_a_string_and_bytes_are_the_same_model(path, form):
    source = {"path": path, "string": str(path), "bytes": path.read_bytes()}[form]
    with OpenVinoRuntime(source) as runtime, OpenVinoRuntime(path) as other:
        np.testing.assert_array_equal(runtime.run(images()), other.run(images()))


def test_a_float32_model_is_computed_in_float32_also_where_the_cpu_has_bf16():
    source = convolutional().SerializeToString()
    with OrtRuntime(source) as reference, OpenVinoRuntime(source) as runtime:
        assert compare(reference.run(pictures()), runtime.run(pictures())).sqnr_db > 110
        assert runtime.used["precision"] == "f32"
        assert runtime.used["execution_mode"] == "ACCURACY"
        assert runtime.used["kernels"] == {"f32": 2}


def test_bf16_is_used_when_it_is_asked_for():
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has no BF16")
    source = convolutional().SerializeToString()
    with OrtRuntime(source) as reference, OpenVinoRuntime(source, precision="bf16") as runtime:
        assert 30 < compare(reference.run(pictures()), runtime.run(pictures())).sqnr_db < 80
        assert runtime.used["precision"] == "bf16"
        assert "bf16" in runtime.used["kernels"]


def test_another_precision_than_the_one_asked_for_is_refused():
    if "FP16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this CPU has FP16")
    source = convolutional().SerializeToString()
    with (
        pytest.raises(UnavailableError, match=r"f16 was asked for, and CPU would compute in (f32|bf16) here"),
        OpenVinoRuntime(source, precision="f16"),
    ):
        pass


def test_a_quantised_file_runs_in_integer_kernels():
    source = convolutional(quantised=True).SerializeToString()
    with OrtRuntime(source, optimize=False) as reference, OpenVinoRuntime(source) as runtime:
        assert compare(reference.run(pictures()), runtime.run(pictures())).sqnr_db > 30
        assert set(runtime.used["kernels"]) <= {"i8", "u8"}


def test_what_it_really_uses_is_read_back(path):
    with OpenVinoRuntime(path, threads=1) as runtime:
        used = runtime.used
    assert used["openvino"] == openvino.get_version()
    assert (used["device"], used["threads"], used["streams"]) == ("CPU", 1, 1)
    assert used["performance_mode"] == "LATENCY"


def test_any_batch_is_taken_where_the_file_leaves_it_free():
    with OpenVinoRuntime(convolutional().SerializeToString()) as runtime:
        assert runtime.inputs[0].shape == (None, 3, 8, 8)
        whole = runtime.run(pictures(5))
        for index in (0, 4):
            one = runtime.run(pictures(5)[index : index + 1])
            np.testing.assert_allclose(one[0], whole[index], rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_held():
    with OpenVinoRuntime(convolutional(batch=2).SerializeToString()) as runtime:
        assert runtime.inputs[0].shape == (2, 3, 8, 8)
        assert runtime.run(pictures(2)).shape == (2, 16)
        with pytest.raises(TensorError, match=r"received float32 \[3, 3, 8, 8\], expected float32 \[2, 3, 8, 8\]"):
            runtime.run(pictures(3))


def test_the_images_are_not_written_to_and_the_result_is_the_callers(path):
    batch = images()
    batch.flags.writeable = False
    with OpenVinoRuntime(path) as runtime:
        first = runtime.run(batch)
        kept = first.copy()
        runtime.run(np.asarray(batch[::-1] * 2))
    np.testing.assert_array_equal(first, kept)
    np.testing.assert_array_equal(batch, images())


@pytest.mark.parametrize("cast", [False, True])
def test_a_float16_model_takes_float16_or_rounds_the_input_itself(cast):
    source = onnx_linear(weights(), elements=TensorProto.FLOAT16).SerializeToString()
    with OpenVinoRuntime(source, cast_input=cast) as runtime:
        assert runtime.inputs[0].dtype == ("float32" if cast else "float16")
        output = runtime.run(images().astype(runtime.inputs[0].dtype))
        with pytest.raises(TensorError):
            runtime.run(images().astype(np.float16 if cast else np.float32))
    np.testing.assert_allclose(output, linear(weights())(images()), atol=1e-2)


def test_nan_stays_nan(path):
    batch = images()
    batch[2] = np.nan
    with OpenVinoRuntime(path) as runtime:
        output = runtime.run(batch)
    assert np.isnan(output[2]).all()
    assert np.isfinite(np.delete(output, 2, axis=0)).all()


def test_closing_releases_the_request_and_opening_again_works(path):
    runtime = OpenVinoRuntime(path)
    with runtime:
        first = runtime.run(images())
    assert runtime._request is None
    with runtime:
        np.testing.assert_array_equal(runtime.run(images()), first)


@pytest.mark.parametrize("content", [b"", b"this is text, not a model\n" * 20], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused_by_its_path(tmp_path, content, capfd):
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    error = refusal(file)
    assert str(file) in str(error)
    assert "src/" not in str(error)
    assert capfd.readouterr().err == ""


def test_a_truncated_file_a_missing_one_and_a_folder_are_refused(path, tmp_path):
    path.write_bytes(path.read_bytes()[:60])
    assert str(path) in str(refusal(path))
    assert "absent.onnx" in str(refusal(tmp_path / "absent.onnx"))
    assert str(tmp_path) in str(refusal(tmp_path))


def test_an_operator_that_it_does_not_know_is_refused_by_its_name():
    broken = onnx_linear(weights())
    broken.graph.node[0].op_type = "GlobalMagicPool"
    assert "GlobalMagicPool" in str(refusal(broken.SerializeToString()))


def test_a_failure_while_running_is_translated():
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["logits"])]
    shape = numpy_helper.from_array(np.array([1, 5], np.int64), "shape")
    source = model(nodes, [value("input", ["N", 3, "H", "W"])], [value("logits", ["M", "K"])], [shape])
    with (
        OpenVinoRuntime(source.SerializeToString(), name="reshaper") as runtime,
        pytest.raises(GraphError, match=r"reshaper: .* failed on \[2, 3, 4, 4\]: ") as caught,
    ):
        runtime.run(images(2))
    assert "\n" not in str(caught.value)


def test_more_than_one_input_or_output_is_refused():
    two = [helper.make_node("Add", ["a", "b"], ["sum"])]
    source = model(two, [value("a", ["N", 4]), value("b", ["N", 4])], [value("sum", ["N", 4])])
    with pytest.raises(GraphError, match=r"has 2 inputs \(a, b\), expected exactly one"):
        OpenVinoRuntime(source.SerializeToString()).__enter__()
    pair = [helper.make_node("Relu", ["a"], ["x"]), helper.make_node("Neg", ["a"], ["y"])]
    source = model(pair, [value("a", ["N", 4])], [value("x", ["N", 4]), value("y", ["N", 4])])
    with pytest.raises(GraphError, match=r"has 2 outputs \(x, y\), expected exactly one"):
        OpenVinoRuntime(source.SerializeToString()).__enter__()


def test_an_integer_output_is_refused():
    nodes = [helper.make_node("ArgMax", ["input"], ["class"], axis=1, keepdims=0)]
    source = model(nodes, [value("input", ["N", 4])], [value("class", ["N"], TensorProto.INT64)])
    with pytest.raises(GraphError, match="output 'class' is int64, expected one of float32, float16"):
        OpenVinoRuntime(source.SerializeToString()).__enter__()


def test_a_device_that_is_not_there_is_the_machines_fault(path):
    with pytest.raises(UnavailableError, match=r"there is no device NPU9: OpenVINO finds .*CPU"):
        OpenVinoRuntime(path, device="NPU9").__enter__()


@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"streams": 0}, {"precision": "int4"}, {"threads": 2, "device": "GPU"}]
)
def test_options_that_mean_nothing_are_wrong_usage(options):
    with pytest.raises(InputError):
        OpenVinoRuntime("model.onnx", **options)


def test_ctrl_c_is_heard_after_runtimes_were_closed_in_any_order(path):
    code = f"""
import os, signal
from runtimes.openvino import OpenVinoRuntime
first, second = OpenVinoRuntime({str(path)!r}), OpenVinoRuntime({str(path)!r})
first.__enter__(), second.__enter__()
first.__exit__(None, None, None), second.__exit__(None, None, None)
kept = []
for absent in ("a.onnx", "b.onnx"):
    try:
        OpenVinoRuntime(absent).__enter__()
    except Exception as error:
        kept.append(error)
kept.pop(0), kept.pop(0)
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    print("heard")
"""
    # With a stack for signals before OpenVINO comes, as under pytest, so that there is one to go back to.
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", code], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_a_missing_package_names_the_pip_line(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UnavailableError, match=r"pip install 'resnet-export\[openvino\]'"):
        OpenVinoRuntime(path).__enter__()
