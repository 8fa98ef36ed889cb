"""The import rules of docs/CONTRIBUTING.md, read from the sources and tried in bare processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "runtimes": {"runtimes"},
    "calibration": {"calibration", "runtimes"},
    "exporter": {"exporter", "calibration", "runtimes"},
}
SOURCES = [path for package in MAY_IMPORT for path in sorted((ROOT / package).rglob("*.py"))]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides its direction"
            yield node.module or ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_imports_only_what_its_direction_allows(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    own = {name.split(".")[0] for name in _imports(path)} & set(MAY_IMPORT)
    assert own <= MAY_IMPORT[package]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_command_line_prints(path: Path) -> None:
    if "cli" in path.parts:
        return
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
    assert "print" not in names


def test_modules_import_each_other_without_circles() -> None:
    """Only top-level imports count: one inside a function is made when both modules exist."""
    graph: dict[str, set[str]] = {}
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        top = ast.parse(path.read_text(encoding="utf-8")).body
        found = (node.module for node in top if isinstance(node, ast.ImportFrom))
        graph[name] = {module for module in found if module and module != name}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join((*trail, module))
        if module not in done:
            for target in graph.get(module, ()):
                visit(target, (*trail, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint()\nprint(' '.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.splitlines()[-1].split())


LIGHT = (
    "exporter.cli", "exporter.cli.onnx", "exporter.cli.inspect", "exporter.models.blueprint",
    "exporter.models.variants", "calibration.preprocess", "calibration.images", "runtimes.ort", "runtimes.eager",
    "runtimes.parity", "runtimes.registry", "runtimes.precision", "runtimes.openvino", "runtimes.torch_compile",
    "runtimes.evaluation", "runtimes.latency", "runtimes.remote", "exporter.evaluate", "exporter.bench",
    "exporter.run.job", "exporter.cli.run", "exporter.cli.init",
)  # fmt: skip


@pytest.mark.parametrize("module", LIGHT)
def test_a_light_module_loads_no_framework(module: str) -> None:
    heavy = {"torch", "onnx", "onnxruntime", "onnxsim", "openvino", "torchvision", "rich", "scipy"}
    assert not heavy & _loaded_by(f"import {module}")


def test_help_loads_no_framework() -> None:
    statement = "import exporter.cli\ntry: exporter.cli.main(['--help'])\nexcept SystemExit: pass"
    assert not {"torch", "onnx", "onnxruntime", "rich"} & _loaded_by(statement)
