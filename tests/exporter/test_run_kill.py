"""Runs that are killed, and two at once: what is left is gone on with, to the same bytes."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.exporter.run_pipelines import DIGITS, Toy, contents, digits, settled

ROOT = Path(__file__).resolve().parents[2]


def start(*words: str | Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", *map(str, words)], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def toy_process(folder: Path, seconds: float) -> subprocess.Popen[str]:
    return start("tests.exporter.run_pipelines", folder, str(seconds))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source.txt").write_text("s")
    return tmp_path


def test_a_run_that_is_killed_at_any_moment_is_gone_on_with_to_the_same_bytes(source: Path) -> None:
    Toy(source / "undisturbed").run()
    wanted = contents(source / "undisturbed")
    draw = random.Random(0)
    for number in range(8):
        folder = source / f"killed{number}"
        process = toy_process(folder, 0.05)
        while not (folder / ".resnet-export" / "lock").exists():  # the imports come first
            assert process.poll() is None
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        toy = Toy(folder)
        toy.run()
        assert contents(folder) == wanted
        assert not toy.log or toy.log == ["first", "second", "third"][-len(toy.log) :]  # from where it was, not before
        assert all(step.cached for step in toy.run())


def test_two_runs_at_once_do_every_stage_once(source: Path) -> None:
    folder = source / "out"
    first = toy_process(folder, 0.3)
    while not (folder / ".resnet-export" / "lock").exists() or not (folder / ".resnet-export" / "lock").read_text():
        time.sleep(0.01)
    second = toy_process(folder, 0.0)
    told, said = first.communicate()[0], second.communicate()[0]
    assert (first.returncode, second.returncode) == (0, 0)
    assert told.strip() == "first,second,third"
    assert said.splitlines() == [f"waiting for process {first.pid}", ""]


def test_the_lock_of_a_killed_run_is_free(source: Path) -> None:
    process = toy_process(source / "out", 5.0)
    while not (source / "out" / ".resnet-export" / "lock").exists():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    toy = Toy(source / "out")
    toy.run()
    assert toy.log == ["first", "second", "third"]


def test_a_real_pipeline_that_is_killed_gives_the_same_files(tmp_path: Path) -> None:
    """Two kills; ``benchmarks/kill_run.py`` does more of them."""
    file = digits(tmp_path)
    words = ("exporter.cli", "run", file, "--set", "bench.batches=")
    begin = time.monotonic()
    done = start(*words)
    out = done.communicate()[0]
    assert done.returncode == 0, out
    whole = time.monotonic() - begin
    wanted = settled(tmp_path / "build")
    assert {name for name in wanted if not name.startswith("bundle/")} == {
        "model.onnx",
        "ranges.json",
        "int8/onnxruntime.onnx",
        "parity.json",
        "evaluate.json",
    }
    (tmp_path / "build").rename(tmp_path / "undisturbed")
    draw = random.Random(1)
    for _ in range(2):
        process = start(*words)
        time.sleep(draw.uniform(0.2, 0.8) * whole)
        process.kill()
        process.communicate()
    done = start(*words)
    out = done.communicate()[0]
    assert done.returncode == 0, out
    assert settled(tmp_path / "build") == wanted
    assert DIGITS.exists()
