"""``run`` and ``init`` as a user meets them, on the embedded network."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import onnx
import pytest

from exporter.cli import main
from exporter.report.schema import validate
from runtimes.precision import carried
from tests.exporter.run_pipelines import contents, digits
from tests.exporter.test_cli_quantize import Done, as_it_was, assert_refused

__all__ = ["as_it_was"]
ROOT = Path(__file__).resolve().parents[2]
ALL = ["onnx", "calibrate", "quantize onnxruntime", "parity", "evaluate", "bench", "report", "bundle"]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*words: str | Path) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(list(map(str, words)))
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run


@pytest.fixture(scope="module")
def once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pipeline that has been run."""
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.raises(SystemExit) as end:
        main(["run", str(digits(folder)), "--quiet"])
    assert not end.value.code
    return folder


@pytest.fixture
def made(once: Path, tmp_path: Path) -> Path:
    """The pipeline file of a copy, which a test may do with what it likes."""
    shutil.copytree(once / "build", tmp_path / "build")
    return digits(tmp_path)


def statuses(document: Any) -> dict[str, str]:
    return {step["stage"]: step["status"] for step in document["stages"]}


def test_a_run_leaves_every_file_its_proof_and_the_report(once: Path) -> None:
    found = contents(once / "build")
    inside = {name for name in found if name.startswith("bundle/")}  # its manifest has the hashes of all of it
    assert inside >= {"bundle/manifest.json", "bundle/run.py", "bundle/goldens/input.npy"}
    assert set(found) - inside == {
        "model.onnx", "model.onnx.json", "ranges.json", "int8/onnxruntime.onnx", "int8/onnxruntime.onnx.json",
        "parity.json", "evaluate.json", "bench.json", "report.html",
    }  # fmt: skip
    assert carried(onnx.load(once / "build" / "int8" / "onnxruntime.onnx")) == "int8"
    for name in ("parity", "evaluate", "bench"):
        document = json.loads((once / "build" / f"{name}.json").read_bytes())
        validate(name, document)
        labels = [row["label"] for row in document["results"]]
        assert labels[-1] == "onnxruntime:int8/onnxruntime.onnx"
        assert ("eager:digits_resnet14.pth" in labels) == (name != "parity")


def test_a_second_run_does_nothing(made: Path, cli: Any) -> None:
    before = contents(made.parent / "build")
    done = cli("run", made, "--json")
    assert done.code == 0
    assert statuses(done.document) == dict.fromkeys(ALL, "cached")
    assert all(step["cached"] and not step["reasons"] for step in done.document["stages"])
    assert contents(made.parent / "build") == before
    outputs = {each["path"]: each["sha256"] for step in done.document["stages"] for each in step["outputs"]}
    assert outputs.items() <= before.items()
    assert {name for name in before.keys() - outputs.keys() if not name.startswith("bundle/")} == set()


def test_a_second_run_loads_no_framework(made: Path) -> None:
    code = (
        "import sys\nfrom exporter.cli import main\n"
        f"try: main(['run', {str(made)!r}, '--quiet'])\nexcept SystemExit as end: assert not end.code\n"
        "print(' '.join({'torch', 'onnx', 'onnxruntime', 'openvino', 'scipy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == ""


def test_a_plan_says_what_would_be_done_and_why(made: Path, cli: Any) -> None:
    before = contents(made.parent / "build")
    done = cli("run", made, "--method", "entropy", "--dry-run", "--json")
    assert (done.code, done.document["passed"], done.document["dry_run"]) == (0, None, True)
    reasons = {step["stage"]: step["reasons"] for step in done.document["stages"]}
    assert [name for name in ALL if not reasons[name]] == ["onnx", "calibrate"]
    assert reasons["quantize onnxruntime"] == ["quantize.method: mse → entropy"]
    assert reasons["parity"] == ["quantize onnxruntime may change what it reads"]
    assert "quantize.method: mse → entropy" in cli("run", made, "--method", "entropy", "--dry-run").out
    assert contents(made.parent / "build") == before


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("--set", "bench.rounds=3"), "bench"),
        (("--set", "evaluate.images=20"), "evaluate"),
        (("--set", "parity.batch=8"), "parity"),
        (("--set", "data.images=30"), "calibrate"),
        (("--opset", "13"), "onnx"),
        (("--set", "output.markdown=true"), "report"),
        (("--set", "data.workers=2"), None),
    ],
)
def test_an_option_concerns_the_stages_that_use_it(made: Path, cli: Any, words: Any, first: str | None) -> None:
    found = statuses(cli("run", made, *words, "--dry-run", "--json").document)
    todo = [name for name in ALL if found[name] == "to do"]
    assert (todo[0] if todo else None) == first
    if first in ("bench", "evaluate", "parity"):
        assert todo == [first, "report"]


