"""`calibrate` beside the plain forward passes that it cannot do without, and beside ONNX Runtime's own calibrators.

ResNet-18 with random weights over photographs of 224 px, each measurement in a process of its own, in interleaved
rounds, so that a noisy machine hurts all alike. Imports and the reading of the model are in no time. Two ratios:

    time_ratio          decoding included in both: `calibrate` (hashes, decoding, audit, forward passes, observers) and
                        the choice of a range for every tensor by every method, to decoding and running the same
                        batches one after the other
    observing_ratio     decoding excluded from both: the same batches in memory, observed and chosen from by every
                        method, to running them

Bounds that the project holds itself to: at most 1.5 for either ratio, and the peak memory at 1024 images within 5 % of
that at 128. The observing_ratio is the one that compares with ONNX Runtime's calibrators.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

from calibration.calibrate import calibrate
from calibration.collect import Collector, batch_size, collect
from calibration.graph import read_network
from calibration.grids import S8, U8
from calibration.images import batches, find_images
from calibration.observers import Observer
from calibration.preprocess import PRESETS
from calibration.thresholds import METHODS, choose

_HERE = Path(__file__).parent
BOUNDS = {"time_ratio": 1.5, "observing_ratio": 1.5, "memory_ratio": 1.05}
PEERS = ("MinMax", "Entropy", "Percentile")
THREADS = 2
_COMMAND = Path(sys.executable).with_name("resnet-export")
_SIZE = 224

Batches = list[npt.NDArray[np.float32]]


class Run(NamedTuple):
    """One process: the seconds that it measured itself, and its largest resident set in MiB."""

    seconds: float
    peak_mb: float


def session(model: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


def decoded(model: Path, data: Path) -> Iterator[npt.NDArray[np.float32]]:
    batch = batch_size(read_network(model), _SIZE, _SIZE)
    return (tensor for tensor, _ in batches(find_images(data), PRESETS["imagenet"], batch))


def timed(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def choose_all(tensors: dict[str, Observer]) -> None:
    for observer in tensors.values():
        for method in METHODS:
            choose(observer, method, U8 if observer.low >= 0 else S8)


def plain(model: Path, data: Path) -> float:
    """Decode and run."""
    network = session(model)
    return timed(lambda: [network.run(None, {"input": batch}) for batch in decoded(model, data)])


def plain_in_memory(model: Path, data: Path) -> float:
    """Run only."""
    network, held = session(model), list(decoded(model, data))
    return timed(lambda: [network.run(None, {"input": batch}) for batch in held])


def ours(model: Path, data: Path, workers: int | None = None) -> float:
    """All of `calibrate`, and every method."""
    network, files = read_network(model), find_images(data)

    def work() -> None:
        found = calibrate(network, files, PRESETS["imagenet"], threads=THREADS, workers=workers)
        choose_all(dict(found.ranges.tensors))

    return timed(work)


def ours_in_memory(model: Path, data: Path) -> float:
    """Observe, and every method."""
    collector, held = Collector(read_network(model), threads=THREADS), list(decoded(model, data))

    def work() -> None:
        collect(collector, held)
        choose_all(collector.observers)

    return timed(work)


def ours_one_worker(model: Path, data: Path) -> float:
    """For memory: however many images there are, the same number of processes."""
    return ours(model, data, workers=1)


class Reader:
    """What ONNX Runtime's calibrators take."""

    def __init__(self, held: Batches) -> None:
        self._left = iter(held)

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        """The next batch; ``None`` after the last."""
        batch = next(self._left, None)
        return None if batch is None else {"input": batch}


def peer(method: str) -> Callable[[Path, Path], float]:
    """One of ONNX Runtime's calibrators over batches in memory, for the operators that it would quantise."""

    def work(model: Path, data: Path) -> float:
        from onnxruntime.quantization.calibrate import CalibrationMethod, create_calibrator

        held = list(decoded(model, data))
        with tempfile.TemporaryDirectory() as folder:
            # Its own default session has a thread for each core, as ours has here.
            calibrator = create_calibrator(
                str(model), ["Conv", "Add", "Gemm", "MaxPool"], str(Path(folder) / "augmented.onnx"),
                getattr(CalibrationMethod, method),
            )  # fmt: skip
            return timed(lambda: (calibrator.collect_data(Reader(held)), calibrator.compute_data()))

    return work


KINDS: dict[str, Callable[[Path, Path], float]] = {
    "plain": plain,
    "ours": ours,
    "plain_in_memory": plain_in_memory,
    "ours_in_memory": ours_in_memory,
    "ours_one_worker": ours_one_worker,
    **{f"onnxruntime_{name}": peer(name) for name in PEERS},
}


def measure(kind: str, model: Path, data: Path) -> Run | str:
    """Run one kind in a process; the last line of its errors where it fails."""
    command = [sys.executable, __file__, "--child", kind, str(model), str(data)]
    environment = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        out.seek(0)
        err.seek(0)
        if process.returncode:
            return (err.read().strip().splitlines() or ["no message"])[-1][:300]
        return Run(float(out.read().split()[-1]), usage.ru_maxrss / 1024)


