"""The exported file beside eager PyTorch on a CUDA device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from exporter.graph.capture import InputShape
from exporter.inputs import comparison_batches
from exporter.models.source import SourceOptions, load_model
from exporter.pipeline import export_onnx
from runtimes.eager import EagerRuntime
from runtimes.ort import OrtRuntime
from runtimes.parity import ParityChain
from runtimes.tolerance import tolerance_for


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_the_file_agrees_with_eager_cuda_in_full_fp32(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device: not run")
    # TF32 keeps 10 bits of the mantissa: it is another precision, and would fail the FP32 bound.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    loaded = load_model(name, SourceOptions(weights="random"))
    path = tmp_path / "m.onnx"
    export_onnx(loaded, path)
    batches = comparison_batches(loaded, InputShape(3, 224, 224), None)
    tolerance = tolerance_for("onnxruntime", "fp32")
    chain = ParityChain()
    chain.add("onnx", OrtRuntime(path), tolerance, batches)
    rows = chain.add("cuda", EagerRuntime(loaded.module.cuda(), device="cuda"), tolerance, batches)
    assert all(row.passed for row in rows), rows
