"""Pipeline files and the command line: what they become, and the one line about what is wrong with them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from exporter.cli.run import command
from exporter.run.keys import SECTIONS
from exporter.run.places import line_of
from exporter.run.reading import Override, read_pipeline
from exporter.run.rows import stages
from exporter.run.runtimes import DISTRIBUTIONS, FILES, products, subjects
from exporter.run.settings import Settings
from exporter.run.template import template
from runtimes.errors import InputError
from runtimes.rows import ROWS

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

DOCS = Path(__file__).resolve().parents[2] / "docs"
MODEL = '[model]\nsource = "net.pth"\n'
DATA = '[data]\ncalibration = "train"\nevaluation = "test"\n'


def read(folder: Path, text: str, **sets: str) -> Settings:
    file = folder / "pipeline.toml"
    file.write_text(text)
    return read_pipeline(file, [Override(f"--set {name}", name, value) for name, value in sets.items()])


def refused(folder: Path, text: str, **sets: str) -> str:
    with pytest.raises(InputError) as caught:
        read(folder, text, **sets)
    line = str(caught.value)
    assert "\n" not in line
    return line


REFUSED = {
    "modle": ("[modle]\n", "line 1: there is no section 'modle': the nearest is model; there are model, onnx"),
    "not a table": ("# x\nmodel = 3\n", "line 2: model is 3, expected a table: [model]"),
    "unknown key": (f"{MODEL}[onnx]\nopzet = 17\n", "line 4: onnx has no key 'opzet': the nearest is opset; there are"),
    "dotted key": (f"onnx.opsett = 17\n{MODEL}", "line 1: onnx has no key 'opsett': the nearest is opset"),
    "text for a number": (f'{MODEL}[onnx]\nopset = "17"\n', "line 4: onnx.opset is '17', expected a whole number"),
    "a number for text": ("[model]\nsource = 5\n", "line 2: model.source is 5, expected a name or a path"),
    "empty source": ('[model]\nsource = ""\n', "line 2: model.source is '', expected a name or a path"),
    "true for a number": (f"{MODEL}[onnx]\nopset = true\n", "onnx.opset is True, expected a whole number"),
    "a number for true": (f"{MODEL}[onnx]\nsimplify = 1\n", "onnx.simplify is 1, expected true or false"),
    "a fraction for a whole": (f"{MODEL}[data]\nimages = 1.5\n", "data.images is 1.5, expected a whole number from 0"),
    "below": (f"{MODEL}[data]\nimages = -1\n", "data.images is -1, expected a whole number from 0"),
    "above": (f"{MODEL}[data]\nmax_bad = 2.0\n", "data.max_bad is 2.0, expected a number from 0 to 1"),
    "nan": (f"{MODEL}[gates]\nmin_sqnr_db = nan\n", "gates.min_sqnr_db is nan, expected a number"),
    "inf": (f"{MODEL}[data]\nscale = inf\n", "data.scale is inf, expected a number"),
    "choice": (f'{MODEL}[quantize]\neffort = "most"\n', "effort is 'most', expected \"fast\" or \"balanced\""),
    "no list": (f'{MODEL}[quantize]\ntargets = "tensorrt"\n', "quantize.targets is 'tensorrt', expected a list of"),
    "item": (f'{MODEL}[quantize]\ntargets = ["trt"]\n', "quantize.targets is ['trt'], expected a list of tensorrt"),
    "size": (f'{MODEL}input_size = "32x"\n', "line 3: model.input_size is '32x', expected pixels as"),
    "a table for a value": (f"{MODEL}[onnx.opset]\nx = 1\n", "line 3: onnx.opset is {'x': 1}, expected a whole"),
    "engine without name": (f"{MODEL}[engine]\nopt = '8'\n", "engine.opt is '8', expected a table with a name: ["),
    "engine key": (f"{MODEL}[engine.a]\nopts = '8'\n", "line 4: engine.a has no key 'opts': the nearest is opt"),
    "engine name": (f'{MODEL}[engine."../x"]\n', "'../x' cannot be a file's name: give letters, digits, - and _"),
    "engines as a list": (f"{MODEL}[[engine]]\nopt = '8'\n", "engine is [{'opt': '8'}], expected a table: [engine."),
    "runtime name": (f"{MODEL}[runtime.onnxrt]\n", "line 3: there is no runtime 'onnxrt': the nearest is onnxruntime"),
    "syntax": ("[model\n", "is not TOML: "),
    "twice": (f"{MODEL}{MODEL}", "is not TOML: "),
    "no source": ("[onnx]\n", 'model.source is missing: give [model] source = "checkpoint.pth"'),
    "empty": ("", "model.source is missing"),
    "targets without images": (f'{MODEL}[quantize]\ntargets = ["tensorrt"]\n', "targets needs images: give data.calib"),
    "targets of fp16": (
        f'{MODEL}{DATA}[onnx]\nprecision = "fp16"\n[quantize]\ntargets = ["tensorrt"]\n', 'onnx.precision = "fp32"'),
    "target twice": (f'{MODEL}{DATA}[quantize]\ntargets = ["openvino", "openvino"]\n', "targets names one twice"),
    "batch twice": (f"{MODEL}[bench]\nbatches = [1, 1]\n", "bench.batches has one twice"),
    "fp16 input": (f"{MODEL}[onnx]\nfp16_io = true\n", 'onnx.fp16_io needs onnx.precision = "fp16"'),
    "int8 engine": (f'{MODEL}[engine.a]\nmodel = "int8"\n', 'engine.a.model = "int8" needs "tensorrt" among'),
    "ranges of nothing": (f"{MODEL}[engine.a]\nranges = true\n", "engine.a.ranges needs images"),
    "ranges of rtx": (
        f'{MODEL}{DATA}[engine.a]\nranges = true\nflavour = "tensorrt_rtx"\n', "needs TensorRT 10 or before"),
    "ranges of int8": (
        f'{MODEL}{DATA}[quantize]\ntargets = ["tensorrt"]\n[engine.a]\nranges = true\n', "is for the float file"),
    "nothing to run": (f"{MODEL}[runtime.tensorrt]\n", "runtime.tensorrt runs engines: give an [engine.NAME]"),
    "drop of nothing": (f"{MODEL}[gates]\nmax_drop = 1\n", "gates.max_drop needs labelled images"),
    "sqnr of nothing": (f"{MODEL}[gates]\nmin_sqnr_db = 1\n", "gates.min_sqnr_db needs images"),
    "latency of nothing": (f"{MODEL}[gates]\nmax_latency_ms = 1\n[bench]\nbatches = []\n", "needs bench.batches"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_wrong_file_is_one_line_with_the_place_and_the_nearest_name(tmp_path: Path, name: str) -> None:
    text, told = REFUSED[name]
    line = refused(tmp_path, text)
    assert str(tmp_path / "pipeline.toml") in line
    assert told in line


@pytest.mark.parametrize(
    ("address", "value", "told"),
    [
        ("onnx.opsett", "1", "--set onnx.opsett: onnx has no key 'opsett': the nearest is opset"),
        ("onx.opset", "1", "--set onx.opset: there is no section 'onx': the nearest is onnx"),
        ("onnx.opset", "x", "--set onnx.opset: received 'x', expected a whole number from 1"),
        ("onnx.opset", "", "received '', expected a whole number"),
        ("onnx.simplify", "maybe", "received 'maybe', expected true or false"),
        ("engine.opt", "8", "there is no section 'engine': the nearest is engine.NAME"),
        ("onnx.a.opset", "8", "there is no section 'onnx.a'"),
        ("engine.a/b.opt", "8", "'a/b' cannot be a file's name"),
        ("runtime.ort.options", "threads=2", "there is no runtime 'ort'"),
        ("bench.batches", "1,,2", "received '1,,2', expected a list of whole numbers from 1 to 4096"),
    ],
)
def test_a_wrong_word_of_the_command_line_is_named(tmp_path: Path, address: str, value: str, told: str) -> None:
    assert told in refused(tmp_path, MODEL, **{address: value})


@pytest.mark.parametrize("make", [lambda path: None, Path.mkdir, lambda path: path.write_bytes(b"\xff\xfe")])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "p.toml")
    with pytest.raises(InputError, match=r"p\.toml cannot be read .*: make one with resnet-export init"):
        read_pipeline(tmp_path / "p.toml")


def test_what_init_writes_reads_as_all_defaults(tmp_path: Path) -> None:
    found, plain = read(tmp_path, template()), read(tmp_path, '[model]\nsource = "checkpoint.pth"\n')
    assert found.tables == plain.tables


def test_what_init_writes_reads_with_every_key_taken_out_of_its_comment(tmp_path: Path) -> None:
    text = re.sub(r"^#(?! )", "", template(), flags=re.MULTILINE)
    document = tomllib.loads(text)
    for name, section in SECTIONS.items():
        table = document[name][section.example] if section.example else document[name]
        assert set(table) == {key.name for key in section.keys}
        for key in section.keys:
            key.check(table[key.name])
    assert set(document) == set(SECTIONS)


def test_every_key_can_be_set_on_the_command_line(tmp_path: Path) -> None:
    for section in SECTIONS.values():
        for key in section.keys:
            value = key.example if key.example is not None else key.default
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            assert key.check(key.read(text)) == key.check(list(value) if isinstance(value, tuple) else value)


def test_every_flag_of_the_table_is_an_option_of_run_and_no_two_are_the_same() -> None:
    flags = [key.flag for section in SECTIONS.values() for key in section.keys if key.flag]
    assert len(set(flags)) == len(flags)
    options = {flag for each in command.params if isinstance(each, click.Option) for flag in each.opts}
    assert set(flags) <= options


def test_the_documentation_has_every_key_with_its_default() -> None:
    text = (DOCS / "pipeline.md").read_text()
    for section in SECTIONS.values():
        title = f"[{section.name}.NAME]" if section.example else f"[{section.name}]"
        _, _, behind = text.partition(f"### `{title}`")
        table = behind.partition("### ")[0]
        rows = re.findall(r"^\| `(\w+)` \| (.*?) \| (.*) \|$", table, flags=re.MULTILINE)
        assert [row[0] for row in rows] == [key.name for key in section.keys], title
        for (_, default, told), key in zip(rows, section.keys, strict=True):
            shown = "" if key.default is None else f"`{_toml(key.default)}`"
            assert default == ("required" if key.required else shown), key.name
            assert told == key.help, key.name


def _toml(value: Any) -> str:
    text = str(list(value) if isinstance(value, tuple) else value).lower()
    return f'"{value}"' if isinstance(value, str) else text


def test_paths_are_those_of_the_file_and_of_the_command_line_those_of_the_folder_one_is_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    found = read(tmp_path, f"{MODEL}{DATA}", **{"data.evaluation": "val"})
    assert found["model"]["source"] == str(tmp_path / "net.pth")
    assert found["data"]["calibration"] == str(tmp_path / "train")
    assert found["data"]["evaluation"] == str(here / "val")
    assert found.folder == tmp_path / "build"


@pytest.mark.parametrize("source", ["resnet50", "timm:resnet50d", "package.module:factory", "timm:a/b"])
def test_a_network_is_no_path(tmp_path: Path, source: str) -> None:
    found = read(tmp_path, f'[model]\nsource = "{source}"\nweights = "random"\n')
    assert (found["model"]["source"], found["model"]["weights"]) == (source, "random")
    assert found.pick("model")["model.source"] == source


@pytest.mark.parametrize("source", ["net.pth", "sub/net", "../net.safetensors"])
def test_a_checkpoint_is_a_path_and_its_place_decides_nothing(tmp_path: Path, source: str) -> None:
    found = read(tmp_path, f'[model]\nsource = "{source}"\n')
    assert found["model"]["source"] == str(Path(tmp_path, source))
    assert "model.source" not in found.pick("model")


def test_a_flag_goes_over_the_file_and_the_last_word_wins(tmp_path: Path) -> None:
    file = tmp_path / "p.toml"
    file.write_text(f"{MODEL}[onnx]\nopset = 15\n")
    sets = [Override("a", "onnx.opset", "13"), Override("b", "onnx.opset", "14"), Override("c", "bench.batches", "")]
    found = read_pipeline(file, sets)
    assert found["onnx"]["opset"] == 14
    assert found["bench"]["batches"] == ()


def test_the_line_of_a_key_is_found_where_it_stands() -> None:
    text = '# [a]\n[b]\nc = 1\n"d" = 2\n[ a . b ]\nc.x = 3\n\n[[l]]\ny = 1\n'
    for address, line in {
        ("b", "c"): 3, ("b", "d"): 4, ("a", "b", "c", "x"): 6, ("a", "b"): 5, ("b", "z"): 2, ("q",): None,
        ("l", "y"): 9, ("a",): 5,
    }.items():  # fmt: skip
        assert line_of(text, address) == line, address


def test_stages_are_those_that_are_asked_for(tmp_path: Path) -> None:
    assert [each.name for each in stages(read(tmp_path, MODEL))] == ["onnx", "bench", "report"]
    assert [each.name for each in stages(read(tmp_path, f"{MODEL}[bench]\nbatches = []\n"))] == ["onnx"]
    whole = f'{MODEL}{DATA}[quantize]\ntargets = ["openvino", "tensorrt"]\n[engine.a]\n[engine.b]\nmodel = "float"\n'
    assert [each.name for each in stages(read(tmp_path, whole))] == [
        "onnx", "calibrate", "quantize openvino", "quantize tensorrt", "engine a", "engine b", "parity", "evaluate",
        "bench", "report", "bundle",
    ]  # fmt: skip


def test_every_file_runs_on_its_own_runtime_after_the_model_itself(tmp_path: Path) -> None:
    text = f'{MODEL}{DATA}[quantize]\ntargets = ["openvino", "tensorrt"]\n'
    found = read(tmp_path, text)
    assert [each.label for each in subjects(found)] == [
        "eager:net.pth", "onnxruntime:model.onnx", "openvino:model.onnx", "openvino:int8/openvino.onnx",
        "int8-sim:int8/tensorrt.onnx",
    ]  # fmt: skip
    assert products(found) == {"openvino:int8/openvino.onnx", "int8-sim:int8/tensorrt.onnx"}
    assert products(read(tmp_path, MODEL)) == {"onnxruntime:model.onnx"}
    runtimes = '[runtime.onnxruntime]\noptions = "threads=2"\n[runtime.eager]\noptions = "threads=1"\n'
    found = read(tmp_path, text + runtimes)
    assert [each.label for each in subjects(found)] == ["eager:net.pth@threads=1", "onnxruntime:model.onnx@threads=2"]


def test_an_engine_runs_on_the_tensorrt_that_builds_it(tmp_path: Path) -> None:
    engines = '[engine.a]\nflavour = "tensorrt"\n[engine.b]\nflavour = "tensorrt_rtx"\noptional = true\n'
    found = read(tmp_path, f"{MODEL}{engines}[runtime.tensorrt]\n[runtime.tensorrt-rtx]\n")
    assert [(each.label, each.optional) for each in subjects(found)[1:]] == [
        ("tensorrt:engines/a.engine", False), ("tensorrt-rtx:engines/b.engine", True),
    ]  # fmt: skip


def test_every_runtime_of_files_has_a_place_in_a_pipeline() -> None:
    """One of models that a server holds has none: a pipeline brings no file to a server."""
    assert set(FILES) == set(DISTRIBUTIONS) == {row.name for row in ROWS.values() if "served" not in row.takes}
