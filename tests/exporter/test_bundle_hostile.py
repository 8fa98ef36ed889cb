"""Bundles that somebody made to do harm: what they try is refused before it happens."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from exporter.bundle.layout import is_safe
from exporter.bundle.verify import verify_bundle
from exporter.bundle.write import BundleOptions, write_bundle
from runtimes.errors import InputError, ResnetExportError, UnavailableError
from tests.exporter.bundles import Made, bundle, copied, made, manifest_of, rewrite, written

__all__ = ["bundle", "made"]

zstandard: Any = pytest.importorskip("zstandard") if find_spec("zstandard") else None
needs_zstd = pytest.mark.skipif(zstandard is None, reason="zstandard is not installed")

OUTSIDE = (
    "/etc/passwd",
    "../secret",
    "goldens/../../secret",
    "C:/x",
    "C:x",
    "a\\..\\b",
    "",
    ".",
    "a//b",
    "a/",
    "x\0y",
    "a\nb",
)


@pytest.mark.parametrize("path", OUTSIDE)
def test_a_manifest_that_points_outside_is_refused(bundle: Path, tmp_path: Path, path: str) -> None:
    assert not is_safe(path)
    (tmp_path / "secret").write_text("mine")
    broken = copied(bundle, tmp_path / "b")
    for put in (
        lambda document: document["files"][0].update(path=path),
        lambda document: document["models"][0].update(file=path),
        lambda document: document["goldens"].update(input=path),
        lambda document: document["goldens"]["images"][0].update(pixels=path),
    ):
        document = manifest_of(bundle)
        put(document)
        rewrite(broken, document)
        with pytest.raises(InputError, match="inside of the bundle"):
            verify_bundle(broken)


def test_links_are_no_files_of_a_bundle(bundle: Path, tmp_path: Path) -> None:
    broken = copied(bundle, tmp_path / "b")
    target = broken / "goldens/input.npy"
    kept = tmp_path / "input.npy"
    target.rename(kept)
    target.symlink_to(kept)  # the content is right, and still it lies elsewhere
    report = verify_bundle(broken)
    assert [(each.fault, each.path) for each in report.findings] == [("unsafe", "goldens/input.npy")]
    target.unlink()
    kept.rename(target)
    (broken / "goldens").rename(tmp_path / "elsewhere")
    (broken / "goldens").symlink_to(tmp_path / "elsewhere")
    found = {(each.fault, each.path) for each in verify_bundle(broken).findings}
    assert {("unsafe", "goldens"), ("missing", "goldens/input.npy")} <= found
    (broken / "goldens").unlink()
    (tmp_path / "elsewhere").rename(broken / "goldens")
    os.mkfifo(broken / "pipe")
    assert [(each.fault, each.path) for each in verify_bundle(broken).findings] == [("unsafe", "pipe")]
    (broken / "pipe").unlink()
    (broken / "manifest.json").rename(tmp_path / "m")
    (broken / "manifest.json").symlink_to(tmp_path / "m")
    with pytest.raises(InputError, match="no plain file"):
        verify_bundle(broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document.pop("files"),
        lambda document: document.update(files=[3]),
        lambda document: document["files"].append(dict(document["files"][0])),
        lambda document: document["files"][0].update(bytes=-1),
        lambda document: document["files"][0].update(bytes=True),
        lambda document: document["files"][0].update(bytes=1 << 60),
        lambda document: document["files"][0].update(sha256="../x"),
        lambda document: document["files"].append({**document["files"][0], "path": "goldens"}),
        lambda document: document["files"].append({**document["files"][0], "path": "manifest.json"}),
        lambda document: document.pop("models"),
        lambda document: document["models"][0].pop("tolerances"),
        lambda document: document["models"][0]["tolerances"][0].update(
            min_sqnr_db=None, min_decision_db=None, max_ulp=None, min_top1=None
        ),
        lambda document: document["models"][0].update(golden="goldens/none.npy"),
        lambda document: document.update(schema=2),
        lambda document: document.update(kind="other"),
        lambda document: document["goldens"].pop("images"),
        lambda document: document.update(license=None),
    ],
)
def test_a_manifest_that_says_nonsense_is_refused_in_one_line(
    bundle: Path, tmp_path: Path, change: Callable[[Any], Any]
) -> None:
    document = manifest_of(bundle)
    change(document)
    broken = copied(bundle, tmp_path / "b")
    rewrite(broken, document)
    with pytest.raises(InputError) as error:
        verify_bundle(broken)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"{", b"[" * 100_000, b'{"kind": NaN}'])
def test_what_is_no_manifest_is_refused(bundle: Path, tmp_path: Path, data: bytes) -> None:
    broken = copied(bundle, tmp_path / "b")
    rewrite(broken, data)
    with pytest.raises(InputError):
        verify_bundle(broken)


# --- archives ---------------------------------------------------------------------------------------------------------


def packed(entries: list[tuple[tarfile.TarInfo, bytes]], target: Path, behind: bytes = b"") -> Path:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for entry, data in entries:
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    target.write_bytes(zstandard.ZstdCompressor(write_checksum=True).compress(stream.getvalue()) + behind)
    return target


def entries_of(bundle: Path) -> list[tuple[tarfile.TarInfo, bytes]]:
    first = ("manifest.json", "manifest.sha256")
    names = sorted(path.relative_to(bundle).as_posix() for path in bundle.rglob("*") if path.is_file())
    names = [*first, *(name for name in names if name not in first)]
    return [(tarfile.TarInfo(f"bundle/{name}"), (bundle / name).read_bytes()) for name in names]


@needs_zstd
def test_an_archive_of_any_packer_is_read(bundle: Path, tmp_path: Path) -> None:
    """What the refusals below rest on: the same helper also makes one that passes."""
    assert verify_bundle(packed(entries_of(bundle), tmp_path / "b.tar.zst")).passed


def special(name: str, kind: bytes, link: str = "") -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = kind, link
    return entry, b""


@needs_zstd
@pytest.mark.parametrize(
    ("entry", "text"),
    [
        (lambda: (tarfile.TarInfo("bundle/../../out.txt"), b"x"), "inside of the bundle"),
        (lambda: (tarfile.TarInfo("/tmp/out.txt"), b"x"), "expected names below"),
        (lambda: (tarfile.TarInfo("other/out.txt"), b"x"), "expected names below"),
        (lambda: (tarfile.TarInfo("bundle//out.txt"), b"x"), "inside of the bundle"),
        (lambda: special("bundle/link", tarfile.SYMTYPE, "/etc/passwd"), "no plain file"),
        (lambda: special("bundle/link", tarfile.LNKTYPE, "bundle/run.py"), "no plain file"),
        (lambda: special("bundle/dev", tarfile.CHRTYPE), "no plain file"),
        (lambda: special("bundle/pipe", tarfile.FIFOTYPE), "no plain file"),
        (lambda: special("bundle/folder", tarfile.DIRTYPE), "no plain file"),
        (lambda: (tarfile.TarInfo("bundle/run.py"), b"print()"), "twice"),
        (lambda: (tarfile.TarInfo("bundle/manifest.json"), b"{}"), "twice"),
        (lambda: (tarfile.TarInfo("bundle/zeros"), bytes(2 << 20)), "its manifest announces no such file"),
        (lambda: (tarfile.TarInfo("bundle/models"), b"x"), "cannot be unpacked|plain file|File exists"),
    ],
)
def test_entries_that_do_not_belong_into_an_archive_are_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entry: Any, text: str
) -> None:
    before = tmp_path / "work"
    before.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(before))
    archive = packed([*entries_of(bundle), entry()], tmp_path / "b.tar.zst")
    with pytest.raises(InputError, match=text):
        verify_bundle(archive)
    assert not list(before.iterdir())  # nothing is left of what was unpacked
    assert not (tmp_path / "out.txt").exists()


@needs_zstd
def test_a_small_extra_file_and_a_changed_one_are_named(bundle: Path, tmp_path: Path) -> None:
    entries = entries_of(bundle)
    entries = [(entry, data + b"!" if entry.name == "bundle/run.py" else data) for entry, data in entries]
    entries.append((tarfile.TarInfo("bundle/notes.txt"), b"x"))
    report = verify_bundle(packed(entries, tmp_path / "b.tar.zst"))
    assert [(each.fault, each.path) for each in report.findings] == [("extra", "notes.txt"), ("altered", "run.py")]


@needs_zstd
def test_bombs_end_where_the_manifest_does(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame of gigabytes in kilobytes: as a file, as a header, behind the end, and as a manifest."""
    bomb = 1 << 28
    entry = tarfile.TarInfo("bundle/labels.txt")
    entries = [pair for pair in entries_of(bundle) if pair[0].name != entry.name]
    with pytest.raises(InputError, match="its manifest announces"):
        verify_bundle(packed([*entries, (entry, bytes(bomb))], tmp_path / "file.tar.zst"))
    header = tarfile.TarInfo("bundle/labels.txt")
    header.pax_headers = {"comment": "x" * (1 << 22)}
    with pytest.raises(InputError, match="more than its manifest announces"):
        verify_bundle(packed([*entries, (header, b"x")], tmp_path / "header.tar.zst"))
    first = tarfile.TarInfo("bundle/manifest.json")
    with pytest.raises(InputError, match="has a manifest of"):
        verify_bundle(packed([(first, bytes(bomb))], tmp_path / "manifest.tar.zst"))
    tail = zstandard.ZstdCompressor().compress(bytes(bomb))
    with pytest.raises(InputError, match="behind its end"):
        verify_bundle(packed(entries_of(bundle), tmp_path / "tail.tar.zst", behind=tail))
    many = [(tarfile.TarInfo(f"bundle/{index}"), b"") for index in range(1100)]
    with pytest.raises(InputError, match="more than 1000 files"):
        verify_bundle(packed([*entries_of(bundle), *many], tmp_path / "many.tar.zst"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UnavailableError, match="has room for"):
        verify_bundle(packed(entries_of(bundle), tmp_path / "room.tar.zst"))


@needs_zstd
@pytest.mark.parametrize(
    "data", [b"", b"(\xb5/\xfd", b"PK\x03\x04", bytes(range(100))], ids=["empty", "zstd", "zip", "noise"]
)
def test_what_is_no_archive_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "b.tar.zst"
    path.write_bytes(data)
    with pytest.raises(InputError):
        verify_bundle(path)
    path.write_bytes(zstandard.ZstdCompressor().compress(data))
    with pytest.raises(InputError):
        verify_bundle(path)


@needs_zstd
def test_no_flipped_byte_and_no_cut_of_an_archive_passes_for_the_whole(made: Made, tmp_path: Path) -> None:
    """At 300 places and all of the first and last bytes: refused, or found; or, in a frame's header, without effect."""
    path = tmp_path / "b.tar.zst"
    write_bundle([made.fp32], made.images, path, BundleOptions(images=1))
    data, harmless = path.read_bytes(), []
    random = np.random.default_rng(4)
    digest = verify_bundle(path, run=False).manifest_sha256
    for place in sorted({*range(12), *range(len(data) - 8, len(data)), *random.integers(0, len(data), 300).tolist()}):
        broken = bytearray(data)
        broken[place] ^= 1 << int(random.integers(8))
        path.write_bytes(broken)
        try:
            report = verify_bundle(path, run=False)
        except ResnetExportError:
            continue
        if report.passed:
            assert report.manifest_sha256 == digest
            harmless.append(place)
    assert [place for place in harmless if place > 5] == []  # magic, descriptor, window: before the first block
    for length in (*range(0, 40, 7), *random.integers(0, len(data), 20).tolist(), len(data) - 4, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError):
            verify_bundle(path, run=False)


def test_without_zstandard_a_folder_is_still_made(made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(UnavailableError, match=r"pip install 'resnet-export\[bundle\]'"):
        written(made, tmp_path / "b.tar.zst")
    write_bundle([made.fp32], made.images, tmp_path / "b", BundleOptions(images=1))
    (tmp_path / "b.tar.zst").write_bytes(b"x")
    with pytest.raises(UnavailableError):
        verify_bundle(tmp_path / "b.tar.zst")
