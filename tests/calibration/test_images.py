import contextlib
import os
import struct
import warnings
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.images import BadFile, ImageFile, batches, decode, find_images, load_batch, sample
from calibration.preprocess import PRESETS
from runtimes.errors import DataError, InputError

TINY = replace(PRESETS["cifar"], size=(4, 4))
ANY_SIZE = replace(TINY, size=None)


def save(path, value=0, size=(4, 4)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)
    return path


def broken(path):
    path.write_bytes(b"")
    return path


def png_of(width, height):
    """A PNG of a few bytes whose header promises ``width`` x ``height`` pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


# --- find_images: folders -------------------------------------------------------------------------------------


def test_a_folder_gives_its_images_sorted_and_without_labels(tmp_path):
    for name in ("b.PNG", "a.jpeg", "c.webp"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    assert find_images(tmp_path) == [ImageFile(tmp_path / name) for name in ("a.jpeg", "b.PNG", "c.webp")]


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "png", "bmp", "webp", "tif", "tiff", "gif", "ppm"])
def test_every_kind_of_image_is_found_and_read(tmp_path, suffix):
    save(tmp_path / f"x.{suffix}", value=255)
    assert load_batch(find_images(tmp_path), TINY).shape == (1, 3, 4, 4)


def test_a_pgm_is_found_and_read(tmp_path):
    Image.new("L", (4, 4)).save(tmp_path / "x.pgm")
    assert load_batch(find_images(tmp_path), TINY).shape == (1, 3, 4, 4)


def test_class_folders_are_numbered_in_alphabetical_order(tmp_path):
    for name in ("dog/1.png", "cat/2.png", "cat/1.png", "cat/more/0.png"):
        save(tmp_path / name)
    found = [(f.path.relative_to(tmp_path).as_posix(), f.label, f.class_name) for f in find_images(tmp_path)]
    assert found == [
        ("cat/1.png", 0, "cat"),
        ("cat/2.png", 0, "cat"),
        ("cat/more/0.png", 0, "cat"),
        ("dog/1.png", 1, "dog"),
    ]


def test_a_class_without_images_keeps_its_number(tmp_path):
    (tmp_path / "bird").mkdir()
    save(tmp_path / "cat/1.png")
    assert [file.label for file in find_images(tmp_path)] == [1]


def test_hidden_files_and_folders_are_left_out(tmp_path):
    for name in ("cat/1.png", "cat/._1.png", "cat/.thumbs/1.png", ".cache/1.png"):
        save(tmp_path / name)
    assert [(file.path.name, file.label) for file in find_images(tmp_path)] == [("1.png", 0)]


def test_a_hidden_folder_above_the_root_does_not_hide_its_images(tmp_path):
    save(tmp_path / ".cache/images/1.png")
    assert len(find_images(tmp_path / ".cache/images")) == 1


def test_an_empty_folder_is_an_error_that_says_what_was_searched(tmp_path):
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match=r"its 1 sub-folders hold no image \(bmp gif jpeg jpg .*webp\)"):
        find_images(tmp_path)


def test_images_beside_class_folders_are_refused(tmp_path):
    save(tmp_path / "loose.png")
    save(tmp_path / "cat/1.png")
    with pytest.raises(DataError, match=r"images \(loose.png, ...\) beside folders of images"):
        find_images(tmp_path)


def test_splits_are_not_taken_for_classes(tmp_path):
    save(tmp_path / "train/cat/1.png")
    save(tmp_path / "val/cat/1.png")
    with pytest.raises(DataError, match=r"folders of folders \(train, val\)"):
        find_images(tmp_path)


def test_a_path_that_does_not_exist_is_an_error(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        find_images(tmp_path / "nowhere")


def test_a_single_image_is_a_data_set(tmp_path):
    path = save(tmp_path / "one.png")
    assert find_images(path) == [ImageFile(path)]


# --- find_images: lists ---------------------------------------------------------------------------------------


def test_a_list_keeps_its_order_and_takes_labels_after_a_tab_or_a_space(tmp_path):
    names = ["b.png", "a.png", "my photo 7.png", "photo 8"]
    for name in names[:3]:
        save(tmp_path / "set" / name)
    (tmp_path / "set/photo 8").write_bytes(b"")
    lines = "\ufeffset/b.png 3\r\n\nset/a.png\t12\nset/my photo 7.png\nset/photo 8\nset/my photo 7.png  0\n"
    (tmp_path / "list.txt").write_text(lines, encoding="utf-8")
    found = [
        (file.path.relative_to(tmp_path / "set").as_posix(), file.label) for file in find_images(tmp_path / "list.txt")
    ]
    assert found == [("b.png", 3), ("a.png", 12), (names[2], None), (names[3], None), (names[2], 0)]


def test_a_list_takes_absolute_paths(tmp_path):
    path = save(tmp_path / "a.png")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub/list.txt").write_text(f"{path} 1\n")
    assert find_images(tmp_path / "sub/list.txt") == [ImageFile(path, 1)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\n \n", "lists no image"),
        (b"gone.png 1\nlost.png\n", r"2 files that do not exist \(.*gone.png, .*lost.png\)"),
        (b"a.png\tcat\n", "line 1: the label is 'cat'"),
        (b"a.png\t-1\n", "line 1: the label is '-1'"),
        (b"\xff\xfe\x00\x81", "is not an image"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(tmp_path, content, message):
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "list.txt")


# --- find_images: arrays --------------------------------------------------------------------------------------


def test_floating_rows_pass_unchanged(tmp_path):
    rows = np.random.default_rng(0).normal(size=(3, 3, 4, 4))
    np.save(tmp_path / "x.npy", rows)
    files = find_images(tmp_path / "x.npy")
    assert [(file.row, file.label) for file in files] == [(0, None), (1, None), (2, None)]
    tensor = load_batch(files, TINY)
    assert tensor.dtype == np.float32
    np.testing.assert_array_equal(tensor, rows.astype(np.float32))


def test_uint8_rows_go_through_the_contract_like_image_files(tmp_path):
    rows = np.random.default_rng(0).integers(0, 256, (2, 4, 4, 3), dtype=np.uint8)
    np.save(tmp_path / "x.npy", rows)
    Image.fromarray(rows[1]).save(tmp_path / "row.png")
    tensor = load_batch(find_images(tmp_path / "x.npy"), TINY)
    np.testing.assert_array_equal(tensor[1], decode(ImageFile(tmp_path / "row.png"), TINY))


def test_an_archive_of_images_and_labels_gives_both(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=np.array([7, 2]))
    files = find_images(tmp_path / "x.npz")
    assert [file.label for file in files] == [7, 2]
    assert load_batch(files, TINY).shape == (2, 3, 4, 4)


def test_a_rewritten_array_file_is_read_again(tmp_path):
    path = tmp_path / "x.npy"
    np.save(path, np.zeros((1, 3, 4, 4), np.float32))
    assert load_batch(find_images(path), TINY).max() == 0
    np.save(path, np.ones((2, 3, 4, 4), np.float32))
    assert load_batch(find_images(path), TINY).min() == 1


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_pickled_objects_are_never_loaded(tmp_path, suffix):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    content = np.array([Trap()], dtype=object)
    path = tmp_path / f"x.{suffix}"
    if suffix == "npy":
        np.save(path, content, allow_pickle=True)
    else:
        np.savez(path, images=content)
    with pytest.raises(DataError, match="not a plain array file"):
        find_images(path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 3, 4, 4), np.int64)}, r"int64 of shape \[2, 3, 4, 4\]"),
        ({"x": np.zeros((3, 4, 4), np.float32)}, "give floating"),
        ({"x": np.zeros((0, 3, 4, 4), np.float32)}, "is empty"),
        ({"x": np.zeros(1), "y": np.zeros(1)}, "holds x, y: give one array, or images and labels"),
        ({"labels": np.zeros(1)}, "holds labels"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, int)}, "give 2 integers"),
        ({"images": np.zeros((1, 4, 4), np.uint8), "labels": np.array([-1])}, "give 1 integers"),
        ({"images": np.zeros((1, 4, 4), np.uint8), "labels": np.zeros(1)}, "labels is float64"),
    ],
)
def test_arrays_of_another_form_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(DataError, match=message):
        find_images(tmp_path / "x.npz")


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken", b"\x93NUMPY\x01\x00"])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_an_array_file_of_garbage_is_refused(tmp_path, content, suffix):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(DataError, match="not a plain array file"):
        find_images(tmp_path / f"x.{suffix}")


def test_a_truncated_array_file_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((2, 3, 4, 4), np.float32))
    with (tmp_path / "x.npy").open("r+b") as file:
        file.truncate(200)
    with pytest.raises(DataError, match="not a plain array file"):
        find_images(tmp_path / "x.npy")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((1, 4, 4, 3), np.float32), r"shape \[4, 4, 3\], the model takes 3 channels"),
        (np.zeros((1, 3, 5, 4), np.float32), "image is 4x5, the model takes 4x4"),
        (np.full((1, 3, 4, 4), np.nan, np.float32), "row 0 holds NaN"),
        (np.full((1, 3, 4, 4), 1e300), "row 0 holds NaN, infinity"),
        (np.zeros((1, 3, 4, 4), np.uint8), r"give \[H,W,C\]"),
    ],
)
def test_a_row_that_does_not_fit_the_model_is_refused(tmp_path, rows, message):
    np.save(tmp_path / "x.npy", rows)
    with pytest.raises(DataError, match=message):
        load_batch(find_images(tmp_path / "x.npy"), TINY)


# --- sample ---------------------------------------------------------------------------------------------------


labels = st.lists(st.none() | st.integers(0, 4), min_size=1, max_size=60)


def listing_of(classes):
    return [ImageFile(Path(f"{i}.png"), label) for i, label in enumerate(classes)]


@given(labels, st.integers(1, 60), st.integers(0, 5))
def test_a_sample_is_balanced_ordered_and_repeatable(classes, limit, seed):
    files = listing_of(classes)
    chosen = sample(files, limit, seed)
    assert chosen == sample(files, limit, seed)
    assert len(chosen) == min(limit, len(files))
    assert chosen == [file for file in files if file in chosen]
    there, taken = Counter(classes), Counter(file.label for file in chosen)
    # A class that is not exhausted has at most one image less than any other.
    assert all(taken[c] == there[c] or taken[c] >= max(taken.values()) - 1 for c in there)


@given(labels, st.integers(1, 59))
def test_a_larger_sample_contains_the_smaller(classes, limit):
    files = listing_of(classes)
    assert set(sample(files, limit)) <= set(sample(files, limit + 1))


def test_another_seed_chooses_other_images():
    files = listing_of([0] * 100)
    assert sample(files, 10, seed=0) != sample(files, 10, seed=1)


def test_the_choice_of_a_seed_never_changes():
    # Published accuracies name a seed and a limit.
    assert [int(file.path.stem) for file in sample(listing_of([0, 1] * 10), 4, seed=0)] == [2, 3, 12, 15]


@pytest.mark.parametrize("limit", [0, None, 3, 4])
def test_no_limit_takes_every_image(limit):
    files = listing_of([0, 1, None])
    assert sample(files, limit) == files


def test_a_negative_limit_is_refused():
    with pytest.raises(InputError, match="is -1"):
        sample(listing_of([0]), -1)


# --- broken files ---------------------------------------------------------------------------------------------


def test_a_truncated_jpeg_is_refused(tmp_path):
    path = tmp_path / "x.jpg"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(DataError, match=r"x\.jpg: cannot be read: image file is truncated"):
        decode(ImageFile(path), ANY_SIZE)


@pytest.mark.parametrize("content", [b"", b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_a_file_that_is_no_image_is_refused_whatever_its_name(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(DataError, match=r"x\.png: not an image of a known format"):
        decode(ImageFile(tmp_path / "x.png"), TINY)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"gone\.png: cannot be read: No such file"):
        decode(ImageFile(tmp_path / "gone.png"), TINY)


@pytest.mark.parametrize("side", [10_000, 60_000], ids=["Pillow warns", "Pillow raises"])
def test_a_decompression_bomb_is_refused_before_it_unfolds(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png_of(side, side))
    with pytest.raises(DataError, match=r"bomb\.png: more than \d+ pixels"):
        decode(ImageFile(tmp_path / "bomb.png"), ANY_SIZE)


def test_reading_leaves_the_warning_filters_alone(tmp_path):
    path = save(tmp_path / "x.png")
    before = list(warnings.filters)
    decode(ImageFile(path), TINY)
    assert list(warnings.filters) == before


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_bytes_give_a_tensor_or_a_data_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged"
    kind = data.draw(st.sampled_from(["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"]))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (4, 4), (1, 2, 3)).save(path, format=kind, exif=exif.tobytes())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    # A damaged header may promise any size: a low limit keeps the test small.
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(DataError):
        patch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
        assert decode(ImageFile(path), ANY_SIZE).dtype == np.float32


# --- batches --------------------------------------------------------------------------------------------------


def folder_of(tmp_path, count, bad=()):
    for i in range(count):
        save(tmp_path / f"{i:03}.png", value=i)
    for i in bad:
        broken(tmp_path / f"{i:03}.png")
    return find_images(tmp_path)


def test_batches_hold_every_image_once_and_in_order(tmp_path):
    files = folder_of(tmp_path, 7)
    out = list(batches(files, TINY, 3))
    assert [tensor.shape for tensor, _ in out] == [(3, 3, 4, 4), (3, 3, 4, 4), (1, 3, 4, 4)]
    assert [file for _, kept in out for file in kept] == files
    np.testing.assert_array_equal(np.concatenate([tensor for tensor, _ in out]), load_batch(files, TINY))


def test_bad_files_are_reported_left_out_and_shorten_their_own_batch_alone(tmp_path):
    files, bad = folder_of(tmp_path, 8, bad=[1, 4, 5]), list[BadFile]()
    out = list(batches(files, TINY, 2, max_bad=0.4, on_bad=bad.append))
    assert [[file.path.stem for file in kept] for _, kept in out] == [["000"], ["002", "003"], ["006", "007"]]
    assert [file.path.stem for file in bad] == ["001", "004", "005"]
    assert all(file.reason.startswith("not an image") for file in bad)


def test_one_bad_file_in_a_hundred_is_tolerated_and_two_are_not(tmp_path):
    files = folder_of(tmp_path, 100, bad=[50])
    assert sum(len(kept) for _, kept in batches(files, TINY, 32)) == 99
    broken(tmp_path / "070.png")
    with pytest.raises(DataError, match=r"2 of the first 100 images.*1\.0%.*050\.png: not an .*070\.png: not an "):
        list(batches(files, TINY, 32))


def test_a_folder_of_bad_files_is_given_up_early(tmp_path):
    files, bad = folder_of(tmp_path, 20, bad=range(20)), list[BadFile]()
    with pytest.raises(DataError, match="3 of the first 3 images"):
        list(batches(files, TINY, 4, on_bad=bad.append))
    assert len(bad) == 3


def test_nothing_but_bad_files_is_an_error_however_many_may_be_bad(tmp_path):
    with pytest.raises(DataError, match="2 of the first 2 images"):
        list(batches(folder_of(tmp_path, 2, bad=[0, 1]), TINY, 4, max_bad=1.0))


def test_images_of_another_size_count_as_bad_with_the_reason(tmp_path):
    save(tmp_path / "x.png", size=(64, 48))
    with pytest.raises(DataError, match=r"x\.png: image is 64x48, the model takes 4x4 without resize"):
        list(batches(find_images(tmp_path), TINY, 1))


@pytest.mark.parametrize("batch", [1, 2])
def test_images_of_different_size_are_refused_when_the_contract_has_none(tmp_path, batch):
    save(tmp_path / "a.png", size=(4, 4))
    save(tmp_path / "b.png", size=(5, 4))
    files = find_images(tmp_path)
    with pytest.raises(DataError, match=r"a\.png gives \[3, 4, 4\], .*b\.png gives \[3, 4, 5\]"):
        list(batches(files, ANY_SIZE, batch))
    with pytest.raises(DataError, match="images differ in size"):
        load_batch(files, ANY_SIZE)


def test_one_bad_file_spoils_a_single_batch(tmp_path):
    with pytest.raises(DataError, match=r"001\.png: not an image"):
        load_batch(folder_of(tmp_path, 3, bad=[1]), TINY)


@pytest.mark.parametrize(
    ("batch", "max_bad", "message"), [(0, 0.0, "batch is 0"), (1, 1.1, "is 1.1"), (1, float("nan"), "is nan")]
)
def test_arguments_out_of_range_are_refused_at_the_call(batch, max_bad, message):
    with pytest.raises(InputError, match=message):
        batches([ImageFile(Path("x.png"))], TINY, batch, max_bad=max_bad)


def test_no_files_are_refused_at_the_call():
    with pytest.raises(DataError, match="no images"):
        batches([], TINY, 1)
    with pytest.raises(DataError, match="no images"):
        load_batch([], TINY)


def test_an_error_about_many_broken_lines_stays_short(tmp_path):
    (tmp_path / "essay.md").write_text("word " * 1000 + "\n" + "another line\n" * 50)
    with pytest.raises(DataError, match="lists 51 files that do not exist") as caught:
        find_images(tmp_path / "essay.md")
    assert len(str(caught.value)) < 400 + len(str(tmp_path))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user who can be refused")
def test_a_folder_that_may_not_be_read_is_an_error(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o000)
    with pytest.raises(DataError, match="cannot be read"):
        find_images(folder)


def test_a_label_that_is_no_class_is_refused(tmp_path):
    huge = np.array([0, 2**63], np.uint64)
    np.savez(tmp_path / "x.npz", images=np.zeros((2, 4, 4), np.uint8), labels=huge)
    with pytest.raises(DataError, match="has the label 9223372036854775808, which is no class"):
        find_images(tmp_path / "x.npz")
    (tmp_path / "a.png").touch()
    listing = tmp_path / "list.txt"
    listing.write_text("a.png\t0000000000000000007\n")
    assert [file.label for file in find_images(listing)] == [7]
    listing.write_text("a.png\t" + "9" * 5000 + "\n")
    with pytest.raises(DataError, match="line 1: the label 999999999999999999999999 is no class"):
        find_images(listing)
