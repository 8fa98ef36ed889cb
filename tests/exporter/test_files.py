"""Outputs are whole or absent."""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from exporter.files import check_output, commit_together, reserve
from runtimes.errors import InputError, UnavailableError


def test_a_committed_file_has_its_bytes_and_nothing_lies_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "model.onnx"
    with reserve(path) as output:
        digest = output.commit(b"whole")
    assert path.read_bytes() == b"whole"
    assert digest == hashlib.sha256(b"whole").hexdigest()
    assert [entry.name for entry in path.parent.iterdir()] == ["model.onnx"]


def test_an_error_leaves_the_old_file_and_no_new_folder(tmp_path: Path) -> None:
    old = tmp_path / "model.onnx"
    old.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), reserve(old):
        raise KeyboardInterrupt
    assert old.read_bytes() == b"old"
    with pytest.raises(ValueError, match="planted"), reserve(tmp_path / "x" / "y" / "model.onnx"):
        raise ValueError("planted")
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def test_a_folder_that_existed_before_stays(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    with pytest.raises(ValueError, match="planted"), reserve(tmp_path / "kept" / "new" / "model.onnx"):
        raise ValueError("planted")
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / "kept" / "new").exists()


def test_a_retired_file_is_kept_under_another_name(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with reserve(path) as output:
        kept = output.retire()
    assert not path.exists()
    assert kept is not None
    assert kept.read_bytes() == b"old"


def test_a_full_disk_is_told_and_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with reserve(path) as output:
        monkeypatch.setattr("exporter.files.os.fsync", full)
        with pytest.raises(UnavailableError, match=r"full \(0\.0 MB are needed\)"):
            output.commit(b"new")
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.onnx"]


def _together(folder: Path, names: tuple[str, ...] = ("a", "b", "c")) -> tuple[str, ...]:
    with ExitStack() as stack:
        places = [stack.enter_context(reserve(folder / name)) for name in names]
        return commit_together([(place, f"new {place.path.name}".encode()) for place in places])


def test_files_that_belong_together_are_written_together(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    digests = _together(tmp_path, ("a", "folder/b"))
    assert (tmp_path / "a").read_bytes() == b"new a"
    assert digests == tuple(hashlib.sha256(f"new {name}".encode()).hexdigest() for name in "ab")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "folder"]


@pytest.mark.parametrize("call", [1, 2, 3])
@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize("links", [True, False])
def test_files_that_belong_together_are_all_old_where_one_cannot_be_new(
    call: int, step: str, links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"old a")
    (tmp_path / "b").write_bytes(b"old b")
    calls = []
    fsync, replace = os.fsync, Path.replace

    def full(given: Any, *target: Path) -> Any:
        if step == "fsync" or given.name.endswith(".part"):
            calls.append(given)
            if len(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(given) if step == "fsync" else replace(given, *target)

    def no_links(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(*(("exporter.files.os.fsync", full) if step == "fsync" else ("pathlib.Path.replace", full)))
    if not links:
        monkeypatch.setattr("pathlib.Path.hardlink_to", no_links)
    with pytest.raises(UnavailableError, match="is full"):
        _together(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old a", "b": b"old b"}


def test_an_interrupt_between_two_files_takes_the_first_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"old a")
    replace = Path.replace

    def interrupted(given: Path, target: Path) -> Path:
        if target.name == "b":
            raise KeyboardInterrupt
        return replace(given, target)

    monkeypatch.setattr("pathlib.Path.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        _together(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"old a"}


@pytest.mark.parametrize("place", ["", "file/model.onnx"])
def test_a_place_that_cannot_hold_a_file_is_refused_at_once(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    entered = False
    with pytest.raises(InputError, match="give"), reserve(tmp_path / place):
        entered = True
    assert not entered


def test_a_device_is_not_replaced() -> None:
    with pytest.raises(InputError, match="not a regular file"), reserve(Path("/dev/null")):
        pass
    assert Path("/dev/null").is_char_device()


def test_retiring_never_writes_over_anything(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.previous").mkdir()
    (tmp_path / "model.onnx.previous.1").write_bytes(b"mine")
    path.write_bytes(b"old")
    with reserve(path) as output:
        kept = output.retire()
    assert kept == tmp_path / "model.onnx.previous.2"
    assert kept.read_bytes() == b"old"
    assert (tmp_path / "model.onnx.previous.1").read_bytes() == b"mine"


def test_a_link_is_followed_and_stays_a_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real.onnx", tmp_path / "link.onnx"
    real.write_bytes(b"old")
    link.symlink_to(real)
    with reserve(link) as output:
        output.commit(b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


def test_an_input_is_never_written_over(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pth"
    path.write_bytes(b"weights")
    other = tmp_path / "hard.pth"
    other.hardlink_to(path)
    with pytest.raises(InputError, match="same file as the input"):
        check_output(other, [path])
    check_output(tmp_path / "new.onnx", [path])


def test_a_name_that_no_file_can_have_is_refused_as_such(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="File name too long"):
        check_output(tmp_path / ("x" * 300 + ".onnx"))
