"""The user guide's commands and Python do what the guide says, on the embedded network."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from exporter.cli import main

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
BLOCKS = re.findall(r"```console\n(.*?)```", GUIDE, re.S)
COMMANDS = [line[2:] for block in BLOCKS for line in block.splitlines() if line.startswith("$ ")]
PYTHON = re.findall(r"```python\n(.*?)```", GUIDE, re.S)


def test_the_guide_works_from_its_first_line_to_its_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, since later lines use the files of earlier ones."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    assert len(COMMANDS) > 8
    for command in COMMANDS:
        words = shlex.split(command)
        assert words[0] == "resnet-export"
        with pytest.raises(SystemExit) as end:
            main([*words[1:], "--quiet"])
        assert not end.value.code, command
    for name in (
        "digits.onnx",
        "digits.ort.onnx",
        "digits.trt.onnx",
        "digits.ranges.json",
        "report.html",
        "report.xml",
    ):
        assert (tmp_path / "build" / name).stat().st_size > 0


def test_the_python_of_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    (tmp_path / "build").mkdir()
    monkeypatch.chdir(tmp_path)
    assert PYTHON
    for block in PYTHON:
        exec(compile(block, "docs/guide.md", "exec"), {})


def test_every_command_is_in_the_documentation() -> None:
    from exporter.cli import _COMMANDS

    told = (ROOT / "docs" / "commands.md").read_text()
    assert not [name for name in _COMMANDS if f"`{name}" not in told]
