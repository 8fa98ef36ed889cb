from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch

from runtimes.errors import InputError
from runtimes.registry import open_runtime, parse
from runtimes.rows import ROWS, Row
from tests.runtimes.models import images, linear, onnx_linear, weights

DOCS = Path(__file__).resolve().parents[2] / "docs" / "runtimes.md"


@pytest.fixture
def model(tmp_path, monkeypatch):
    """``model.onnx``, ``net.pth`` and ``net.engine`` in the current folder."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_linear(weights()), "model.onnx")
    torch.save({"w": torch.zeros(3)}, "net.pth")
    Path("net.engine").write_bytes(b"ftrt" + bytes(60))
    Path("net.rtx").write_bytes(b"vtrt" + bytes(60))
    return "model.onnx"


def refusal(text: str) -> str:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_name_file_and_options_are_told_apart(model):
    spec = parse("openvino:model.onnx@threads=2,precision=bf16")
    assert (spec.name, spec.file, spec.kind, spec.path) == ("openvino", model, "onnx", Path(model))
    assert spec.options == {"threads": 2, "precision": "bf16"}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("model.onnx", "onnxruntime"), ("net.pth", "eager"), ("net.engine", "tensorrt"), ("net.rtx", "tensorrt-rtx"),
        ("resnet20", "eager"), ("timm:resnet18", "eager"), ("package.module:factory", "eager"),
    ],
)  # fmt: skip
def test_without_a_name_the_kind_of_the_file_picks_the_runtime(model, file, name):
    assert (parse(file).name, parse(file).file) == (name, file)


def test_options_go_without_a_name_too(model):
    spec = parse("model.onnx@optimize=false")
    assert (spec.name, dict(spec.options)) == ("onnxruntime", {"optimize": False})
    spec = parse("timm:resnet18@weights=random,seed=3")
    assert (spec.name, spec.file, dict(spec.options)) == ("eager", "timm:resnet18", {"weights": "random", "seed": 3})


def test_one_model_has_one_label_however_it_is_written(model):
    written = ["model.onnx@threads=2,optimize=no", "onnxruntime:model.onnx@optimize=false,threads=2"]
    assert {parse(text).label for text in written} == {"onnxruntime:model.onnx@optimize=false,threads=2"}
    assert parse(parse(written[0]).label) == parse(written[0])


@pytest.mark.parametrize("name", ["onnxruntime:a.onnx", "a@threads=2.onnx", "a:b@c=d,e:f.onnx", "a@b", "a:b"])
def test_a_file_that_exists_under_the_whole_text_wins(model, name):
    Path(model).rename(name)
    spec = parse(name)
    assert (spec.name, spec.file, dict(spec.options)) == ("onnxruntime", name, {})
    spec = parse(f"openvino:{name}@threads=1")
    assert (spec.name, spec.file, dict(spec.options)) == ("openvino", name, {"threads": 1})


def test_an_at_sign_in_a_folder_is_no_option(model):
    Path("run@2").mkdir()
    Path(model).rename("run@2/model.onnx")
    assert parse("onnxruntime:run@2/model.onnx@threads=1").file == "run@2/model.onnx"
    assert "there is no file run@3/model.onnx" in refusal("onnxruntime:run@3/model.onnx@threads=1")


@pytest.mark.parametrize("text", ["onnxruntme:model.onnx", "ONNXRuntime:model.onnx", "onnx-runtime:absent.onnx"])
def test_a_misspelt_runtime_is_told_the_nearest(model, text):
    head = text.split(":")[0]
    assert refusal(text).startswith(
        f"there is no runtime '{head}': the nearest is onnxruntime; known are eager, torch-"
    )


def test_an_unknown_word_before_a_file_that_exists_is_no_part_of_its_name(model):
    assert refusal("caffe:model.onnx@threads=1") == f"there is no runtime 'caffe': known are {', '.join(ROWS)}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "onnxruntime:model.onnx@thread=1",
            "onnxruntime has no option 'thread': the nearest is threads; its options are",
        ),
        ("int8-sim:model.onnx@threads=1", "int8-sim has no option 'threads': it has none"),
        ("onnxruntime:model.onnx@threads=many", "received threads=many, expected a whole number from 1"),
        ("onnxruntime:model.onnx@threads=0", "received threads=0, expected a whole number from 1"),
        ("onnxruntime:model.onnx@threads", "received threads=, expected a whole number from 1"),
        ("onnxruntime:model.onnx@optimize=maybe", "received optimize=maybe, expected true or false"),
        ("openvino:model.onnx@precision=int4", "received precision=int4, expected f32 or f16 or bf16"),
        ("onnxruntime:model.onnx@threads=1,threads=2", "threads is given twice"),
        ("onnxruntime:model.onnx@threads=1,", "has no option ''"),
        ("eager:resnet20@input_size=axb", "received input_size=axb, expected pixels as 224 or 480x640"),
        ("onnxruntime:", "names no model"),
        ("", "names no model"),
        ("onnxruntime:absent.onnx", "there is no file absent.onnx"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(model, text, message):
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("openvino:net.engine", "takes ONNX files, and net.engine is a TensorRT engine: use tensorrt:net.engine"),
        ("tensorrt:net.rtx", "takes TensorRT engines, and net.rtx is a TensorRT-RTX engine: use tensorrt-rtx:net.rtx"),
        ("eager:model.onnx", "and model.onnx is an ONNX file: use onnxruntime:model.onnx or openvino:model.onnx"),
        ("int8-sim:net.pth", "and net.pth is a PyTorch checkpoint: use eager:net.pth or torch-compile:net.pth"),
        ("onnxruntime:resnet20", "and resnet20 is the name of a network: use eager:resnet20"),
    ],
)  # fmt: skip
def test_a_file_of_another_kind_is_refused_with_a_runtime_that_takes_it(model, text, message):
    assert message in refusal(text)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_spec_of_an_onnx_file_opens_its_runtime(model, name):
    pytest.importorskip(name)
    runtime = open_runtime(parse(f"{name}:{model}@threads=1"))
    assert not runtime.is_open
    with runtime:
        assert (runtime.name, runtime.used["threads"]) == (name, 1)
        np.testing.assert_allclose(runtime.run(images()), linear(weights())(images()), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_file_that_takes_float16_is_fed_float32_like_all_others(model, name):
    pytest.importorskip(name)
    onnx.save(onnx_linear(weights(), elements=onnx.TensorProto.FLOAT16), model)
    with open_runtime(parse(f"{name}:{model}")) as runtime:
        np.testing.assert_allclose(runtime.run(images()), linear(weights())(images()), atol=1e-2)


def test_a_module_is_loaded_by_the_caller_and_run_with_the_options_of_the_runtime():
    module = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    asked = []

    def load(spec):
        asked.append(spec)
        return SimpleNamespace(module=module)

    spec = parse("eager:resnet20@weights=random,threads=1,dtype=bfloat16")
    with open_runtime(spec, load_module=load) as runtime:
        assert (runtime.used["threads"], runtime.used["dtype"]) == (1, "bfloat16")
        np.testing.assert_allclose(runtime.run(images()), images().mean((2, 3)), atol=0.02)
    assert asked == [spec]


def test_a_module_that_nobody_loads_is_refused():
    with pytest.raises(InputError, match="eager runs a module, and nobody loads it here"):
        open_runtime(parse("eager:resnet20"))


@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.name)
def test_every_option_of_the_table_is_one_of_the_runtime(row):
    made = row.open
    module, _, name = made.target.partition(":")
    try:
        target = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        if error.name != module:
            raise
        pytest.skip(f"{module} is not there")
    parameters = inspect.signature(target).parameters
    own = {option.name for option in row.options} - row.of_model
    assert (own - set(made.hashed)) | set(made.given) | set(made.hashed.values()) <= set(parameters)
    assert set(made.hashed) <= own
    for option in row.options:
        told = parameters[option.name].default if option.name in parameters else None
        if isinstance(told, bool | int | str) and option.type in ("bool", "choice"):
            assert option.default == str(told).lower()


def section(row: Row) -> str:
    """What the page says of a runtime."""
    install = f" It needs `pip install 'resnet-export[{row.extra}]'`." if row.extra else ""
    lines = [f"## {row.name}", "", f"{row.summary}. It takes {row.takes_text}.{install}", ""]
    if row.options:
        lines += ["| option | value | without it | what it does |", "|---|---|---|---|"]
        lines += [f"| `{each.name}` | {each.expects} | {each.default} | {each.help} |" for each in row.options]
    return "\n".join(lines).rstrip() + "\n"


def test_the_documentation_says_what_the_table_says():
    page = DOCS.read_text(encoding="utf-8")
    headings = [line.removeprefix("## ") for line in page.splitlines() if line.startswith("## ")]
    assert [name for name in headings if name in ROWS] == list(ROWS)
    for row in ROWS.values():
        assert section(row) in page, f"{DOCS.name} has to say:\n{section(row)}"
