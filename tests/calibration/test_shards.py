"""Shards: the batches of one process, on files that a machine has or was sent."""

from dataclasses import replace

import numpy as np
import pytest

from calibration.audit import ImageAudit, content_hashes
from calibration.cluster_worker import processor, versions
from calibration.images import BadFile, ImageFile, batches, find_images
from calibration.shards import Gathered, Reading, Shard, on_this_machine, read_shard, shards
from runtimes.errors import DataError, UnavailableError
from tests.calibration.test_workers import ANY_SIZE, TINY, folder_of


def read(shard, batch, contract=TINY):
    """Batches with the places of their images in the list, and what was met."""
    reading = Reading()
    with on_this_machine(shard, reading) as local:
        found = [
            (tensor.tolist(), [shard.start + place for place in places])
            for tensor, places in read_shard(shard, local, contract, batch, reading)
        ]
    return found, reading


@pytest.mark.parametrize("batch", [1, 7, 32, 64, 100])
@pytest.mark.parametrize("ship", [False, True])
def test_shards_hold_the_batches_of_one_process(tmp_path, batch, ship):
    files = folder_of(tmp_path / "x", 150, bad=[0, 3, 64, 65, 149])
    alone = [
        (tensor.tolist(), [files.index(file) for file in kept])
        for tensor, kept in batches(files, TINY, batch, max_bad=0.5)
    ]
    parts = list(shards(files, batch, ship=ship))
    assert [file for part in parts for file in part.files] == files
    assert [each for part in parts for each in read(part, batch)[0]] == alone
    bad = [part.start + place for part in parts for place, _ in read(part, batch)[1].bad]
    assert bad == [0, 3, 64, 65, 149]


def test_rows_of_an_array_file_can_be_sent(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (9, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", pixels)
    files = find_images(tmp_path / "x.npy")
    (here,), (sent,) = shards(files, 4), shards(files, 4, ship=True)
    (tmp_path / "x.npy").rename(tmp_path / "gone.npy")
    found, _ = read(sent, 4)
    (tmp_path / "gone.npy").rename(tmp_path / "x.npy")
    assert found == read(here, 4)[0]
    with on_this_machine(sent, Reading()) as local:
        assert list(content_hashes(local).values()) == list(content_hashes(files).values())


def test_relative_paths_start_where_the_list_was_made(tmp_path, monkeypatch):
    folder_of(tmp_path / "x", 2)
    monkeypatch.chdir(tmp_path)
    (shard,) = shards([ImageFile(each.path.relative_to(tmp_path)) for each in find_images(tmp_path / "x")], 2)
    monkeypatch.chdir("/")
    found, reading = read(shard, 2)
    assert (len(found), reading.unseen) == (1, [])


def test_a_file_that_a_worker_alone_cannot_read_names_its_machine(tmp_path):
    files = folder_of(tmp_path / "x", 3)
    (shard,) = shards(files, 3)
    elsewhere = replace(shard, files=(files[0], replace(files[1], path=tmp_path / "not-there.png"), files[2]))
    reading = read(elsewhere, 3)[1]
    assert (reading.unseen, [place for place, _ in reading.bad]) == ([1], [1])
    with pytest.raises(UnavailableError, match=r"001\.png can be read here and not on node7: .*--ray-ship"):
        Gathered(files, 1.0).note(shard, reading, "node7")


def test_a_file_that_nobody_can_read_is_bad_and_no_more(tmp_path):
    files = [*folder_of(tmp_path / "x", 3), ImageFile(tmp_path / "not-there.png")]
    (shard,) = shards(files, 4)
    heard = list[BadFile]()
    gathered = Gathered(files, 0.25, heard.append)
    gathered.note(shard, read(shard, 4)[1], "node7")
    gathered.end()
    assert [file.path.name for file in heard] == ["not-there.png"]
    with pytest.raises(DataError, match=r"1 of the first 4 images cannot be used"):
        Gathered(files, 0.2).note(shard, read(shard, 4)[1], "node7")


def test_images_of_different_sizes_are_refused_across_shards(tmp_path):
    small, large = folder_of(tmp_path / "a", 2), folder_of(tmp_path / "b", 2, size=(5, 4))
    files = [*small, *large]
    gathered = Gathered(files, 0.0)
    for start, part in ((0, small), (2, large)):
        shard = Shard(start, tuple(part), tmp_path)
        reading = read(shard, 2, ANY_SIZE)[1]
        if not start:
            gathered.note(shard, reading, "node7")
    with pytest.raises(DataError, match=r"a/000\.png gives \[3, 4, 4\], .*b/000\.png gives \[3, 5, 4\]"):
        gathered.note(shard, reading, "node7")


def test_a_set_without_any_image_is_refused_at_the_end(tmp_path):
    files = folder_of(tmp_path / "x", 2, bad=[0, 1])
    gathered = Gathered(files, 1.0)
    (shard,) = shards(files, 2)
    gathered.note(shard, read(shard, 2)[1], "node7")
    with pytest.raises(DataError, match="2 of the first 2 images"):
        gathered.end()


def test_audits_of_single_batches_merge_to_the_last_bit(tmp_path):
    rng = np.random.default_rng(0)
    tensors = [rng.normal(size=(size, 3, 5, 5)).astype(np.float32) for size in (7, 1, 7, 3)]
    files = [ImageFile(tmp_path / f"{i}.png", label=i) for i in range(18)]
    whole, merged, start = ImageAudit(), ImageAudit(), 0
    for tensor in tensors:
        part, named = ImageAudit(), files[start : start + len(tensor)]
        for audit in (whole, part):
            audit.add(tensor, named)
        merged.merge(part)
        start += len(tensor)
    merged.merge(ImageAudit())
    assert (merged.mean, merged.std, merged.images) == (whole.mean, whole.std, 18)
    assert merged.warnings() == whole.warnings()


def test_audits_of_other_channels_do_not_merge():
    grey, colour = ImageAudit(), ImageAudit()
    grey.add(np.zeros((1, 1, 2, 2), np.float32))
    colour.add(np.zeros((1, 3, 2, 2), np.float32))
    with pytest.raises(DataError, match="1 and of 3 channels"):
        grey.merge(colour)


def test_versions_tell_modules_and_what_is_missing():
    found = versions(("numpy", "no_such_module"))
    assert (found["numpy"], found["no_such_module"]) == (np.__version__, "missing")
    assert "resnet-export" in found


def test_a_processor_is_its_instruction_sets(tmp_path):
    path = tmp_path / "cpuinfo"
    path.write_text("model name : X\nflags : fpu avx2 avx512f sse\n")
    assert processor(path).split()[1:] == ["avx2", "avx512f"]
    assert len(processor(tmp_path / "missing").split()) == 1
