"""Accuracy on labelled images: whose label is whose, what is counted, what passes."""

from __future__ import annotations

import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from calibration.images import BadFile, ImageFile, find_images
from calibration.preprocess import PRESETS
from exporter.evaluate import EvaluateOptions, evaluate_models
from exporter.labelled import with_labels
from exporter.subjects import Subject
from runtimes.errors import DataError, GraphError, InputError, TensorError, UnavailableError
from tests.runtimes.models import FunctionRuntime
from tests.runtimes.test_batching import FixedRuntime

CONTRACT = replace(PRESETS["cifar"], size=(4, 4), mean=(0.0,) * 3, std=(1.0,) * 3)
CLASSES, EACH = 6, 3


def folders(root, names=None, bad=()):
    """In folder number `i`, grey images of the brightness 20·i; some of them broken."""
    for place, name in enumerate(names or [f"class{i}" for i in range(CLASSES)]):
        (root / name).mkdir(parents=True)
        for number in range(EACH):
            path = root / name / f"{number}.png"
            Image.fromarray(np.full((4, 4, 3), 20 * place, np.uint8)).save(path)
            if (place, number) in bad:
                path.write_bytes(b"broken")
    return find_images(root)


def brightness(batch):
    """Logits of a model that knows: the class whose brightness is nearest."""
    return -np.abs(batch.mean(axis=(1, 2, 3))[:, None] * 255 - 20 * np.arange(CLASSES)).astype(np.float32)


def shifted(batch):
    """As `brightness`, but class 5 is taken for 0."""
    logits = brightness(batch)
    logits[logits.argmax(axis=1) == 5] = np.eye(CLASSES, dtype=np.float32)[0]
    return logits


def subject(label, function=brightness, runtime=None):
    return Subject(label, "fake", f"{label}.onnx", runtime or FunctionRuntime(function, label))


def evaluated(listing, *subjects, **options):
    named = {name: options.pop(name) for name in ("class_names", "on_bad", "on_progress") if name in options}
    return evaluate_models(subjects, listing, CONTRACT, EvaluateOptions(**options), path="images", **named)


def test_the_report_counts_every_image_and_names_the_changed_ones(tmp_path):
    listing = folders(tmp_path)
    report = evaluated(listing, subject("a"), subject("b", shifted), batch=4)
    first, second = report.results
    assert (first["n"], first["top1"], first["changed"], first["mcnemar_p"]) == (18, 1.0, 0, None)
    assert second["top1"] == pytest.approx(15 / 18)
    assert second["mcnemar_p"] == pytest.approx(0.25)  # three coins that fall alike, on either side
    assert [each["file"] for each in second["changes"]] == [str(file.path) for file in listing[15:]]
    assert second["confusion"] == [{"from": 5, "to": 0, "count": 3}]
    assert second["per_class"][5] == {"class": 5, "n": 3, "top1": 0.0, "name": "class5"}
    assert report.passed is None  # nothing was asked for
    assert [row["passed"] for row in report.results] == [None, None]


def test_the_report_is_json_as_agreed(tmp_path):
    document = evaluated(folders(tmp_path), subject("a"), subject("b", shifted)).to_json()
    assert json.loads(json.dumps(document)) == document
    assert set(document) == {"schema", "command", "data", "results", "failures", "passed", "notes", "environment"}
    assert {
        "runtime", "file", "label", "n", "top1", "top1_ci95", "top5", "top5_ci95", "per_class", "mcnemar_p",
        "only_reference_right", "only_this_right", "changed", "changes", "confusion", "seconds", "used",
    } <= set(document["results"][1])  # fmt: skip
    assert set(document["results"][1]["changes"][0]) == {"file", "label", "from", "to"}
    assert document["data"]["preprocessing"] == CONTRACT.to_json()


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_neither_the_batch_nor_a_models_own_fixed_one_changes_what_is_counted(tmp_path, batch):
    listing = folders(tmp_path)

    class Fixed(FixedRuntime):
        def _run(self, batch):
            self.fed.append(batch)
            return shifted(batch)

    report = evaluated(listing, subject("a"), subject("b", runtime=Fixed(4)), batch=batch)
    assert [row["top1"] for row in report.results] == pytest.approx([1.0, 15 / 18])
    assert report.data["sha256"] == evaluated(listing, subject("a")).data["sha256"]


