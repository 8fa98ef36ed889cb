"""What the runtime layer and `bench` add to a bare loop over the same ONNX Runtime session.

The session is opened once. A run of it alone, and a run through `runtimes.ort.OrtRuntime` with its checks and its copy,
take turns by the code that `bench` measures with. Bound that the project holds itself to: the median through the layer
is at most 1.02 times the bare one for ResNet-18 and ResNet-50; where a noisy machine leaves the 95 % interval on both
sides of the bound, that is said, and nothing is decided. The outputs of both are compared as well. A model that does
next to nothing shows what a run costs in microseconds, which no noise of that size can hide.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

sys.path.insert(0, str(Path(__file__).parent))
from files import exported
from machine import describe

from runtimes.base import Array, Binding, Floats, Runtime
from runtimes.latency import Candidate, measure
from runtimes.ort import OrtRuntime
from runtimes.turns import Plan

_HERE = Path(__file__).parent
BOUND = 1.02
_BOUNDED = ("resnet18", "resnet50")


class Bare(Runtime):
    """The session of another runtime, run as a script would: nothing is checked, nothing copied."""

    def __init__(self, runtime: OrtRuntime) -> None:
        super().__init__("bare")
        self._binding = Binding(runtime.inputs[0], runtime.outputs[0], runtime.used)
        self._is_open = True
        session, name = runtime._session, runtime.inputs[0].name
        assert session is not None  # it is open
        self._session, self._name = session, name

    def run(self, batch: Array) -> Floats:
        """One run, and no more."""
        output: Floats = self._session.run(None, {self._name: batch})[0]
        return output

    def _open(self) -> Binding:
        raise NotImplementedError("it is open from the start")

    def _run(self, batch: Array) -> Array:
        return self.run(batch)


def main() -> None:
    """Measure, print the ratios, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "overhead.json")
    given = parser.parse_args()
    plan = Plan(rounds=given.rounds, turn_ms=60.0, isolated=False)
    rows = [row for name in ("resnet20", *_BOUNDED) for row in compared(name, given.threads, plan)]
    result = {
        "rows": rows,
        "per_run_us": per_run_us(plan),
        "threads": given.threads,
        "bound": BOUND,
        "environment": describe(),
    }
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(f"{row['model']} batch {row['batch']}: {row['ratio']} {row['ci95']}: within {BOUND}: {row['within']}")
    print(f"a run through the layer costs {result['per_run_us']} us more")
    exceeded = [f"{row['model']} batch {row['batch']}" for row in rows
                if row["model"] in _BOUNDED and row["within"] is False]  # fmt: skip
    if exceeded:
        sys.exit(f"beyond its bound: {', '.join(exceeded)}")


def compared(name: str, threads: int, plan: Plan) -> list[dict[str, Any]]:
    """Both ways through one session, at batch 1 and 8."""
    with OrtRuntime(exported(name), threads=threads) as runtime:
        side = runtime.inputs[0].shape[-1]
        images = np.random.default_rng(0).standard_normal((8, 3, side or 32, side or 32), dtype=np.float32)
        return [row(name, batch, runtime, images, plan) for batch in (1, 8)]


def row(name: str, batch: int, runtime: OrtRuntime, images: Floats, plan: Plan) -> dict[str, Any]:
    """One batch size."""
    bare = Bare(runtime)
    if not np.array_equal(bare.run(images[:batch]), runtime.run(images[:batch])):
        sys.exit(f"{name}: the layer changes the logits")
    candidates = [Candidate("bare", lambda: bare), Candidate("layer", lambda: runtime)]
    plain, layer = measure(candidates, (batch,), images, plan).results
    found = layer.ratio_to_first
    assert found is not None  # neither has failed
    assert found.ci95 is not None  # in rounds enough
    low, high = found.ci95
    return {
        "model": name,
        "batch": batch,
        "bare_p50_ms": round(plain.p50_ms, 4),
        "layer_p50_ms": round(layer.p50_ms, 4),
        "bare_min_ms": round(plain.min_ms, 4),
        "layer_min_ms": round(layer.min_ms, 4),
        "ratio": round(found.ratio, 4),
        "ci95": [round(low, 4), round(high, 4)],
        "within": True if high <= BOUND else False if low > BOUND else None,
        "runs": layer.runs,
        "noisy": plain.noisy or layer.noisy,
    }


def per_run_us(plan: Plan) -> float:
    """Microseconds that the layer adds to a run, from a model whose own time is of that order."""
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["input"], ["logits"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 4, 4])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 48])],
    )
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    with OrtRuntime(model.SerializeToString(), threads=1) as runtime:
        bare = Bare(runtime)
        candidates = [Candidate("bare", lambda: bare), Candidate("layer", lambda: runtime)]
        plain, layer = measure(candidates, (1,), np.zeros((1, 3, 4, 4), np.float32), plan).results
    return round(1e3 * (layer.p50_ms - plain.p50_ms), 2)


if __name__ == "__main__":
    main()
