"""What FP16 cannot hold is found on every tensor, not only where it reaches the logits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from exporter.graph.capture import InputShape, capture
from exporter.graph.export import export
from exporter.graph.peaks import with_peaks
from exporter.pipeline import export_onnx
from exporter.results import OnnxOptions
from runtimes.errors import ParityError
from runtimes.ort import OrtRuntime
from tests.exporter.nets import small


class _Loud(nn.Module):
    """Its weights and logits fit FP16; what lies between does not."""

    def __init__(self, loudness: float) -> None:
        super().__init__()
        self.quiet = nn.Conv2d(3, 4, 3, padding=1)
        self.loud = nn.Conv2d(4, 4, 1)
        self.calm = nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(4, 3)
        with torch.no_grad():
            self.loud.weight.mul_(loudness)
            self.calm.weight.div_(loudness)

    def forward(self, x: Tensor) -> Tensor:
        """Images to logits."""
        return self.fc(self.calm(self.loud(self.quiet(x))).mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("opset", [13, 17, 18])
def test_peaks_are_those_of_the_module(opset: int) -> None:
    torch.manual_seed(0)
    module = _Loud(10.0).eval()
    images = np.random.default_rng(0).standard_normal((3, 3, 8, 8)).astype(np.float32)
    probe = with_peaks(export(capture(module, InputShape(3, 8, 8)), opset, "torch.export"))
    with OrtRuntime(probe.model.SerializeToString()) as runtime:
        peaks = runtime.run(images)
    with torch.inference_mode():
        quiet = module.quiet(torch.from_numpy(images))
        expected = {"quiet": quiet, "loud": module.loud(quiet)}
    for name, tensor in expected.items():
        column = peaks[:, probe.tensors.index(name)]
        np.testing.assert_allclose(column, tensor.abs().amax((1, 2, 3)).numpy(), rtol=1e-5)


def test_an_inner_activation_that_fp16_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    torch.manual_seed(0)
    fits = replace(small(), module=_Loud(10.0).eval(), blueprint=None, name="fits")
    overflows = replace(fits, module=_Loud(60000.0).eval(), name="overflows")
    with pytest.raises(ParityError, match=r"loud reaches .*e\+0[4-9], and FP16 ends at 65504"):
        export_onnx(overflows, tmp_path / "m.onnx", OnnxOptions(precision="fp16"))
    assert list(tmp_path.iterdir()) == []
    export_onnx(overflows, tmp_path / "m.onnx")  # FP32 holds it
    export_onnx(fits, tmp_path / "half.onnx", OnnxOptions(precision="fp16"))