def test_another_method_gives_another_file_and_leaves_those_before_it(made: Path, cli: Any) -> None:
    folder = made.parent / "build"
    before = contents(folder)
    done = cli("run", made, "--method", "minmax", "--set", "bench.batches=", "--json")
    assert done.code == 0, done.err
    found = statuses(done.document)
    assert [name for name in ALL if found.get(name) == "cached"] == ["onnx", "calibrate"]
    after = contents(folder)
    assert after["model.onnx"] == before["model.onnx"]
    assert after["ranges.json"] == before["ranges.json"]
    assert after["int8/onnxruntime.onnx"] != before["int8/onnxruntime.onnx"]
    assert cli("run", made, "--set", "bench.batches=", "--quiet").code == 0
    assert contents(folder)["int8/onnxruntime.onnx"] == before["int8/onnxruntime.onnx"]  # and back again


def test_an_altered_output_is_made_again(made: Path, cli: Any) -> None:
    path = made.parent / "build" / "int8" / "onnxruntime.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    done = cli("run", made, "--json")
    (step,) = [step for step in done.document["stages"] if step["stage"] == "quantize onnxruntime"]
    assert "int8/onnxruntime.onnx was altered" in step["reasons"][0]
    assert path.read_bytes() == whole
    assert statuses(done.document)["parity"] == "cached"


def test_a_gate_fails_the_run_after_the_report_and_says_by_how_much(made: Path, cli: Any) -> None:
    words = ("run", made, "--min-sqnr", "200", "--set", "output.junit=true")
    done = cli(*words, "--json")
    assert done.code == 1
    assert done.document["passed"] is False
    (gate,) = [gate for gate in done.document["gates"] if not gate["passed"]]
    assert gate["gate"] == "min_sqnr_db"
    assert f"{200 - gate['found']:.1f} dB too few" in gate["message"]
    assert f"gate min_sqnr_db failed: {gate['message']}" in done.err
    assert [step["stage"] for step in done.document["stages"] if not step["cached"]] == ["report"]
    suite = ET.parse(made.parent / "build" / "report.xml").getroot()
    assert int(suite.attrib["failures"]) == 1
    assert "dB too few" in (made.parent / "build" / "report.html").read_text()
    shown = cli(*words)
    assert shown.code == 1  # a cached report excuses nothing
    assert "✗ min_sqnr_db: " in shown.out
    assert "✗ failed" in shown.out


def test_a_person_sees_the_gates_the_folder_and_the_report(made: Path, cli: Any) -> None:
    done = cli("run", made, "--max-drop", "50")
    assert done.code == 0
    assert "✓ max_drop: onnxruntime:int8/onnxruntime.onnx loses" in done.out
    assert done.out.rstrip().endswith(str(made.parent / "build" / "report.html"))
    assert "cached: " in done.err


def test_a_runtime_that_is_not_here_is_left_out_where_it_is_optional(made: Path, cli: Any) -> None:
    made.write_text(made.read_text() + "\n[runtime.onnxruntime]\n[runtime.ort-cuda]\noptional = true\n")
    done = cli("run", made, "--set", "bench.batches=", "--json")
    assert done.code == 0, done.err
    if all(
        row["runtime"] != "ort-cuda" for row in json.loads((made.parent / "build/parity.json").read_bytes())["results"]
    ):
        (step,) = [step for step in done.document["stages"] if step["stage"] == "parity"]
        assert any(note.startswith("ort-cuda:model.onnx is left out: ") for note in step["notes"])


