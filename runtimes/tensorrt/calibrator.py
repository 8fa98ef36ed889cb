"""The calibrator of implicit INT8: it has a cache, and no images."""

from __future__ import annotations

from typing import Any


def calibrator(trt: Any, cache: bytes) -> Any:
    """An object that TensorRT reads scales from.

    Args:
        trt: The bindings' module, of a generation with calibrators.
        cache: As :func:`runtimes.tensorrt.calibration_cache.write_cache` writes it.
    """

    class Bound(trt.IInt8EntropyCalibrator2):  # type: ignore[misc]  # a class of the bindings
        def __init__(self) -> None:
            trt.IInt8EntropyCalibrator2.__init__(self)  # pybind wants it by name

        def get_batch_size(self) -> int:
            return 1

        def get_batch(self, names: list[str]) -> None:
            return None  # the cache has what there is to know

        def read_calibration_cache(self) -> bytes:
            return cache

        def write_calibration_cache(self, cache: Any) -> None:
            pass  # TensorRT hands back what it read

    return Bound()
