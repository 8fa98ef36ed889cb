from __future__ import annotations

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes.errors import GraphError, InputError, TensorError, UnavailableError
from runtimes.ort import OrtRuntime
from tests.runtimes.models import CHANNELS, CLASSES, images, linear, model, onnx_linear, weights


def refusal(source, **options) -> GraphError:
    """The GraphError that opening ``source`` ends with: one line, with its cause."""
    with pytest.raises(GraphError) as caught, OrtRuntime(source, **options):
        pass
    assert "\n" not in str(caught.value)
    return caught.value


def value(name: str, shape: list[str | int], elements: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, elements, shape)


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(onnx_linear(weights()), file)
    return file


def test_it_computes_what_the_model_says(path):
    with OrtRuntime(path) as runtime:
        output = runtime.run(images())
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, linear(weights())(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("form", ["path", "string", "bytes"])
def test_a_path_a_string_and_bytes_are_the_same_model(path, form):
    source = {"path": path, "string": str(path), "bytes": path.read_bytes()}[form]
    with OrtRuntime(source) as runtime, OrtRuntime(path) as other:
        np.testing.assert_array_equal(runtime.run(images()), other.run(images()))


def test_symbolic_sizes_are_any_and_fixed_sizes_are_held(path):
    with OrtRuntime(path) as runtime:
        assert runtime.inputs[0].shape == (None, CHANNELS, 4, 4)
        assert runtime.outputs[0].shape == (None, CLASSES)
        with pytest.raises(TensorError, match=r"'input': received float32 \[2, 3, 5, 4\]"):
            runtime.run(np.zeros((2, CHANNELS, 5, 4), np.float32))


def test_a_float16_model_takes_float16_and_gives_float32():
    source = onnx_linear(weights(), elements=TensorProto.FLOAT16).SerializeToString()
    with OrtRuntime(source) as runtime:
        assert (runtime.inputs[0].dtype, runtime.outputs[0].dtype) == ("float16", "float16")
        output = runtime.run(images().astype(np.float16))
        with pytest.raises(TensorError, match="received float32"):
            runtime.run(images())
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, linear(weights())(images()), atol=1e-2)


def test_what_it_really_uses_is_read_back(path):
    with OrtRuntime(path, threads=1, optimize=False) as runtime:
        used = runtime.used
    assert used == {
        "onnxruntime": onnxruntime.__version__,
        "providers": ["CPUExecutionProvider"],
        "threads": 1,
        "optimize": False,
    }


def test_closing_releases_the_session_and_opening_again_works(path):
    runtime = OrtRuntime(path)
    with runtime:
        first = runtime.run(images())
    assert runtime._session is None
    with runtime:
        np.testing.assert_array_equal(runtime.run(images()), first)


@pytest.mark.parametrize("content", [b"", b"this is text, not a model\n" * 20], ids=["empty", "text"])
def test_a_file_that_is_no_model_is_refused_by_its_path(tmp_path, content, capfd):
    file = tmp_path / "broken.onnx"
    file.write_bytes(content)
    error = refusal(file)
    assert str(file) in str(error)
    assert error.__cause__ is not None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_truncated_file_is_refused(path, part):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * part)])
    assert str(path) in str(refusal(path))


def test_a_missing_file_is_refused(tmp_path):
    assert "cannot be loaded: " in str(refusal(tmp_path / "absent.onnx"))


def test_a_folder_is_refused(tmp_path):
    assert str(tmp_path) in str(refusal(tmp_path))


def test_broken_bytes_are_refused_by_their_length():
    assert "the model in memory (5 bytes) cannot be loaded" in str(refusal(b"hello"))


def test_an_opset_of_the_future_is_refused_without_a_cpp_signature():
    message = str(refusal(onnx_linear(weights(), opset=99).SerializeToString()))
    assert "pset 99" in message
    assert "::" not in message
    assert "[ONNXRuntimeError]" not in message


def test_an_operator_without_a_kernel_is_refused_by_its_name():
    broken = onnx_linear(weights())
    broken.graph.node[0].op_type = "GlobalMagicPool"
    assert "GlobalMagicPool" in str(refusal(broken.SerializeToString()))


