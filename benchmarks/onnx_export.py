"""`resnet-export onnx`, all checks included, beside a script that only exports and simplifies.

Whole processes are measured, imports and all, in interleaved rounds, so that a noisy machine hurts both alike.
Bounds that the project holds itself to: at most 1.5 times the time and 1.3 times the peak memory of the peer, and
`resnet-export --help` within 0.3 s.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import onnx

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

_HERE = Path(__file__).parent
BOUNDS = {"time_ratio": 1.5, "memory_ratio": 1.3, "help_s": 0.3}
_COMMAND = Path(sys.executable).with_name("resnet-export")


class Run(NamedTuple):
    """One process: wall seconds, and its largest resident set in MiB."""

    seconds: float
    peak_mb: float


def measure(command: list[str]) -> Run:
    """Run a command to its end; a failing one ends the benchmark."""
    begin = time.perf_counter()
    with Path(os.devnull).open("wb") as void:
        actions = [(os.POSIX_SPAWN_DUP2, void.fileno(), 1), (os.POSIX_SPAWN_DUP2, void.fileno(), 2)]
        pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions)
        _, status, usage = os.wait4(pid, 0)
    seconds = time.perf_counter() - begin
    if status:
        sys.exit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
    return Run(seconds, usage.ru_maxrss / 1024)


def summary(runs: list[Run]) -> dict[str, Any]:
    """Medians, and every single value."""
    return {
        "median_s": round(statistics.median(run.seconds for run in runs), 3),
        "median_peak_mb": round(statistics.median(run.peak_mb for run in runs), 1),
        "seconds": [round(run.seconds, 3) for run in runs],
        "peak_mb": [round(run.peak_mb, 1) for run in runs],
    }


def convolutions(path: Path) -> int:
    """Both files have to be the same network before their times mean anything."""
    return sum(node.op_type == "Conv" for node in onnx.load(path).graph.node)


def main() -> None:
    """Measure, print the ratios, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "onnx_export.json")
    given = parser.parse_args()

    ours: list[Run] = []
    peer: list[Run] = []
    helps: list[Run] = []
    with tempfile.TemporaryDirectory() as folder:
        our_file, peer_file = Path(folder) / "ours.onnx", Path(folder) / "peer.onnx"
        export = [str(_COMMAND), "onnx", given.model, "--weights", "random", "-o", str(our_file), "--json"]
        script = [sys.executable, str(_HERE / "peer_export.py"), given.model, str(peer_file)]
        for each in range(given.rounds + 1):
            order = ((script, peer), (export, ours)) if each % 2 else ((export, ours), (script, peer))
            for command, runs in order:
                runs.append(measure(command))
            helps.append(measure([str(_COMMAND), "--help"]))
            print(f"round {each}: ours {ours[-1].seconds:.2f} s, peer {peer[-1].seconds:.2f} s", flush=True)
        counts = convolutions(our_file), convolutions(peer_file)
    if counts[0] != counts[1]:
        sys.exit(f"not the same network: {counts[0]} and {counts[1]} convolutions")

    for runs in (ours, peer, helps):
        runs.pop(0)  # the first round fills the file cache
    pairs = list(zip(ours, peer, strict=True))
    result: dict[str, Any] = {
        "model": given.model,
        "ours": summary(ours),
        "peer": summary(peer),
        "help": summary(helps),
        "time_ratio": round(statistics.median(a.seconds / b.seconds for a, b in pairs), 3),
        "memory_ratio": round(statistics.median(a.peak_mb / b.peak_mb for a, b in pairs), 3),
        "bounds": BOUNDS,
        "environment": describe(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    reached = {
        "time_ratio": result["time_ratio"],
        "memory_ratio": result["memory_ratio"],
        "help_s": result["help"]["median_s"],
    }
    print(json.dumps(reached))
    exceeded = [name for name, bound in BOUNDS.items() if reached[name] > bound]
    if exceeded:
        sys.exit(f"beyond its bound: {', '.join(exceeded)}")


if __name__ == "__main__":
    main()
