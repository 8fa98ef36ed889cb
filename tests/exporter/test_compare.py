"""What becomes of a comparison when one of its models is odd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from calibration.listing import ImageFile, find_images
from calibration.preprocess import PRESETS
from exporter.compare import CompareOptions, CompareReport, compare_models
from exporter.opening import Opening, prepare
from exporter.report.schema import validate
from runtimes.errors import GraphError, InputError
from tests.runtimes.models import FunctionRuntime, linear, onnx_linear, weights

CONTRACT = PRESETS["cifar"].for_input(3, 4, 4)
NAN = np.full((3, 5), np.nan, np.float32)


@pytest.fixture
def listing(tmp_path: Path) -> list[ImageFile]:
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(3)
    for number in range(6):
        Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8)).save(folder / f"{number}.png")
    return find_images(folder)


@pytest.fixture
def made(tmp_path: Path) -> Opening:
    """A float file, whose parts the tests replace."""
    onnx.save(onnx_linear(weights()), tmp_path / "float.onnx")
    return prepare(f"onnxruntime:{tmp_path / 'float.onnx'}")


def called(opening: Opening, label: str, **changes: Any) -> Opening:
    return replace(opening, spec=replace(opening.spec, label=label), **changes)


def function(matrix: Any = None, gain: float = 1.0) -> FunctionRuntime:
    return FunctionRuntime(linear(weights() if matrix is None else matrix, gain), classes=5)


def compared(models: list[Opening], listing: list[ImageFile], **options: Any) -> CompareReport:
    report = compare_models(models, listing, CONTRACT, CompareOptions(batch=2, **options), path="images")
    validate("parity", report.to_json())
    return report


def with_qdq_and_softplus() -> onnx.ModelProto:
    model = onnx_linear(weights())
    model.graph.initializer.extend(
        [numpy_helper.from_array(np.float32(0.01), "scale"), numpy_helper.from_array(np.int8(0), "zero")]
    )
    model.graph.node[-1].output[0] = "raw"
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", ["raw", "scale", "zero"], ["steps"]),
            helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["real"]),
            helper.make_node("Softplus", ["real"], ["logits"]),
        ]
    )
    return model


def test_a_file_that_cannot_be_simulated_is_still_held_against_the_reference(
    made: Opening, listing: list[ImageFile], tmp_path: Path
) -> None:
    onnx.save(with_qdq_and_softplus(), tmp_path / "odd.onnx")
    odd, same = (prepare(f"onnxruntime:{tmp_path / 'odd.onnx'}") for _ in range(2))
    assert odd.precision == "int8"
    report = compared([odd, called(same, "same")], listing)
    assert [(row["simulated"], row["passed"]) for row in report.results] == [(False, True)]
    (note,) = report.notes
    assert note.startswith("same was not held against its simulation: the model has Softplus")
    assert note.count("odd.onnx") == 0


def test_a_precision_without_bounds_costs_the_others_nothing(made: Opening, listing: list[ImageFile]) -> None:
    models = [made, called(made, "fp8", precision="fp8", runtime=function()), called(made, "same", runtime=function())]
    report = compared(models, listing)
    fp8, same = report.results
    assert not fp8["passed"]
    assert "no tolerance is known for onnxruntime fp8" in fp8["error"]
    assert (same["passed"], same["n"]) == (True, 6)
    assert compared(models[:2], listing, min_sqnr_db=50.0).results[0]["passed"]


def test_a_reference_of_reduced_precision_is_not_blamed_on_the_candidate(
    made: Opening, listing: list[ImageFile]
) -> None:
    rounded = called(made, "rounded", runtime=function(gain=1.001))
    assert not compared([rounded, made], listing).passed
    (row,) = compared([replace(rounded, precision="fp16"), made], listing).results
    assert row["passed"]
    assert row["tolerance"]["reason"].startswith("The reference is the coarser")


def test_a_reference_that_gives_nan_is_named(made: Opening, listing: list[ImageFile]) -> None:
    (row,) = compared([called(made, "broken", runtime=function(NAN)), made], listing).results
    assert not row["passed"]
    assert row["finding"] == "not judged: the reference broken gives NaN or Inf on 6 of 6 images"
    (row,) = compared([made, called(made, "broken", runtime=function(NAN))], listing).results
    assert row["finding"] == "sample 0 holds NaN or Inf"


def test_nothing_runs_on_once_the_reference_has_failed(made: Opening, listing: list[ImageFile]) -> None:
    calls: list[int] = []

    def fails(batch: Any) -> Any:
        raise GraphError("the device fell off the bus")

    def counts(batch: Any) -> Any:
        calls.append(len(batch))
        return linear(weights())(batch)

    reference = called(made, "gone", runtime=FunctionRuntime(fails, classes=5))
    (row,) = compared([reference, called(made, "fine", runtime=FunctionRuntime(counts, classes=5))], listing).results
    assert not row["passed"]
    assert row["finding"] == "not judged: the reference gone could not be run: the device fell off the bus"
    assert len(calls) == 1


@pytest.mark.parametrize("bound", [float("nan"), float("inf")])
def test_a_bound_is_a_finite_number(bound: float) -> None:
    with pytest.raises(InputError, match="finite"):
        CompareOptions(min_sqnr_db=bound)
