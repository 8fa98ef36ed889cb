from __future__ import annotations

import onnx
import pytest
import torch
from onnx import helper
from safetensors.torch import save_file

from runtimes.errors import InputError
from runtimes.kinds import kind_of
from tests.runtimes.models import onnx_linear, weights


def as_pickle(path):
    torch.save({"w": torch.zeros(3)}, path, _use_new_zipfile_serialization=False)


CONTENTS = {
    "onnx": lambda path: onnx.save(onnx_linear(weights()), path),
    "tensorrt": lambda path: path.write_bytes(b"ftrt" + bytes(60)),
    "tensorrt-rtx": lambda path: path.write_bytes(b"vtrt" + bytes(60)),
    "checkpoint": lambda path: torch.save({"w": torch.zeros(3)}, path),
}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("name", ["plain", "of.another.onnx", "of.another.engine", "of.another.pth"])
def test_a_file_is_what_its_bytes_say_whatever_it_is_called(tmp_path, kind, name):
    CONTENTS[kind](tmp_path / name)
    assert kind_of(str(tmp_path / name)) == kind


def test_both_older_and_newer_checkpoints_are_known(tmp_path):
    as_pickle(tmp_path / "old")
    save_file({"w": torch.zeros(3)}, tmp_path / "new")
    assert kind_of(str(tmp_path / "old")) == kind_of(str(tmp_path / "new")) == "checkpoint"


def test_a_model_with_every_field_before_its_graph_is_onnx(tmp_path):
    model = onnx_linear(weights())
    model.producer_name, model.producer_version, model.domain = "p" * 300, "1", "d"
    model.doc_string, model.model_version = "text", 2**40
    model.metadata_props.add(key="k", value="v")
    model.functions.append(helper.make_function("d", "F", ["a"], ["b"], [], []))
    (tmp_path / "model").write_bytes(model.SerializeToString())
    assert kind_of(str(tmp_path / "model")) == "onnx"


def test_a_model_cut_short_is_still_called_onnx(tmp_path):
    data = onnx_linear(weights()).SerializeToString()
    (tmp_path / "model").write_bytes(data[: len(data) // 2])
    assert kind_of(str(tmp_path / "model")) == "onnx"


@pytest.mark.parametrize("content", [b"", b"text, no model", b"\x08\x09", b"\x08" + b"\xff" * 40, b"\x89PNG\r\n"])
def test_what_no_bytes_tell_is_what_the_suffix_says_or_refused(tmp_path, content):
    (tmp_path / "model.onnx").write_bytes(content)
    (tmp_path / "model").write_bytes(content)
    assert kind_of(str(tmp_path / "model.onnx")) == "onnx"
    with pytest.raises(InputError, match="is neither an ONNX file nor an engine nor a checkpoint"):
        kind_of(str(tmp_path / "model"))


@pytest.mark.parametrize("name", ["absent.onnx", "absent.engine", "absent.pth"])
def test_a_missing_file_is_refused_and_not_taken_for_a_network(name):
    with pytest.raises(InputError, match=f"there is no file {name}"):
        kind_of(name)


@pytest.mark.parametrize("name", ["resnet50", "timm:resnet18", "package.module:factory", "a\0b", "x" * 5000])
def test_a_name_without_a_file_is_a_source(name):
    assert kind_of(name) == "source"
