"""From images to ranges: whole batches only, the same bytes however often the run was interrupted, one line per fault.

Weights are small integers and pixels are fed as they are, so that every sum is exact in float32.
"""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from calibration.audit import content_hashes, list_sha256
from calibration.calibrate import calibrate
from calibration.collect import Collector, collect
from calibration.graph import Network
from calibration.histogram import BINS, Histogram
from calibration.images import ImageFile, find_images, load_batch
from calibration.observers import Observer
from calibration.preprocess import PRESETS
from calibration.ranges import Ranges, read_ranges
from runtimes.errors import DataError, GraphError, InputError
from tests.exporter.graphs import onnx_model

PIXELS = replace(PRESETS["cifar"], size=(8, 8), scale=1.0, mean=(0.0,) * 3, std=(1.0,) * 3)
BATCH = 4
COUNT = 22  # five batches and a short one


@pytest.fixture(autouse=True)
def small_batches(monkeypatch):
    monkeypatch.setattr("calibration.collect._LARGEST_BATCH", BATCH)


def network(dims=("N", 3, 8, 8), sha256="0" * 64, **changed):
    """Convolution, Relu, convolution, mean, classifier; ``changed`` replaces weights."""
    shapes = {"w1": (4, dims[1], 3, 3), "b1": (4,), "w2": (4, 4, 3, 3), "b2": (4,), "fc": (4, 5)}
    draw = np.random.default_rng(1)
    values = {name: draw.integers(-1, 2, shape).astype(np.float32) for name, shape in shapes.items()} | changed
    nodes = [
        helper.make_node("Conv", ["input", "w1", "b1"], ["conv1"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["conv1"], ["relu1"]),
        helper.make_node("Conv", ["relu1", "w2", "b2"], ["conv2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["conv2", "relu1"], ["add"]),
        helper.make_node("Relu", ["add"], ["relu2"]),
        helper.make_node("GlobalAveragePool", ["relu2"], ["pool"]),
        helper.make_node("Flatten", ["pool"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["logits"]),
    ]
    constants = [numpy_helper.from_array(value, name) for name, value in values.items()]
    return Network(onnx_model(nodes, constants, dims=dims), sha256)


def pictures(folder, count=COUNT, bad=(), size=(8, 8)):
    folder.mkdir(exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}.png")
    for i in bad:
        (folder / f"{i:03}.png").write_bytes(b"")
    return find_images(folder)


@pytest.fixture
def files(tmp_path):
    return pictures(tmp_path / "images")


def calibrated(files, of=None, contract=PIXELS, **options):
    return calibrate(of or network(), files, contract, **{"threads": 1, "workers": 0} | options)


def stop_at(images):
    def progress(done):
        if done >= images:
            raise KeyboardInterrupt

    return progress


def interrupted(files, state, images=8, **options):
    """What a run leaves that ends, by Ctrl+C, after so many images."""
    with pytest.raises(KeyboardInterrupt):
        calibrated(files, state=state, progress=stop_at(images), **options)
    return state


def images_in(state):
    return json.loads(state.read_text())["ranges"]["images"]


# --- the ranges -----------------------------------------------------------------------------------------------


def test_ranges_are_those_of_the_observers_over_all_images_at_once(files):
    found = calibrated(files)
    plain = Collector(network(), threads=1)
    collect(plain, [load_batch(files, PIXELS)])
    expected = {name: observer.to_json() for name, observer in plain.observers.items()}
    assert {name: observer.to_json() for name, observer in found.ranges.tensors.items()} == expected
    assert found.ranges.images == COUNT
    assert found.ranges.images_sha256 == list_sha256(files, content_hashes(files))
    assert found.ranges.model_sha256 == network().sha256
    assert found.ranges.preprocessing == PIXELS
    assert (found.files, found.bad) == (tuple(files), ())
    assert found.seconds > 0


def test_the_order_of_the_images_shows_in_their_hash_alone(files):
    one, other = calibrated(files).ranges, calibrated(files[::-1]).ranges
    assert one.images_sha256 != other.images_sha256
    assert replace(other, images_sha256=one.images_sha256).dumps() == one.dumps()


def test_decoding_in_workers_gives_the_same_bytes(tmp_path):
    files = pictures(tmp_path / "images", bad=[5])
    alone, shared = calibrated(files, max_bad=0.1), calibrated(files, max_bad=0.1, workers=2)
    assert shared.ranges.dumps() == alone.ranges.dumps()
    assert (shared.bad, shared.files, shared.warnings) == (alone.bad, alone.files, alone.warnings)


def test_bytes_of_the_statistics_do_not_depend_on_the_number_of_images(files):
    def held(of):
        return {
            name: (observer.histogram.counts.nbytes, observer.channel_low.nbytes, observer.channel_high.nbytes)
            for name, observer in of.ranges.tensors.items()
        }

    assert held(calibrated(files[:2])) == held(calibrated(files * 5))


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_threads_does_not_show(files, threads):
    assert calibrated(files, threads=threads).ranges.dumps() == calibrated(files, threads=2).ranges.dumps()


def test_a_histogram_that_was_asked_before_knows_what_it_was_given_after():
    asked, fresh = Histogram(), Histogram()
    for values in (np.array([1, 2, 0], np.float32), np.array([-3, 1], np.float32), np.array([900], np.float32)):
        for histogram in (asked, fresh):
            histogram.add(values, float(values.min()), float(values.max()))
        asked.occupied()
        assert asked.total
    asked.grow(3)
    fresh.grow(3)
    assert asked.total == fresh.total == 6
    for one, other in zip(asked.occupied(), fresh.occupied(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_either_zero_counts_as_zero_and_the_smallest_number_does_not():
    histogram = Histogram()
    histogram.add(np.array([0.0, -0.0, 1e-45, 1.0], np.float32), 0.0, 1.0)
    assert (histogram.zeros, histogram.counts.sum()) == (2, 2)
    histogram.add(np.array([0.0, -0.0, -1e-45, -1.0], np.float32), -1.0, 0.0)
    assert (histogram.zeros, histogram.counts.sum()) == (4, 4)
    assert histogram.counts[:BINS].sum() == 2


def test_a_model_with_a_fixed_batch_takes_a_number_of_images_that_does_not_fill_it(files):
    fixed = calibrated(files, network(("N", 3, 8, 8)))
    assert calibrated(files, network((5, 3, 8, 8))).ranges.dumps() == fixed.ranges.dumps()


@pytest.mark.parametrize("dims", [("N", 3, 8, 8), ("N", 3, "H", "W")])
def test_a_contract_without_a_size_takes_the_model_s_or_the_images_own(files, dims):
    found = calibrated(files, network(dims), replace(PIXELS, size=None))
    assert found.ranges.tensors["relu2"].to_json() == calibrated(files).ranges.tensors["relu2"].to_json()


def test_progress_starts_with_the_images_that_are_done_and_hears_of_each_batch(files, tmp_path):
    heard: list[int] = []
    calibrated(files, progress=heard.append)
    assert heard == [0, 4, 8, 12, 16, 20, 22]
    state = interrupted(files, tmp_path / "s", 12)
    heard.clear()
    calibrated(files, state=state, progress=heard.append)
    assert heard[0] >= 12
    assert heard == [*range(heard[0], 21, 4), 22]


def test_what_is_suspicious_about_the_images_is_told(files):
    copied = calibrated([*files, *files])
    assert "22 images are copies of others" in " ".join(copied.warnings)
    told = " ".join(calibrated([replace(file, label=0, class_name="cat") for file in files]).warnings)
    for words in ("number of images is 22", "one class (cat)", "is a division by 255 missing"):
        assert words in told


# --- interrupted and gone on with -----------------------------------------------------------------------------


@pytest.mark.parametrize("images", [4, 8, 20, 22])
def test_a_run_that_goes_on_after_an_interrupt_ends_with_identical_bytes(files, tmp_path, images):
    state = interrupted(files, tmp_path / "s", images)
    assert images_in(state) >= images
    went_on = calibrated(files, state=state)
    assert went_on.ranges.dumps() == calibrated(files).ranges.dumps()
    assert went_on.warnings == calibrated(files).warnings
    assert not state.exists()


def test_a_run_that_is_interrupted_again_and_again_comes_to_the_same_end(files, tmp_path):
    state = tmp_path / "s"
    for images in (4, 8, 12, 16, 20):
        interrupted(files, state, images)
    assert calibrated(files, state=state).ranges.dumps() == calibrated(files).ranges.dumps()


def test_images_that_are_done_are_not_run_again(files, tmp_path, monkeypatch):
    state = interrupted(files, tmp_path / "s", 8)
    done, sizes, update = images_in(state), list[int](), Collector.update

    def counted(self, batch):
        sizes.append(len(batch))
        update(self, batch)

    monkeypatch.setattr(Collector, "update", counted)
    assert calibrated(files, state=state).ranges.images == COUNT
    assert sum(sizes) == COUNT - done


def test_an_interrupt_while_a_batch_is_under_way_keeps_that_batch_too(files, tmp_path, monkeypatch):
    added: list[int] = []

    def add(_, tensor, __):
        added.append(len(tensor))
        if len(added) == 3:
            raise KeyboardInterrupt

    state = tmp_path / "s"
    with monkeypatch.context() as patch:
        patch.setattr("calibration.audit.ImageAudit.add", add)
        with pytest.raises(KeyboardInterrupt):
            calibrated(files, state=state)
    assert images_in(state) == 8
    assert calibrated(files, state=state).ranges.dumps() == calibrated(files).ranges.dumps()


def test_a_batch_that_failed_half_way_is_not_kept(files, tmp_path, monkeypatch):
    add, seen = Observer.add, list[Observer]()

    def cut(self, reading):
        seen.append(self)
        if len(seen) > 12:  # five or so tensors a batch: in the middle of the third
            raise KeyboardInterrupt
        add(self, reading)

    state = tmp_path / "s"
    monkeypatch.setattr("calibration.calibrate._SAVE_SECONDS", 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(Observer, "add", cut)
        with pytest.raises(KeyboardInterrupt):
            calibrated(files, state=state)
    assert images_in(state) == 8
    assert calibrated(files, state=state).ranges.dumps() == calibrated(files).ranges.dumps()


def test_a_run_that_is_killed_between_batches_goes_on_from_what_was_kept_last(files, tmp_path, monkeypatch):
    def dies(done):
        if done >= 12:
            raise SystemExit  # nothing is kept on this way out

    state = tmp_path / "s"
    monkeypatch.setattr("calibration.calibrate._SAVE_SECONDS", 0.0)
    with pytest.raises(SystemExit):
        calibrated(files, state=state, progress=dies)
    assert images_in(state) == 8
    assert calibrated(files, state=state).ranges.dumps() == calibrated(files).ranges.dumps()
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_bad_files_are_met_again_by_the_run_that_goes_on(tmp_path):
    files = pictures(tmp_path / "images", bad=[1, 9, 20])
    state = interrupted(files, tmp_path / "s", 8, max_bad=0.2)
    went_on, fresh = calibrated(files, state=state, max_bad=0.2), calibrated(files, max_bad=0.2)
    assert went_on.ranges.dumps() == fresh.ranges.dumps()
    assert went_on.bad == fresh.bad
    assert [file.path.name for file in fresh.bad] == ["001.png", "009.png", "020.png"]


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"of": network(sha256="1" * 64)}, "of another model:"),
        ({"contract": replace(PIXELS, color="BGR")}, "of another preprocessing:"),
        ({"files": slice(1, None)}, "of another list of images:"),
        ({"of": network(sha256="1" * 64), "contract": replace(PIXELS, color="BGR")}, "model and another preprocessing"),
    ],
)
def test_the_state_of_something_else_is_left_aside_with_a_note(files, tmp_path, changed, told):
    state = interrupted(files, tmp_path / "s")
    wanted = files[changed.get("files", slice(None))]
    options = {name: value for name, value in changed.items() if name != "files"}
    found = calibrated(wanted, state=state, **options)
    assert told in found.warnings[0]
    assert str(state) in found.warnings[0]
    assert found.ranges.dumps() == calibrated(wanted, **options).ranges.dumps()


def test_the_state_of_another_batch_or_other_tools_is_left_aside(files, tmp_path, monkeypatch):
    state = interrupted(files, tmp_path / "s")
    kept = state.read_bytes()
    monkeypatch.setattr("calibration.collect._LARGEST_BATCH", 5)
    assert "another batch" in calibrated(files, state=state).warnings[0]
    monkeypatch.setattr("calibration.collect._LARGEST_BATCH", BATCH)
    state.write_bytes(kept)
    monkeypatch.setattr("calibration.calibrate.tool_versions", lambda: {"numpy": "0"})
    assert "another version of the tools" in calibrated(files, state=state).warnings[0]


def test_an_image_that_was_changed_meanwhile_makes_another_list(files, tmp_path):
    state = interrupted(files, tmp_path / "s")
    Image.new("RGB", (8, 8)).save(files[0].path)
    assert "another list of images" in calibrated(files, state=state).warnings[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda value: value.pop("ranges"),
        lambda value: value.update(version=99),
        lambda value: value["ranges"].update(images=1),
        lambda value: value["ranges"]["tensors"]["relu1"].update(images=1),
        lambda value: value["ranges"]["tensors"]["relu1"].update(low="x"),
        lambda value: value["ranges"].update(tensors=[]),
    ],
)
def test_a_damaged_state_is_left_aside_with_a_note(files, tmp_path, damage):
    state = interrupted(files, tmp_path / "s")
    value = json.loads(state.read_text())
    damage(value)
    state.write_text(json.dumps(value))
    found = calibrated(files, state=state)
    assert "all images are observed" in found.warnings[0]
    assert found.ranges.dumps() == calibrated(files).ranges.dumps()


@pytest.mark.parametrize("content", [b"notes", b"{}", b"[1]", b'{"format": "resnet_export.ranges"}', b"\xff"])
def test_a_file_of_another_kind_is_never_written_over(files, tmp_path, content):
    state = tmp_path / "s"
    state.write_bytes(content)
    with pytest.raises(DataError, match="not an unfinished calibration"):
        calibrated(files, state=state)
    assert state.read_bytes() == content


def test_the_ranges_of_half_of_the_images_do_not_pass_for_ranges(files, tmp_path):
    state = interrupted(files, tmp_path / "s")
    with pytest.raises(DataError, match="not a ranges file"):
        read_ranges(state)


def test_without_a_state_an_interrupt_leaves_nothing(files, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        calibrated(files, progress=stop_at(8))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_a_state_that_cannot_be_written_costs_a_note_and_not_the_ranges(files, tmp_path, monkeypatch):
    monkeypatch.setattr("calibration.calibrate._SAVE_SECONDS", 0.0)
    found = calibrated(files, state=tmp_path / "nowhere" / "s")
    assert [line for line in found.warnings if "nowhere" in line and "will start anew" in line]
    assert found.ranges.dumps() == calibrated(files).ranges.dumps()


# --- inputs that cannot be used -------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_images_are_refused(files, count):
    with pytest.raises(DataError, match=f"^{count} image.*at least 2"):
        calibrated(files[:count])


def test_two_files_of_which_one_is_bad_are_refused(tmp_path):
    with pytest.raises(DataError, match=r"^1 image to calibrate.*at least 2"):
        calibrated(pictures(tmp_path / "x", 2, bad=[1]), max_bad=0.5)


@pytest.mark.parametrize("max_bad", [0.0, 0.01, 1.0])
def test_images_that_are_all_corrupt_are_refused(tmp_path, max_bad):
    with pytest.raises(DataError, match=r"cannot be used.*000\.png: "):
        calibrated(pictures(tmp_path / "x", 6, bad=range(6)), max_bad=max_bad)


def test_images_that_are_all_corrupt_are_refused_where_only_they_could_say_the_size(tmp_path):
    files = pictures(tmp_path / "x", 6, bad=range(6))
    with pytest.raises(DataError, match=r"cannot be used.*000\.png: "):
        calibrated(files, network(("N", 3, "H", "W")), replace(PIXELS, size=None))


def test_more_bad_files_than_allowed_are_listed_in_the_error(tmp_path):
    files = pictures(tmp_path / "x", bad=[3, 4, 7, 9])
    with pytest.raises(DataError, match=r"10\.0% may be bad") as raised:
        calibrated(files, max_bad=0.1)
    for name in ("003.png", "004.png", "007.png"):
        assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_as_many_bad_files_as_allowed_are_skipped_and_listed(tmp_path):
    files = pictures(tmp_path / "x", 20, bad=[3, 4])
    found = calibrated(files, max_bad=0.1)
    assert [(file.path.name, bool(file.reason)) for file in found.bad] == [("003.png", True), ("004.png", True)]
    assert found.ranges.images == 18
    assert found.ranges.images_sha256 == list_sha256(found.files, content_hashes(found.files))


def test_a_file_that_cannot_be_read_counts_as_bad(files, tmp_path):
    gone = ImageFile(tmp_path / "gone.png")
    found = calibrated([*files, gone], max_bad=0.1)
    assert [file.path for file in found.bad] == [gone.path]
    assert found.files == tuple(files)


@pytest.mark.parametrize("contract", [replace(PIXELS, color="L", mean=(0.0,), std=(1.0,)), PIXELS.for_input(4, 8, 8)])
def test_a_contract_of_other_channels_than_the_model_s_is_refused(files, contract):
    with pytest.raises(InputError, match=r"makes [14] channels .* the model takes 3"):
        calibrated(files, contract=contract)


def test_a_contract_of_another_size_than_the_model_s_is_refused(files):
    with pytest.raises(InputError, match="9x9, the model takes 8x8"):
        calibrated(files, contract=replace(PIXELS, size=(9, 9)))


def test_activations_of_nan_are_refused_by_the_name_of_the_first_tensor(files, tmp_path):
    weights = np.full((4, 4, 3, 3), np.nan, np.float32)
    with pytest.raises(DataError, match="the tensor conv2 is NaN: it is the first one"):
        calibrated(files, network(w2=weights), state=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_a_model_with_nothing_to_observe_is_refused(files):
    nodes = [helper.make_node("Relu", ["input"], ["logits"])]
    with pytest.raises(GraphError, match="no tensor to observe"):
        calibrated(files, Network(onnx_model(nodes, dims=("N", 3, 8, 8), rank=4), "0" * 64))


@pytest.mark.parametrize("options", [{"max_bad": 1.5}, {"workers": -1}])
def test_numbers_out_of_range_are_refused(files, options):
    with pytest.raises(InputError):
        calibrated(files, **options)


def test_ranges_survive_their_file(files):
    ranges = calibrated(files).ranges
    assert Ranges.from_json(json.loads(ranges.dumps())).dumps() == ranges.dumps()
