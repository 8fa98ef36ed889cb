"""What TensorRT's ONNX parser says, in words that help: which node, why, and what to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_ADVICE = (
    # pattern in what the parser says, advice
    (r"Quantize.*(asymmetric|zero.?point|UINT8)", "its Q/DQ are not symmetric INT8: make the file with "
     "resnet-export quantize --target tensorrt"),
    (r"Quantize.*INT32", "its biases are INT32 Q/DQ: make the file "
     "with resnet-export quantize --target tensorrt"),
    (r"unsupported opset", "export the model with a lower --opset"),
    (r"Plugin not found|No importer registered|not supported|UNSUPPORTED", "TensorRT has no such operator: export the "
     "model with another --opset, or replace the operator in the network"),
    (r"Failed to parse the ONNX model|DESERIALIZE", "the file is damaged or cut short: export it again"),
    (r"FP8|E4M3", "FP8 needs compute capability 8.9 or newer"),
)  # fmt: skip


class ParserFault(NamedTuple):
    """One error of the parser.

    Attributes:
        description: What it says.
        node: Name of the node, or of its first output; empty where it is of the whole file.
        operator: Of the node.
    """

    description: str
    node: str
    operator: str


def sentence(faults: Sequence[ParserFault]) -> str:
    """One line about the first fault, with the number of others and what to do."""
    if not faults:
        return "TensorRT cannot read the model, and does not say why"
    first = faults[0]
    where = f"{first.operator} {first.node}".strip()
    said = _cleaned(first.description)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    advice = next(
        (words for pattern, words in _ADVICE if re.search(pattern, f"{first.operator}: {first.description}", re.I)), ""
    )
    return f"TensorRT cannot take {where or 'the model'}{more}: {said}{f'; {advice}' if advice else ''}"


def _cleaned(description: str) -> str:
    """Without C++ around it: conditions, files and line numbers say nothing to a user."""
    text = " ".join(description.split())
    quoted = re.search(r'&& "([^"]+)"', text)
    if quoted:
        text = quoted[1]
    text = re.sub(r"^Assertion failed: .*?: ", "", text)
    text = re.sub(r"\bIn function \w+:\s*|\w+\.cpp:\d+:?\s*|\[\d+\]\s*", "", text)
    return text.strip().rstrip(".")[:200] or "no reason given"
