"""Warnings about a set of images: which mistakes are seen, and which honest sets are left in peace."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibration.audit import ImageAudit, content_hashes, duplicates, list_sha256, overlap, overlap_warning
from calibration.images import ImageFile, find_images
from calibration.preprocess import PRESETS
from runtimes.errors import DataError

CIFAR = PRESETS["cifar"]
UNSCALED = replace(CIFAR, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def pictures(count=100, light=1.0):
    """uint8 ``[N, 32, 32, 3]``: each a gradient between two colours, with some noise, from black to white in all."""
    rng = np.random.default_rng(0)
    ends = rng.uniform(0, 1, (count, 2, 1, 1, 3))
    ramp = np.linspace(0, 1, 32).reshape(1, 1, 32, 1)
    smooth = ends[:, 0] * ramp + ends[:, 1] * (1 - ramp)
    values = smooth + rng.normal(0, 0.15, (count, 32, 32, 3))
    return np.uint8(values.clip(0, 1) * 255 * light)


def audited(contract=CIFAR, count=100, light=1.0, classes=10, change=lambda tensor: tensor):
    audit = ImageAudit()
    tensors = np.stack([contract.apply_pixels(pixels) for pixels in pictures(count, light)])
    files = [ImageFile(Path(f"{i}.png"), i % classes, f"class {i % classes}") for i in range(count)]
    for start in range(0, count, 32):
        audit.add(change(tensors[start : start + 32]).astype(np.float32), files[start : start + 32])
    return audit


# --- pixels ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("light", [1.0, 0.3, 0.1], ids=["by day", "at dusk", "by night"])
@pytest.mark.parametrize(
    "contract",
    [CIFAR, replace(CIFAR, mean=(0.5,) * 3, std=(0.5,) * 3), replace(CIFAR, mean=(0.49,) * 3, std=(0.2,) * 3)],
    ids=["ImageNet statistics", "from -1 to 1", "statistics of CIFAR-10"],
)
def test_images_that_are_normalised_as_usual_raise_no_warning(contract, light):
    assert audited(contract, light=light).warnings() == ()


@pytest.mark.parametrize(
    ("contract", "change", "guess"),
    [
        (replace(CIFAR, scale=1.0), lambda x: x, "division by 255 missing"),
        (CIFAR, lambda x: (x - 0.45) / 0.225, "normalised twice"),
        (CIFAR, lambda x: (x / 255 - 0.45) / 0.225, "divided by 255 or normalised twice"),
        (replace(CIFAR, scale=255.0**-2), lambda x: x, "divided by 255 or normalised twice"),
        (UNSCALED, lambda x: x, "division by std left out"),
        (UNSCALED, lambda x: x - 0.45, "division by std left out"),
        (CIFAR, lambda x: x * 0, "all images of one colour"),
        (CIFAR, lambda x: x * np.nan, "division by 255"),
    ],
    ids=["not / 255", "twice", "twice, / 255", "/ 255 / 255", "only / 255", "minus a constant", "black", "NaN"],
)
def test_values_of_the_wrong_scale_raise_one_warning_with_a_guess(contract, change, guess):
    (line,) = audited(contract, change=change).warnings()
    assert line.startswith("the values fed have mean ")
    assert guess in line
    assert "\n" not in line


sizes = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=6)


@given(sizes, st.floats(-1000, 1000))
def test_mean_and_std_are_those_of_all_pixels_however_they_are_cut_into_batches(shapes, offset):
    rng = np.random.default_rng(0)
    tensors = [rng.normal(offset, 2, (n, 2, h, w)).astype(np.float32) for n, h, w in shapes]
    audit = ImageAudit()
    for tensor in tensors:
        audit.add(tensor)
    pixels = np.concatenate([t.transpose(1, 0, 2, 3).reshape(2, -1) for t in tensors], axis=1).astype(np.float64)
    assert audit.images == sum(len(t) for t in tensors)
    np.testing.assert_allclose(audit.mean, pixels.mean(axis=1), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(audit.std, pixels.std(axis=1), rtol=1e-9, atol=1e-9)


def test_an_audit_of_nothing_has_no_statistics():
    audit = ImageAudit()
    assert (audit.images, audit.mean, audit.std) == (0, (), ())
    (line,) = audit.warnings()
    assert line.startswith("the number of images is 0")


@pytest.mark.parametrize("shape", [(3, 4, 4), (0, 3, 4, 4), (2, 1, 4, 4)])
def test_a_batch_of_another_form_is_refused(shape):
    audit = ImageAudit()
    audit.add(np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=r"give \[N,3,H,W\]"):
        audit.add(np.zeros(shape, np.float32))


# --- number and classes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "warned"), [(99, True), (100, False)])
def test_fewer_than_a_hundred_images_raise_a_warning(count, warned):
    assert [line.startswith(f"the number of images is {count}") for line in audited(count=count).warnings()] == (
        [True] if warned else []
    )


def test_images_of_one_class_raise_a_warning_that_names_it():
    (line,) = audited(classes=1).warnings()
    assert line.startswith("all 100 images are of one class (class 0)")


def test_images_without_labels_are_not_taken_for_one_class():
    tensor = np.stack([CIFAR.apply_pixels(pixels) for pixels in pictures()])
    labelled = [ImageFile(Path(f"{i}.png"), 0) for i in range(99)]
    for files in ([], labelled, [*labelled, ImageFile(Path("x.png"))]):
        audit = ImageAudit()
        audit.add(tensor, files)
        assert audit.warnings() == ()


# --- contents -------------------------------------------------------------------------------------------------


def saved(folder, values):
    folder.mkdir()
    for i, value in enumerate(values):
        Image.new("RGB", (4, 4), (value, 0, 0)).save(folder / f"{i:04}.png")
    return find_images(folder)


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path):
    content = np.random.default_rng(0).bytes((1 << 20) + 17)  # more than is read at once
    (tmp_path / "x.png").write_bytes(content)
    file = ImageFile(tmp_path / "x.png")
    assert content_hashes([file, file]) == {file: hashlib.sha256(content).hexdigest()}


@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_the_hash_of_a_row_is_that_of_its_values(tmp_path, suffix):
    rows = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    path = tmp_path / f"x.{suffix}"
    np.save(path, np.asfortranarray(rows)) if suffix == "npy" else np.savez(path, rows)
    files = find_images(path)
    expected = [hashlib.sha256(row.tobytes()).hexdigest() for row in rows]
    assert content_hashes(files) == dict(zip(files, expected, strict=True))


@pytest.mark.parametrize(
    ("file", "message"), [(ImageFile(Path("gone.png")), "cannot be read"), (ImageFile(Path("x.npy"), row=9), "row 9")]
)
def test_a_hash_of_what_is_not_there_is_an_error(tmp_path, file, message):
    np.save(tmp_path / "x.npy", np.zeros((1, 3, 4, 4), np.float32))
    with pytest.raises(DataError, match=message):
        content_hashes([replace(file, path=tmp_path / file.path)])


def test_copies_are_found_under_other_names_and_when_one_file_is_listed_twice(tmp_path):
    files = saved(tmp_path / "x", [1, 2, 1, 3])
    listed = [*files, files[1]]
    assert duplicates(listed, content_hashes(listed)) == [files[2], files[1]]


@pytest.mark.parametrize(("copies", "warned"), [(0, False), (3, False), (4, True)])
def test_more_than_a_few_copies_raise_a_warning(tmp_path, copies, warned):
    files = saved(tmp_path / "x", [*range(20), *range(copies)])
    audit = audited()
    audit.add_contents(files, content_hashes(files))
    assert audit.warnings() == (
        (f"{copies} images are copies of others, byte for byte: give different ones",) if warned else ()
    )


def test_one_copy_in_a_hundred_is_a_few():
    files = [ImageFile(Path(f"{i}.png")) for i in range(1000)]
    audit = audited(count=1000)
    audit.add_contents(files, {file: str(max(i, 10)) for i, file in enumerate(files)})
    assert audit.warnings() == ()
    audit.add_contents(files, {file: str(max(i, 11)) for i, file in enumerate(files)})
    assert len(audit.warnings()) == 1


def test_images_in_both_sets_are_found_by_content(tmp_path):
    a, b = saved(tmp_path / "a", [1, 2, 3]), saved(tmp_path / "b", [9, 3, 2])
    shared = overlap(content_hashes(a), content_hashes(b))
    assert shared == a[1:]
    line = overlap_warning(shared)
    assert line is not None
    assert line.startswith(f"2 of the images are in both the calibration and the evaluation set ({a[1].path}, ...)")


def test_sets_without_common_images_raise_no_warning(tmp_path):
    a, b = saved(tmp_path / "a", [1, 2]), saved(tmp_path / "b", [3])
    assert overlap_warning(overlap(content_hashes(a), content_hashes(b))) is None


def test_the_warning_about_common_rows_names_the_row():
    line = overlap_warning([ImageFile(Path("x.npy"), row=7)])
    assert line is not None
    assert "(x.npy row 7, ...)" in line


def test_the_hash_of_a_list_is_that_of_its_contents_in_order(tmp_path):
    a, b = saved(tmp_path / "a", [1, 2, 3]), saved(tmp_path / "b", [1, 2, 3])
    labelled = [replace(file, label=1) for file in b]

    def digest(files):
        return list_sha256(files, content_hashes(files))

    assert digest(a) == digest(b) == digest(labelled)
    assert len({digest(files) for files in (a, a[::-1], a[:2], [*a, a[0]])}) == 4


def test_the_hash_of_a_list_never_changes():
    # It is written into range files, to tell whether two were made from the same images.
    files = [ImageFile(Path("a")), ImageFile(Path("b"))]
    hashes = {files[0]: "00" * 32, files[1]: "ff" * 32}
    text = "00" * 32 + "\n" + "ff" * 32 + "\n"
    assert list_sha256(files, hashes) == hashlib.sha256(text.encode()).hexdigest()
