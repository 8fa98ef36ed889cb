"""``resnet-export doctor``: the document, the lines, and machines that lack something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

import exporter.doctor
from exporter.cli import main
from exporter.doctor import Cpu, Diagnosis, RuntimeRow, cpu, framework_rows, tensorrt_rows
from runtimes.tensorrt.device import Device, DeviceSearch, JetPack
from runtimes.tensorrt.flavour import Flavour, Survey
from runtimes.tensorrt.generations import PACKAGES, generation
from tests.exporter.test_cli_quantize import Done, as_it_was

__all__ = ["as_it_was"]  # a fixture that every test here uses

NAMES = [
    "eager",
    "torch-compile",
    "onnxruntime",
    "ort-cuda",
    "ort-tensorrt",
    "openvino",
    "int8-sim",
    "triton",
    *PACKAGES,
]
CPU_KEYS = {
    "architecture", "model", "cores", "int8", "avx2", "avx512", "vnni", "amx_int8", "arm_dot_product",
    "arm_int8_matmul",
}  # fmt: skip
ORIN = Device("Orin", (8, 7), "12.6", 2, JetPack("36.4.3", "6.2", "10.3"))
NO_GPU = DeviceSearch((), "no NVIDIA driver: libcuda.so.1 is not there")
NOTHING = Survey((), MappingProxyType({}))


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], as_it_was: None) -> Any:
    def run(*words: str) -> Done:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main(["doctor", *words])
        captured = capfd.readouterr()
        return Done(int(end.value.code or 0), captured.out, captured.err)

    return run


def versions(**given: str) -> Callable[[str], str | None]:
    return lambda name: given.get(name.replace("-", "_"))


def ort(*providers: str) -> Callable[[str], Any]:
    return lambda _: SimpleNamespace(get_available_providers=lambda: list(providers))


def flavour(name: str, version: str, builds: bool = True) -> Flavour:
    return Flavour(name, version, generation(name, version), can_build=builds, can_run=True)


def by_name(rows: tuple[RuntimeRow, ...]) -> dict[str, RuntimeRow]:
    return {row.name: row for row in rows}


def test_the_document_has_its_keys_and_this_machines_versions(cli: Any) -> None:
    done = cli("--json")
    assert done.code == 0
    document = done.document
    assert document.keys() == {"python", "platform", "cpu", "runtimes", "devices", "no_devices", "jetpack"}
    assert document["python"] == ".".join(map(str, sys.version_info[:3]))
    assert document["cpu"].keys() == CPU_KEYS
    assert [row["name"] for row in document["runtimes"]] == NAMES
    for row in document["runtimes"]:
        assert row.keys() == {"name", "installed", "version", "usable", "detail", "install"}
        assert row["installed"] or not row["usable"]
        assert row["installed"] or row["install"]
    rows = {row["name"]: row for row in document["runtimes"]}
    assert rows["eager"]["version"] == metadata.version("torch")
    assert rows["onnxruntime"]["version"] == metadata.version("onnxruntime")
    assert "CPUExecutionProvider" in rows["onnxruntime"]["detail"]
    assert bool(document["devices"]) == (document["no_devices"] is None)


def test_the_real_tensorrt_rtx_has_its_row(cli: Any) -> None:
    real = pytest.importorskip("tensorrt_rtx")
    row = next(row for row in cli("--json").document["runtimes"] if row["name"] == "tensorrt_rtx")
    assert (row["installed"], row["version"], row["usable"]) == (True, real.__version__, True)
    assert row["detail"].startswith("builds ")


def test_a_person_gets_every_runtime_and_no_colour_in_a_pipe(cli: Any) -> None:
    done = cli()
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0].startswith("Python 3.")
    starts = [line.split()[0] for line in lines if line]
    assert all(name in starts for name in NAMES)
    assert "\x1b[" not in done.out


def test_quiet_says_nothing_and_an_extra_word_is_refused(cli: Any) -> None:
    assert cli("--quiet") == (0, "", "")
    refused = cli("model.onnx")
    assert refused.code == 2
    assert "unexpected extra argument" in refused.err


def test_it_loads_neither_torch_nor_openvino() -> None:
    statement = "import exporter.cli\ntry: exporter.cli.main(['doctor', '--json'])\nexcept SystemExit: pass"
    code = f"import sys\n{statement}\nsys.stderr.write(' '.join(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root, env=environment
    )
    assert json.loads(done.stdout)["python"]
    assert "exporter.doctor" in done.stderr.split()
    assert not {"torch", "openvino", "onnx", "torchvision", "rich"} & set(done.stderr.split())


def test_a_bare_machine_is_told_what_to_install_for_each() -> None:
    rows = framework_rows(versions(), ort(), lambda _: None) + tensorrt_rows(NOTHING, NO_GPU, None)
    assert [row.name for row in rows] == NAMES
    for row in rows:
        assert (row.installed, row.version, row.usable) == (False, None, False)
        assert row.install is not None
        assert row.install.startswith("pip install ")
        assert "://" not in row.install
    assert by_name(rows)["openvino"].install == "pip install 'resnet-export[openvino]'"


def test_packages_are_rows_with_their_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    given = {"torch": "2.14.1", "onnx": "1.23", "onnxruntime": "1.32", "openvino": "2026.4", "resnet_export": "0.1"}
    given |= {"tritonclient": "2.73"}
    rows = framework_rows(versions(**given), ort("CUDAExecutionProvider", "CPUExecutionProvider"), str)
    assert [(row.name, row.version, row.usable, row.install) for row in rows] == [
        ("eager", "2.14.1", True, None),
        ("torch-compile", "2.14.1", True, None),
        ("onnxruntime", "1.32", True, None),
        ("ort-cuda", "1.32", True, None),
        ("ort-tensorrt", None, False, "pip install onnxruntime-gpu, after pip uninstall onnxruntime"),
        ("openvino", "2026.4", True, None),
        ("int8-sim", "0.1", True, None),
        ("triton", "2.73", True, None),
    ]
    assert by_name(rows)["onnxruntime"].detail == "CUDAExecutionProvider, CPUExecutionProvider"
    assert by_name(rows)["ort-tensorrt"].detail == "this onnxruntime has no TensorrtExecutionProvider"
    assert by_name(rows)["torch-compile"].detail == "compiles with c++"


def test_without_a_compiler_torch_is_here_and_its_compiler_is_not() -> None:
    rows = by_name(framework_rows(versions(torch="2.14.1"), ort(), lambda _: None))
    assert rows["eager"].usable
    compiling = rows["torch-compile"]
    assert (compiling.installed, compiling.usable) == (True, False)
    assert "C++ compiler" in (compiling.install or "")
    assert not rows["int8-sim"].usable


def test_onnxruntime_for_gpus_is_onnxruntime_and_a_broken_one_is_told() -> None:
    rows = by_name(framework_rows(versions(onnxruntime_gpu="1.30"), ort("CPUExecutionProvider")))
    assert (rows["onnxruntime"].version, rows["onnxruntime"].usable) == ("1.30", True)

    def broken(_: str) -> Any:
        raise ImportError("libcudnn.so.9: cannot open\nshared object")

    row = by_name(framework_rows(versions(onnxruntime="1.30"), broken))["onnxruntime"]
    assert (row.installed, row.usable) == (True, False)
    assert row.detail == "cannot be loaded: libcudnn.so.9: cannot open"
    assert not by_name(framework_rows(versions(onnxruntime="1.30"), broken))["ort-cuda"].usable


@pytest.mark.parametrize(
    ("item", "gpus", "usable", "detail"),
    [
        (flavour("tensorrt", "10.3.0"), (ORIN,), True, "builds and runs engines"),
        (flavour("tensorrt", "10.3.0"), (), False, "needs an NVIDIA GPU"),
        (flavour("tensorrt_rtx", "1.7.1"), (), True, "builds engines; running them needs an NVIDIA GPU"),
        (flavour("tensorrt_rtx", "1.7.1"), (ORIN,), True, "builds and runs engines"),
        (flavour("tensorrt_lean", "10.3.0", builds=False), (ORIN,), True, "runs engines"),
        (flavour("tensorrt_lean", "10.3.0", builds=False), (), False, "needs an NVIDIA GPU"),
    ],
)
def test_a_tensorrt_is_usable_where_it_can_build_or_run(
    item: Flavour, gpus: tuple[Device, ...], usable: bool, detail: str
) -> None:
    search = DeviceSearch(gpus, "" if gpus else "no driver")
    row = by_name(tensorrt_rows(Survey((item,), MappingProxyType({})), search, None))[item.name]
    assert (row.installed, row.version, row.usable, row.detail) == (True, item.version, usable, detail)
    assert (row.install is None) == bool(gpus)


def test_a_broken_tensorrt_is_here_and_says_why() -> None:
    found = Survey((), MappingProxyType({"tensorrt": "cannot be imported: no libnvinfer.so.10"}))
    row = by_name(tensorrt_rows(found, NO_GPU, None))["tensorrt"]
    assert (row.installed, row.usable, row.detail) == (True, False, "cannot be imported: no libnvinfer.so.10")
    assert "'resnet-export[tensorrt]'" in (row.install or "")


def test_a_jetson_is_told_which_tensorrt_belongs_to_it() -> None:
    rows = by_name(tensorrt_rows(NOTHING, DeviceSearch((ORIN,), ""), ORIN.jetpack))
    assert rows["tensorrt"].detail == "not installed; JetPack 6.2 brings 10.3"
    assert rows["tensorrt_rtx"].detail == "not installed"
    unknown = by_name(tensorrt_rows(NOTHING, DeviceSearch((ORIN,), ""), JetPack("99.1.0", None, None)))
    assert unknown["tensorrt"].detail == "not installed"


X86 = (
    "processor\t: 0\nmodel name\t: Some Xeon\nflags\t\t: fpu {}\n\nprocessor\t: 1\nmodel name\t: other\nflags\t: avx2\n"
)
ARM = "processor\t: 0\nBogoMIPS\t: 62.50\nFeatures\t: fp asimd {}\nCPU implementer\t: 0x41\n"


@pytest.mark.parametrize(
    ("architecture", "text", "there", "told"),
    [
        ("x86_64", X86.format("sse2"), set(), "no INT8 instructions"),
        ("x86_64", X86.format("avx2"), {"avx2"}, "--cpu any"),
        ("x86_64", X86.format("avx2 avx512f"), {"avx2", "avx512"}, "--cpu any"),
        ("x86_64", X86.format("avx2 avx_vnni"), {"avx2", "vnni"}, "--cpu vnni"),
        (
            "x86_64",
            X86.format("avx2 avx512f avx512_vnni amx_int8"),
            {"avx2", "avx512", "vnni", "amx_int8"},
            "--cpu vnni",
        ),
        ("aarch64", ARM.format(""), set(), "no dot product instruction"),
        ("aarch64", ARM.format("asimddp"), {"arm_dot_product"}, "fast: quantize --target onnxruntime --cpu arm"),
        ("aarch64", ARM.format("asimddp i8mm"), {"arm_dot_product", "arm_int8_matmul"}, "--cpu arm"),
    ],
)
def test_the_processor_is_read_off_its_first_core(
    tmp_path: Path, architecture: str, text: str, there: set[str], told: str
) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    found = cpu(tmp_path / "cpuinfo", architecture)
    assert {name for name, has in found.features.items() if has} == there
    assert set(found.features.values()) <= {True, False}
    assert told in found.int8
    assert found.model == ("Some Xeon" if architecture == "x86_64" else None)


def test_a_processor_that_is_not_described_is_not_known(tmp_path: Path) -> None:
    found = cpu(tmp_path / "missing", "arm64")
    assert set(found.features.values()) == {None}
    assert "not known" in found.int8
    assert found.to_json().keys() == CPU_KEYS


def test_a_jetson_is_shown_with_its_gpu_and_its_release(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    features: dict[str, bool | None] = {"avx2": False, "arm_dot_product": True}
    found = Diagnosis(
        python="3.10.12",
        platform="Linux 5.15.148-tegra aarch64",
        cpu=Cpu("aarch64", None, 12, features, "fast"),
        runtimes=tensorrt_rows(
            Survey((flavour("tensorrt", "10.3.0"),), MappingProxyType({})), DeviceSearch((ORIN,), ""), None
        ),
        devices=DeviceSearch((ORIN,), ""),
        jetpack=ORIN.jetpack,
    )
    monkeypatch.setattr(exporter.doctor, "diagnose", lambda: found)
    lines = cli().out.splitlines()
    assert "CPU aarch64, 12 cores: arm_dot_product" in lines
    assert "GPU Orin: compute capability 8.7, driver for CUDA 12.6, 2 DLA cores" in lines
    assert "Jetson L4T 36.4.3: JetPack 6.2, TensorRT 10.3" in lines
    document = cli("--json").document
    assert document["devices"] == [{"name": "Orin", "compute_capability": "8.7", "cuda": "12.6", "dla_cores": 2}]
    assert document["no_devices"] is None
    assert document["jetpack"] == {"l4t": "36.4.3", "version": "6.2", "tensorrt": "10.3"}
