"""Ray on this machine, several processes of it: the results of one process, whatever becomes of the others."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("ray", reason="Ray is not installed: pip install 'resnet-export[ray]'")

from calibration.calibrate import Calibration, calibrate
from calibration.cluster import Cluster, connected, other_processors, over_shards
from calibration.cluster_worker import processor
from calibration.distributed import calibrate_on
from calibration.graph import Network
from calibration.images import BadFile, ImageFile, find_images
from calibration.preprocess import Preprocessing
from calibration.shards import shards
from exporter.evaluate import EvaluateOptions, EvaluateReport, evaluate_models
from exporter.evaluate_distributed import evaluate_on
from exporter.opening import prepare
from exporter.quantisation_inputs import contract_of, open_model
from runtimes.errors import DataError, InputError, UnavailableError
from tests.exporter.clusters import busy_workers, digits_onnx, mended

_DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
_CHECKPOINT = f"eager:{_DIGITS / 'digits_resnet14.pth'}"


@dataclass(frozen=True)
class Given:
    """The embedded example."""

    path: Path
    network: Network
    contract: Preprocessing
    files: list[ImageFile]


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Given:
    path = digits_onnx(tmp_path_factory.mktemp("model") / "digits.onnx")
    network, metadata = open_model(path)
    files = find_images(_DIGITS / "images" / "calibration")
    return Given(path, network, contract_of(network, metadata, None, {}), files)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected("local", 2) as found:
        yield found


@pytest.fixture(scope="module")
def alone(digits: Given) -> Calibration:
    return calibrate(digits.network, digits.files, digits.contract, workers=0)


# --- calibration ----------------------------------------------------------------------------------------------


def on(cluster: Cluster, given: Given, files: list[ImageFile] | None = None, **options: Any) -> Calibration:
    return calibrate_on(cluster, given.network, files or given.files, given.contract, **options)


@pytest.mark.parametrize("ship", [False, True])
def test_ranges_are_those_of_one_process_byte_for_byte(
    cluster: Cluster, digits: Given, alone: Calibration, ship: bool
) -> None:
    heard: list[int] = []
    found = on(cluster, digits, ship=ship, progress=heard.append)
    assert found.ranges.dumps() == alone.ranges.dumps()
    assert (found.files, found.warnings, found.bad) == (alone.files, alone.warnings, alone.bad)
    assert heard == sorted(heard)
    assert (heard[0], heard[-1]) == (0, len(digits.files))
    assert found.seconds > 0


def test_a_killed_worker_changes_nothing(cluster: Cluster, digits: Given) -> None:
    files = digits.files * 4
    killed: list[int] = []

    def kill_one(done: int) -> None:
        busy = busy_workers()
        if done and not killed and busy:
            killed.append(busy[0])
            os.kill(busy[0], signal.SIGKILL)

    found = on(cluster, digits, files, progress=kill_one)
    assert killed, "no worker was busy: the test has shown nothing"
    assert found.ranges.dumps() == calibrate(digits.network, files, digits.contract, workers=0).ranges.dumps()


def test_bad_images_are_skipped_as_in_one_process(cluster: Cluster, digits: Given, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    files = [*digits.files[:70], ImageFile(broken), *digits.files[70:150], ImageFile(tmp_path / "missing.png")]
    here = calibrate(digits.network, files, digits.contract, workers=0, max_bad=0.1)
    there = on(cluster, digits, files, max_bad=0.1)
    assert there.ranges.dumps() == here.ranges.dumps()
    assert there.bad == here.bad
    assert [file.path for file in there.bad] == [broken, tmp_path / "missing.png"]
    with pytest.raises(DataError, match=r"1 or more of 152 images cannot be used.*broken\.png"):
        on(cluster, digits, files, max_bad=0.0)


def test_an_error_of_a_worker_is_the_error_of_one_process(cluster: Cluster, digits: Given) -> None:
    contract = replace(digits.contract, scale=1e36)  # the activations overflow
    with pytest.raises(DataError) as here:
        calibrate(digits.network, digits.files, contract, workers=0)
    with pytest.raises(DataError) as there:
        calibrate_on(cluster, digits.network, digits.files, contract)
    assert str(there.value) == str(here.value)


# --- evaluation -----------------------------------------------------------------------------------------------


def both(cluster: Cluster, given: Given, listing: list[ImageFile], **options: Any) -> list[dict[str, Any]]:
    """The documents of one process and of the cluster, without what may differ."""
    models = [prepare(f"onnxruntime:{given.path}"), prepare(f"{_CHECKPOINT}@threads=1")]
    settings, found = EvaluateOptions(**options), list[EvaluateReport]()
    bad: list[list[BadFile]] = [[], []]
    subjects = [model.subject() for model in models]
    found.append(evaluate_models(subjects, listing, given.contract, settings, path="x", on_bad=bad[0].append))
    for ship in (False, True):
        bad[1].clear()
        found.append(
            evaluate_on(cluster, models, listing, given.contract, settings, path="x", ship=ship, on_bad=bad[1].append)
        )
        assert bad[0] == bad[1]
    return [mended(each.to_json()) for each in found]


def test_an_evaluation_is_that_of_one_process(cluster: Cluster, digits: Given, tmp_path: Path) -> None:
    listing = find_images(_DIGITS / "images" / "test")
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    listing[40] = replace(listing[40], path=broken)
    alone, shared, shipped = both(cluster, digits, listing, batch=16, max_bad=0.01, max_drop=0.0)
    assert alone["data"]["images"] == len(listing) - 1
    assert shared == alone
    assert shipped == alone


def test_a_sample_is_that_of_one_process(cluster: Cluster, digits: Given) -> None:
    alone, *others = both(cluster, digits, find_images(_DIGITS / "images" / "test"), images=50, seed=3, batch=7)
    assert alone["data"]["images"] == 50
    assert others == [alone, alone]


def test_workers_have_one_thread_each_where_nothing_else_is_said(cluster: Cluster, digits: Given) -> None:
    listing = find_images(_DIGITS / "images" / "test")[::10]
    model = prepare(f"onnxruntime:{digits.path}")
    (row,) = evaluate_on(cluster, [model], listing, digits.contract, path="x").results
    assert row["used"]["threads"] == 1
    assert row["label"] == f"onnxruntime:{digits.path}"


def test_a_network_by_name_is_made_by_each_worker(cluster: Cluster, digits: Given) -> None:
    listing = find_images(_DIGITS / "images" / "test")[::10]
    channels, size = digits.contract.channels, digits.contract.size
    assert size is not None
    options = f"weights=random,num_classes=10,in_channels={channels},input_size={size[0]}x{size[1]},seed=4"
    model = prepare(f"eager:resnet20@{options}")
    (there,) = evaluate_on(cluster, [model], listing, digits.contract, path="x").results
    (here,) = evaluate_models([model.subject()], listing, digits.contract, path="x").results
    assert (there["top1"], there["per_class"]) == (here["top1"], here["per_class"])


def test_models_that_fail_are_told_as_in_one_process(cluster: Cluster, digits: Given) -> None:
    listing = find_images(_DIGITS / "images" / "test")
    other = prepare(f"eager:resnet20@weights=random,num_classes=10,in_channels={4 - digits.contract.channels}")
    for models in ([other], [prepare(f"onnxruntime:{digits.path}"), other]):
        subjects = [model.subject() for model in models]
        here = evaluate_models(subjects, listing, digits.contract, path="x")
        there = evaluate_on(cluster, models, listing, digits.contract, path="x")
        assert here.failures
        assert mended(there.to_json()) == mended(here.to_json())


def test_models_on_a_gpu_are_refused(cluster: Cluster, digits: Given) -> None:
    for text in (f"ort-cuda:{digits.path}", f"{_CHECKPOINT}@device=cuda"):
        with pytest.raises(InputError, match="does not compute on a CPU"):
            evaluate_on(cluster, [prepare(text)], digits.files, digits.contract, path="x")


# --- what goes wrong ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Deadly:
    """A job that ends its process at the second shard."""

    modules: tuple[str, ...] = ()

    def open(self) -> Any:
        return lambda shard: os._exit(1) if shard.start else shard.start


@pytest.mark.slow
def test_a_shard_that_kills_every_worker_is_named(cluster: Cluster, digits: Given) -> None:
    done = over_shards(cluster, Deadly(), shards(digits.files, 64))
    assert next(done)[1].value == 0
    with pytest.raises(UnavailableError, match=rf"{digits.files[64]} and the 63 images after it died 4 times"):
        next(done)


def test_other_versions_on_a_worker_are_refused(
    cluster: Cluster, digits: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calibration.cluster.versions", lambda modules: {"onnxruntime": "0.1", "numpy": "0.2"})
    with pytest.raises(UnavailableError, match=r"would compute with onnxruntime \S+ and not 0\.1, numpy \S+ and not"):
        on(cluster, digits)


def test_the_client_protocol_is_refused() -> None:
    with (
        pytest.raises(InputError, match=r"ray://head:10001 is Ray's client protocol: .*--ray auto"),
        connected("ray://head:10001"),
    ):
        pass


@pytest.mark.parametrize(("workers", "threads"), [(0, 1), (1, 0)])
def test_no_workers_or_threads_are_refused(workers: int, threads: int) -> None:
    with pytest.raises(InputError, match="expected at least 1 of each"), connected("local", workers, threads):
        pass


def test_an_address_where_nothing_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("calibration.cluster._REACH_SECONDS", 0.5)
    with socket.socket() as silent:  # it takes the connection and says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with (
            pytest.raises(
                UnavailableError, match=rf"no Ray cluster lets this process in at {address} \(no answer within"
            ),
            connected(address),
        ):
            pass


def test_a_second_cluster_beside_the_first_is_refused(cluster: Cluster) -> None:
    with pytest.raises(InputError, match="connected to a Ray cluster already"), connected("local", 1):
        pass


def test_processors_of_another_kind_are_told() -> None:
    assert other_processors({"a": processor(), "b": processor()}) is None
    told = other_processors({"a": processor(), "node2": "x86_64 avx", "node1": "aarch64"})
    assert told is not None
    assert told.startswith("node1, node2 have processors with other instruction sets")
