"""A real Triton server on this machine, from the package ``nvidia-pytriton``, which carries its binary.

The package pins numpy 1, so that it lives in an environment of its own: ``make test-all`` makes one and names its
interpreter in ``PYTRITON_PYTHON``. The server comes with the Python backend alone; ``triton_backend/model.py`` takes
the place of the backend ``onnxruntime``, so that repositories are served as they are, to the byte.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_BACKEND: Final = Path(__file__).parent / "triton_backend" / "model.py"
_SECONDS: Final = 120  # a loaded machine starts Python once for each instance of each model
_ASKED: Final = (
    "import importlib.util as u, sys, onnxruntime; "
    "print(u.find_spec('pytriton').submodule_search_locations[0]); "
    "print('%d.%d' % sys.version_info[:2]); print(onnxruntime.__version__)"
)


@dataclass(frozen=True)
class Package:
    """Where the server is.

    Attributes:
        python: Interpreter that has the package.
        root: Folder of the package.
        version: Of the interpreter, as ``3.11``.
        onnxruntime: Version that it has.
    """

    python: Path
    root: Path
    version: str
    onnxruntime: str


@dataclass(frozen=True)
class Place:
    """A running server.

    Attributes:
        http: Its URL.
        grpc: Its other URL.
    """

    http: str
    grpc: str


def package() -> Package | None:
    """The package; ``None`` where it is not installed."""
    python = os.environ.get("PYTRITON_PYTHON", sys.executable)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    try:
        done = subprocess.run(
            [python, "-c", _ASKED], capture_output=True, text=True, env=environment, timeout=60, check=False
        )
    except OSError:
        return None
    if done.returncode:
        return None
    root, version, onnxruntime = done.stdout.split("\n")[:3]
    return Package(Path(python), Path(root), version, onnxruntime)


@contextmanager
def running(found: Package, repository: Path, scratch: Path) -> Iterator[Place]:
    """Serve a repository until the block ends.

    Args:
        found: The server.
        repository: What it serves; all of it has to load.
        scratch: Empty folder.
    """
    server = found.root / "tritonserver"
    python = scratch / "backends" / "python"
    shutil.copytree(server / "backends" / "python", python)  # copied: the server refuses links out of the folder
    shutil.copy(server / "python_backend_stubs" / found.version / "triton_python_backend_stub", python)
    (scratch / "backends" / "onnxruntime").mkdir()
    shutil.copy(_BACKEND, scratch / "backends" / "onnxruntime")
    http, grpc = _ports()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {
        "LD_LIBRARY_PATH": str(found.root.parent / "nvidia_pytriton.libs"),
        "PATH": f"{found.python.parent}{os.pathsep}{environment['PATH']}",
    }
    log = scratch / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                str(server / "bin" / "tritonserver"), f"--model-repository={repository}",
                f"--backend-directory={scratch / 'backends'}", "--http-address=127.0.0.1", f"--http-port={http}",
                "--grpc-address=127.0.0.1", f"--grpc-port={grpc}", "--allow-metrics=false",
                "--disable-auto-complete-config", "--exit-timeout-secs=5",
            ],
            stdout=stream, stderr=subprocess.STDOUT, env=environment,
        )  # fmt: skip
    try:
        _wait(process, http, log)
        yield Place(f"http://127.0.0.1:{http}", f"grpc://127.0.0.1:{grpc}")
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _ports() -> list[int]:
    sockets = [socket.socket() for _ in range(2)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5):
                return
        except (OSError, urllib.error.URLError):
            time.sleep(0.2)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-4000:]}")
