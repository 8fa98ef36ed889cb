"""The example in C++ compiles, runs a bundle's golden input, and says no where it should."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.exporter.bundles import bundle, made, manifest_of

__all__ = ["bundle", "made"]

EXAMPLE = Path(__file__).parents[2] / "examples" / "cpp"
_HEADER = "onnxruntime_cxx_api.h"
#: ``ONNXRUNTIME_INCLUDE`` first, as for CMake; then where distributions put it.
_PLACES = (os.environ.get("ONNXRUNTIME_INCLUDE", ""), "/usr/include/onnxruntime", "/usr/local/include/onnxruntime")
INCLUDE = next((place for place in _PLACES if place and (Path(place) / _HEADER).is_file()), None)
_ABSENT = [tool for tool in ("cmake", "c++") if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.skipif(INCLUDE is None, reason=f"there is no {_HEADER}: install libonnxruntime-dev (Debian 13)"),
    pytest.mark.skipif(bool(_ABSENT), reason=f"{' and '.join(_ABSENT)} not installed"),
]


@pytest.fixture(scope="module")
def golden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, with the library of the Python package: newer than the headers, as its interface allows."""
    spec = find_spec("onnxruntime")
    assert spec is not None
    assert spec.origin is not None
    library = next((Path(spec.origin).parent / "capi").glob("libonnxruntime.so.1.*"))
    folder = tmp_path_factory.mktemp("cpp")
    words = [f"-DONNXRUNTIME_INCLUDE={INCLUDE}", f"-DONNXRUNTIME_LIBRARY={library}", "-DCMAKE_CXX_FLAGS=-Werror"]
    subprocess.run(["cmake", "-S", str(EXAMPLE), "-B", str(folder), *words], check=True, capture_output=True)
    done = subprocess.run(["cmake", "--build", str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "golden"


def run(program: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, check=False)


def test_it_meets_the_golden_output_and_names_the_same_classes(golden: Path, bundle: Path) -> None:
    for model in manifest_of(bundle)["models"]:
        bounds = next(row for row in model["tolerances"] if row["runtime"] == "onnxruntime")
        done = run(golden, bundle / model["file"], bundle / "goldens/input.npy", bundle / "goldens/reference.npy",
                   str(bounds["min_sqnr_db"]), bundle / "labels.txt")  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        if model["id"] == "fp32":
            best = np.load(bundle / "goldens/reference.npy").argmax(axis=1)
            assert [line.split("  ")[1].rsplit(" ", 1)[0] for line in done.stdout.splitlines()[:-1]] == [
                f"class {index}" for index in best
            ]


def test_it_says_no_to_other_outputs_and_to_what_is_no_array(golden: Path, bundle: Path, tmp_path: Path) -> None:
    model, images = bundle / "models/fp32/net.onnx", bundle / "goldens/input.npy"
    reference = np.load(bundle / "goldens/reference.npy")
    other = tmp_path / "other.npy"
    np.save(other, reference * np.float32(1.001))
    assert run(golden, model, images, other, "100").returncode == 1
    np.save(other, np.where(np.arange(10) == 3, np.nan, reference).astype(np.float32))
    assert run(golden, model, images, other, "1").returncode == 1
    for array in (reference.astype(np.float64), np.asfortranarray(reference), reference[:, :5]):
        np.save(other, array)
        assert run(golden, model, images, other, "100").returncode == 2
    other.write_bytes((bundle / "goldens/reference.npy").read_bytes()[:-3])
    assert run(golden, model, images, other, "100").returncode == 2
    assert run(golden, model, tmp_path / "none.npy", other, "100").returncode == 2
    assert run(golden).returncode == 2
