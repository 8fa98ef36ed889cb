"""`evaluate` over labelled images, beside a script that only decodes them and runs the model.

Both use one ONNX Runtime session each that is open already, the same batches, and take turns in whole passes, so that a
noisy machine hurts both alike. Decoding beside the model only saves time where a second core is idle, so processor time
is given as well. Bound that the project holds itself to: at most 1.2 times the script's time, intervals,
counts, hashes and checks included. Both have to find the same images right.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from files import exported
from machine import describe

from calibration.images import ImageFile, find_images, sample
from calibration.preprocess import Preprocessing
from exporter.evaluate import EvaluateOptions, evaluate_models
from exporter.quantisation_inputs import contract_of, open_model
from exporter.subjects import Subject
from runtimes.intervals import ratio_of_medians
from runtimes.ort import OrtRuntime

_HERE = Path(__file__).parent
BOUND = 1.2
_BATCH = 32


class Seconds(NamedTuple):
    """By the clock on the wall, and of all processors together."""

    wall: float
    cpu: float


def main() -> None:
    """Measure, print the ratio, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="class folders of images as large as the model's")
    parser.add_argument("--model", default="resnet20", help="checkpoint, or a variant with random weights")
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "evaluate.json")
    given = parser.parse_args()
    result = measure(exported(given.model), given.data, given.images, given.rounds, given.threads)
    result["model"] = Path(given.model).name
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(
        json.dumps({name: result[name] for name in ("ours_s", "script_s", "decoding_s", "ratio", "ci95", "cpu_ratio")})
    )
    if result["ratio"] > BOUND:
        sys.exit(f"beyond its bound of {BOUND}: {result['ratio']}")


def measure(model: Path, root: Path, count: int, rounds: int, threads: int) -> dict[str, Any]:
    """Seconds of both, and their ratio."""
    files = sample(find_images(root), count)
    contract = contract_of(*open_model(model), None, {})
    with OrtRuntime(model, threads=threads) as ours, OrtRuntime(model, threads=threads) as theirs:
        subject = Subject("model", "onnxruntime", model.name, ours)

        def evaluated() -> float:
            options = EvaluateOptions(batch=_BATCH)
            report = evaluate_models([subject], files, contract, options, path=root.name)
            return float(report.results[0]["top1"])

        def script() -> float:
            return bare(theirs, files, contract)

        if evaluated() != script():
            sys.exit("not the same images are right")
        times: dict[Callable[[], float], list[Seconds]] = {evaluated: [], script: []}
        for each in range(rounds):
            for way in (evaluated, script) if each % 2 else (script, evaluated):
                times[way].append(seconds(way))
        decoding = seconds(lambda: float(len([pixels(file, contract) for file in files])))
    wall = {way: [each.wall for each in passes] for way, passes in times.items()}
    cpu = {way: median(each.cpu for each in passes) for way, passes in times.items()}
    found = ratio_of_medians(wall[evaluated], wall[script])
    return {
        "images": len(files),
        "batch": _BATCH,
        "threads": threads,
        "ours_s": round(median(wall[evaluated]), 3),
        "script_s": round(median(wall[script]), 3),
        "decoding_s": round(decoding.wall, 3),
        "ratio": round(found.ratio, 3),
        "ci95": [round(end, 3) for end in found.ci95 or ()],
        "ours_cpu_s": round(cpu[evaluated], 3),
        "script_cpu_s": round(cpu[script], 3),
        "cpu_ratio": round(cpu[evaluated] / cpu[script], 3),
        "bound": BOUND,
        "environment": describe(),
    }


def seconds(way: Callable[[], float]) -> Seconds:
    """Of one pass."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    way()
    return Seconds(time.perf_counter() - begin, time.process_time() - begin_cpu)


def bare(runtime: OrtRuntime, files: list[ImageFile], contract: Preprocessing) -> float:
    """The shortest script: decode a batch, run it, count what is right."""
    session, name = runtime._session, runtime.inputs[0].name
    assert session is not None  # it is open
    right = 0
    for start in range(0, len(files), _BATCH):
        part = files[start : start + _BATCH]
        logits = session.run(None, {name: np.stack([pixels(file, contract) for file in part])})[0]
        right += int((logits.argmax(axis=1) == [file.label for file in part]).sum())
    return right / len(files)


def pixels(file: ImageFile, contract: Preprocessing) -> Any:
    """Decoding by hand; the images have the model's size already."""
    with Image.open(file.path) as image:
        scaled = np.asarray(image.convert("RGB"), np.float32) * np.float32(contract.scale)
    normalised = (scaled - np.array(contract.mean, np.float32)) / np.array(contract.std, np.float32)
    return normalised.transpose(2, 0, 1)


if __name__ == "__main__":
    main()
