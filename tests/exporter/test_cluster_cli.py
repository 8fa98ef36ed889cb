"""``--ray`` on the command line: what is refused, what is left behind, and one whole run."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.exporter.clusters import DIGITS, busy_workers, descendants, digits_onnx, mended

_ROOT = Path(__file__).resolve().parents[2]
_IMAGES = DIGITS / "images"
_needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is missing: pip install 'resnet-export[ray]'")
_MAIN = "from exporter.cli import main; main()"
_WITHOUT_RAY = f"import sys; sys.modules['ray'] = None; {_MAIN}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return digits_onnx(tmp_path_factory.mktemp("model") / "digits.onnx")


def call(*words: object, program: str = _MAIN, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, words)],
        capture_output=True, text=True, check=False, cwd=_ROOT, timeout=300, env={**os.environ, **environment},
    )  # fmt: skip


def test_without_ray_the_pip_line_is_told(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "r.json"
    for words in (
        ("calibrate", model, "--data", _IMAGES / "calibration", "-o", output),
        ("evaluate", model, "--data", _IMAGES / "test"),
    ):
        done = call(*words, "--ray", "local", program=_WITHOUT_RAY)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr == "error: ray is not installed: pip install 'resnet-export[ray]'\n"
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--ray-workers", "2"], "--ray-workers and --ray-ship are of --ray"),
        (["--ray-ship"], "--ray-workers and --ray-ship are of --ray"),
        (["--ray", "local", "--workers", "3"], "--workers is of one process"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(model: Path, words: list[str], told: str) -> None:
    done = call("evaluate", model, "--data", _IMAGES / "test", *words)
    assert done.returncode == 2
    assert told in done.stderr


def test_a_provider_means_nothing_to_workers(model: Path, tmp_path: Path) -> None:
    words = ["--data", _IMAGES / "test", "-o", tmp_path / "r.json", "--ray", "local"]
    done = call("calibrate", model, *words, "--provider", "CUDAExecutionProvider")
    assert done.returncode == 2
    assert "--provider is of one process" in done.stderr


@pytest.mark.slow
@_needs_ray
def test_both_commands_print_what_one_process_prints(model: Path, tmp_path: Path) -> None:
    ray = ("--ray", "local", "--ray-workers", "2")
    digests = []
    for name, words in (("one", ()), ("two", ray)):
        output = tmp_path / f"{name}.json"
        done = call("calibrate", model, "--data", _IMAGES / "calibration", "-o", output, "--json", *words)
        assert (done.returncode, done.stderr) == (0, "")
        digests.append(hashlib.sha256(output.read_bytes()).hexdigest())
        assert json.loads(done.stdout)["sha256"] == digests[-1]
    assert digests[0] == digests[1]
    found = [call("evaluate", model, "--data", _IMAGES / "test", "--json", *words) for words in ((), ray)]
    assert [done.stderr for done in found] == ["", ""]
    one, two = (mended(json.loads(done.stdout)) for done in found)
    assert one == two


@pytest.mark.slow
@_needs_ray
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_no_process_and_no_file(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    listing = tmp_path / "list.txt"
    paths = sorted((_IMAGES / "calibration").rglob("*.png"))
    listing.write_text("".join(f"{path}\n" for path in paths * 40))
    output, scratch = tmp_path / "out" / "r.json", tempfile.mkdtemp(dir="/tmp")  # short: sockets lie there
    words = ["calibrate", str(model), "--data", str(listing), "--images", "0", "-o", str(output), "--ray", "local"]
    process = subprocess.Popen(
        [sys.executable, "-c", _MAIN, *words, "--ray-workers", "2"],
        cwd=_ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "TMPDIR": scratch},
    )  # fmt: skip
    try:
        wait_for(lambda: bool(busy_workers(process.pid)), 120)
        below = descendants(process.pid)
        # A terminal sends Ctrl-C to the whole group, `kill` its signal to one process.
        (os.killpg if number == signal.SIGINT else os.kill)(process.pid, number)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert told.strip() == "error: interrupted; a file is whole or absent"
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in below), 20)
    assert list(tmp_path.iterdir()) == [listing]
    left = {path.name for path in Path(scratch).iterdir()}
    assert left <= {".ses"}  # ONNX Runtime keeps one there
    shutil.rmtree(scratch)


def wait_for(happened: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.1)
