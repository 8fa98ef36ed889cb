from __future__ import annotations

import math
import os
from itertools import pairwise

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from runtimes import screening
from runtimes.errors import GraphError, ResnetExportError, UnavailableError
from runtimes.int8_sim import Int8SimRuntime
from runtimes.memory import available_memory
from runtimes.ort import OrtRuntime
from runtimes.reading import check_external, external_files, read_model
from tests.runtimes.models import CHANNELS, CLASSES, images, model, onnx_linear, weights


def value(name: str, shape: list[str | int]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def outside(path, location="weights.bin", **changes):
    """A model with external data whose entries are changed afterwards."""
    onnx.save(onnx_linear(weights()), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    changed = onnx.load(str(path), load_external_data=False)
    item = changed.graph.initializer[0]
    entries = {entry.key: entry.value for entry in item.external_data} | {"location": location} | changes
    del item.external_data[:]
    for key, text in entries.items():
        item.external_data.add(key=key, value=text)
    path.write_bytes(changed.SerializeToString())
    return path


def refusal(path, kind: type[ResnetExportError] = GraphError) -> str:
    """What every reader of a file says: one line each, that begins with who says it."""
    with pytest.raises(kind) as caught:
        read_model(path, "")
    told = str(caught.value)
    assert str(path) in told
    assert "\n" not in told
    for runtime in (OrtRuntime(path), Int8SimRuntime(path)):
        with pytest.raises(kind) as caught:
            runtime.__enter__()
        assert str(caught.value) == f"{runtime.name}: {told}"
    return told


@pytest.fixture
def path(tmp_path):
    (tmp_path / "model").mkdir()
    return tmp_path / "model" / "model.onnx"


def test_weights_beside_the_model_and_below_are_read(path):
    outside(path)
    check_external(path, "test")
    (path.parent / "data").mkdir()
    (path.parent / "weights.bin").rename(path.parent / "data" / "w.bin")
    outside(path, location="data/w.bin")
    read, _ = read_model(path, "")
    np.testing.assert_array_equal(numpy_helper.to_array(read.graph.initializer[0]), weights())


def test_a_relative_path_to_a_model_reads_the_weights_beside_it(path, monkeypatch):
    outside(path)
    monkeypatch.chdir(path.parent)
    check_external(type(path)("model.onnx"), "test")


@pytest.mark.parametrize("location", ["../weights.bin", "data/../../weights.bin", "..\\weights.bin", "C:\\weights.bin"])
def test_weights_outside_of_the_models_folder_are_refused(path, location):
    (path.parent.parent / "weights.bin").write_bytes(weights().tobytes())
    assert f"'{location}' is outside of its folder" in refusal(outside(path, location=location))


@pytest.mark.parametrize("suffix", [".json", ".textproto", ".onnxtxt"])
def test_a_suffix_chooses_no_other_parser(path, suffix):
    (path.parent.parent / "weights.bin").write_bytes(weights().tobytes())
    named = outside(path, location="../weights.bin").rename(path.with_suffix(suffix))
    assert "'../weights.bin' is outside of its folder" in refusal(named)
    assert [each.name for each in external_files(named)] == ["weights.bin"]


def test_an_absolute_path_is_refused_even_into_the_models_folder(path):
    location = str(path.parent / "weights.bin")
    assert "is outside of its folder" in refusal(outside(path, location=location))


def test_a_link_that_leaves_the_folder_is_refused_and_one_that_stays_is_followed(path):
    outside(path, location="link.bin")
    (path.parent / "link.bin").symlink_to("weights.bin")
    check_external(path, "test")
    (path.parent / "link.bin").unlink()
    (path.parent.parent / "secret.bin").write_bytes(weights().tobytes())
    (path.parent / "link.bin").symlink_to(path.parent.parent / "secret.bin")
    assert "'link.bin' is outside of its folder" in refusal(path)


def test_a_link_to_a_folder_elsewhere_is_refused(path):
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "w.bin").write_bytes(weights().tobytes())
    (path.parent / "data").symlink_to(elsewhere)
    assert "is outside of its folder" in refusal(outside(path, location="data/w.bin"))


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ("absent.bin", "No such file"),
        ("", "is not a regular file"),
        ("a\0b", "null"),
        ("*/_ORT_MEM_ADDR_/*", "No such file"),
    ],
)
def test_a_place_that_is_no_file_is_refused(path, location, reason):
    assert reason in refusal(outside(path, location=location))


def test_a_pipe_is_refused_without_waiting_for_it(path):
    os.mkfifo(path.parent / "pipe")
    assert "'pipe' is not a regular file" in refusal(outside(path, location="pipe"))
    path.unlink()
    os.mkfifo(path)
    assert "is not a regular file" in refusal(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"offset": "4"}, "lies in bytes 4 to 64 of weights.bin, which has 60"),
        ({"length": "10000000000"}, "lies in bytes 0 to 10000000000 of weights.bin, which has 60"),
        ({"offset": "-4"}, "lies in bytes -4"),
        ({"length": "8"}, r"is declared as [3, 5], 60 bytes, and weights.bin holds 8 of them"),
        ({"length": "many"}, "is not a number"),
    ],
)
def test_a_place_that_the_file_does_not_have_is_refused(path, changes, message):
    assert message in refusal(outside(path, **changes))


