"""What a layer of an engine computes with, from the texts by which the inspector describes its tensors.

A tensor's type stands inside a text such as ``Thirty-two wide channel vectorized row major Int8 format`` under
``Format/Datatype`` (8.x and 10.x), alone (``Half``) where the Myelin compiler made the layer, or under ``DataType``
beside ``Format`` (11.x). With dynamic shapes and no execution context it is ``N/A due to dynamic shapes``.
(TensorRT's developer guide, "Engine Inspector" and "Migrating IEngineInspector Usage from TensorRT 10.x to 11.x";
the list of texts in NVIDIA/TensorRT ``trex/activations.py``.)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

#: Precisions of arithmetic, from the narrowest to the widest.
PRECISIONS: Final = ("FP4", "INT4", "INT8", "FP8", "FP16", "BF16", "TF32", "FP32")
#: Precisions that only a quantised network has.
QUANTISED: Final = frozenset(PRECISIONS[: PRECISIONS.index("FP16")])

_TYPES: Final = tuple(
    (name, re.compile(rf"(?<![A-Za-z0-9])(?:{spellings})(?![A-Za-z0-9])", re.IGNORECASE))
    for name, spellings in (
        ("BF16", "BFloat16|BF16"),
        ("FP8", "FP8|Float8|E4M3|FP8E4M3"),
        ("FP4", "FP4|E2M1"),
        ("INT4", "Int4"),
        ("INT8", "Int8"),
        ("UINT8", "UInt8"),
        ("FP16", "FP16|Half|Float16"),
        ("FP32", "FP32|Float|Float32"),
        ("INT32", "Int32"),
        ("INT64", "Int64"),
        ("BOOL", "Bool"),
    )
)

# Kernels are named after the operands that they multiply: sm80_xmma_..._i8i8_i8i32_f32_..., ..._f32f32_tf32f32_f32_...,
# volta_int8_i8816cudnn_..., ampere_h16816cudnn_.... The first row that matches is the narrowest type there.
_TACTICS: Final = (
    ("FP8", re.compile(r"e4m3|(?<![a-z])fp8", re.IGNORECASE)),
    ("INT8", re.compile(r"(?<![a-z0-9])(?:i8|s8|int8)|_imma_", re.IGNORECASE)),
    ("BF16", re.compile(r"bf16", re.IGNORECASE)),
    ("TF32", re.compile(r"tf32", re.IGNORECASE)),
    ("FP16", re.compile(r"(?<![a-z])f16|fp16|_h(?:16816|1688|884)|_hmma_", re.IGNORECASE)),
    ("FP32", re.compile(r"(?<![a-z])f32f32|fp32|_scudnn_", re.IGNORECASE)),
)


class EngineTensor(NamedTuple):
    """A tensor that a layer reads or writes.

    Attributes:
        name: Its name in the engine.
        shape: Its dimensions; -1 where it is free.
        type: Its data type (``INT8``, ``FP16``, ...); ``None`` where the inspector does not tell.
        format: The inspector's text of its layout and type; empty where there is none.
    """

    name: str
    shape: tuple[int, ...]
    type: str | None
    format: str

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"name": self.name, "shape": list(self.shape), "type": self.type, "format": self.format}


def read_tensor(raw: Any) -> EngineTensor:
    """A tensor from an element of ``Inputs`` or ``Outputs`` of any generation; what is missing is left open."""
    if not isinstance(raw, dict):
        return EngineTensor(raw if isinstance(raw, str) else "", (), None, "")
    dims = raw.get("Dimensions", raw.get("Shape"))
    shape = tuple(d if isinstance(d, int) else -1 for d in dims) if isinstance(dims, list) else ()
    layout = _text(raw, "Format/Datatype", "Format/DataType", "Format")
    kind = type_in(_text(raw, "DataType", "Datatype")) or type_in(layout)
    return EngineTensor(_text(raw, "Name"), shape, kind, layout)


def type_in(text: str) -> str | None:
    """The data type that a description names, in one spelling for all generations; ``None`` where it names none."""
    return next((name for name, pattern in _TYPES if pattern.search(text)), None)


def precision_of(
    inputs: Sequence[str | None], outputs: Sequence[str | None], *, weighted: bool, weights: str | None, tactic: str
) -> str | None:
    """The precision of what a layer computes.

    - A layer with weights multiplies its first input by them: the type of both. Where the two differ, a conversion
      is inside the kernel: the kernel's name decides, or else the wider of the two, which claims nothing unproven.
      Where neither is told (dynamic shapes), the kernel's name decides.
    - Any other layer: the widest of its inputs; of its outputs where it has none.
    - FP32 whose kernel's name has ``tf32`` is TF32: its tensors keep 32 bits, its products do not.

    Args:
        inputs: Types of the inputs, in the layer's order.
        outputs: Types of the outputs.
        weighted: Whether the layer has weights.
        weights: Their type, where it is told.
        tactic: The kernel's name, or an empty text.

    Returns:
        One of :data:`PRECISIONS`, or the type of a layer that only moves whole numbers; ``None`` where nothing tells.
    """
    if weighted:
        data = next(iter(inputs), None)
        if data and weights and data != weights:
            found = tactic_type(tactic) or _widest([data, weights])
        else:
            found = data or weights or tactic_type(tactic)
    else:
        found = _widest(inputs) or _widest(outputs)
    return "TF32" if found == "FP32" and "tf32" in tactic.lower() else found


def tactic_type(tactic: str) -> str | None:
    """The type that a kernel's name says it multiplies; ``None`` where it does not say."""
    return next((name for name, pattern in _TACTICS if pattern.search(tactic)), None)


def _widest(types: Sequence[str | None]) -> str | None:
    known = [kind for kind in types if kind]
    arithmetic = [kind for kind in known if kind in PRECISIONS]  # not the shapes and indices beside them
    return max(arithmetic, key=PRECISIONS.index) if arithmetic else next(iter(known), None)


def _text(raw: dict[str, Any], *keys: str) -> str:
    return next((raw[key] for key in keys if isinstance(raw.get(key), str)), "")