def test_broken_images_are_left_out_and_the_others_keep_their_names(tmp_path):
    listing = folders(tmp_path, bad={(0, 0), (5, 1)})
    told: list[BadFile] = []
    report = evaluated(listing, subject("a"), subject("b", shifted), max_bad=0.2, on_bad=told.append, batch=4)
    assert report.data["images"] == 16
    assert [each.path for each in told] == [listing[0].path, listing[16].path]
    assert [each["file"] for each in report.results[1]["changes"]] == [str(listing[i].path) for i in (15, 17)]


def test_a_file_that_is_listed_twice_counts_twice(tmp_path):
    folders(tmp_path / "images")
    listing = tmp_path / "list.txt"
    listing.write_text("images/class5/0.png\t5\nimages/class1/0.png\t1\nimages/class5/0.png\t5\n")
    report = evaluated(find_images(listing), subject("a"), subject("b", shifted), batch=2)
    assert report.results[1]["changed"] == len(report.results[1]["changes"]) == 2


def test_a_row_of_an_array_file_is_named_by_file_and_row(tmp_path):
    pixels = np.repeat(20 * np.arange(CLASSES, dtype=np.uint8), 48).reshape(CLASSES, 4, 4, 3)
    path = tmp_path / "data.npz"
    np.savez(path, images=pixels, labels=np.arange(CLASSES))
    report = evaluated(find_images(path), subject("a"), subject("b", shifted))
    assert [each["file"] for each in report.results[1]["changes"]] == [f"{path}[5]"]


def test_a_sample_has_as_many_of_each_class(tmp_path):
    report = evaluated(folders(tmp_path), subject("a"), images=12)
    assert [each["n"] for each in report.results[0]["per_class"]] == [2] * CLASSES


def test_a_subject_that_fails_is_reported_and_nothing_passes(tmp_path):
    def fails(batch):
        raise GraphError("out of memory")

    report = evaluated(folders(tmp_path), subject("a"), subject("b", fails))
    assert [row["label"] for row in report.results] == ["a"]
    assert [(row["label"], row["file"], row["error"]) for row in report.failures] == [("b", "b.onnx", "out of memory")]
    assert not report.passed
    assert report.data["images"] == 18


def test_beside_a_first_one_that_failed_no_change_is_known(tmp_path):
    def fails(batch):
        raise GraphError("out of memory")

    (row,) = evaluated(folders(tmp_path), subject("a", fails), subject("b")).results
    assert [row[name] for name in ("mcnemar_p", "only_reference_right", "only_this_right", "changed")] == [None] * 4


def test_only_images_that_were_used_are_reported_where_all_subjects_fail(tmp_path):
    def fails(batch):
        raise GraphError("out of memory")

    report = evaluated(folders(tmp_path), subject("a", fails), batch=2)
    assert (report.data["images"], report.results, report.passed) == (2, (), False)


@pytest.mark.parametrize(("allowed", "passed"), [(3 / 18, True), (0.16, False), (0.0, False)])
def test_a_drop_beyond_the_allowed_one_does_not_pass(tmp_path, allowed, passed):
    report = evaluated(folders(tmp_path), subject("a"), subject("b", shifted), max_drop=allowed)
    assert report.passed is passed
    assert [row["finding"] is None for row in report.results] == [True, passed]


@pytest.mark.parametrize("allowed", [None, 1.0])
def test_nan_among_the_logits_does_not_pass_not_even_in_the_first_model(tmp_path, allowed):
    def nowhere(batch):
        return np.full_like(brightness(batch), np.nan)

    def once(batch):
        logits = brightness(batch)
        logits[logits.argmax(axis=1) == 5, 0] = np.inf
        return logits

    report = evaluated(folders(tmp_path), subject("a", nowhere), subject("b", once), subject("c"), max_drop=allowed)
    assert [row["finding"] for row in report.results] == [
        "18 images have NaN or Inf among the logits", "3 images have NaN or Inf among the logits", None,
    ]  # fmt: skip
    assert [row["passed"] for row in report.results] == [False, False, None if allowed is None else True]
    assert report.passed is False


