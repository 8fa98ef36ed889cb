"""What is asked of a build, and what comes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from runtimes.tensorrt.precision import Precision
from runtimes.tensorrt.profile import Profile, Size


@dataclass(frozen=True)
class BuildOptions:
    """What is asked for.

    Attributes:
        precision: ``None``: what the file carries.
        sizes: Smallest, best and largest batch and image.
        workspace_mib: Memory that kernels may use while they run, in MiB; ``None``: all there is.
        timing_cache: Measured kernels of earlier builds; ``None``: none. An empty one starts a new cache.
        compute_capabilities: GPUs to build for, as ``8.6``; only where none needs to be here.
        version_compatible: Runs on later TensorRT versions too, of later majors as well.
        hardware: ``ampere+`` for all GPUs from Ampere on, ``same`` for those of the compute capability.
        strip: Leave the weights out, to be filled in on the device.
        refit: Weights can be exchanged later.
        dla_core: Deep learning accelerator to run on, with the GPU for what it does not take.
        scales: Of the activations of a float file, amax / 127 by tensor: it becomes INT8 without Q/DQ.
    """

    precision: Precision | None = None
    sizes: tuple[Size | None, Size | None, Size | None] = (None, None, None)
    workspace_mib: int | None = None
    timing_cache: bytes | None = None
    compute_capabilities: tuple[str, ...] = ()
    version_compatible: bool = False
    hardware: str | None = None
    strip: bool = False
    refit: bool = False
    dla_core: int | None = None
    scales: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Calibration:
    """Where the scales of implicit INT8 came from.

    Attributes:
        source: The file's own Q/DQ, or ranges that came with a float file.
        tensors: How many have a scale.
        cache: The calibration cache, as ``trtexec --calib`` reads it.
    """

    source: Literal["qdq", "ranges"]
    tensors: int
    cache: bytes

    def to_json(self) -> dict[str, Any]:
        """As JSON, with the hash of the cache in place of it."""
        return {"source": self.source, "tensors": self.tensors, "sha256": sha256(self.cache).hexdigest()}


@dataclass(frozen=True)
class Built:
    """An engine, and how it came about.

    Attributes:
        plan: The serialized engine, a standard plan.
        source_sha256: Of the ONNX file.
        precision: What it computes in.
        profile: Sizes that it takes.
        targets: Compute capabilities that it is for; empty: that of the GPU that built it.
        timing_cache: To be used again; ``None`` where there was none.
        calibration: Of implicit INT8; ``None``: the precision is the file's or a flag's.
        seconds: Of the build.
        notes: What the user should know.
    """

    plan: bytes
    source_sha256: str
    precision: Precision
    profile: Profile
    targets: tuple[str, ...]
    timing_cache: bytes | None
    calibration: Calibration | None
    seconds: float
    notes: tuple[str, ...] = field(default=())
