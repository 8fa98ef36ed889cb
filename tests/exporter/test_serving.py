from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from calibration.preprocess import PRESETS
from exporter.cli import cli, main
from exporter.serving import repository
from exporter.serving.config import ServingOptions
from exporter.serving.pbtxt import Word, text
from exporter.serving.preprocessing import preprocessing_model
from exporter.serving.repository import RepositoryOptions, write_repository
from runtimes.base import TensorSpec
from runtimes.errors import DataError, GraphError, InputError, ResnetExportError, UnavailableError
from tests.exporter.serving_models import CONTRACT, LABELS, engine, network


def files(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(kind: type[ResnetExportError], sources: list[str], output: Path, options=None) -> str:
    with pytest.raises(kind) as caught:
        write_repository(sources, output, options)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert not output.exists()
    return str(caught.value)


@pytest.fixture
def model(tmp_path):
    return str(network(tmp_path / "r20.onnx", labels=LABELS))


@pytest.mark.parametrize("color", ["RGB", "BGR", "L", "raw"])
def test_the_preprocessing_graph_is_the_contract_bit_for_bit(color):
    import onnxruntime

    channels = {"L": 1, "raw": 5}.get(color, 3)
    contract = replace(
        PRESETS["cifar"].for_input(channels, 16, 16), color=color, mean=tuple(0.1 * n + 0.3 for n in range(channels)),
        std=tuple(0.07 * n + 0.2 for n in range(channels)),
    )  # fmt: skip
    pixels = np.arange(256 * channels, dtype=np.uint32).reshape(1, 16, 16, channels) // channels
    pixels = pixels.astype(np.uint8)  # every value of a pixel, in every channel
    graph = preprocessing_model(contract, TensorSpec("input", "float32", (None, channels, 16, 16)))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["input"], {"pixels": pixels})
    assert found[0].tobytes() == contract.apply_pixels(pixels[0]).tobytes()


def test_the_preprocessing_graph_rounds_once_for_a_model_in_half_precision():
    import onnxruntime

    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 6, 3), np.uint8)
    graph = preprocessing_model(CONTRACT, TensorSpec("x", "float16", (2, 3, 8, 6)))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(["x"], {"pixels": pixels})
    assert found.dtype == np.float16
    expected = np.stack([CONTRACT.apply_pixels(each) for each in pixels]).astype(np.float16)
    assert found.tobytes() == expected.tobytes()


@given(st.text())
def test_any_text_survives_the_text_format(value):
    text_format = pytest.importorskip("google.protobuf.text_format")
    from google.protobuf import struct_pb2

    written = text({"string_value": value})
    assert written.count("\n") == 1
    assert text_format.Parse(written, struct_pb2.Value()).string_value == value


def test_the_text_format_knows_the_kinds_of_fields():
    message: dict[str, Any] = {
        "a": 1,
        "b": True,
        "c": Word("KIND_CPU"),
        "d": [1, 2],
        "e": {},
        "f": [{"g": "x"}, {"g": "y"}],
        "h": [],
    }
    assert text(message) == ('a: 1\nb: true\nc: KIND_CPU\nd: [ 1, 2 ]\ne { }\nf {\n  g: "x"\n}\nf {\n  g: "y"\n}\n')


def test_the_model_is_copied_and_the_same_input_gives_the_same_bytes(model, tmp_path):
    write_repository([model], tmp_path / "a")
    write_repository([model], tmp_path / "b")
    found = files(tmp_path / "a")
    assert found == files(tmp_path / "b")
    assert found["r20/1/model.onnx"] == Path(model).read_bytes()
    assert (tmp_path / "a" / "r20_ensemble" / "1").is_dir()  # empty, and Triton asks for it
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_weights_in_other_files_come_along(model, tmp_path):
    (tmp_path / "src").mkdir()
    path = tmp_path / "src" / "net.onnx"
    onnx.save_model(onnx.load(model), path, save_as_external_data=True, location="net.weights", size_threshold=0)
    write_repository([str(path)], tmp_path / "out")
    copied = onnx.load(str(tmp_path / "out" / "net" / "1" / "model.onnx"))
    assert [item.raw_data for item in copied.graph.initializer] == [
        item.raw_data for item in onnx.load(model).graph.initializer
    ]


