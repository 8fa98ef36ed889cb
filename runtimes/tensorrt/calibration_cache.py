"""TensorRT's calibration cache: the scales of implicit INT8, as text.

::

    TRT-8502-EntropyCalibration2
    input: 3c010a14
    layer1.0.relu: 3d2b0582

The first line names the release that the cache is for. Each further line is a tensor and its scale, amax / 127, as the
eight hex digits of a big-endian float32.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Final

import numpy as np

from runtimes.errors import InputError
from runtimes.tensorrt.generations import Generation

_HEADER: Final = re.compile(r"TRT-(\d+)-EntropyCalibration2")
_LINE: Final = re.compile(r"(.+): ([0-9a-fA-F]{8})")


def write_cache(version: str, generation: Generation, scales: Mapping[str, float]) -> bytes:
    """The text of a cache.

    Args:
        version: Of the TensorRT that is to read it.
        generation: Of the same.
        scales: Real value of one step by tensor; written in this order, each rounded to float32.

    Raises:
        UnavailableError: This generation reads no calibration caches.
        InputError: There are no scales, one is no positive finite float32, or a line cannot hold a name.
    """
    number = generation.cache_number(version)
    if not scales:
        raise InputError("a calibration cache needs the scale of one tensor at least, and there is none")
    lines = [f"{_carried(name)}: {_digits(name, scale)}" for name, scale in scales.items()]
    return "\n".join([f"TRT-{number}-EntropyCalibration2", *lines, ""]).encode()


def read_cache(data: bytes) -> tuple[int, dict[str, float]]:
    """What :func:`write_cache` or TensorRT wrote.

    Returns:
        The number of the release in the first line, and the scale by tensor.

    Raises:
        InputError: The data are something else, damaged, or hold a scale that is not positive and finite.
    """
    try:
        header, *lines = data.decode().splitlines()
    except ValueError as error:  # no text, or no line
        raise InputError("this is no calibration cache: expected text that begins with TRT-") from error
    title = _HEADER.fullmatch(header.strip())
    if title is None:
        raise InputError(f"received a calibration cache headed {header[:60]!r}, expected TRT-8502-EntropyCalibration2")
    scales: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        match = _LINE.fullmatch(line.strip())
        if match is None and line.strip():
            raise InputError(f"line {number} of the calibration cache is {line[:60]!r}, expected NAME: 3c010a14")
        if match is not None:
            [scale] = struct.unpack("!f", bytes.fromhex(match[2]))
            _digits(match[1], scale)
            scales[match[1]] = scale
    return int(title[1]), scales


def _carried(name: str) -> str:
    """The name, where a line can hold it: a colon may be in it (``input:0``), what parts name and scale may not."""
    if name != name.strip() or not name or name.splitlines() != [name] or ": " in name:
        raise InputError(
            f"the tensor {name!r} cannot be in a calibration cache, which has one line NAME: SCALE for each: rename it "
            f"without line breaks and without a colon before a space"
        )
    return name


def _digits(name: str, scale: float) -> str:
    with np.errstate(over="ignore", under="ignore"):
        rounded = float(np.float32(scale))
    if not (math.isfinite(rounded) and rounded > 0):
        raise InputError(f"the tensor {name!r} has the scale {scale}, expected a positive finite float32")
    return struct.pack("!f", rounded).hex()