def test_an_improvement_is_no_drop(tmp_path):
    assert evaluated(folders(tmp_path), subject("a", shifted), subject("b"), max_drop=0.0).passed


def test_folders_are_classes_by_name_where_the_model_has_those_names(tmp_path):
    # Alphabetically, dog would come before the others, and a part of the classes is enough.
    names = ["zebra", "owl", "dog", "cat", "bee", "ant"]
    listing = folders(tmp_path, names[:3])
    report = evaluated(listing, subject("a"), class_names=names)
    assert report.results[0]["top1"] == 1.0
    assert {file.class_name: file.label for file in with_labels(listing, names)[0]} == {"zebra": 0, "owl": 1, "dog": 2}


def test_a_part_of_the_folders_without_names_is_refused(tmp_path):
    with pytest.raises(TensorError, match="a tells 6 classes apart, the labels 3"):
        evaluated(folders(tmp_path, ["ant", "bee", "cat"]), subject("a"))


@pytest.mark.parametrize(("names", "strange"), [(("ant", "bee"), "cat"), (("cat", "bee", "bee", "ant"), "bee")])
def test_names_that_tell_some_of_the_folders_are_refused_with_the_others(tmp_path, names, strange):
    with pytest.raises(DataError, match=rf"1 of 3 folders are no class of the models \({strange}\)"):
        evaluated(folders(tmp_path, ["ant", "bee", "cat"]), subject("a"), class_names=names)


@pytest.mark.parametrize("names", [("zero", "one", "two"), ()])
def test_names_that_tell_no_folder_leave_it_to_the_alphabet_which_is_noted(tmp_path, names):
    found = with_labels(folders(tmp_path, ["ant", "bee", "cat"]), names)
    assert [file.label for file in found.files] == [0] * EACH + [1] * EACH + [2] * EACH
    assert found.classes == 3
    assert "the folders' places in the alphabet are the labels" in found.notes[0]
    assert evaluated(folders(tmp_path / "all"), subject("a")).notes == (
        "the models do not name their classes: the folders' places in the alphabet are the labels",
    )


def test_a_label_that_is_no_class_is_refused_by_file_before_anything_runs(tmp_path):
    listing = folders(tmp_path)
    listing = [replace(file, class_name=None) for file in listing[:-1]] + [ImageFile(listing[-1].path, 12)]
    ran = []

    def counted(batch):
        ran.append(len(batch))
        return brightness(batch)

    declared = FunctionRuntime(counted, "a", classes=CLASSES)
    with pytest.raises(DataError, match=r"class5/2\.png has the label 12, and the models have 6 classes"):
        evaluated(listing, subject("a", runtime=declared), batch=1)
    assert not ran


def test_images_without_labels_are_refused_by_name(tmp_path):
    listing = [*folders(tmp_path), ImageFile(tmp_path / "loose.png")]
    with pytest.raises(DataError, match=r"loose\.png has no label"):
        evaluated(listing, subject("a"))


def test_no_images_are_refused():
    with pytest.raises(DataError, match="no images"):
        evaluated([], subject("a"))


def test_no_thread_and_no_open_runtime_is_left_whatever_happens(tmp_path):
    before = set(threading.enumerate())
    opened = subject("a")

    def missing():
        raise UnavailableError("no library")

    closed = subject("b", lambda batch: missing())
    closed.runtime._open = missing
    listing = folders(tmp_path)
    with pytest.raises(UnavailableError):
        evaluated(listing, opened, closed)
    with pytest.raises(KeyboardInterrupt):
        evaluated(listing, opened, batch=1, on_progress=interrupt)
    assert not opened.runtime.is_open
    assert set(threading.enumerate()) == before


def interrupt(_):
    raise KeyboardInterrupt


def test_a_runtime_that_came_open_stays_open(tmp_path):
    own = subject("a")
    with own.runtime:
        evaluated(folders(tmp_path), own)
        assert own.runtime.is_open


@pytest.mark.parametrize("fields", [{"keep": -1}, {"max_drop": 1.5}, {"max_drop": float("nan")}])
def test_options_out_of_range_are_refused(fields):
    with pytest.raises(InputError, match="expected"):
        EvaluateOptions(**fields)