def test_a_tensor_declared_larger_than_its_bytes_is_refused(path):
    changed = onnx_linear(weights())
    changed.graph.initializer[0].dims[0] = 10**10
    onnx.save(changed, path)
    assert "is declared as [10000000000, 5], 200000000000 bytes, and holds 60 at most" in refusal(path)


def test_a_tensor_declared_larger_than_the_numbers_that_it_lists_is_refused(path):
    changed = onnx_linear(weights())
    changed.graph.initializer[0].CopyFrom(helper.make_tensor("weight", TensorProto.FLOAT, [2], [1.0, 2.0]))
    changed.graph.initializer[0].dims[0] = 10**9
    onnx.save(changed, path)
    assert "is declared as [1000000000], 4000000000 bytes, and holds 32 at most" in refusal(path)


def test_a_tensor_with_a_negative_size_is_refused(path):
    changed = onnx_linear(weights())
    changed.graph.initializer[0].dims[0] = -3
    onnx.save(changed, path)
    assert "is declared as [-3, 5]" in refusal(path)


def test_one_region_that_thousands_of_tensors_share_counts_each_time(path):
    with (path.parent / "zeros.bin").open("wb") as stream:
        stream.truncate(2**30)  # no block of it is on the disk
    outside(path, location="zeros.bin", length=str(2**30))
    changed = onnx.load(str(path), load_external_data=False)
    item = changed.graph.initializer[0]
    item.dims[:] = [2**14, 2**14]
    for index in range(9):
        changed.graph.initializer.add().CopyFrom(item)
        changed.graph.initializer[-1].name = f"copy{index}"
    path.write_bytes(changed.SerializeToString())
    assert "has weights of 10.0 GiB, at most 8 GiB are loaded" in refusal(path)


def test_a_file_larger_than_any_onnx_file_is_refused_unread(path):
    with path.open("wb") as stream:
        stream.truncate(10 * 2**30)
    assert "has 10.0 GiB, and no ONNX file can have more than 2" in refusal(path)


def _shape(sizes: list[int]) -> TensorProto:
    return numpy_helper.from_array(np.array(sizes, np.int64), "shape")


def made_large(how: str) -> onnx.ModelProto:
    """A few bytes that ask for 10^12 of them while the model is loaded."""
    side, nodes = 10**6, []
    stored = [_shape([side, side]), numpy_helper.from_array(np.ones((1, 1), np.float32), "one")]
    if how == "ConstantOfShape":
        nodes = [helper.make_node("ConstantOfShape", ["shape"], ["large"])]
    elif how == "Expand":
        nodes = [helper.make_node("Expand", ["one", "shape"], ["large"])]
    elif how == "Tile":
        nodes = [helper.make_node("Tile", ["one", "shape"], ["large"])]
    elif how == "doubling":
        names = ["one", *(f"d{index}" for index in range(39)), "large"]
        nodes = [helper.make_node("Concat", [a, a], [b], axis=0) for a, b in pairwise(names)]
    nodes += [
        helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0),
        helper.make_node("Flatten", ["input"], ["flat"]),
        helper.make_node("Add", ["flat", "sum"], ["logits"]),
    ]
    return model(nodes, [value("input", ["N", CHANNELS, 1, 1])], [value("logits", ["N", CHANNELS])], stored)


@pytest.mark.parametrize("how", ["ConstantOfShape", "Expand", "Tile", "doubling"])
def test_a_constant_that_a_few_bytes_make_huge_is_refused_before_it_is_made(path, how):
    onnx.save(made_large(how), path)
    assert "the tensor 'large' has" in refusal(path)


def hidden(how: str) -> onnx.ModelProto:
    """The same, where shape inference does not see it."""
    large = helper.make_node("ConstantOfShape", ["shape"], ["large"])
    total = helper.make_node("ReduceSum", ["large"], ["sum"], keepdims=0)
    found = made_large("ConstantOfShape")
    functions, nodes = [], [large, total]
    if how == "Pow":
        nodes = [helper.make_node("Pow", ["shape", "two"], ["squared"]),
                 helper.make_node("ConstantOfShape", ["squared"], ["large"]), total]  # fmt: skip
    elif how == "If":
        branch = helper.make_graph(nodes, "branch", [], [helper.make_tensor_value_info("sum", TensorProto.FLOAT, [])])
        nodes = [helper.make_node("If", ["yes"], ["sum"], then_branch=branch, else_branch=branch)]
    elif how == "function":
        functions = [helper.make_function("own", "Make", ["shape"], ["sum"], nodes, [helper.make_opsetid("", 17)])]
        nodes = [helper.make_node("Make", ["shape"], ["sum"], domain="own")]
    found.graph.ClearField("node")
    found.graph.node.extend([*nodes, *made_large("ConstantOfShape").graph.node[2:]])
    found.graph.initializer.extend(
        [numpy_helper.from_array(np.array(True), "yes"), numpy_helper.from_array(np.array(2, np.int64), "two")]
    )
    found.functions.extend(functions)
    found.opset_import.append(helper.make_opsetid("own", 1))
    return found


