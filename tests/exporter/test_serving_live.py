"""Repositories of ``resnet-export triton``, unchanged, on a real Triton server, and the runtime that asks it.

The server, its ensembles, dynamic batching, warm-ups and both protocols are Triton's own; see
:mod:`tests.exporter.triton_server` for what runs the ONNX files there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto

from calibration.preprocess import Preprocessing
from exporter.cli import main
from exporter.opening import prepare
from exporter.serving.config import ServingOptions
from exporter.serving.repository import RepositoryOptions, write_repository
from runtimes.batching import run_padded
from runtimes.errors import InputError
from runtimes.ort import OrtRuntime
from runtimes.remote import TritonRuntime
from tests.exporter.serving_models import CONTRACT, LABELS, network
from tests.exporter.triton_server import Place, package, running

pytestmark = pytest.mark.slow

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """ONNX files by the names that they have on the server."""
    folder = tmp_path_factory.mktemp("models")
    with pytest.raises(SystemExit) as caught:
        main([
            "onnx", str(DIGITS / "digits_resnet14.pth"), "-o", str(folder / "digits.onnx"), "-q",
            "--labels", str(DIGITS / "labels.txt"),
        ])  # fmt: skip
    assert caught.value.code == 0
    return {
        "digits": folder / "digits.onnx",
        "any": network(folder / "any.onnx", labels=LABELS),
        "fixed": network(folder / "fixed.onnx", batch=3),
        "half": network(folder / "half.onnx", elements=TensorProto.FLOAT16),
        "free": network(folder / "free.onnx", size=(None, None)),
    }


@pytest.fixture(scope="module")
def server(models, tmp_path_factory):
    pytest.importorskip("tritonclient.grpc", reason="tritonclient[http,grpc] is not installed")
    found = package()
    if found is None:
        pytest.skip("PYTRITON_PYTHON names no interpreter with nvidia-pytriton and onnxruntime")
    import onnxruntime

    if found.onnxruntime != onnxruntime.__version__:
        pytest.skip(
            f"the server has onnxruntime {found.onnxruntime}, and bits are compared with {onnxruntime.__version__}"
        )
    root = tmp_path_factory.mktemp("server")
    image = next((DIGITS / "images" / "test").rglob("*.png"))
    write_repository(
        [str(models["digits"])], root / "repository",
        RepositoryOptions(ServingOptions(max_batch=16, preferred=(4, 8), delay_us=100, instances=2), warmup=str(image)),
    )  # fmt: skip
    others = [f"{name}={path}" for name, path in models.items() if name != "digits"]
    write_repository(others, root / "repository", RepositoryOptions(ServingOptions(max_batch=4)))
    with running(found, root / "repository", root) as place:
        yield place


def url(place: Place, protocol: str, model: str) -> str:
    return f"{getattr(place, protocol)}/{model}"


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize(("name", "size"), [("any", (8, 6)), ("fixed", (8, 6)), ("half", (8, 6)), ("free", (5, 9))])
def test_a_server_gives_the_bits_of_onnx_runtime(server, models, protocol, name, size):
    images = np.random.default_rng(3).standard_normal((10, 3, *size), dtype=np.float32)
    with (
        OrtRuntime(models[name], cast_input=True) as local,
        TritonRuntime(url(server, protocol, name), cast_input=True) as remote,
    ):
        assert remote.used["max_batch_size"] == (0 if name == "fixed" else 4)
        assert remote.inputs == local.inputs
        assert remote.outputs == local.outputs
        # The server gets requests of 4 images at most: what is compared is the same pieces.
        expected = np.concatenate([run_padded(local, images[start : start + 4]) for start in range(0, 10, 4)])
        if name == "fixed":
            expected = run_padded(local, images)
        assert run_padded(remote, images).tobytes() == expected.tobytes()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_ensemble_of_pixels_gives_the_bits_of_the_contract_and_onnx_runtime(server, models, protocol):
    pixels = np.random.default_rng(4).integers(0, 256, (4, 8, 6, 3), np.uint8)
    tensors = np.stack([CONTRACT.apply_pixels(each) for each in pixels])
    with OrtRuntime(models["any"]) as local, TritonRuntime(url(server, protocol, "any_ensemble")) as remote:
        assert remote.used["platform"] == "ensemble"
        assert remote.run(pixels).tobytes() == local.run(tensors).tobytes()


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_what_the_repository_says_of_a_model_is_read_back(server, models, protocol):
    opening, local = prepare(f"triton:{url(server, protocol, 'digits')}"), prepare(str(models["digits"]))
    assert isinstance(opening.preprocessing, Preprocessing)
    for name in ("preprocessing", "labels", "precision", "sha256"):
        assert getattr(opening, name) == getattr(local, name)
    used = opening.runtime.used
    assert (used["server"], used["platform"], used["version"]) == ("triton", "onnxruntime_onnx", "1")
    assert used["server_version"].count(".") == 2
    assert prepare(f"{url(server, protocol, 'digits')}@model={models['digits']}").onnx == models["digits"]
    with pytest.raises(InputError, match="is made from the ONNX file"):
        prepare(f"triton:{url(server, protocol, 'digits')}@model={models['any']}")
    with pytest.raises(InputError, match="give the model behind it, digits"):
        prepare(f"triton:{url(server, protocol, 'digits_ensemble')}")


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_a_model_that_the_server_does_not_have_is_told_with_those_that_it_has(server, protocol):
    with pytest.raises(InputError, match=r"has no model 'r20' that is ready: it has any, any_ensemble, "):
        TritonRuntime(url(server, protocol, "r20")).__enter__()


def test_labels_answer_the_classification_extension(server):
    from tritonclient import http

    client = http.InferenceServerClient(server.http.removeprefix("http://"))
    tensor = http.InferInput("input", [1, 3, 8, 6], "FP32")
    tensor.set_data_from_numpy(np.ones((1, 3, 8, 6), np.float32))
    found = client.infer("any", [tensor], outputs=[http.InferRequestedOutput("logits", class_count=4)])
    names = {entry.decode().split(":")[2] for entry in found.as_numpy("logits").ravel()}
    assert names == {" ".join(label.split()) for label in LABELS}
    client.close()


def test_parity_and_bench_take_a_server_as_they_take_a_file(server, models, tmp_path, capfd):
    remote = [f"triton:{url(server, protocol, 'digits')}" for protocol in ("http", "grpc")]
    data = tmp_path / "images"
    shutil.copytree(DIGITS / "images" / "test", data)
    with pytest.raises(SystemExit) as caught:
        main([
            "parity", f"onnxruntime:{models['digits']}", *remote, "--data", str(data), "--images", "64",
            "--batch", "16", "--json",
        ])  # fmt: skip
    assert caught.value.code == 0
    document = json.loads(capfd.readouterr().out)
    assert [(row["runtime"], row["sqnr_db"], row["max_abs"], row["passed"]) for row in document["results"]] == [
        ("triton", 300.0, 0.0, True),
    ] * 2
    assert {row["used"]["protocol"] for row in document["results"]} == {"http", "grpc"}
    with pytest.raises(SystemExit) as caught:
        main(["bench", str(models["digits"]), *remote, "--batch", "1", "--batch", "20", "--rounds", "2", "--json"])
    assert caught.value.code == 0
    document = json.loads(capfd.readouterr().out)
    assert not document["failures"]
    assert len(document["results"]) == 6
    assert all(row["p50_ms"] > 0 and row["cold_start_ms"] > 0 for row in document["results"])
