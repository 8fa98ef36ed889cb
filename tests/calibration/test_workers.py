"""Decoding in other processes: the same result as in this one, and nothing left behind."""

import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from calibration.images import BadFile, ImageFile, batches, find_images, load_batch, worker_count
from calibration.preprocess import PRESETS
from runtimes.errors import DataError, InputError, UnavailableError

TINY = replace(PRESETS["cifar"], size=(4, 4))
ANY_SIZE = replace(TINY, size=None)
ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="workers need POSIX signals")


def folder_of(folder, count, bad=(), size=(4, 4)):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    for i in bad:
        (folder / f"{i:03}.png").write_bytes(b"")
    return find_images(folder)


def everything(files, contract=TINY, batch=5, **options):
    """Tensors, kept files, bad files and the error, as one value to compare."""
    bad, tensors, kept, error = list[BadFile](), [], [], ""
    try:
        for tensor, of in batches(files, contract, batch, on_bad=bad.append, **options):
            tensors.append(tensor.tolist())
            kept.append(of)
    except DataError as raised:
        error = str(raised)
    return tensors, kept, bad, error


# --- the same as without workers ------------------------------------------------------------------------------


def test_workers_give_the_same_batches_and_the_same_bad_files_in_the_same_order(tmp_path):
    files = folder_of(tmp_path / "x", 50, bad=[0, 13, 14, 49])
    with (tmp_path / "x/020.png").open("r+b") as file:
        file.truncate(60)
    alone = everything(files, max_bad=0.2)
    assert len(alone[2]) == 5
    assert everything(files, max_bad=0.2, workers=2) == alone


def test_a_truncated_jpeg_is_listed_with_its_reason(tmp_path):
    files = folder_of(tmp_path / "x", 3)
    path = tmp_path / "x/jpeg.jpg"
    Image.effect_noise((64, 64), 90).convert("RGB").save(path, quality=95)
    path.write_bytes(path.read_bytes()[:-200])
    _, kept, bad, error = everything([ImageFile(path), *files], max_bad=0.5, workers=1)
    assert (kept, error) == ([files], "")
    assert [file.path for file in bad] == [path]
    assert bad[0].reason.startswith("cannot be read: ")
    assert "truncated" in bad[0].reason.lower()


def test_workers_give_the_same_error_for_too_many_bad_files(tmp_path):
    files = folder_of(tmp_path / "x", 30, bad=[3, 9, 17, 20])
    alone = everything(files)
    assert "3 of the first 18 images" in alone[3]
    assert everything(files, workers=2) == alone


def test_workers_give_the_same_error_for_images_of_different_size(tmp_path):
    files = folder_of(tmp_path / "x", 12)
    Image.new("RGB", (5, 4)).save(tmp_path / "x/010.png")
    alone = everything(files, ANY_SIZE)
    assert "images differ in size" in alone[3]
    assert everything(files, ANY_SIZE, workers=2) == alone


def test_workers_read_array_files(tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(20, 3, 4, 4)))
    files = find_images(tmp_path / "x.npy")
    ((tensor, kept),) = batches(files, TINY, 32, workers=1)
    assert kept == files
    np.testing.assert_array_equal(tensor, load_batch(files, TINY))


def test_workers_keep_to_the_pixel_limit_of_this_process(tmp_path, monkeypatch):
    files = folder_of(tmp_path / "x", 2, size=(40, 40))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    alone = everything(files, ANY_SIZE)
    assert "more than 1000 pixels, which may be an attack" in alone[3]
    assert everything(files, ANY_SIZE, workers=1) == alone


# --- memory ---------------------------------------------------------------------------------------------------


class Counting(list[ImageFile]):
    """Knows up to which file it was read by slices, which is how work is given out."""

    given = 0

    def __getitem__(self, key):
        if isinstance(key, slice):
            self.given = max(self.given, min(key.stop, len(self)))
        return super().__getitem__(key)


def test_files_in_flight_are_bounded_by_the_batch_and_not_by_their_number(tmp_path):
    files = Counting(folder_of(tmp_path / "x", 10) * 60)
    ahead = []
    done = 0
    for _, kept in batches(files, TINY, 32, workers=1):
        done += len(kept)
        ahead.append(files.given - done)
    assert done == 600
    # One batch ahead, and at most a chunk of 8 at either end.
    assert max(ahead) <= 32 + 2 * 8
    # Work is there for the workers while the caller has the batch.
    assert min(ahead[:10]) >= 32 - 8


# --- the processes --------------------------------------------------------------------------------------------


def test_no_process_is_started_before_the_first_batch_is_asked_for(tmp_path):
    batches(folder_of(tmp_path / "x", 2), TINY, 1, workers=2)
    assert not multiprocessing.active_children()