@pytest.mark.parametrize("how", ["Pow", "If", "function"])
def test_a_huge_constant_is_refused_where_it_hides(path, how):
    onnx.save(hidden(how), path)
    told = refusal(path)
    assert "'large" in told
    assert "is not known before it is made" in told or "3725.3 GiB" in told


def test_functions_that_unfold_without_end_are_refused(path):
    found = hidden("function")
    opset = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    names = [f"f{index}" for index in range(40)]
    for one, other in pairwise(names):
        calls = [helper.make_node(other, [a], [b], domain="own") for a, b in (("x", "y"), ("y", "z"))]
        found.functions.append(helper.make_function("own", one, ["x"], ["z"], calls, opset))
    last = [helper.make_node("Identity", ["x"], ["z"])]
    found.functions.append(helper.make_function("own", names[-1], ["x"], ["z"], last, opset))
    found.graph.node.append(helper.make_node("f0", ["sum"], ["more"], domain="own"))
    onnx.save(found, path)
    assert "without end" in refusal(path)


def test_a_size_that_comes_from_the_input_or_is_known_is_sound(path):
    nodes = [
        helper.make_node("ConstantOfShape", ["small"], ["zeros"]),
        helper.make_node("Shape", ["input"], ["sizes"]),
        helper.make_node("Expand", ["zeros", "sizes"], ["plane"]),
        helper.make_node("Add", ["input", "plane"], ["sum"]),
        helper.make_node("GlobalAveragePool", ["sum"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    stored = [numpy_helper.from_array(np.array([1, 1, 1, 1], np.int64), "small")]
    inputs, outputs = [value("input", ["N", CHANNELS, "H", "W"])], [value("logits", ["N", CHANNELS])]
    onnx.save(model(nodes, inputs, outputs, stored), path)
    read_model(path, "")
    check_external(path, "test")


def test_an_image_that_no_machine_holds_is_refused(path):
    nodes = [helper.make_node("GlobalAveragePool", ["input"], ["p"]), helper.make_node("Flatten", ["p"], ["logits"])]
    onnx.save(model(nodes, [value("input", [1, 3, 10**6, 10**6])], [value("logits", [1, 3])]), path)
    assert "the tensor 'input' has 11175.9 GiB" in refusal(path)


def test_external_data_of_a_nested_graph_is_looked_at_too(path):
    outside(path)
    inner = onnx.load(str(path), load_external_data=False).graph.initializer[0]
    inner.external_data[0].value = "/etc/hostname"
    branch = helper.make_graph(
        [helper.make_node("Identity", ["weight"], ["b"])], "b", [], [value("b", [3, 5])], [inner]
    )
    changed = onnx_linear(weights())
    changed.graph.node.append(helper.make_node("If", ["yes"], ["unused"], then_branch=branch, else_branch=branch))
    path.write_bytes(changed.SerializeToString())
    assert "'/etc/hostname' is outside of its folder" in refusal(path)


def test_a_machine_with_too_little_memory_is_told_so(path, monkeypatch):
    onnx.save(onnx_linear(weights()), path)
    needed = 4 * math.prod((CHANNELS, CLASSES))
    monkeypatch.setattr(screening, "available_memory", lambda: needed)
    monkeypatch.setattr(screening, "_largest_value", lambda model: ("", 0))
    check_external(path, "test")
    monkeypatch.setattr(screening, "available_memory", lambda: needed - 1)
    assert "this machine has 0.0 GiB free" in refusal(path, UnavailableError)


def test_types_of_less_than_a_byte_and_odd_counts_are_sound(path):
    changed = onnx_linear(weights())
    changed.graph.initializer.append(helper.make_tensor("four", TensorProto.INT4, [5], [1, 2, 3, 4, 5]))
    changed.graph.initializer.append(TensorProto(name="raw", data_type=TensorProto.UINT4, dims=[5], raw_data=b"abc"))
    changed.graph.initializer.append(numpy_helper.from_array(np.zeros((0, 7), np.float32), "empty"))
    changed.graph.initializer.append(numpy_helper.from_array(np.array(["a", "b"], object), "text"))
    onnx.save(changed, path)
    check_external(path, "test")


def test_a_sound_file_is_run_as_before(path):
    outside(path)
    with OrtRuntime(path) as runtime:
        assert runtime.run(images()).shape == (6, CLASSES)


def test_available_memory_is_the_smaller_of_the_machines_and_the_containers(tmp_path):
    table, limit = tmp_path / "meminfo", tmp_path / "limit"
    table.write_text("MemTotal: 4096 kB\nMemAvailable:    1024 kB\n")
    assert available_memory(table, (limit,)) == 1024 * 1024
    limit.write_text("max\n")
    assert available_memory(table, (limit,)) == 1024 * 1024
    limit.write_text("1000\n")
    assert available_memory(table, (limit,)) == 1000
    assert available_memory(tmp_path / "absent", ()) is None
