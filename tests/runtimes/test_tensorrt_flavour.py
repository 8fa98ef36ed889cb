"""Which TensorRT is found: with modules made for it, and with the real package."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runtimes.errors import InputError, UnavailableError
from runtimes.tensorrt.flavour import flavour, installed, module, survey
from runtimes.tensorrt.generations import generation


def full(version: str) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, Builder=object, OnnxParser=object, Runtime=object)


def lean(version: str) -> SimpleNamespace:
    return SimpleNamespace(__version__=version, Runtime=object)


def loader(**given: Any) -> Callable[[str], Any]:
    """Imports what is given: a module, or an exception to raise; what is not given is not installed."""

    def load(name: str) -> Any:
        found = given.get(name, ModuleNotFoundError(f"No module named {name!r}", name=name))
        if isinstance(found, BaseException):
            raise found
        return found

    return load


def test_nothing_installed_is_nothing_found_and_nothing_broken() -> None:
    found = survey(loader())
    assert (found.working, dict(found.broken)) == ((), {})


def test_every_package_is_described_by_its_own_module() -> None:
    load = loader(
        tensorrt=full("10.3.0"),
        tensorrt_rtx=full("1.7.1"),
        tensorrt_lean=lean("8.6.1"),
        tensorrt_dispatch=lean("11.4.1"),
    )
    found = installed(load)
    assert [(item.name, item.version, item.can_build, item.can_run) for item in found] == [
        ("tensorrt", "10.3.0", True, True),
        ("tensorrt_rtx", "1.7.1", True, True),
        ("tensorrt_lean", "8.6.1", False, True),
        ("tensorrt_dispatch", "11.4.1", False, True),
    ]
    assert all(item.generation == generation(item.name, item.version) for item in found)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            ImportError("libnvinfer.so.10: cannot open\nshared object"),
            "cannot be imported: libnvinfer.so.10: cannot open",
        ),
        (
            ModuleNotFoundError("No module named 'tensorrt_libs'", name="tensorrt_libs"),
            "No module named 'tensorrt_libs'",
        ),
        (OSError("wrong ELF class"), "cannot be imported: wrong ELF class"),
        (RuntimeError(""), "cannot be imported: RuntimeError"),
        (AttributeError("no attribute 'float8'"), "cannot be imported: no attribute 'float8'"),
        (full("8.2.5"), "tensorrt 8.2.5 is too old: expected 8.5 or later"),
        (SimpleNamespace(), "only its folder is left"),
        (SimpleNamespace(__version__="dev"), "received version 'dev'"),
    ],
)
def test_a_broken_package_is_told_in_one_line_and_hides_no_other(error: Any, told: str) -> None:
    found = survey(loader(tensorrt=error, tensorrt_rtx=full("1.7.1")))
    assert [item.name for item in found.working] == ["tensorrt_rtx"]
    assert set(found.broken) == {"tensorrt"}
    assert told in found.broken["tensorrt"]
    assert "\n" not in found.broken["tensorrt"]


def test_an_interrupt_is_not_a_broken_package() -> None:
    with pytest.raises(KeyboardInterrupt):
        survey(loader(tensorrt=KeyboardInterrupt()))


@pytest.mark.parametrize(
    ("modules", "best"),
    [
        ({"tensorrt_rtx": full("1.7.1"), "tensorrt": full("8.6.1")}, "tensorrt"),
        ({"tensorrt_rtx": full("1.7.1"), "tensorrt": ImportError("x")}, "tensorrt_rtx"),
        ({"tensorrt_rtx": full("1.7.1"), "tensorrt": lean("10.3.0")}, "tensorrt_rtx"),
    ],
    ids=["tensorrt first", "not a broken one", "not one that cannot build"],
)
def test_the_best_package_is_the_first_that_builds(modules: dict[str, Any], best: str) -> None:
    assert flavour(load=loader(**modules)).name == best


def test_a_package_is_given_by_name_also_where_it_only_runs() -> None:
    load = loader(tensorrt=full("10.3.0"), tensorrt_lean=lean("10.3.0"))
    found = flavour("tensorrt_lean", load)
    assert (found.name, found.can_build) == ("tensorrt_lean", False)


@pytest.mark.parametrize(
    ("name", "modules", "words"),
    [
        (None, {}, ["'resnet-export[tensorrt]'", "'resnet-export[tensorrt-rtx]'", "JetPack"]),
        (None, {"tensorrt_lean": lean("10.3.0")}, ["no TensorRT that builds engines"]),
        (None, {"tensorrt": OSError("no libcudart")}, ["tensorrt cannot be imported: no libcudart", "pip install"]),
        ("tensorrt_rtx", {"tensorrt": full("10.3.0")}, ["tensorrt_rtx is not installed", "[tensorrt-rtx]"]),
        ("tensorrt", {"tensorrt": OSError("no libcudart")}, ["tensorrt cannot be imported: no libcudart", "anew"]),
        ("tensorrt_dispatch", {}, ["pip install tensorrt-dispatch"]),
    ],
)
def test_what_is_missing_is_one_line_with_what_to_install_and_exit_code_3(
    name: str | None, modules: dict[str, Any], words: list[str]
) -> None:
    with pytest.raises(UnavailableError) as caught:
        flavour(name, loader(**modules))
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_another_name_is_a_wrong_word() -> None:
    with pytest.raises(InputError, match="'tensorflow': expected one of tensorrt, tensorrt_rtx"):
        flavour("tensorflow", loader())


def test_a_module_is_that_of_its_package_and_its_loss_is_told() -> None:
    loaded = full("10.3.0")
    found = flavour(load=loader(tensorrt=loaded))
    assert module(found, loader(tensorrt=loaded)) is loaded
    with pytest.raises(UnavailableError, match=r"No module named 'tensorrt'.*pip install"):
        module(found, loader())


def test_the_real_tensorrt_rtx_is_found_and_builds() -> None:
    real = pytest.importorskip("tensorrt_rtx")
    found = flavour("tensorrt_rtx")
    assert (found.version, found.can_build, found.can_run) == (real.__version__, True, True)
    assert found.generation.compute_capabilities
    assert module(found) is real


def test_the_modules_import_no_tensorrt_before_they_are_asked() -> None:
    code = "import sys, runtimes.tensorrt.flavour, runtimes.tensorrt.device; print(' '.join(sys.modules))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert not {"tensorrt_rtx", "tensorrt", "torch", "numpy"} & set(done.stdout.split())
