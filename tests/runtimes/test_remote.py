"""Error paths against a server that misbehaves; the numbers are held in tests/exporter/test_serving_live.py."""

from __future__ import annotations

import json
import pickle
import socket

import numpy as np
import pytest

from runtimes.errors import GraphError, InputError, ResnetExportError, TensorError, UnavailableError
from runtimes.remote import TritonRuntime
from tests.runtimes.fake_server import INPUT, OUTPUT, Script, answer, serving
from tests.runtimes.models import images

pytest.importorskip("tritonclient.http", reason="tritonclient[http,grpc] is not installed")


def refusal(script: Script, kind: type[ResnetExportError], count: int = 2, **options) -> str:
    """The error of opening, or of running a batch."""
    with serving(script) as url, pytest.raises(kind) as caught, TritonRuntime(url, **options) as runtime:
        runtime.run(images(count))
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_server_without_configurations_is_enough():
    with serving(Script()) as url, TritonRuntime(url) as runtime:
        assert runtime.run(images(3)).shape == (3, 5)
        assert runtime.inputs[0].shape == (None, 3, 4, 4)
        assert runtime.told == {}
        assert runtime.used == {
            "server": "fake", "server_version": "0.1", "protocol": "http", "model": "net", "version": "1",
            "platform": "fake", "max_batch_size": 0,
        }  # fmt: skip


def test_a_batch_beyond_the_servers_is_cut():
    script = Script(config={"max_batch_size": 4})
    with serving(script) as url, TritonRuntime(url) as runtime:
        assert runtime.run(images(10)).shape == (10, 5)
    assert script.batches == [4, 4, 2]


def test_one_version_is_kept_from_the_opening_on():
    script = Script()
    script.metadata["versions"] = ["2", "10", "9"]
    with serving(script) as url, TritonRuntime(url) as runtime:
        assert runtime.used["version"] == "10"
        script.metadata["versions"] = ["11"]
        runtime.run(images(1))
    assert script.versions == ["/versions/10"]


def test_versions_that_are_no_numbers_are_left_to_the_server():
    script = Script()
    script.metadata["versions"] = ["blue"]
    with serving(script) as url, TritonRuntime(url) as runtime:
        runtime.run(images(1))
    assert script.versions == [""]


def test_parameters_are_read_back():
    told = {"resnet_export.precision": {"string_value": '"int8"'}, "other": {"string_value": "{"}}
    with serving(Script(config={"parameters": told})) as url, TritonRuntime(url) as runtime:
        assert runtime.told == {"precision": "int8"}
    broken = {"resnet_export.precision": {"string_value": "int8"}}
    assert "has damaged parameters" in refusal(Script(config={"parameters": broken}), GraphError)


def test_half_precision_is_rounded_on_the_way_in():
    script = Script()
    script.metadata["inputs"] = [INPUT | {"datatype": "FP16"}]
    with serving(script) as url, TritonRuntime(url, cast_input=True) as runtime:
        assert runtime.run(images(2)).shape == (2, 5)
    with serving(script) as url, TritonRuntime(url) as runtime, pytest.raises(TensorError, match="expected float16"):
        runtime.run(images(2))


def test_a_runtime_that_was_closed_goes_to_another_process():
    with serving(Script()) as url:
        runtime = TritonRuntime(url)
        with runtime:
            pass
        with pickle.loads(pickle.dumps(runtime)) as copy:
            assert copy.run(images(1)).shape == (1, 5)


def test_a_server_that_is_not_there_is_told_with_its_url():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody else gets the port
        place = f"127.0.0.1:{taken.getsockname()[1]}"
        for protocol in ("http", "grpc"):
            with pytest.raises(UnavailableError) as caught, TritonRuntime(f"{protocol}://{place}/net", timeout=5.0):
                pass
            assert f"{protocol}://{place} cannot be reached" in str(caught.value)
            assert "Triton listens on 8000 for http and 8001 for grpc" in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_server_that_says_nothing_is_given_up(protocol):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"{protocol}://127.0.0.1:{silent.getsockname()[1]}/net"
        with pytest.raises(UnavailableError, match=r"(gave no answer within 0.3 s|cannot be reached)"):
            TritonRuntime(url, timeout=0.3).__enter__()


