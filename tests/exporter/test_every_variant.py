"""Every named network through the whole job; minutes, so `make test-all` runs it."""

from __future__ import annotations

from pathlib import Path

import pytest

from exporter.models.source import SourceOptions, load_model
from exporter.models.variants import IMAGENET_NAMES
from exporter.pipeline import export_onnx
from exporter.results import OnnxOptions

CIFAR = tuple(f"resnet{depth}{option}" for depth in (20, 56, 110) for option in ("", "_b", "_c"))


@pytest.mark.slow
@pytest.mark.parametrize("name", IMAGENET_NAMES + CIFAR)
def test_every_variant_is_folded_and_proven_in_fp32_and_fp16(tmp_path: Path, name: str) -> None:
    size = (96, 96) if name in IMAGENET_NAMES else None
    loaded = load_model(name, SourceOptions(weights="random", input_size=size))
    report = export_onnx(loaded, tmp_path / "m.onnx", OnnxOptions(opset=13, precision="fp16"))
    assert "BatchNormalization" not in report.ops
    assert report.exporter == "torch.export"
    assert all(row["passed"] for row in report.parity)
    fp32 = [row for row in report.parity if row["stage"] != "fp16"]
    assert min(row["sqnr_db"] for row in fp32) >= 100
