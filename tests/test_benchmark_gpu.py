"""The benchmark that needs a GPU, as far as it goes without one: what it does when things fail."""

from __future__ import annotations

import importlib.util
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(sys, "path", [*sys.path])  # it puts its own folder there
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_of(script: Any, folder: Path) -> Any:
    return script._Run(Namespace(rehearse=True, model="resnet20", images=folder, rounds=2), folder)


def _fails(*_: Any, **__: Any) -> None:
    raise RuntimeError("CUDA error: an illegal memory access")


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        ({"status": "failed", "reason": "x"}, 1),
        ({"status": "run", "tensorrt fp32": {"status": "failed"}}, 1),
        ({"status": "run", "a": {"status": "failed"}, "b": {"status": "run"}, "packages": {"tensorrt": "10"}}, 0),
        ({"status": "run", "rows": []}, 0),
    ],
)
def test_the_exit_code_says_whether_anything_was_measured(
    part: dict[str, Any], expected: int, script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(script._Run, "all", lambda _: {**dict.fromkeys(script._Run.PARTS, part), "environment": {}})
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--rehearse", "--out", str(out)])
    assert script.main() == expected
    assert json.loads(out.read_text())["status"] == "rehearsed, without a GPU"


def test_a_runtime_that_fails_in_any_way_is_left_out_of_the_times_with_its_reason(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporter.proof_inputs.prepare_all", _fails)
    run = run_of(script, tmp_path)
    run.files = {name: tmp_path / f"{name}.onnx" for name in ("fp32", "int8")}
    found = run.latency()
    assert found["status"] == "failed"
    assert len(found["left_out"]) == len(run.specs())
    assert set(found["left_out"].values()) == {"RuntimeError: CUDA error: an illegal memory access"}


def test_packages_that_only_run_engines_build_none(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = [
        SimpleNamespace(name=name, version="10.3.0", can_build=builds)
        for name, builds in (("tensorrt", True), ("tensorrt_lean", False))
    ]
    monkeypatch.setattr(script, "survey", lambda: SimpleNamespace(working=packages))
    monkeypatch.setattr(script._Run, "_engine", lambda _, item, *__: {"bytes": 1})
    run = run_of(script, tmp_path)
    run.files = {"fp32": tmp_path / "m.onnx"}
    assert set(run.build()) == {"packages", "tensorrt fp32"}
