"""ResNet-18 through the whole way to engines of two GPUs that are not here, by a real TensorRT-RTX."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.cli import main
from runtimes.errors import UnavailableError
from runtimes.tensorrt.device import find_devices
from runtimes.tensorrt.run import TensorRTRuntime
from tests.exporter.resnet18_files import files, run_words

__all__ = ["files"]

pytest.importorskip("tensorrt_rtx", reason="there is no TensorRT-RTX for this platform")
TARGETS = ("8.6", "8.9")
INT8_SHARE = 0.35  # of the float engine: a quarter for the weights, and what is not weights


@pytest.fixture(scope="module")
def engines(files: dict[str, Path]) -> dict[tuple[str, str], dict[str, Any]]:
    """The document beside the engine of each precision and GPU."""
    found = {}
    for kind, source in files.items():
        for target in TARGETS:
            engine = source.with_name(f"{kind}-{target}.engine")
            run_words("engine", source, "-o", engine, "--compute-capability", target, "--max", "4", "-q")
            found[kind, target] = json.loads(engine.with_name(f"{engine.name}.json").read_text())
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8"])
def test_an_engine_of_each_precision_is_built_for_a_gpu_that_is_not_here(
    kind: str, target: str, engines: dict[tuple[str, str], dict[str, Any]]
) -> None:
    told = engines[kind, target]
    assert (told["precision"], told["targets"], told["flavour"]) == (kind, [target], "tensorrt_rtx")
    assert told["bytes"] == Path(told["engine"]).stat().st_size
    convolutions = [node for node in told["network"] if node["op_type"] == "Conv"]
    assert len(convolutions) == 20
    assert {bool(node["quantised"]) for node in convolutions} == {kind == "int8"}


@pytest.mark.parametrize("target", TARGETS)
def test_the_engines_are_as_small_as_their_precision_lets_them(
    target: str, engines: dict[tuple[str, str], dict[str, Any]]
) -> None:
    size = {kind: engines[kind, target]["bytes"] for kind in ("fp32", "fp16", "int8")}
    assert size["int8"] <= INT8_SHARE * size["fp32"]
    assert size["int8"] < size["fp16"] < size["fp32"]


def test_running_one_without_a_gpu_is_refused_in_one_line(
    engines: dict[tuple[str, str], dict[str, Any]], capfd: pytest.CaptureFixture[str]
) -> None:
    if find_devices().devices:
        pytest.skip("there is a GPU here")
    engine = engines["fp32", "8.6"]["engine"]
    with pytest.raises(UnavailableError, match="needs an NVIDIA GPU") as caught, TensorRTRuntime(engine):
        pass
    assert "\n" not in str(caught.value)
    capfd.readouterr()
    with pytest.raises(SystemExit) as end:
        main(["layers", engine])
    told = capfd.readouterr()
    assert (end.value.code, told.out, told.err.count("\n")) == (3, "", 1)