def must(found: Run | str) -> Run:
    if isinstance(found, str):
        sys.exit(found)
    return found


def listing(path: Path, photos: list[Path], count: int) -> Path:
    """A list of ``count`` images, ``photos`` over and over."""
    path.write_text("".join(f"{photos[index % len(photos)].resolve()}\n" for index in range(count)))
    return path


def synthetic(folder: Path, count: int = 64) -> list[Path]:
    """JPEG files with a photograph's spectrum, for machines without photographs."""
    from PIL import Image

    rng = np.random.default_rng(0)
    height, width = 480, 640
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency = np.maximum(frequency, 1 / width)
    for index in range(count):
        noise = np.fft.rfft2(rng.standard_normal((3, height, width))) / frequency
        pixels = np.fft.irfft2(noise, s=(height, width))
        pixels = 128 + 50 * (pixels - pixels.mean()) / pixels.std()
        picture = np.clip(pixels, 0, 255).astype(np.uint8).transpose(1, 2, 0)  # [3,H,W] -> [H,W,3]
        Image.fromarray(picture).save(folder / f"{index:03}.jpg", quality=90)
    return sorted(folder.glob("*.jpg"))


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians, and every single time."""
    return {
        "median_s": round(statistics.median(run.seconds for run in runs), 3),
        "median_peak_mb": round(statistics.median(run.peak_mb for run in runs), 1),
        "seconds": [round(run.seconds, 3) for run in runs],
    }


def ratio(runs: dict[str, list[Run]], kind: str, to: str) -> float:
    """Median over the rounds of the ratio within each."""
    return round(statistics.median(a.seconds / b.seconds for a, b in zip(runs[kind], runs[to], strict=True)), 3)


def in_rounds(model: Path, data: Path, rounds: int) -> dict[str, list[Run]]:
    kinds = ("plain", "ours", "plain_in_memory", "ours_in_memory")
    runs: dict[str, list[Run]] = {kind: [] for kind in kinds}
    for each in range(rounds):
        for kind in kinds if each % 2 else kinds[::-1]:
            runs[kind].append(must(measure(kind, model, data)))
        print(f"round {each}: {', '.join(f'{kind} {found[-1].seconds:.2f} s' for kind, found in runs.items())}")
    return runs


def peers(model: Path, data: Path, base: float) -> dict[str, Any]:
    """One run of each peer: they are so much slower that no second one is needed."""
    rows: dict[str, Any] = {}
    for name in PEERS:
        found = measure(f"onnxruntime_{name}", model, data)
        if isinstance(found, str):
            rows[name] = {"failed": found}
        else:
            rows[name] = {"seconds": round(found.seconds, 3), "peak_mb": round(found.peak_mb, 1)}
            rows[name]["observing_ratio"] = round(found.seconds / base, 3)
        print(f"onnxruntime {name}: {rows[name]}", flush=True)
    return rows


def benchmark(folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    there = given.photos is not None and given.photos.exists()
    photos = [file.path for file in find_images(given.photos)] if there else synthetic(folder)
    kind = "photographs" if there else "synthetic JPEG files"
    model = folder / "resnet18.onnx"
    subprocess.run([_COMMAND, "onnx", "resnet18", "--weights", "random", "-o", model, "-q"], check=True)
    small, large = (listing(folder / f"{n}.txt", photos, n) for n in (given.images, 8 * given.images))
    runs = in_rounds(model, small, given.rounds)
    memory = {
        str(count): statistics.median(must(measure("ours_one_worker", model, data)).peak_mb for _ in range(3))
        for count, data in ((given.images, small), (8 * given.images, large))
    }
    few, many = memory.values()
    base = statistics.median(run.seconds for run in runs["plain_in_memory"])
    return {
        "model": "resnet18, random weights",
        "images": f"{given.images} of {_SIZE} px: {len(photos)} {kind} over and over",
        "threads": THREADS,
        "batch": batch_size(read_network(model), _SIZE, _SIZE),
        **{name: summary(found) for name, found in runs.items()},
        "time_ratio": ratio(runs, "ours", "plain"),
        "observing_ratio": ratio(runs, "ours_in_memory", "plain_in_memory"),
        "peak_mb_by_images": {name: round(value, 1) for name, value in memory.items()},
        "memory_ratio": round(many / few, 3),
        "onnxruntime": peers(model, small, base) if given.peers else {},
        "bounds": BOUNDS,
        "environment": describe(),
    }


def main() -> None:
    """Measure, print the ratios, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, help="folder of images of at least 224 px; where it is absent, JPEG files are made up"
    )
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-peers", dest="peers", action="store_false")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "calibration.json")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        kind, model, data = given.child
        print(KINDS[kind](Path(model), Path(data)))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = benchmark(Path(folder), given)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in BOUNDS}))
    exceeded = [name for name, bound in BOUNDS.items() if result[name] > bound]
    if exceeded:
        sys.exit(f"beyond its bound: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
