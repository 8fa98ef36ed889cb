"""What the first bytes of an engine tell, without TensorRT and without a GPU: whose it is, and of which version.

A plan begins with a tag, ``ftrt`` of TensorRT or ``vtrt`` of TensorRT-RTX, and four zeros. The bytes 24 to 27 are then
the version that built it, one number each: 10, 3, 0, 26. (``trtexec --getPlanVersionOnly`` reads the same, for
TensorRT.) TensorRT wrote no such header before 8.6: of an engine of 8.5, the document beside it tells the version.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

from runtimes.errors import InputError, UnavailableError
from runtimes.kinds import ENGINE_TAGS
from runtimes.tensorrt.generations import Version, parse_version

Package = Literal["tensorrt", "tensorrt_rtx"]

_PACKAGES: Final[Mapping[str, Package]] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_LAYOUT: Final = slice(4, 8)
_VERSION: Final = slice(24, 28)
HEADER_BYTES: Final = 28


@dataclass(frozen=True)
class PlanHeader:
    """Where an engine comes from.

    Attributes:
        package: What built it, and has to run it; engines of the one mean nothing to the other.
        version: Of the package: four numbers, or three where only the document tells it.
    """

    package: Package
    version: tuple[int, ...]

    @property
    def release(self) -> Version:
        """The version without its build number."""
        major, minor, patch = self.version[:3]
        return major, minor, patch

    def __str__(self) -> str:
        return f"{self.package} {'.'.join(map(str, self.version))}"


def read_header(plan: bytes, label: str, document: Mapping[str, Any] | None = None) -> PlanHeader:
    """Where a plan comes from.

    Args:
        plan: The engine, or its first :data:`HEADER_BYTES` bytes.
        label: What it is called in messages.
        document: Beside the engine; believed where the plan has no header that is known.

    Raises:
        InputError: It is no engine, or nothing tells its version.
    """
    kind = ENGINE_TAGS.get(plan[:4])
    if kind is not None and len(plan) >= HEADER_BYTES and not any(plan[_LAYOUT]):
        return PlanHeader(_PACKAGES[kind], tuple(plan[_VERSION]))
    told = _told(document or {})
    if told is not None:
        return told
    if kind is not None and len(plan) >= HEADER_BYTES:
        raise InputError(f"{label} has a header of a kind that is not known, and no {label}.json tells its version")
    raise InputError(f"{label} is no TensorRT engine: make one with resnet-export engine MODEL.onnx -o OUT.engine")


def _told(document: Mapping[str, Any]) -> PlanHeader | None:
    if document.get("flavour") != "tensorrt":
        return None
    try:
        return PlanHeader("tensorrt", parse_version(document.get("version", "")))
    except UnavailableError:
        return None
