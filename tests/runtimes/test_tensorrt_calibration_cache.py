"""The calibration cache: bytes worked out by hand, and what it cannot hold."""

from __future__ import annotations

import numpy as np
import pytest

from runtimes.errors import InputError, UnavailableError
from runtimes.tensorrt.calibration_cache import read_cache, write_cache
from runtimes.tensorrt.generations import generation


def written(version: str, scales: dict[str, float]) -> bytes:
    return write_cache(version, generation("tensorrt", version), scales)


def test_the_text_is_the_release_and_a_line_of_eight_hex_digits_for_each_tensor() -> None:
    # 1.0 is 3f800000, 0.5 is 3f000000; amax 2.54 / 127 = 0.02, which is 3ca3d70a in float32.
    told = written("8.5.2", {"input": 1.0, "layer1.0.relu": 0.5, "add": 2.54 / 127})
    assert told == b"TRT-8502-EntropyCalibration2\ninput: 3f800000\nlayer1.0.relu: 3f000000\nadd: 3ca3d70a\n"


@pytest.mark.parametrize(
    ("version", "number"), [("8.5.2", 8502), ("8.6.1", 8601), ("10.3.0", 100300), ("10.7.0.23", 100700)]
)
def test_the_release_is_written_as_its_generation_numbers_it(version: str, number: int) -> None:
    assert read_cache(written(version, {"x": 1.0}))[0] == number


def test_what_was_written_is_read_back_in_float32_and_in_its_order() -> None:
    scales = {"z": 0.1, "input:0": 1e-30, "(Unnamed Layer* 3) [Convolution]_output": 3e38}
    number, read = read_cache(written("8.6.1", scales))
    assert list(read) == list(scales)
    assert read == {name: float(np.float32(scale)) for name, scale in scales.items()}
    assert number == 8601


@pytest.mark.parametrize("name", ["a\nb", "a\r", "a: b", " a", "", "a\u2028b"])
def test_a_name_that_a_line_cannot_hold_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="rename it"):
        written("8.6.1", {name: 1.0})


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e39, 1e-60])
def test_a_scale_that_is_no_positive_float32_is_refused(scale: float) -> None:
    with pytest.raises(InputError, match="'x' has the scale"):
        written("8.6.1", {"x": scale})


def test_without_scales_or_without_calibrators_there_is_no_cache() -> None:
    with pytest.raises(InputError, match="there is none"):
        written("8.6.1", {})
    with pytest.raises(UnavailableError, match="reads no calibration caches"):
        written("11.4.0", {"x": 1.0})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "no calibration cache"),
        (b"\xff\xfe", "no calibration cache"),
        (b"TRT-8601-MinMaxCalibration\n", "headed"),
        (b"TRT-8601-EntropyCalibration2\nx 3f800000\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\nx: 3f8000\n", "line 2"),
        (b"TRT-8601-EntropyCalibration2\nx: 7fc00000\n", "'x' has the scale nan"),
        (b"TRT-8601-EntropyCalibration2\nx: bf800000\n", "'x' has the scale -1"),
    ],
)
def test_a_damaged_cache_is_one_line_about_what_is_wrong(data: bytes, told: str) -> None:
    with pytest.raises(InputError, match=told):
        read_cache(data)


def test_a_cache_of_windows_lines_is_read() -> None:
    assert read_cache(b"TRT-8601-EntropyCalibration2\r\nx: 3f800000\r\n\r\n") == (8601, {"x": 1.0})
