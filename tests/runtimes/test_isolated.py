"""Cold start and memory, in real processes."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial

import numpy as np
import pytest

from runtimes.errors import GraphError
from runtimes.isolated import ColdStart, cold_start
from runtimes.ort import OrtRuntime
from tests.runtimes.models import FunctionRuntime, onnx_linear, weights

SHAPE = (2, 3, 4, 4)
BALLAST = 200 << 20


def peak(found: ColdStart) -> float:
    assert found.peak_rss_mb is not None
    return found.peak_rss_mb


def heavy(batch):
    ballast = np.ones(BALLAST, np.uint8)
    return np.zeros((len(batch), 2), np.float32) + ballast[0]


def light(batch):
    return np.zeros((len(batch), 2), np.float32)


def dies(batch):
    os._exit(7)


def talks(batch):
    print('{"cold_start_ms": 0}', flush=True)  # noqa: T201
    os.write(1, b"and not by Python")
    return light(batch)


def fails(batch):
    raise GraphError("out of memory")


def test_a_model_on_onnxruntime_has_a_cold_start_and_a_peak_in_its_own_process():
    model = onnx_linear(weights()).SerializeToString()
    found = cold_start(partial(OrtRuntime, model), SHAPE)
    assert found.remark is None
    assert found.cold_start_ms is not None
    assert found.cold_start_ms > 0
    if sys.platform == "linux":
        assert 10 < peak(found) < 2000


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_memory_is_the_runtimes_own_and_not_the_parents():
    ballast = np.ones(2 * BALLAST, np.uint8)  # of this process
    small = cold_start(partial(FunctionRuntime, light), SHAPE)
    large = cold_start(partial(FunctionRuntime, heavy), SHAPE)
    assert ballast[-1] == 1
    assert peak(small) < 200
    assert peak(large) - peak(small) == pytest.approx(200, abs=40)


def test_a_runtime_that_cannot_be_sent_has_a_remark_instead():
    found = cold_start(lambda: FunctionRuntime(light), SHAPE)
    assert (found.cold_start_ms, found.peak_rss_mb) == (None, None)
    assert "cannot be sent" in str(found.remark)


def test_a_process_that_dies_has_a_remark_with_its_exit_code():
    assert "ended with 7: no message" in str(cold_start(partial(FunctionRuntime, dies), SHAPE).remark)


def test_what_a_library_prints_is_not_taken_for_the_result(capfd):
    found = cold_start(partial(FunctionRuntime, talks), SHAPE)
    assert found.cold_start_ms is not None
    assert found.cold_start_ms > 0
    assert capfd.readouterr().out == ""


def test_the_main_script_needs_no_guard_and_its_imports_are_not_counted(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import torch\n"
        "from functools import partial\n"
        "from runtimes.isolated import cold_start\n"
        "from tests.runtimes import test_isolated as own\n"
        "print(cold_start(partial(own.FunctionRuntime, own.light), own.SHAPE).peak_rss_mb)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=True, env=environment, cwd=tmp_path
    )
    if sys.platform == "linux":
        assert float(done.stdout) < 200


def test_an_interrupt_ends_the_process(monkeypatch):
    started = []

    def interrupted(self, *arguments):
        started.append(self)
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess.Popen, "communicate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cold_start(partial(FunctionRuntime, light), SHAPE)
    assert started[0].returncode is not None


def test_a_runtime_that_fails_has_its_error_as_the_remark():
    assert cold_start(partial(FunctionRuntime, fails), SHAPE).remark == "out of memory"