def test_closing_early_leaves_no_process(tmp_path):
    found = batches(folder_of(tmp_path / "x", 60), TINY, 2, workers=2)
    next(found)
    children = multiprocessing.active_children()
    assert children
    found.close()  # type: ignore[attr-defined]
    assert not multiprocessing.active_children()
    assert not any(child.is_alive() for child in children)


def test_an_exception_in_the_callers_function_leaves_no_process(tmp_path):
    def refuse(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(batches(folder_of(tmp_path / "x", 20, bad=[1]), TINY, 2, workers=1, on_bad=refuse))
    assert not multiprocessing.active_children()


def test_a_killed_worker_is_one_clear_error(tmp_path):
    found = batches(folder_of(tmp_path / "x", 10) * 40, TINY, 2, workers=1)
    next(found)
    for child in multiprocessing.active_children():
        assert child.pid is not None
        os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(DataError, match=r"decodes images died at .*\.png or one of .* workers=0") as caught:
        list(found)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()


def test_processes_that_cannot_be_started_are_an_error_of_the_machine(tmp_path, monkeypatch):
    def refuse(self):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(multiprocessing.get_context("spawn").Process, "start", refuse)
    with pytest.raises(UnavailableError, match=r"^3 processes .* \(Resource temporarily unavailable\): use fewer"):
        list(batches(folder_of(tmp_path / "x", 2), TINY, 1, workers=3))


SCRIPT = """
import sys, time, multiprocessing
from dataclasses import replace
from pathlib import Path
from calibration.images import batches, find_images
from calibration.preprocess import PRESETS
if __name__ == "__main__":
    files = find_images(Path(sys.argv[1])) * 200
    for number, _ in enumerate(batches(files, replace(PRESETS["cifar"], size=(4, 4)), 4, workers=2)):
        if number == {stop}:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
        time.sleep(0.05)
"""


def started(tmp_path, stop=0):
    """The script above in a session of its own, once it has workers; and their process ids."""
    folder_of(tmp_path / "x", 10)
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT).replace("{stop}", str(stop)))
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "x")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    return process, [int(pid) for pid in process.stdout.readline().split()]


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def gone(pids, seconds=20.0):
    end = time.monotonic() + seconds
    while any(map(alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(alive, pids))


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")


@needs_proc
@pytest.mark.parametrize("stop", [0, 5], ids=["while workers start", "while workers work"])
def test_ctrl_c_ends_the_workers_without_a_word_from_them(tmp_path, stop):
    process, pids = started(tmp_path, stop)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    _, errors = process.communicate(timeout=60)
    assert len(pids) == 2
    assert gone(pids)
    assert errors.count("Traceback (most recent call last)") == 1
    assert errors.rstrip().endswith("KeyboardInterrupt")
    assert "SpawnProcess" not in errors


@needs_proc
def test_workers_end_when_their_parent_is_killed(tmp_path):
    process, pids = started(tmp_path, stop=5)
    process.kill()
    assert len(pids) == 2
    assert gone(pids)
    process.communicate(timeout=60)


def test_a_worker_loads_no_framework():
    code = (
        "import sys, calibration.workers, calibration.images, calibration.audit; calibration.workers._prepare(None, 0)"
        "; print({'torch', 'onnx', 'onnxruntime', 'onnxsim'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "set()"


# --- arguments ------------------------------------------------------------------------------------------------


def test_a_negative_number_of_workers_is_refused_at_the_call():
    with pytest.raises(InputError, match="number of workers is -1"):
        batches([ImageFile(Path("x.png"))], TINY, 1, workers=-1)


def sparse(folder, count, size):
    """Files that look large and take no space: nothing reads them."""
    folder.mkdir()
    for i in range(count):
        with (folder / f"{i:04}.png").open("wb") as file:
            file.truncate(size)
    return find_images(folder)


@pytest.mark.parametrize(
    ("count", "size", "cpus", "workers"),
    [
        (255, 1 << 20, 16, 0),
        (300, 1000, 16, 0),
        (300, 1 << 20, 16, 8),
        (300, 1 << 20, 4, 3),
        (300, 1 << 20, 1, 1),
    ],
    ids=["few", "tiny", "many processors", "some processors", "one processor"],
)
def test_workers_are_proposed_where_they_save_time(tmp_path, monkeypatch, count, size, cpus, workers):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert worker_count(sparse(tmp_path / "x", count, size)) == workers


def test_no_workers_are_proposed_for_array_files_and_files_that_are_gone():
    assert worker_count([ImageFile(Path("x.npy"), row=i) for i in range(1000)]) == 0
    assert worker_count([ImageFile(Path("gone.png"))] * 1000) == 0
    assert worker_count([]) == 0
