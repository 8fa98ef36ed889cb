"""Outputs are whole or absent."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest

from exporter.files import check_output, reserve
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
