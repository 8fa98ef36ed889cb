"""The bench report: whose row is whose, and what the models are fed."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration.images import find_images
from calibration.preprocess import PRESETS
from exporter.bench import bench_images, bench_models
from exporter.subjects import Subject
from runtimes.errors import DataError, InputError
from runtimes.ort import OrtRuntime
from runtimes.turns import Plan
from tests.runtimes.models import images, onnx_linear, weights
from tests.runtimes.scripted import MS, FakeClock, ScriptedRuntime

CONTRACT = replace(PRESETS["cifar"], size=(4, 4))
PLAN = Plan(rounds=2, turn_ms=0.1, warmup_s=0.01)


def test_a_model_on_onnxruntime_is_measured_with_its_size_its_cold_start_and_its_memory(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_linear(weights()).SerializeToString())
    subjects = [Subject(name, "onnxruntime", str(path), OrtRuntime(path, threads=1)) for name in ("one", "two")]
    document = bench_models(subjects, (1, 2), images(2), PLAN).to_json()
    assert json.loads(json.dumps(document)) == document
    assert [(row["label"], row["batch"]) for row in document["results"]] == [
        ("one", 1), ("two", 1), ("one", 2), ("two", 2),
    ]  # fmt: skip
    row = document["results"][1]
    assert set(row) >= {
        "runtime", "file", "label", "batch", "p50_ms", "p90_ms", "p99_ms", "mean_ms", "min_ms", "images_per_s",
        "peak_rss_mb", "cold_start_ms", "bytes", "spread", "noisy", "rounds", "runs", "threads", "used",
        "ratio_to_first",
    }  # fmt: skip
    assert (row["runtime"], row["bytes"], row["threads"], row["remark"]) == (
        "onnxruntime", path.stat().st_size, 1, None,
    )  # fmt: skip
    assert row["cold_start_ms"] > 0
    assert set(row["ratio_to_first"]) == {"ratio", "ci95", "faster", "remark"}
    assert document["results"][0]["ratio_to_first"] is None
    assert {
        "cpu", "cores", "load_before", "load_after", "mhz", "governor", "python", "versions", "platform",
    } <= set(document["environment"])  # fmt: skip


def test_what_could_not_be_measured_is_named_with_its_batch_and_its_reason():
    clock = FakeClock()
    fixed = ScriptedRuntime(clock, lambda _: MS, batch=2)
    report = bench_models([Subject("a", "fake", None, fixed)], (1, 2), images(2), replace(PLAN, isolated=False))
    assert [(row["batch"], row["file"], row["bytes"]) for row in report.results] == [(2, None, None)]
    assert [(row["batch"], row["label"]) for row in report.failures] == [(1, "a")]
    assert "takes batches of 2" in report.failures[0]["error"]


def test_without_images_the_models_are_fed_the_same_noise_every_time():
    noise = bench_images(CONTRACT, 5)
    assert noise.shape == (5, 3, 4, 4)
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, bench_images(CONTRACT, 5))


def test_images_that_cannot_be_used_are_passed_over(tmp_path):
    for number in range(4):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    (tmp_path / "0.png").write_bytes(b"broken")
    listing = find_images(tmp_path)
    told: list[Any] = []
    assert len(bench_images(CONTRACT, 2, listing, max_bad=0.25, on_bad=told.append)) == 2
    assert [bad.path.name for bad in told] == ["0.png"]
    assert len(bench_images(CONTRACT, 8, listing, max_bad=0.25)) == 3
    with pytest.raises(DataError, match="cannot be used"):
        bench_images(CONTRACT, 8, listing)
    with pytest.raises(DataError, match="cannot be used"):
        bench_images(CONTRACT, 2, listing[:1])


def test_a_free_size_needs_images():
    with pytest.raises(InputError, match="--data"):
        bench_images(replace(CONTRACT, size=None), 1)
    with pytest.raises(InputError, match="0 images"):
        bench_images(CONTRACT, 0)
