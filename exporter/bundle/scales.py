"""What a DLA of TensorRT 10 and before takes in place of Q/DQ: a float network, and its scales."""

from __future__ import annotations

import json
import struct
from typing import NamedTuple

from exporter.bundle.models import Member
from runtimes.reading import read_model
from runtimes.tensorrt.implicit import spread, strip


class DlaFiles(NamedTuple):
    """Two files.

    Attributes:
        model: ONNX, without Q/DQ.
        scales: JSON: pairs of a tensor and the hex digits of its scale, which are the lines of a calibration cache. Its
            first line names the release that reads it, and only the device knows that one.
    """

    model: bytes
    scales: bytes


def dla_files(member: Member) -> DlaFiles:
    """Take the Q/DQ out of a model.

    Args:
        member: In INT8, for TensorRT.

    Raises:
        GraphError: Its Q/DQ cannot become one scale for each tensor.
    """
    model, _ = read_model(member.file, "make one with resnet-export quantize --target tensorrt")
    stripped = strip(model)
    scales = spread(stripped.model, stripped.scales)
    pairs = [[name, struct.pack("!f", scale).hex()] for name, scale in scales.items()]
    return DlaFiles(stripped.model.SerializeToString(deterministic=True), (json.dumps(pairs, indent=1) + "\n").encode())
