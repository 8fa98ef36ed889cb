"""A small network as files of every kind that a bundle may hold, images of every mode, and bundles to damage."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
from PIL import Image

from calibration.listing import ImageFile, find_images
from calibration.outcome import Options
from calibration.placement import target
from exporter.bundle.manifest import checksum_bytes, manifest_bytes
from exporter.bundle.write import BundleOptions, write_bundle
from exporter.graph.metadata import read_metadata, write_metadata
from exporter.pipeline import export_onnx
from exporter.quantise import Inputs, quantise_onnx
from exporter.results import OnnxOptions
from tests.exporter.nets import small

LABELS = tuple(f"class {index}" for index in range(10))


class Made(NamedTuple):
    """Models and images."""

    folder: Path
    fp32: Path
    ort: Path
    trt: Path
    data: Path

    @property
    def images(self) -> list[ImageFile]:
        return find_images(self.data)


def make(folder: Path) -> Made:
    """A float file, INT8 for two targets, and a dozen photographs of noise."""
    data = folder / "images"
    data.mkdir()
    random = np.random.default_rng(3)
    for index in range(12):
        coarse = random.integers(0, 256, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((32, 32), Image.Resampling.BICUBIC).save(data / f"{index:02d}.png")
    paths = [folder / f"{name}.onnx" for name in ("net", "net_ort", "net_trt")]
    export_onnx(small(), paths[0], OnnxOptions(labels=LABELS))
    for name, path in (("onnxruntime", paths[1]), ("tensorrt", paths[2])):
        quantise_onnx(Inputs(paths[0], data, workers=0), path, Options(target(name), effort="fast"))
    fp32, ort, trt = paths
    return Made(folder, fp32, ort, trt, data)


def copied(bundle: Path, target: Path) -> Path:
    """A bundle to do something to."""
    shutil.copytree(bundle, target)
    return target


def manifest_of(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_bytes())
    return found


def rewrite(bundle: Path, document: Any) -> None:
    """Another manifest, with the hash that belongs to it: what an attacker can do."""
    data = document if isinstance(document, bytes) else manifest_bytes(document)
    (bundle / "manifest.json").write_bytes(data)
    (bundle / "manifest.sha256").write_bytes(checksum_bytes(data))


def relist(bundle: Path, *names: str) -> None:
    """Take files into the manifest as they are now."""
    document = manifest_of(bundle)
    for entry in document["files"]:
        if entry["path"] in names:
            data = (bundle / entry["path"]).read_bytes()
            entry.update(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    rewrite(bundle, document)


def with_metadata(source: Path, target: Path, **values: Any) -> Path:
    """A copy of a model that says other things of itself; ``None`` takes one away."""
    model = onnx.load(source)
    told = {**read_metadata(model), **values}
    write_metadata(model, {name: value for name, value in told.items() if value is not None})
    onnx.save(model, target)
    return target


def run_py(bundle: Path, *words: str | Path, python: str = sys.executable, env: dict[str, str] | None = None) -> Any:
    """``run.py`` in a process that sees the installed packages and nothing of this repository."""
    command = [python, "-I", str(bundle / "run.py"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=bundle.parent, env=env)


def written(made: Made, target: Path, **options: Any) -> Path:
    """A bundle of the float file and both INT8 files."""
    settings = BundleOptions(**{"images": 6, **options})
    write_bundle([made.fp32, made.ort, made.trt], made.images, target, settings)
    return target


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("bundled"))


@pytest.fixture(scope="session")
def bundle(made: Made) -> Path:
    return written(made, made.folder / "bundle")
