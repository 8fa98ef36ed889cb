"""ResNet-18 as files of three precisions, for tests of engines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from exporter.cli import main


def run_words(*words: str | Path) -> None:
    """A command that has to end well."""
    with pytest.raises(SystemExit) as end:
        main(list(map(str, words)))
    assert not end.value.code, words


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The float, the half and the INT8 file of one network."""
    folder = tmp_path_factory.mktemp("resnet18")
    made = {kind: folder / f"{kind}.onnx" for kind in ("fp32", "fp16", "int8")}
    run_words("onnx", "resnet18", "--weights", "random", "-o", made["fp32"], "-q")
    run_words("onnx", "resnet18", "--weights", "random", "--precision", "fp16", "-o", made["fp16"], "-q")
    images = folder / "images.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (8, 224, 224, 3), dtype=np.uint8))
    run_words(
        "quantize", made["fp32"], "--target", "tensorrt", "--data", images, "--effort", "fast", "-o", made["int8"], "-q"
    )
    return made
