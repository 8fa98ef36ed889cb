"""Drift of several models: one that cannot be looked at costs the others nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from PIL import Image

from calibration.listing import ImageFile, find_images
from exporter.drift_rows import check_reference, drift_rows
from exporter.graph.capture import InputShape, capture
from exporter.graph.export import export
from exporter.graph.fold import fold
from exporter.opening import Opening, prepare
from runtimes.errors import InputError
from tests.exporter.drift_models import CONTRACT, fp32, network, pixels


@pytest.fixture(scope="module")
def listing(tmp_path_factory: pytest.TempPathFactory) -> list[ImageFile]:
    folder = tmp_path_factory.mktemp("images")
    for number, image in enumerate(pixels()[:5]):
        Image.fromarray(image).save(folder / f"{number}.png")
    return find_images(folder)


def opened(path: Path, model: onnx.ModelProto) -> Opening:
    onnx.save(model, path)
    found = prepare(f"onnxruntime:{path}")
    with found.runtime:
        return found


def fixed(batch: int) -> onnx.ModelProto:
    return export(fold(capture(network("A"), InputShape(3, 32, 32, batch))).captured, 17, "torch.export")


def without_names() -> onnx.ModelProto:
    """A file of another exporter: nothing in it is called as the reference calls it."""
    model = onnx.ModelProto()
    model.CopyFrom(fp32("A"))
    renamed = {item.name for item in (*model.graph.input, *model.graph.output)}
    for number, node in enumerate(model.graph.node):
        node.name = f"n{number}"
        node.input[:] = [name if name in renamed else f"t_{name}" for name in node.input]
        node.output[:] = [name if name in renamed else f"t_{name}" for name in node.output]
    for item in model.graph.initializer:
        item.name = f"t_{item.name}"
    del model.graph.value_info[:]
    return model


@pytest.mark.parametrize("batch", [2, 40])
def test_a_fixed_batch_is_filled_up(batch: int, listing: list[ImageFile], tmp_path: Path) -> None:
    models = [opened(tmp_path / "free.onnx", fp32("A")), opened(tmp_path / "fixed.onnx", fixed(batch))]
    (row,) = drift_rows(models, listing, CONTRACT)
    assert row["layers"], row["probed"]
    assert (row["first"], row["passed"]) == (None, True)
    (row,) = drift_rows(models[::-1], listing, CONTRACT)
    assert row["layers"], row["probed"]


def test_a_model_that_cannot_be_looked_at_costs_the_others_nothing(listing: list[ImageFile], tmp_path: Path) -> None:
    files = {"a": fp32("A"), "foreign": without_names(), "b": fp32("A")}
    models = [opened(tmp_path / f"{name}.onnx", model) for name, model in files.items()]
    foreign, same = drift_rows(models, listing, CONTRACT)
    assert foreign["layers"] == []
    assert foreign["probed"].startswith("could not be looked at: ")
    assert len(same["layers"]) > 5


def test_a_reference_without_layers_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    model = opened(tmp_path / "a.onnx", fp32("A"))
    check_reference(model)
    with pytest.raises(InputError, match="cannot be the reference of a drift"):
        check_reference(Opening(**{**vars(model), "precision": "int8"}))