def test_a_runtime_that_is_not_here_and_not_optional_is_refused_before_any_work(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr("exporter.run.job.version", lambda names: None if "openvino" in names else "1")
    done = cli("run", digits(tmp_path, "[runtime.openvino]"))
    assert_refused(done, "openvino is not installed: pip install 'resnet-export[openvino]'", code=3)
    assert not (tmp_path / "build").exists()


def test_an_engine_that_cannot_be_built_here_is_left_out_where_it_is_optional(made: Path, cli: Any) -> None:
    engine = '[engine.dla]\nmodel = "float"\nflavour = "tensorrt"\noptional = true\n'
    made.write_text(made.read_text() + engine)
    done = cli("run", made, "--set", "bench.batches=", "--json")
    assert done.code == 0, done.err
    (step,) = [step for step in done.document["stages"] if step["stage"] == "engine dla"]
    if step["status"] == "skipped":
        assert "tensorrt" in step["skipped"]
        assert cli("run", made, "--set", "bench.batches=", "--json").document["stages"][3]["cached"]
        assert_refused(cli("run", made, "--set", "engine.dla.optional=false"), "tensorrt", code=3)


def test_an_engine_comes_of_the_int8_file(made: Path, cli: Any) -> None:
    pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
    engine = '[engine.rtx]\nflavour = "tensorrt_rtx"\ncompute_capability = ["8.6"]\n[parity]\nimages = 8\n'
    text = made.read_text().replace('["onnxruntime"]', '["onnxruntime", "tensorrt"]').replace("[parity]\n", engine)
    made.write_text(text.replace("images = 32\n", ""))
    done = cli("run", made, "--set", "bench.batches=", "--json")
    assert done.code == 0, done.err
    beside = json.loads((made.parent / "build" / "engines" / "rtx.engine.json").read_bytes())
    source = contents(made.parent / "build")["int8/tensorrt.onnx"]
    assert (beside["source_sha256"], beside["precision"]) == (source, "int8")


def test_drift_is_followed(made: Path, cli: Any) -> None:
    done = cli("run", made, "--drift", "--set", "bench.batches=", "--json")
    assert done.code == 0, done.err
    assert len(json.loads((made.parent / "build" / "parity.json").read_bytes())["drift"]) == 2


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--opset", "x"), "--opset: received 'x', expected a whole number"),
        (("--set", "onnx.opset"), "expected SECTION.KEY=VALUE"),
        (("--set", "onnx.opzet=1"), "the nearest is opset"),
        (("--source", "nothing.pth"), "nothing.pth"),
        (("--source", "resnet5"), "resnet5"),
        (("--calibration", "nowhere"), "nowhere does not exist"),
        (("--opset", "99"), "99"),
    ],
)
def test_what_cannot_be_done_is_one_line(made: Path, cli: Any, words: Any, told: str) -> None:
    assert_refused(cli("run", made, *words, "--quiet"), told)


def test_an_output_folder_that_is_a_file_is_refused(tmp_path: Path, cli: Any) -> None:
    (tmp_path / "taken").write_text("")
    assert_refused(cli("run", digits(tmp_path), "-o", tmp_path / "taken"), "cannot be written")


def test_init_writes_a_pipeline_and_never_over_another(tmp_path: Path, cli: Any) -> None:
    file = tmp_path / "new" / "pipeline.toml"
    done = cli("init", file)
    assert done.code == 0
    assert "run" in done.out
    before = file.read_bytes()
    assert_refused(cli("init", file), "is there already")
    assert file.read_bytes() == before
    assert cli("init", tmp_path / "other.toml", "--json").document["pipeline"] == str(tmp_path / "other.toml")


def test_a_missing_pipeline_names_init(tmp_path: Path, cli: Any) -> None:
    assert_refused(cli("run", tmp_path / "p.toml"), "make one with resnet-export init")
