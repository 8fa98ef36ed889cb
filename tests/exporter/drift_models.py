"""Exported networks whose layers are compared: float, FP16 and INT8 for each target."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
import onnx
from PIL import Image
from torch import nn

from calibration.outcome import Options
from calibration.placement import Folding, target
from calibration.preprocess import PRESETS
from exporter.graph.capture import Captured, InputShape, capture
from exporter.graph.export import export
from exporter.graph.fold import fold
from exporter.graph.metadata import write_metadata
from exporter.graph.precision import to_fp16
from exporter.graph.simplify import simplify
from exporter.models.resnet import build_random
from exporter.models.variants import cifar_blueprint
from exporter.quantise import Inputs, quantise_onnx
from tests.exporter.networks import Kuangliu, scramble

SIDE, IMAGES = 32, 24
CONTRACT = PRESETS["cifar"].for_input(3, SIDE, SIDE)


@cache
def network(kind: str) -> nn.Module:
    """``A`` or ``B``: a CIFAR ResNet-8 with that shortcut; ``deep``: a ResNet-20; ``bottleneck``: of another author."""
    if kind == "bottleneck":
        module: nn.Module = scramble(Kuangliu(planes=4, bottleneck=True))
        return module
    return build_random(cifar_blueprint(20 if kind == "deep" else 8, option="B" if kind == "B" else "A"))


@cache
def pixels() -> npt.NDArray[np.uint8]:
    """``[IMAGES, H, W, 3]``: blobs of colour, as unlike each other as photographs."""
    random = np.random.default_rng(5)
    coarse = random.integers(0, 256, (IMAGES, 4, 4, 3)).astype(np.uint8)
    blobs = [np.asarray(Image.fromarray(each).resize((SIDE, SIDE), Image.Resampling.BICUBIC)) for each in coarse]
    noise = random.integers(-20, 21, (IMAGES, SIDE, SIDE, 3))
    return np.clip(np.stack(blobs) + noise, 0, 255).astype(np.uint8)


def images(mean_shift: float = 0.0) -> npt.NDArray[np.float32]:
    """``[IMAGES, 3, H, W]`` by the contract, or with another mean."""
    scaled = pixels().astype(np.float64) * CONTRACT.scale
    values = (scaled - np.array(CONTRACT.mean) - mean_shift) / np.array(CONTRACT.std)
    return np.ascontiguousarray(values.transpose(0, 3, 1, 2), np.float32)


@cache
def folded(kind: str) -> Captured:
    return fold(capture(network(kind), InputShape(3, SIDE, SIDE))).captured


@cache
def fp32(kind: str) -> onnx.ModelProto:
    model = simplify(export(folded(kind), 17, "torch.export")).model
    assert model is not None
    write_metadata(
        model,
        {
            "preprocessing": CONTRACT.to_json(),
            "preprocessing_sha256": CONTRACT.sha256(),
            "precision": "fp32",
            "classes": {"count": 10, "labels": []},
        },
    )
    return model


@cache
def fp16(kind: str) -> onnx.ModelProto:
    return to_fp16(fp32(kind)).model


@cache
def int8(kind: str, goal: str, folds: Folding | None = None) -> onnx.ModelProto:
    """Quantised with the images that it is compared on."""
    options = Options(target(goal, folds=folds), effort="fast")
    with TemporaryDirectory() as name:
        folder = Path(name)
        for index, each in enumerate(pixels()):
            (folder / "data").mkdir(exist_ok=True)
            Image.fromarray(each).save(folder / "data" / f"{index:02}.png")
        (folder / "float.onnx").write_bytes(fp32(kind).SerializeToString())
        inputs = Inputs(folder / "float.onnx", data=folder / "data", images=0, workers=0, threads=1)
        return quantise_onnx(inputs, folder / "int8.onnx", options).result.model
