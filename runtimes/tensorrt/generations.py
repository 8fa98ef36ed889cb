"""What differs between the generations of TensorRT: one table, so that no other module compares version numbers.

A row says only what has changed since the row above it. The names were read off the Python bindings of 8.6.1, 10.0.1,
10.3, 10.7, 10.16, 11.4 and TensorRT-RTX 1.7; the versions between them follow NVIDIA's release notes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Final, Literal, TypeAlias

from runtimes.errors import InputError, UnavailableError

Version: TypeAlias = tuple[int, int, int]
Typing: TypeAlias = Literal["absent", "optional", "always"]
Dla: TypeAlias = Literal["absent", "calibrated", "explicit"]

PACKAGES: Final = ("tensorrt", "tensorrt_rtx", "tensorrt_lean", "tensorrt_dispatch")
"""Import names of the bindings. The last two run engines of the first and are released with it."""


@dataclass(frozen=True)
class Generation:
    """What one range of versions has, and what its builder, runner and inspector must do differently.

    Attributes:
        since: First version of the row, (major, minor, patch); it holds up to the next row of the same product.
        explicit_batch_flag: Whether ``create_network`` must be given EXPLICIT_BATCH. Without it, 8.x and 9.x make a
            network of implicit batch, which the ONNX parser refuses; 10.x ignores it, and 11.x has no such name.
        strongly_typed: Whether STRONGLY_TYPED networks are unknown, to be asked for, or the only ones. In them the
            ONNX file carries the precision and precision flags are refused.
        precision_flags: Those members of BuilderFlag that choose a precision for a ResNet (FP16, INT8, BF16, FP8)
            or allow one (TF32, on unless cleared). Weakly typed Q/DQ networks need INT8; what is absent here has to
            come from the ONNX file. FP4 and INT4 are left out: no convolution has them.
        supports_model: Method of OnnxParser that says which nodes it can take. The first form returns
            (bool, subgraphs); ``supports_model_v2`` returns the bool, and ``num_subgraphs``, ``get_subgraph_nodes``
            and ``is_subgraph_supported`` give the rest.
        progress_monitor: Whether IBuilderConfig takes an IProgressMonitor; without it, a build of minutes is silent.
        version_compatible: Whether an engine can be built for later versions (VERSION_COMPATIBLE) and run by the lean
            and dispatch packages. TensorRT-RTX knows the name, but looks for a lean runtime that it does not have.
        hardware_compatibility: Whether ``hardware_compatibility_level`` works: one engine for several GPU
            architectures. TensorRT-RTX has the attribute and says on use that it is unsupported.
        int8_calibrator: Whether implicit quantisation exists (IInt8*Calibrator, calibration caches, dynamic ranges);
            without it INT8 means Q/DQ nodes.
        compute_capabilities: Whether IBuilderConfig takes ``num_compute_capabilities`` and ``set_compute_capability``,
            and so builds for GPUs that this machine does not have.
        timing_cache: Whether a timing cache keeps what a build measured. TensorRT-RTX measures nothing when it builds:
            it has the names, and they do nothing.
        runtime_cache: Whether kernels are compiled when the engine runs first, and an IRuntimeCache keeps them;
            without it that time would be paid, and measured, in every process.
        device_memory_size: Attribute of ICudaEngine with the bytes of its activations; the older name is deprecated
            where there are both, and gone from 11.
        inspector_tensors_key: Key of the inputs and outputs in the engine inspector's JSON: ``Bindings`` lists names,
            ``I/O Tensors`` objects with a ``Name``.
        highest_opset: Newest ONNX opset that the parser is documented for; newer ones may parse, and are not tested.
        dla: How a deep learning accelerator gets its INT8 scales: from a calibration cache and never from Q/DQ, from
            Q/DQ, or not at all because this version drives no DLA. The names are there in every version.
        refit_flag: BuilderFlag of an engine whose weights are to be replaced; not to be combined with INT8 Q/DQ.
            The same everywhere so far.
        cache_major_weight: Factor of the major version in the number that heads a calibration cache; None without
            calibrators. See :meth:`cache_number`.
    """

    since: Version
    explicit_batch_flag: bool
    strongly_typed: Typing
    precision_flags: frozenset[str]
    supports_model: Literal["supports_model", "supports_model_v2"]
    progress_monitor: bool
    version_compatible: bool
    hardware_compatibility: bool
    int8_calibrator: bool
    compute_capabilities: bool
    timing_cache: bool
    runtime_cache: bool
    device_memory_size: Literal["device_memory_size", "device_memory_size_v2"]
    inspector_tensors_key: Literal["Bindings", "I/O Tensors"]
    highest_opset: int
    dla: Dla
    refit_flag: str
    cache_major_weight: Literal[1000, 10000] | None

    def cache_number(self, version: str) -> int:
        """The number in a calibration cache's first line, ``TRT-8502-EntropyCalibration2`` for 8.5.2.

        A cache is documented to be good for the release that it names, and no other.

        Args:
            version: Version of the TensorRT that is to read the cache.

        Raises:
            UnavailableError: This generation reads no calibration caches.
        """
        if self.cache_major_weight is None:
            raise UnavailableError(
                f"TensorRT {version} reads no calibration caches: received a cache, expected an ONNX file with Q/DQ "
                "(resnet-export quantize --target tensorrt)"
            )
        major, minor, patch = parse_version(version)
        return major * self.cache_major_weight + minor * 100 + patch


_8_5: Final = Generation(
    since=(8, 5, 0),
    explicit_batch_flag=True,
    strongly_typed="absent",
    precision_flags=frozenset({"FP16", "INT8", "TF32"}),
    supports_model="supports_model",
    progress_monitor=False,
    version_compatible=False,
    hardware_compatibility=False,
    int8_calibrator=True,
    compute_capabilities=False,
    timing_cache=True,
    runtime_cache=False,
    device_memory_size="device_memory_size",
    inspector_tensors_key="Bindings",
    highest_opset=17,
    dla="calibrated",
    refit_flag="REFIT",
    cache_major_weight=1000,
)
_8_6: Final = replace(
    _8_5,
    since=(8, 6, 0),
    precision_flags=_8_5.precision_flags | {"FP8"},
    version_compatible=True,
    hardware_compatibility=True,
)
_9_0: Final = replace(_8_6, since=(9, 0, 0), precision_flags=_8_6.precision_flags | {"BF16"}, highest_opset=19)
_9_1: Final = replace(_9_0, since=(9, 1, 0), strongly_typed="optional", progress_monitor=True)
_10_0: Final = replace(
    _9_1, since=(10, 0, 0), explicit_batch_flag=False, highest_opset=20, cache_major_weight=10000
)  # fmt: skip
_10_1: Final = replace(
    _10_0, since=(10, 1, 0), supports_model="supports_model_v2", device_memory_size="device_memory_size_v2"
)
_10_8: Final = replace(_10_1, since=(10, 8, 0), dla="absent")
_10_9: Final = replace(_10_8, since=(10, 9, 0), highest_opset=22)
_10_15: Final = replace(_10_9, since=(10, 15, 0), highest_opset=24)
_11_0: Final = replace(
    _10_15,
    since=(11, 0, 0),
    strongly_typed="always",
    precision_flags=frozenset({"TF32"}),
    int8_calibrator=False,
    inspector_tensors_key="I/O Tensors",
    highest_opset=25,
    cache_major_weight=None,
)
_11_4_1: Final = replace(_11_0, since=(11, 4, 1), dla="explicit")  # on AGX Orin with JetPack 7.2.2 or later

# Up to 1.4 its API is TensorRT 10's, with weak typing in the names and refused on use; 1.5 took those names away.
_RTX_1_0: Final = replace(
    _10_9,
    since=(1, 0, 0),
    strongly_typed="always",
    precision_flags=frozenset({"TF32"}),
    version_compatible=False,
    hardware_compatibility=False,
    int8_calibrator=False,
    compute_capabilities=True,
    timing_cache=False,
    runtime_cache=True,
    cache_major_weight=None,
)
_RTX_1_5: Final = replace(_RTX_1_0, since=(1, 5, 0), inspector_tensors_key="I/O Tensors", highest_opset=25)

_TENSORRT: Final = (_8_5, _8_6, _9_0, _9_1, _10_0, _10_1, _10_8, _10_9, _10_15, _11_0, _11_4_1)
TABLE: Final[Mapping[str, tuple[Generation, ...]]] = MappingProxyType(
    {
        "tensorrt": _TENSORRT,
        "tensorrt_rtx": (_RTX_1_0, _RTX_1_5),
        "tensorrt_lean": _TENSORRT[1:],  # runs version-compatible engines only, so there is none before 8.6
        "tensorrt_dispatch": _TENSORRT[1:],
    }
)
"""The generations of each package, oldest first."""


def generation(flavour_name: str, version: str) -> Generation:
    """The row of the table for an installed version; a version newer than the table gets its newest row.

    Args:
        flavour_name: One of :data:`PACKAGES`.
        version: Its ``__version__``, for example ``"10.3.0"``.

    Raises:
        InputError: ``flavour_name`` is none of :data:`PACKAGES`.
        UnavailableError: ``version`` is older than the first row, or is no version.
    """
    rows = TABLE.get(flavour_name)
    if rows is None:
        raise InputError(f"no TensorRT package is called {flavour_name!r}: expected one of {', '.join(PACKAGES)}")
    try:
        parsed = parse_version(version)
    except UnavailableError as error:
        raise UnavailableError(f"{flavour_name}: {error}") from None
    known = [row for row in rows if row.since <= parsed]
    if not known:
        oldest = ".".join(map(str, rows[0].since[:2]))
        raise UnavailableError(
            f"{flavour_name} {version} is too old: expected {oldest} or later; install a later one, or build the "
            "engine with that version's own trtexec from an ONNX file of opset 13"
        )
    return known[-1]


def parse_version(version: str) -> Version:
    """``"10.3.0.26"`` → (10, 3, 0); what follows the third number does not change the API.

    Raises:
        UnavailableError: There is no version in ``version``: the installation is damaged.
    """
    match = re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", version)
    if match is None:
        raise UnavailableError(f"received version {version!r}, expected one such as 10.3.0: install the package anew")
    return (int(match[1]), int(match[2]), int(match[3] or 0))