def test_a_repository_keeps_its_other_models_and_renews_its_own(model, tmp_path):
    out = tmp_path / "out"
    (out / "other").mkdir(parents=True)
    (out / "other" / "config.pbtxt").write_text("name: 'other'\n")
    write_repository([model], out)
    first = files(out)
    write_repository([model], out, RepositoryOptions(ServingOptions(max_batch=4)))
    second = files(out)
    assert first["other/config.pbtxt"] == second["other/config.pbtxt"]
    assert b"max_batch_size: 32" in first["r20/config.pbtxt"]
    assert b"max_batch_size: 4" in second["r20/config.pbtxt"]
    assert first.keys() == second.keys()


def test_what_somebody_else_wrote_is_never_replaced(model, tmp_path):
    out = tmp_path / "out"
    (out / "r20").mkdir(parents=True)
    (out / "r20" / "config.pbtxt").write_text('name: "r20"\n')
    before = files(out)
    with pytest.raises(InputError, match="was not written by resnet-export: give NAME=FILE"):
        write_repository([model], out)
    assert files(out) == before
    write_repository([f"mine={model}"], out)
    assert files(out).items() >= before.items()


@pytest.mark.parametrize("exists", [False, True])
def test_a_move_that_fails_leaves_all_as_it_was(model, tmp_path, monkeypatch, exists):
    out = tmp_path / "new" / "out"
    if exists:
        write_repository([model], out)
    before = files(tmp_path)
    replaced = Path.replace
    moves = []

    def failing(self: Path, target: Path) -> Path:
        moves.append(target)
        if len(moves) == 3:
            raise OSError(28, "No space left on device")
        return replaced(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(UnavailableError, match=r"disk of .* is full"):
        write_repository([model], out, RepositoryOptions(ServingOptions(max_batch=4)))
    assert files(tmp_path) == before
    assert out.exists() == out.parent.exists() == exists
    assert not list(tmp_path.rglob("*.part"))


def test_an_interruption_leaves_nothing(model, tmp_path, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(repository, "placed", interrupted)
    before = files(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        write_repository([model], tmp_path / "out")
    assert files(tmp_path) == before


def test_several_models_share_a_repository_under_names_of_their_own(model, tmp_path):
    report = write_repository(
        [model, f"half={network(tmp_path / 'h.onnx', elements=TensorProto.FLOAT16)}"], tmp_path / "o"
    )
    assert [row["name"] for row in report.models] == [
        f"{name}{part}" for name in ("r20", "half") for part in ("", "_preprocessing", "_ensemble")
    ]
    assert "two models would be called r20" in refusal(InputError, [model, model], tmp_path / "x")
    assert "two models would be called r20_ensemble" in refusal(
        InputError, [model, f"r20_ensemble={model}"], tmp_path / "x"
    )


def test_names_are_made_of_files_and_an_equals_sign_in_a_path_is_none(tmp_path):
    odd = network(tmp_path / "a=b c.int8.onnx")
    assert write_repository([str(odd)], tmp_path / "o").models[0]["name"] == "a_b_c.int8"
    assert write_repository([f"n={odd}"], tmp_path / "o").models[0]["name"] == "n"


def test_a_file_that_says_no_preprocessing_has_no_ensemble_and_a_note(tmp_path):
    report = write_repository([str(network(tmp_path / "r20.onnx", contract=None))], tmp_path / "out")
    assert [row["name"] for row in report.models] == ["r20"]
    assert any("does not say how its images are preprocessed" in note for note in report.notes)


def test_a_file_that_takes_pixels_itself_has_no_ensemble_and_a_note(tmp_path):
    path = network(tmp_path / "r20.onnx")
    model = onnx.load(str(path))
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.UINT8
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["input"], ["cast"], to=TensorProto.FLOAT))
    model.graph.node[1].input[0] = "cast"
    onnx.save(model, path)
    report = write_repository([str(path)], tmp_path / "out")
    assert [row["name"] for row in report.models] == ["r20"]
    assert any("takes uint8, not normalised floats" in note for note in report.notes)


def test_options_that_do_not_fit_are_refused(model, tmp_path):
    out = tmp_path / "out"
    plan = str(engine(tmp_path / "e.engine"))

    def serving(**given: Any) -> RepositoryOptions:
        return RepositoryOptions(ServingOptions(**given))

    assert "--max-batch is 17" in refusal(InputError, [plan], out, serving(max_batch=17))
    assert "preferred batch 64, and --max-batch is 32" in refusal(InputError, [model], out, serving(preferred=(64,)))
    assert "is an engine, and the kind is cpu" in refusal(InputError, [plan], out, serving(kind="cpu"))
    wrong: list[dict[str, Any]] = [{"max_batch": 0}, {"instances": 0}, {"delay_us": -1}, {"preferred": (0,)}]
    for options in wrong:
        with pytest.raises(InputError, match="expected at least"):
            ServingOptions(**options)
    with pytest.raises(InputError, match="which is switched off"):
        ServingOptions(dynamic_batching=False, delay_us=5)


def test_engines_that_a_server_could_not_use_are_refused(tmp_path):
    out = tmp_path / "out"
    plan = engine(tmp_path / "e.engine", batches=(2, 4, 8))
    assert "takes 2 to 8 images, and a server may send one" in refusal(InputError, [str(plan)], out)
    engine(plan, sha256="0" * 64)
    assert "is not about the engine" in refusal(InputError, [str(plan)], out)
    engine(plan, tensors={})
    assert "does not tell inputs and outputs" in refusal(InputError, [str(plan)], out)
    plan.with_name("e.engine.json").unlink()
    assert "has no e.engine.json beside it" in refusal(InputError, [str(plan)], out)
    rtx = tmp_path / "e.rtx"
    rtx.write_bytes(b"vtrt" + bytes(60))
    assert "is a TensorRT-RTX engine, and Triton serves" in refusal(InputError, [str(rtx)], out)


def test_inputs_that_cannot_be_used_are_refused(model, tmp_path):
    out = tmp_path / "out"
    assert "there is no file" in refusal(InputError, [str(tmp_path / "absent.onnx")], out)
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x08")
    refusal(GraphError, [str(tmp_path / "broken.onnx")], out)
    (tmp_path / "two.txt").write_text("a\nb\n")
    options = RepositoryOptions(labels=tmp_path / "two.txt")
    assert "has 2 names" in refusal(InputError, [model], out, options)
    refusal(DataError, [model], out, RepositoryOptions(warmup=str(tmp_path / "absent.png")))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: give a folder"):
        write_repository([model], tmp_path / "file")


def test_labels_of_the_command_line_replace_those_of_the_file(model, tmp_path):
    (tmp_path / "labels.txt").write_text("w\nx\ny\nz\n")
    write_repository([model], tmp_path / "out", RepositoryOptions(labels=tmp_path / "labels.txt"))
    assert (tmp_path / "out" / "r20" / "labels.txt").read_text() == "w\nx\ny\nz\n"
    assert "cat" not in (tmp_path / "out" / "r20" / "config.pbtxt").read_text()


def test_the_command_prints_one_document(model, tmp_path, capfd):
    with pytest.raises(SystemExit) as caught:
        main(["triton", model, "-o", str(tmp_path / "out"), "--preferred", "4", "--preferred", "8", "--json"])
    assert caught.value.code == 0
    document = json.loads(capfd.readouterr().out)
    assert document["schema"] == 1
    assert document["models"][0] == {
        "name": "r20", "platform": "onnxruntime_onnx", "max_batch_size": 32, "source": model,
        "files": ["1/model.onnx", "config.pbtxt", "labels.txt"],
    }  # fmt: skip
    assert "preferred_batch_size: [ 4, 8 ]" in (tmp_path / "out" / "r20" / "config.pbtxt").read_text()


def test_the_command_shows_what_it_wrote(model, tmp_path):
    result = CliRunner().invoke(cli, ["triton", model, "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    for word in ("r20_preprocessing", "r20_ensemble", "onnxruntime_onnx", "up to 32"):
        assert word in result.output
