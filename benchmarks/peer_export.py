"""The peer: what people write today, `torch.onnx.export(dynamo=True)` and `onnxsim.simplify`, and not one check."""

from __future__ import annotations

import sys

import onnx
import onnxsim
import torch
import torchvision


def main(name: str, path: str) -> None:
    """Export a torchvision network with random weights and a free batch."""
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    example = torch.zeros(2, 3, 224, 224)
    torch.onnx.export(
        model,
        (example,),
        path,
        dynamo=True,
        external_data=False,
        input_names=["input"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    simplified, _ = onnxsim.simplify(onnx.load(path))
    onnx.save(simplified, path)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
