"""What a TensorRT generation needs to be told to compute in a precision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from runtimes.errors import GraphError, InputError
from runtimes.precision import PRECISIONS, Precision, carried
from runtimes.tensorrt.generations import Generation

__all__ = ["NEEDS", "PRECISIONS", "Precision", "Typing", "carried", "typing"]

#: What a GPU needs at least, as compute capability; what is not here runs on all that are supported.
NEEDS: Final[dict[Precision, tuple[int, int]]] = {"tf32": (8, 0), "bf16": (8, 0), "fp8": (8, 9)}


@dataclass(frozen=True)
class Typing:
    """How a precision is asked for.

    Attributes:
        precision: What the engine computes in, where the layers allow it.
        strongly_typed: The network's types are those of the file.
        flags: Members of ``BuilderFlag`` to set.
    """

    precision: Precision
    strongly_typed: bool
    flags: frozenset[str]


def typing(own: Precision, asked: Precision | None, generation: Generation, title: str) -> Typing:
    """What to build so that a file with the precision ``own`` computes in ``asked``.

    Args:
        own: What the file carries.
        asked: What the user wants; ``None``: what the file carries.
        generation: Of TensorRT.
        title: Its name and version, for messages.

    Raises:
        GraphError: The file would have to be another one: types are the file's where the network is strongly typed.
        InputError: The generation does not know the precision.
    """
    wanted = asked or own
    typed_file = own != "fp32"
    if typed_file and wanted != own:
        raise GraphError(f"the file is {own}, and {wanted} was asked for: {_source(wanted)}")
    strongly = generation.strongly_typed == "always" or (typed_file and generation.strongly_typed == "optional")
    if strongly:
        if wanted not in (own, "tf32"):
            raise GraphError(f"{title} takes the precision from the file, which is {own}: {_source(wanted)}")
        return Typing(wanted, True, _flags({"TF32"} if wanted == "tf32" else set(), wanted, generation, title))
    if wanted in ("int8", "fp8") and not typed_file:
        raise GraphError(f"the file has no Q/DQ, and {wanted} was asked for: {_source(wanted)}")
    # Layers without Q/DQ run in FP16 beside INT8 ones: in FP32 they would be slower than all of it in FP16.
    named = {"fp32": set[str](), "tf32": {"TF32"}, "int8": {"INT8", "FP16"}}.get(wanted, {wanted.upper()})
    return Typing(wanted, False, _flags(named, wanted, generation, title))


def implicit(own: Precision, asked: Precision | None, generation: Generation, title: str) -> Typing:
    """What to build so that a float file computes in INT8 with the scales of a calibration cache.

    Args:
        own: What the file carries.
        asked: What the user wants; ``None``: INT8, as there are scales.
        generation: Of TensorRT.
        title: Its name and version, for messages.

    Raises:
        GraphError: The file has Q/DQ.
        InputError: The generation has no calibrators, or another precision was asked for.
    """
    if not generation.int8_calibrator:
        raise InputError(
            f"{title} has no calibrators, and takes INT8 from Q/DQ in the file alone: {_source('int8')} --ranges FILE"
        )
    if own in ("int8", "fp8"):
        raise GraphError(f"the file is {own}, and has its own scales: give the FP32 file, or no ranges")
    if asked not in (None, "int8"):
        raise InputError(f"{asked} was asked for, and scales for int8 are given: give --precision int8, or no scales")
    return Typing("int8", False, _flags({"INT8", "FP16"}, "int8", generation, title))


def _flags(named: set[str], wanted: Precision, generation: Generation, title: str) -> frozenset[str]:
    missing = sorted(named - generation.precision_flags)
    if missing:
        raise InputError(f"{title} has no {wanted}: it knows {', '.join(sorted(generation.precision_flags))}")
    return frozenset(named)


def _source(wanted: Precision) -> str:
    """Where a file of a precision comes from."""
    if wanted in ("int8", "fp8"):
        return (
            "make it with resnet-export quantize --target tensorrt" if wanted == "int8" else "give a file with FP8 Q/DQ"
        )
    if wanted == "bf16":
        return "give a file with BF16 weights"
    given = " --precision fp16" if wanted == "fp16" else ""
    return f"make it with resnet-export onnx{given}"