def test_missing_external_data_is_refused(tmp_path):
    file = tmp_path / "model.onnx"
    onnx.save(onnx_linear(weights()), file, save_as_external_data=True, location="weights.bin", size_threshold=0)
    with OrtRuntime(file) as runtime:
        runtime.run(images())
    (tmp_path / "weights.bin").unlink()
    message = str(refusal(file))
    assert str(file) in message
    assert "weights.bin" in message


def test_a_failure_while_running_is_translated_and_keeps_stderr_silent(capfd):
    nodes = [helper.make_node("Reshape", ["input", "shape"], ["logits"])]
    shape = numpy_helper.from_array(np.array([1, 5], np.int64), "shape")
    source = model(nodes, [value("input", ["N", 3, "H", "W"])], [value("logits", ["M", "K"])], [shape])
    with (
        OrtRuntime(source.SerializeToString(), name="reshaper") as runtime,
        pytest.raises(GraphError, match=r"reshaper: .* failed on \[2, 3, 4, 4\]: ") as caught,
    ):
        runtime.run(images(2))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


def test_a_model_that_folds_the_batch_away_is_refused():
    nodes = [helper.make_node("ReduceMean", ["input"], ["logits"], axes=[0, 2])]
    source = model(nodes, [value("input", ["N", 3, "H", "W"])], [value("logits", ["M", "K", "L", "J"])])
    with OrtRuntime(source.SerializeToString()) as runtime, pytest.raises(TensorError, match="one row for each image"):
        runtime.run(images(2))


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        (["a", "b"], ["sum"], r"has 2 inputs \(a, b\), expected exactly one"),
        (["a"], ["sum", "copy"], r"has 2 outputs \(sum, copy\), expected exactly one"),
    ],
)
def test_more_than_one_input_or_output_is_refused(inputs, outputs, message):
    nodes = [
        helper.make_node("Add", [inputs[0], inputs[-1]], ["sum"]),
        helper.make_node("Identity", [inputs[0]], ["copy"]),
    ]
    source = model(nodes, [value(name, ["N", 4]) for name in inputs], [value(name, ["N", 4]) for name in outputs])
    with pytest.raises(GraphError, match=message), OrtRuntime(source.SerializeToString()):
        pass


def test_an_integer_output_is_refused():
    nodes = [helper.make_node("ArgMax", ["input"], ["class"], axis=1, keepdims=0)]
    source = model(nodes, [value("input", ["N", 4])], [value("class", ["N"], TensorProto.INT64)])
    message = str(refusal(source.SerializeToString()))
    assert "output 'class' is tensor(int64), expected one of float32, float16" in message


def test_an_unavailable_provider_is_refused_and_the_available_ones_are_named(path, recwarn):
    with (
        pytest.raises(UnavailableError, match=r"ImaginaryExecutionProvider is not available.*CPUExecutionProvider"),
        OrtRuntime(path, providers=["ImaginaryExecutionProvider", "CPUExecutionProvider"]),
    ):
        pass
    assert not recwarn.list


def test_a_provider_that_is_dropped_while_loading_is_not_replaced_silently(path, monkeypatch):
    real = onnxruntime.InferenceSession
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    # What a build with CUDA does on a machine without a driver.
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda source, options, **_: real(source, options, providers=["CPUExecutionProvider"]),
    )
    runtime = OrtRuntime(path, providers=["CUDAExecutionProvider"])
    with pytest.raises(UnavailableError, match="CUDAExecutionProvider is not available: the session started with CPU"):
        runtime.__enter__()
    assert runtime._session is None


@pytest.mark.parametrize("options", [{"threads": 0}, {"providers": []}, {"providers": "CPUExecutionProvider"}])
def test_options_that_mean_nothing_are_wrong_usage(options):
    with pytest.raises(InputError):
        OrtRuntime("model.onnx", **options)


def test_a_missing_package_names_the_pip_line(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UnavailableError, match="pip install 'onnxruntime'"), OrtRuntime(path):
        pass
