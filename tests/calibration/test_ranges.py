"""The ranges file: it keeps everything exactly, and serves only what it was made from."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import helper, numpy_helper

from calibration.collect import Collector, collect, tool_versions
from calibration.graph import Network
from calibration.observers import Observer
from calibration.preprocess import PRESETS
from calibration.ranges import FORMAT, VERSION, Ranges, read_ranges
from runtimes.errors import DataError
from tests.exporter.graphs import onnx_model

CONTRACT = PRESETS["cifar"]
MODEL, IMAGES, OTHER = "a" * 64, "b" * 64, "c" * 64
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
BATCHES = hnp.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3)), elements=FINITE)
DIGESTS = st.text("0123456789abcdef", min_size=64, max_size=64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


def observer(values):
    found = Observer()
    found.update(np.asarray(values, np.float32))
    return found


def ranges(**changes):
    values = np.random.default_rng(0).standard_normal((5, 3, 4, 4))
    made = Ranges(
        model_sha256=MODEL,
        preprocessing=CONTRACT,
        images=5,
        images_sha256=IMAGES,
        tensors={"input": observer(values), "layer1.0.relu": observer(np.maximum(values, 0))},
        tools={"numpy": "2.0.0", "onnx": "1.21.0"},
    )
    return replace(made, **changes)


def parsed(made):
    """What a ranges file holds, as JSON; a copy that a test may damage."""
    return json.loads(made.dumps())


def refusal(value):
    with pytest.raises(DataError) as caught:
        Ranges.from_json(value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@settings(deadline=None, max_examples=50)
@given(
    st.dictionaries(st.text(max_size=20), BATCHES, max_size=4),
    st.dictionaries(st.text(max_size=10), st.text(max_size=10), max_size=3),
    st.integers(1, 10**9),
    DIGESTS,
)
def test_a_file_keeps_everything_exactly(batches, tools, images, digest):
    tensors = {name: observer(values) for name, values in batches.items()}
    made = ranges(tensors=tensors, tools=tools, images=images, model_sha256=digest)
    read = Ranges.from_json(json.loads(made.dumps()))
    assert read.dumps() == made.dumps()
    assert list(read.tensors) == list(tensors)
    assert (read.images, read.model_sha256, read.tools, read.preprocessing) == (images, digest, tools, CONTRACT)
    for name, values in batches.items():
        found = read.tensors[name]
        assert (found.low, found.high) == (values.min(), values.max())
        np.testing.assert_array_equal(found.channel_low, values.min(axis=(0, 2)))
        np.testing.assert_array_equal(found.channel_high, values.max(axis=(0, 2)))
        np.testing.assert_array_equal(found.histogram.counts, tensors[name].histogram.counts)
        assert (found.mean_low, found.mean_high) == (tensors[name].mean_low, tensors[name].mean_high)


@settings(deadline=None, max_examples=50)
@given(BATCHES)
def test_statistics_go_on_after_reading_as_if_they_had_never_been_written(values):
    read = Ranges.from_json(parsed(ranges(tensors={"x": observer(values)}))).tensors["x"]
    read.update(values)
    assert read.to_json() == observer(np.concatenate([values, values])).to_json()


def test_a_file_is_what_its_json_says_with_one_tensor_to_a_line():
    made = ranges()
    assert json.loads(made.dumps()) == made.to_json()
    assert made.to_json()["format"] == FORMAT == "resnet_export.ranges"
    lines = made.dumps().decode().splitlines()
    assert [line.split(":")[0].strip() for line in lines if '"histogram"' in line] == ['"input"', '"layer1.0.relu"']


def test_the_same_values_give_the_same_bytes():
    assert ranges().dumps() == ranges().dumps()
    assert ranges().dumps() != ranges(images=6).dumps()


def test_two_runs_over_the_same_images_give_the_same_file_whatever_the_batches():
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.integers(-2, 3, (4, 3, 3, 3)).astype(np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["conv"]),
        helper.make_node("Relu", ["conv"], ["relu"]),
        helper.make_node("GlobalAveragePool", ["relu"], ["logits"]),
    ]
    images = rng.integers(-3, 4, (5, 3, 6, 6)).astype(np.float32)
    files = []
    for cuts in ([], [2, 3]):
        network = Network(onnx_model(nodes, [weight], dims=("N", 3, 6, 6), rank=4), MODEL)
        collector = Collector(network, threads=1)
        count = collect(collector, np.split(images, cuts))
        made = Ranges(network.sha256, CONTRACT, count, IMAGES, collector.observers, tool_versions())
        files.append(made.dumps())
    assert files[0] == files[1]
    assert list(Ranges.from_json(json.loads(files[0])).tensors) == ["input", "relu"]


def test_a_file_serves_what_it_was_made_from(tmp_path):
    path = tmp_path / "ranges.json"
    path.write_bytes(ranges().dumps())
    found = read_ranges(path)
    found.require()
    found.require(model_sha256=MODEL, preprocessing=replace(CONTRACT), images_sha256=IMAGES)
    assert found.preprocessing_sha256 == CONTRACT.sha256()


@pytest.mark.parametrize(
    ("given_value", "mine", "what"),
    [({"model_sha256": OTHER}, MODEL, "model"), ({"images_sha256": OTHER}, IMAGES, "image list")],
)
def test_another_model_or_list_of_images_is_refused_with_both_hashes(given_value, mine, what):
    with pytest.raises(DataError, match=f"of another {what}: they have {mine}, given is {OTHER}: calibrate again"):
        ranges().require(**given_value)


def test_another_contract_is_refused_with_both_hashes_and_the_fields_that_differ():
    other = replace(CONTRACT, mean=(0.5, 0.5, 0.5), color="BGR")
    with pytest.raises(DataError, match="of another preprocessing") as caught:
        ranges().require(model_sha256=MODEL, preprocessing=other)
    message = str(caught.value)
    assert CONTRACT.sha256() in message
    assert other.sha256() in message
    assert "color RGB and BGR, mean [0.485, 0.456, 0.406] and [0.5, 0.5, 0.5]" in message
    assert "std" not in message
    assert "\n" not in message


def test_ranges_of_a_python_iterable_have_no_list_of_images_and_match_none():
    from_arrays = ranges(images_sha256="")
    from_arrays.require(model_sha256=MODEL, images_sha256="")
    assert Ranges.from_json(parsed(from_arrays)).images_sha256 == ""
    with pytest.raises(DataError, match=f"they have none, given is {IMAGES}"):
        from_arrays.require(images_sha256=IMAGES)
    with pytest.raises(DataError, match=f"they have {IMAGES}, given is none"):
        ranges().require(images_sha256="")


@pytest.mark.parametrize(
    "value", [None, 5, "text", [], {}, {"format": "other"}, {"version": VERSION}, {"format": [FORMAT]}]
)
def test_json_that_is_no_ranges_file_is_refused_as_such(value):
    assert "this is not a ranges file" in refusal(value)


@pytest.mark.parametrize("version", [VERSION + 1, 0, None, str(VERSION), [VERSION]])
def test_another_version_is_refused_by_its_number(version):
    expected = f"the ranges file is of version {version!r}, expected {VERSION}"
    assert expected in refusal(parsed(ranges()) | {"version": version})


@pytest.mark.parametrize("name", sorted(ranges().to_json().keys() - {"format", "version"}))
def test_a_file_that_lacks_a_field_is_damaged(name):
    value = parsed(ranges())
    del value[name]
    message = refusal(value)
    assert "damaged" in message
    assert name in message


@pytest.mark.parametrize(
    "change",
    [
        {"model_sha256": None},
        {"images_sha256": 5},
        {"preprocessing_sha256": ["x"]},
        {"preprocessing": None},
        {"preprocessing": {}},
        {"preprocessing": {"size": 5}},
        {"images": 0},
        {"images": "many"},
        {"images": 2.5},
        {"images": True},
        {"images": float("inf")},
        {"tensors": []},
        {"tensors": {"input": None}},
        {"tensors": {"input": {"images": 1}}},
        {"tools": "numpy"},
        {"tools": None},
    ],
    ids=str,
)
def test_a_field_of_another_kind_is_damage(change):
    assert "damaged" in refusal(parsed(ranges()) | change)


@pytest.mark.parametrize(
    "change",
    [{"images": float("inf")}, {"low": float("nan")}, {"high_sum": None}, {"histogram": []}, {"histogram": None}],
    ids=str,
)
def test_damage_in_one_tensor_is_damage_of_the_file(change):
    value = parsed(ranges())
    value["tensors"]["input"].update(change)
    assert refusal(value).count("damaged") == 1


@pytest.mark.parametrize("change", [{"mean": [0.5, 0.5, 0.5]}, {"scale": 1.0}, {"orientation": "none"}], ids=str)
def test_a_contract_that_was_edited_in_the_file_is_refused(change):
    value = parsed(ranges())
    value["preprocessing"].update(change)
    assert "the preprocessing in the ranges file was changed" in refusal(value)


def _paths(value, prefix=()):
    """Where every value stands in nested JSON objects and lists."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [prefix, *(path for key, child in inner for path in _paths(child, (*prefix, key)))]


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")
@settings(deadline=None)
@given(st.data(), JSON)
def test_whatever_stands_in_a_file_it_is_read_or_refused_in_one_line(data, other):
    value = parsed(ranges())
    *parents, last = data.draw(st.sampled_from(_paths(value)[1:]))
    place = value
    for key in parents:
        place = place[key]
    place[last] = other
    try:
        Ranges.from_json(json.loads(json.dumps(value)))
    except DataError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most values are refused, but some of them are sound


def refused_file(path):
    with pytest.raises(DataError) as caught:
        read_ranges(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot be read: No such file" in refused_file(tmp_path / "absent.json")
    assert "cannot be read: Is a directory" in refused_file(tmp_path)


@pytest.mark.parametrize(
    "content",
    [b"", b"ranges", b"\x89PNG\r\n\x1a\n\xff\xfe", b"[" * 100_000, b"{", ranges().dumps()[:-3], ranges().dumps()[:500]],
    ids=["empty", "text", "binary", "deep", "open", "cut at the end", "cut"],
)
def test_a_file_that_is_no_json_is_refused(tmp_path, content):
    path = tmp_path / "ranges.json"
    path.write_bytes(content)
    assert "is not JSON" in refused_file(path)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "other"}, "not a ranges file"),
        ({"version": 2}, "of version 2, expected 1"),
        ({"preprocessing": {}}, "damaged"),
        ({"images": -1}, "damaged"),
        ({"preprocessing_sha256": OTHER}, "was changed"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_path(tmp_path, change, reason):
    path = tmp_path / "ranges.json"
    path.write_text(json.dumps(parsed(ranges()) | change))
    assert reason in refused_file(path)
