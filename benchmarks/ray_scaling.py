"""`calibrate` and `evaluate` on a local Ray cluster, beside one process with one thread.

Both read the same images and decode them themselves. The one process is held to one processor: its thread that decodes
ahead would use a second one, where a worker has none. The time to start and to end the cluster is given apart: it does
not grow with the set. Processor time is that of all processes together: what the cluster needs beyond the one process
is its overhead, which can be seen on a busy machine too. The ranges have to be identical to the last byte, and the
evaluation in everything but its times. Bound that the project holds itself to: with two workers on two idle
processors, the evaluation is at least 1.6 times as fast.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from files import exported
from machine import describe

from calibration.calibrate import calibrate
from calibration.cluster import Cluster, connected
from calibration.distributed import calibrate_on
from calibration.images import ImageFile, find_images, sample
from exporter.evaluate import EvaluateOptions, evaluate_models
from exporter.evaluate_distributed import evaluate_on
from exporter.opening import prepare
from exporter.quantisation_inputs import contract_of, open_model

_HERE = Path(__file__).parent
BOUND = 1.6


def main() -> None:
    """Measure, print the ratios, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="class folders of images")
    parser.add_argument("--model", default="resnet20", help="checkpoint, or a variant with random weights")
    parser.add_argument("--images", type=int, default=0, help="0: all")
    parser.add_argument("--repeat", type=int, default=1, help="how often each image is listed, for small sets")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "ray_scaling.json")
    given = parser.parse_args()
    files = sample(find_images(given.data), given.images) * given.repeat
    result = measure(exported(given.model), files, given.workers, given.rounds)
    result["model"] = Path(given.model).name
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({name: result[name] for name in ("evaluate", "calibrate", "start_s", "end_s")}))
    if result["evaluate"]["speedup"] < BOUND:
        sys.exit(f"below its bound of {BOUND}: {result['evaluate']['speedup']}")


def measure(model: Path, files: list[ImageFile], workers: int, rounds: int) -> dict[str, Any]:
    """Seconds of one process and of the cluster, in turns."""
    load = os.getloadavg()[0]
    begin = time.perf_counter()
    with connected("local", workers) as cluster:
        start = time.perf_counter() - begin
        work = Work(model, files, cluster)
        work.check()  # the workers open their networks here, and the pages of the files are in memory afterwards
        times: dict[str, list[Seconds]] = {
            name: [] for name in ("evaluate", "evaluate_on", "calibrate", "calibrate_on")
        }
        for _ in range(rounds):
            for name, seconds in times.items():
                before, before_cpu = time.perf_counter(), processor_seconds()
                getattr(work, name)()
                seconds.append(Seconds(time.perf_counter() - before, processor_seconds() - before_cpu))
        begin = time.perf_counter()
    end = time.perf_counter() - begin
    return {
        "images": len(files),
        "workers": workers,
        "rounds": rounds,
        "start_s": round(start, 2),
        "end_s": round(end, 2),
        "evaluate": _ratio(times["evaluate"], times["evaluate_on"]),
        "calibrate": _ratio(times["calibrate"], times["calibrate_on"]),
        "bound": BOUND,
        "load_before": round(load, 2),
        "load_after": round(os.getloadavg()[0], 2),
        "environment": describe(),
    }


class Seconds(NamedTuple):
    """By the clock on the wall, and of all processes together."""

    wall: float
    cpu: float


class Work:
    """The two jobs, either way."""

    def __init__(self, model: Path, files: list[ImageFile], cluster: Cluster) -> None:
        self.network, metadata = open_model(model)
        self.contract = contract_of(self.network, metadata, None, {})
        self.opening = prepare(f"onnxruntime:{model}@threads=1")
        self.files, self.cluster = files, cluster

    def evaluate(self) -> dict[str, Any]:
        """In one process."""
        with one_processor():
            return evaluate_models(
                [self.opening.subject()], self.files, self.contract, EvaluateOptions(), path="x"
            ).to_json()

    def evaluate_on(self) -> dict[str, Any]:
        """On the cluster."""
        return evaluate_on(
            self.cluster, [self.opening], self.files, self.contract, EvaluateOptions(), path="x"
        ).to_json()

    def calibrate(self) -> str:
        """In one process: the sha256 of the ranges."""
        with one_processor():
            found = calibrate(self.network, self.files, self.contract, threads=1, workers=0)
        return hashlib.sha256(found.ranges.dumps()).hexdigest()

    def calibrate_on(self) -> str:
        """On the cluster, likewise."""
        found = calibrate_on(self.cluster, self.network, self.files, self.contract)
        return hashlib.sha256(found.ranges.dumps()).hexdigest()

    def check(self) -> None:
        """End the program where the results differ."""
        if self.calibrate() != self.calibrate_on():
            sys.exit("the ranges differ")
        one, two = self.evaluate(), self.evaluate_on()
        for document in (one, two):
            del document["environment"]  # the one process is held to one processor
            for row in document["results"]:
                del row["seconds"], row["used"]
        if one != two:
            sys.exit("the evaluations differ")


@contextmanager
def one_processor() -> Iterator[None]:
    """Hold the threads that this thread starts to one processor; those that exist stay free."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def processor_seconds() -> float:
    """Of this process and all below it that are alive."""
    rows: dict[int, tuple[int, float]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = path.read_text().rpartition(")")[2].split()  # from the third field of proc(5) on
            rows[int(path.parent.name)] = int(words[1]), int(words[11]) + int(words[12])
    found = [os.getpid()]
    for pid in found:
        found.extend(child for child, (parent, _) in rows.items() if parent == pid)
    return sum(rows[pid][1] for pid in found) / os.sysconf("SC_CLK_TCK")


def _ratio(one: list[Seconds], cluster: list[Seconds]) -> dict[str, float]:
    wall, wall_on = (median(each.wall for each in passes) for passes in (one, cluster))
    cpu, cpu_on = (median(each.cpu for each in passes) for passes in (one, cluster))
    return {
        "one_process_s": round(wall, 3),
        "cluster_s": round(wall_on, 3),
        "speedup": round(wall / wall_on, 3),
        "one_process_cpu_s": round(cpu, 3),
        "cluster_cpu_s": round(cpu_on, 3),
    }


if __name__ == "__main__":
    main()
