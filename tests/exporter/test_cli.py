"""The command line as a user meets it: whole processes, exit codes, one line per error, nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from exporter.cli import cli
from tests.exporter.nets import SMALL, save_small

_COMMAND = [sys.executable, "-m", "exporter.cli"]
_ROOT = Path(__file__).resolve().parents[2]


def run(*words: str | Path, cwd: Path | None = None, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in {"FORCE_COLOR", "NO_COLOR"}}
    return subprocess.run(
        [*_COMMAND, *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(_ROOT), **environment},
    )


def assert_refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    """One line on stderr that has the words; stdout empty; the exit code."""
    assert done.returncode == code, done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in lines[0]


def test_help_has_worked_examples_and_exit_codes() -> None:
    for words in ([], ["onnx"], ["inspect"]):
        done = run(*words, "--help")
        assert done.returncode == 0
        assert "Examples:" in done.stdout
    assert "Exit codes:" in run("--help").stdout


def test_every_command_is_in_the_list_and_has_help() -> None:
    for name in cli.list_commands(None):  # type: ignore[arg-type]
        assert run(name, "--help").returncode == 0


def test_json_is_the_only_thing_on_stdout(tmp_path: Path) -> None:
    path = tmp_path / "new" / "m.onnx"
    done = run("onnx", save_small(tmp_path), "-o", path, "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert {"onnx", "sha256", "opset", "ops", "folded", "exporter", "stages", "parity"} <= document.keys()
    assert document["model"]["name"] == "cifar_resnet8_b"
    assert path.exists()
    assert done.stderr == ""


def test_a_person_gets_stages_and_a_table_and_no_colour_in_a_pipe(tmp_path: Path) -> None:
    done = run("onnx", SMALL, "--weights", "random", "-o", tmp_path / "m.onnx")
    assert done.returncode == 0, done.stderr
    assert "✓ proven" in done.stdout
    assert "simplified" in done.stdout
    assert "fold" in done.stderr
    assert "\x1b[" not in done.stdout + done.stderr


def test_quiet_says_nothing(tmp_path: Path) -> None:
    done = run("onnx", SMALL, "--weights", "random", "-o", tmp_path / "m.onnx", "-q")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_inspect_shows_blocks_and_checks() -> None:
    done = run("inspect", "resnet18")
    assert done.returncode == 0
    assert "layer4.1" in done.stdout
    assert "11,689,512" in done.stdout
    document = json.loads(run("inspect", "resnet18", "--json").stdout)
    assert document["parameters"] == 11_689_512
    assert document["depth"] == 18
    blocks = [block for stage in document["stages"] for block in stage["blocks"]]
    assert [block["shortcut"] for block in blocks].count("projection") == 3


def test_completion_prints_a_script_for_each_shell() -> None:
    for shell in ("bash", "zsh", "fish"):
        assert "_RESNET_EXPORT_COMPLETE" in run("completion", shell).stdout


def test_a_factory_in_the_current_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "mynet.py").write_text(
        "import torch.nn as nn\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.AdaptiveAvgPool2d(1), nn.Flatten(),"
        " nn.Linear(8, 4))\n"
    )
    done = run("onnx", "mynet:build", "-o", "m.onnx", "--input-size", "24x40", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["folded"] == 1


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["missing.pth"], 2, ["missing.pth", "no such file"]),
        (["resnet5"], 2, ["unknown model 'resnet5'", "resnet50"]),
        (["resnet18"], 2, ["--weights"]),
        (["resnet18", "--weights", "random", "--opset", "12"], 2, ["12", "13 to"]),
        (["resnet18", "--weights", "random", "--opset", "99"], 2, ["99", "13 to"]),
        (["resnet18", "--weights", "random", "--input-size", "16"], 2, ["16x16", "32x32"]),
        (["resnet18", "--weights", "random", "--input-size", "big"], 2, ["big", "480x640"]),
        (["resnet18", "--weights", "random", "--mean", "a,b"], 2, ["a,b"]),
        (["resnet18", "--weights", "random", "--precision", "int8"], 2, ["int8", "fp16"]),
        (["no.such.module:build"], 2, ["no.such.module"]),
        (["timm:resnot50", "--weights", "random"], 2, ["resnot50"]),
        (["model.onnx"], 2, ["ONNX file already"]),
        ([SMALL, "--weights", "random", "--data", "nowhere"], 2, ["nowhere"]),
    ],
)
def test_a_wrong_word_gets_one_line(tmp_path: Path, words: list[str], code: int, told: list[str]) -> None:
    assert_refused(run("onnx", *words, "-o", "new/m.onnx", cwd=tmp_path), code, *told)
    assert list(tmp_path.iterdir()) == []


def test_a_bad_checkpoint_gets_one_line_and_json_has_the_error(tmp_path: Path) -> None:
    good = save_small(tmp_path)
    cases = {
        "empty.pth": b"",
        "text.pth": b"not a checkpoint\n",
        "cut.pth": good.read_bytes()[: good.stat().st_size // 2],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        done = run("onnx", tmp_path / name, "-o", tmp_path / "m.onnx", "--json")
        assert_refused(done, 2, name)
        document = json.loads(done.stdout)
        assert document["error"]["exit_code"] == 2
        assert name in document["error"]["message"]
    assert not (tmp_path / "m.onnx").exists()


def test_a_diverged_checkpoint_names_its_tensors(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    content = torch.load(path, weights_only=True)
    content["state_dict"]["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
    torch.save(content, path)
    done = run("onnx", path, "-o", tmp_path / "m.onnx")
    assert_refused(done, 2, "layer2.0.conv1.weight", "1 NaN")


def test_a_wrong_number_of_classes_or_labels_is_refused(tmp_path: Path) -> None:
    path = save_small(tmp_path, classes=7)
    out = tmp_path / "m.onnx"
    assert_refused(run("onnx", path, "-o", out, "--num-classes", "10"), 2, "7 classes")
    assert_refused(run("onnx", SMALL, "--weights", path, "-o", out), 2, "--num-classes 7")
    (tmp_path / "labels.txt").write_text("a\nb\n")
    assert_refused(run("onnx", path, "-o", out, "--labels", tmp_path / "labels.txt"), 2, "2 names", "7 classes")
    assert not out.exists()


def test_a_failed_check_exits_with_1_and_removes_the_way_to_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "m.onnx"
    out.write_bytes(b"earlier")
    code = (
        "import torch, exporter.pipeline as p, exporter.cli as c\n"
        "real = p.fold\n"
        "def wrong(captured):\n"
        "    folded = real(captured)\n"
        "    with torch.no_grad(): folded.captured.module.get_parameter('conv1.bias').add_(0.1)\n"
        "    return folded\n"
        "p.fold = wrong\n"
        f"c.main(['onnx', '{SMALL}', '--weights', 'random', '-o', {str(out)!r}, '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=_ROOT)
    assert_refused(done, 1, "stage 'folded'", "SQNR")
    assert not out.exists()
    assert (tmp_path / "m.onnx.previous").read_bytes() == b"earlier"
    document = json.loads(done.stdout)
    assert document["error"]["exit_code"] == 1
    assert any(not row["passed"] for row in document["parity"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_with_130_and_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """The signal comes when the first stage has been announced, so that it meets real work."""
    process = subprocess.Popen(
        [*_COMMAND, "onnx", "resnet18", "--weights", "random", "-o", str(tmp_path / "new" / "m.onnx")],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(_ROOT)},
    )
    assert process.stderr is not None
    while "capture" not in process.stderr.readline():
        assert process.poll() is None
    time.sleep(0.2)
    process.send_signal(number)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130, rest
    assert "interrupted" in rest
    assert list(tmp_path.iterdir()) == []


def test_an_output_that_is_an_input_is_refused_and_the_input_is_whole(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    before = path.read_bytes()
    assert_refused(run("onnx", path, "-o", path), 2, "same file as the input")
    assert path.read_bytes() == before


def test_help_is_help_also_beside_json() -> None:
    assert "Examples:" in run("onnx", "--json", "--help").stdout


def test_a_stdout_that_takes_nothing_is_a_lack_of_this_machine() -> None:
    for words in (["inspect", "resnet18"], ["inspect", "resnet18", "--json"]):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*_COMMAND, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False, cwd=_ROOT
            )
        assert done.returncode == 3, done.stderr
        assert "Traceback" not in done.stderr


def test_another_eps_is_another_network(tmp_path: Path) -> None:
    path = save_small(tmp_path)
    digests = set()
    for eps in ("1e-5", "1e-3"):
        done = run("onnx", path, "-o", tmp_path / "m.onnx", "--bn-eps", eps, "--json")
        assert done.returncode == 0, done.stderr
        document = json.loads(done.stdout)
        digests.add(document["sha256"])
        assert any(f"eps {float(eps):g}" in note for note in document["notes"])
    assert len(digests) == 2
