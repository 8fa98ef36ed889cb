"""Kill runs of a pipeline at random moments, go on with them, and compare every file with an undisturbed run.

::

    python benchmarks/kill_run.py --kills 20

The pipeline is that of ``examples/digits`` without ``bench``, whose times differ from run to run, and with fewer images
to compare, so that the moments fall into the stages that make files as often as into the others. Each disturbed run
starts in an empty folder, is killed (SIGKILL) after a random time within that of the undisturbed run, and is then gone
on with once. ``model.onnx``, ``ranges.json`` and the INT8 files are compared byte for byte, ``parity.json`` and
``evaluate.json`` without their fields ``seconds``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

ROOT = Path(__file__).resolve().parent.parent
PIPELINE = ROOT / "examples" / "digits" / "pipeline.toml"
_FILES = ("model.onnx", "ranges.json", "int8/tensorrt.onnx", "int8/onnxruntime.onnx", "int8/openvino.onnx")
_DOCUMENTS = ("parity.json", "evaluate.json")


def start(folder: Path) -> subprocess.Popen[bytes]:
    words = ["run", str(PIPELINE), "-o", str(folder), "--quiet", "--no-drift", "--set", "bench.batches=",
             "--set", "parity.images=64", "--set", "evaluate.images=64"]  # fmt: skip
    return subprocess.Popen([sys.executable, "-m", "exporter.cli", *words], cwd=ROOT, start_new_session=True)


def finish(folder: Path) -> float:
    begin = time.perf_counter()
    code = start(folder).wait()
    if code:
        raise SystemExit(f"the run ended with exit code {code}")
    return time.perf_counter() - begin


def hashes(folder: Path) -> dict[str, str]:
    found = {name: (folder / name).read_bytes() for name in _FILES}
    for name in _DOCUMENTS:
        document = without_times(json.loads((folder / name).read_bytes()))
        found[name] = json.dumps(document, sort_keys=True).encode()
    return {name: hashlib.sha256(data).hexdigest() for name, data in found.items()}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: without_times(each) for name, each in value.items() if name != "seconds"}
    return [without_times(each) for each in value] if isinstance(value, list) else value


def disturbed(folder: Path, after: float) -> list[str] | None:
    """Stages that were done when the run was killed; ``None`` where it had ended before, on a machine grown quieter."""
    process = start(folder)
    time.sleep(after)
    if process.poll() is not None:
        return None
    process.send_signal(signal.SIGKILL)
    process.wait()
    return sorted(path.stem for path in (folder / ".resnet-export" / "stages").glob("[!.]*.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "benchmarks" / "results" / "kill_run.json")
    given = parser.parse_args()
    draw = random.Random(given.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"  # the same for all: documents hold paths
        whole = undisturbed = finish(folder)
        wanted = hashes(folder)
        again = finish(folder)
        print(f"undisturbed: {whole:.1f} s, a second time {again:.2f} s", flush=True)
        while len(rows) < given.kills:
            shutil.rmtree(folder)
            after = draw.uniform(0.02, 1.0) * whole
            done = disturbed(folder, after)
            if done is None:
                whole = min(whole, after)
                continue
            resumed = finish(folder)
            found = hashes(folder)
            different = sorted(name for name in wanted if found[name] != wanted[name])
            rows.append({"after_s": round(after, 2), "stages_done": len(done), "resumed_s": round(resumed, 2),
                         "different": different})  # fmt: skip
            print(f"{len(rows):3} killed after {after:5.1f} s, {len(done)} stages done, {resumed:5.1f} s more, "
                  f"{'DIFFERENT: ' + ', '.join(different) if different else 'the same bytes'}", flush=True)  # fmt: skip
    same = all(not row["different"] for row in rows)
    document = {
        "undisturbed_s": round(undisturbed, 2), "second_run_s": round(again, 2), "kills": rows, "same_bytes": same,
        "sha256": wanted, "machine": describe(),
    }  # fmt: skip
    given.output.write_text(json.dumps(document, indent=2) + "\n")
    sys.exit(not same)


if __name__ == "__main__":
    main()
