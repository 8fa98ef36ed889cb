"""Which GPUs and which Jetson are found: with a driver, folders and release files made for it."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.tensorrt.device import DeviceSearch, JetPack, devices, find_devices, jetpack, parse_release

ORIN = (
    "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 01:49:37 UTC 2025"
)
NO_DRIVER = "libcuda.so.1: cannot open shared object file: No such file or directory"


class Driver:
    """``libcuda`` with these GPUs; ``failing`` maps a function to the code that it returns."""

    def __init__(
        self, *gpus: tuple[str, int, int], version: int = 12080, failing: dict[str, int] | None = None
    ) -> None:
        self.gpus, self.version, self.failing = gpus, version, failing or {}

    def _do(self, name: str, target: Any, value: Any) -> int:
        if name not in self.failing:
            target.contents.value = value
        return self.failing.get(name, 0)

    def cuInit(self, flags: int) -> int:  # noqa: N802
        assert flags == 0
        return self.failing.get("cuInit", 0)

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        return self._do("cuDriverGetVersion", version, self.version)

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        return self._do("cuDeviceGetCount", count, len(self.gpus))

    def cuDeviceGet(self, handle: Any, index: int) -> int:  # noqa: N802
        return self._do("cuDeviceGet", handle, 100 + index)

    def cuDeviceGetName(self, text: Any, size: int, handle: int) -> int:  # noqa: N802
        assert size == len(text)
        text.value = self.gpus[handle - 100][0].encode()
        return self.failing.get("cuDeviceGetName", 0)

    def cuDeviceGetAttribute(self, value: Any, attribute: int, handle: int) -> int:  # noqa: N802
        return self._do("cuDeviceGetAttribute", value, self.gpus[handle - 100][{75: 1, 76: 2}[attribute]])

    def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
        if code == 100:
            text.contents.value = b"no CUDA-capable device is detected"
            return 0
        return 1


def searched(library: Any, folder: Path) -> DeviceSearch:
    def load(name: str) -> Any:
        assert name == "libcuda.so.1"
        if isinstance(library, BaseException):
            raise library
        return library

    return find_devices(load, folder / "nv_tegra_release", folder / "dev")


def test_every_gpu_is_found_with_its_capability_and_the_drivers_cuda(tmp_path: Path) -> None:
    found = searched(Driver(("NVIDIA H100 80GB HBM3", 9, 0), ("NVIDIA GeForce RTX 4090", 8, 9)), tmp_path)
    assert found.reason == ""
    assert [item.to_json() for item in found.devices] == [
        {"name": "NVIDIA H100 80GB HBM3", "compute_capability": "9.0", "cuda": "12.8", "dla_cores": 0},
        {"name": "NVIDIA GeForce RTX 4090", "compute_capability": "8.9", "cuda": "12.8", "dla_cores": 0},
    ]
    assert [item.compute_capability for item in found.devices] == [(9, 0), (8, 9)]
    assert all(item.jetpack is None for item in found.devices)


@pytest.mark.parametrize(("number", "text"), [(11040, "11.4"), (12000, "12.0"), (13010, "13.1")])
def test_cuda_versions_are_read_as_the_driver_writes_them(tmp_path: Path, number: int, text: str) -> None:
    assert searched(Driver(("T4", 7, 5), version=number), tmp_path).devices[0].cuda == text


@pytest.mark.parametrize(
    ("library", "reason"),
    [
        (OSError(NO_DRIVER), f"no NVIDIA driver: {NO_DRIVER}"),
        (Driver(), "the NVIDIA driver shows no GPU: see CUDA_VISIBLE_DEVICES"),
        (
            Driver(("T4", 7, 5), failing={"cuInit": 100}),
            "the NVIDIA driver says: no CUDA-capable device is detected (cuInit: 100)",
        ),
        (
            Driver(("T4", 7, 5), failing={"cuDeviceGetAttribute": 1}),
            "the NVIDIA driver says: an error without a name (cuDeviceGetAttribute: 1)",
        ),
        (Driver(("T4", 7, 5), failing={"cuDeviceGetName": 100}), "cuDeviceGetName: 100"),
        (Driver(("T4", 7, 5), failing={"cuDriverGetVersion": 100}), "cuDriverGetVersion: 100"),
        (SimpleNamespace(), "libcuda.so.1 is not a working NVIDIA driver"),
    ],
)
def test_without_gpus_there_is_a_reason_and_no_error(tmp_path: Path, library: Any, reason: str) -> None:
    found = searched(library, tmp_path)
    assert found.devices == ()
    assert reason in found.reason
    assert "\n" not in found.reason


def test_the_short_form_has_the_same_devices(tmp_path: Path) -> None:
    driver = Driver(("T4", 7, 5))
    assert devices(lambda _: driver, tmp_path / "none", tmp_path) == searched(driver, tmp_path).devices != ()


def test_a_real_library_that_is_not_the_driver_is_told(tmp_path: Path) -> None:
    found = find_devices(lambda _: ctypes.CDLL("libc.so.6"), tmp_path / "none", tmp_path)
    assert found.devices == ()
    assert "cuInit" in found.reason


@pytest.mark.parametrize(
    ("nodes", "cores"),
    [
        (["nvhost-nvdla0", "nvhost-ctrl-nvdla0", "nvhost-nvdla1", "nvhost-ctrl-nvdla1", "null"], 2),
        (["nvhost-ctrl-nvdla0"], 1),
        (["null", "nvidia0"], 0),
        (None, 0),
    ],
)
def test_a_jetson_has_its_jetpack_and_its_dla_cores(tmp_path: Path, nodes: list[str] | None, cores: int) -> None:
    (tmp_path / "nv_tegra_release").write_text(ORIN)
    if nodes is not None:
        (tmp_path / "dev").mkdir()
        for node in nodes:
            (tmp_path / "dev" / node).touch()
    device = searched(Driver(("Orin", 8, 7)), tmp_path).devices[0]
    assert device.jetpack == JetPack("36.4.3", "6.2", "10.3")
    assert device.dla_cores == cores


def test_dla_nodes_are_those_of_a_jetson_alone(tmp_path: Path) -> None:
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev" / "nvhost-nvdla0").touch()
    assert searched(Driver(("T4", 7, 5)), tmp_path).devices[0].dla_cores == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (ORIN, JetPack("36.4.3", "6.2", "10.3")),
        ("# R32 (release), REVISION: 6.1, GCID: 27863751, BOARD: t186ref", JetPack("32.6.1", "4.6", "8.0")),
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref", JetPack("32.7.1", "4.6.1", "8.2")),
        ("# R35 (release), REVISION: 1.0, GCID: 31250864", JetPack("35.1.0", "5.0.2", "8.4.1")),
        ("# R35 (release), REVISION: 4.1, GCID: 33958178", JetPack("35.4.1", "5.1.2", "8.5.2")),
        ("# R36 (release), REVISION: 3.0, GCID: 36191598", JetPack("36.3.0", "6.0", "8.6.2")),
        ("# R36 (release), REVISION: 4, GCID: 37537400", JetPack("36.4.0", "6.1", "10.3")),
        ("# R38 (release), REVISION: 4.0, GCID: 1", JetPack("38.4.0", "7.1", "10.13")),
        ("# R36 (release), REVISION: 9.9, GCID: 1", JetPack("36.9.9", None, None)),
        ("# R99 (release), REVISION: 1.0, GCID: 1", JetPack("99.1.0", None, None)),
        ("", None),
        ("Ubuntu 22.04", None),
        ("# R36 (release)", None),
    ],
)
def test_the_release_file_names_the_jetpack_and_its_tensorrt(text: str, expected: JetPack | None) -> None:
    assert parse_release(text) == expected


def test_a_release_file_that_cannot_be_read_is_no_jetson(tmp_path: Path) -> None:
    assert jetpack(tmp_path / "missing") is None
    assert jetpack(tmp_path) is None
    (tmp_path / "file").write_bytes(b"\xff\xfe# R36 (release), REVISION: 4.4, GCID")
    assert jetpack(tmp_path / "file") == JetPack("36.4.4", "6.2.1", "10.3")
