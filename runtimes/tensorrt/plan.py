"""What the first bytes of an engine tell, without TensorRT and without a GPU: whose it is, and of which version.

A plan begins with a tag, ``ftrt`` of TensorRT or ``vtrt`` of TensorRT-RTX. The bytes 24 to 27 are the version that
built it, one number each: 10, 3, 0, 26. (``trtexec --getPlanVersionOnly`` reads the same, for TensorRT.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from runtimes.errors import InputError
from runtimes.tensorrt.generations import Version

Package = Literal["tensorrt", "tensorrt_rtx"]

_TAGS: Final[dict[bytes, Package]] = {b"ftrt": "tensorrt", b"vtrt": "tensorrt_rtx"}
_VERSION: Final = slice(24, 28)
HEADER_BYTES: Final = 28


@dataclass(frozen=True)
class PlanHeader:
    """Where an engine comes from.

    Attributes:
        package: What built it, and has to run it; engines of the one mean nothing to the other.
        version: Of the package, four numbers.
    """

    package: Package
    version: tuple[int, int, int, int]

    @property
    def release(self) -> Version:
        """The version without its build number."""
        return self.version[:3]

    def __str__(self) -> str:
        return f"{self.package} {'.'.join(map(str, self.version))}"


def read_header(plan: bytes, label: str) -> PlanHeader:
    """The header of a plan.

    Args:
        plan: The engine, or its first :data:`HEADER_BYTES` bytes.
        label: What it is called in messages.

    Raises:
        InputError: It is no engine.
    """
    package = _TAGS.get(plan[:4])
    if package is None or len(plan) < HEADER_BYTES:
        raise InputError(f"{label} is no TensorRT engine: make one with resnet-export engine MODEL.onnx -o OUT.engine")
    major, minor, patch, build = plan[_VERSION]
    return PlanHeader(package, (major, minor, patch, build))