def test_an_answer_that_comes_too_late_is_given_up():
    told = refusal(Script(delay=2.0), UnavailableError, timeout=0.3)
    assert "gave no answer within 0.3 s: give @timeout=SECONDS" in told


def test_a_model_that_is_not_there_is_told_with_those_that_are():
    script = Script(ready=False, index=[{"name": "r50"}, {"name": "r20"}, {"name": "r20"}])
    assert refusal(script, InputError).endswith("has no model 'net' that is ready: it has r20, r50")
    assert refusal(Script(ready=False, index=[]), InputError).endswith("does not tell which it has")


def test_a_model_that_is_not_ready_is_told_with_the_servers_reason():
    index = [{"name": "net", "version": "1", "state": "UNAVAILABLE", "reason": "no such file\nmore"}]
    told = refusal(Script(ready=False, index=index), UnavailableError)
    assert "is not ready: no such file: see the server's log" in told


def test_what_is_no_server_of_the_protocol_is_refused():
    for said in (None, b"<html>", b'"hello"'):
        assert "does not speak the Open Inference Protocol" in refusal(Script(server=said), GraphError)


def test_a_server_that_fails_is_told_with_its_reason():
    assert "failed on [2, 3, 4, 4]: out of cheese" in refusal(
        Script(infer=lambda n: (500, b'{"error": "out of cheese"}')), GraphError
    )
    assert "failed on [2, 3, 4, 4]" in refusal(Script(infer=lambda n: (400, b"<html>no</html>")), GraphError)
    assert "cannot be reached (busy)" in refusal(Script(infer=lambda n: (503, b'{"error": "busy"}')), UnavailableError)
    script = Script()
    del script.metadata["versions"], script.metadata["outputs"]
    assert "has 0 outputs" in refusal(script, GraphError)


def test_a_connection_that_is_closed_is_told():
    assert "127.0.0.1" in refusal(Script(infer=lambda n: None), UnavailableError)


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (answer(np.zeros((1, 5))), TensorError, "one row for each image"),
        (answer(np.zeros((2, 4))), TensorError, "expected float32"),
        (answer(np.zeros((2, 5)), datatype="FP64"), TensorError, "received float64"),
        (answer(np.zeros((2, 5)), name="other"), GraphError, "answered without the output 'logits'"),
        ((200, b"not json"), GraphError, "failed on"),
        ((200, b"{}"), GraphError, ""),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(reply, kind, message):
    assert message in refusal(Script(infer=lambda n: reply), kind)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ([INPUT, INPUT], "has 2 inputs"),
        ([], "has 0 inputs"),
        ([INPUT | {"datatype": "BYTES"}], "is BYTES"),
        ([INPUT | {"datatype": "BF16"}], "is BF16, expected one of float16"),
    ],
)
def test_a_model_with_other_inputs_is_refused(inputs, message):
    script = Script()
    script.metadata["inputs"] = inputs
    assert message in refusal(script, GraphError)


def test_a_model_with_integer_logits_is_refused():
    script = Script()
    script.metadata["outputs"] = [OUTPUT | {"datatype": "INT64"}]
    assert "output 'logits' is int64, expected one of float32, float16" in refusal(script, GraphError)


def test_a_model_made_from_another_file_is_refused():
    told = {"resnet_export.source_sha256": {"string_value": json.dumps("a" * 64)}}
    message = refusal(Script(config={"parameters": told}), InputError, source_sha256="b" * 64)
    assert "is made from the ONNX file aaaaaaaaaaaa…, and option model names bbbbbbbbbbbb…" in message
    with serving(Script(config={"parameters": told})) as url, TritonRuntime(url, source_sha256="a" * 64):
        pass
