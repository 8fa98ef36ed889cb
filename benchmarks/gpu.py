"""What needs a GPU, in a few minutes: do engines compute what their files do, and how fast are they?

Eager PyTorch on CUDA is the reference. Beside it: the ONNX file on ONNX Runtime (CPU, CUDA, TensorRT), the INT8 file's
simulation, engines of every TensorRT package that is installed in FP32, FP16 and INT8, and torch.compile in FP16 and
BF16. Each part that cannot be had here says why, and the others go on; without a GPU the results say *not run*.

``--rehearse`` goes the same way on the CPU with a small network, to try the script where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

from runtimes.errors import ResnetExportError
from runtimes.tensorrt.device import find_devices
from runtimes.tensorrt.flavour import survey

_HERE = Path(__file__).parent
_DIGITS = _HERE.parent / "examples" / "digits" / "images" / "test"
_LARGEST = 32


def main() -> int:
    """Measure, print what came of each part, write the results file.

    Returns:
        1 where something was to be measured and nothing was, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=Path, default=_DIGITS, help="photographs; default: the embedded digits")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "gpu.json")
    given = parser.parse_args()
    search = find_devices()
    result: dict[str, Any]
    if not search.devices and not given.rehearse:
        result = {"status": "not run", "reason": search.reason, "environment": describe()}
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = _Run(given, Path(folder)).all()
        result["status"] = "rehearsed, without a GPU" if given.rehearse else "run"
    result["gpus"] = [device.to_json() for device in search.devices]
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    told = {name: part.get("status", part) for name, part in result.items() if isinstance(part, dict)}
    print(json.dumps({"status": result["status"], "reason": result.get("reason"), **told}, indent=2, default=str))
    parts = [part for name, part in result.items() if name in _Run.PARTS]
    return int(bool(parts) and not any(map(_worked, parts)))


class _Run:
    """One run over all parts; what a part makes, later ones use."""

    PARTS = ("files", "engines", "parity", "latency")

    def __init__(self, given: argparse.Namespace, folder: Path) -> None:
        self.given, self.folder = given, folder
        self.files: dict[str, Path] = {}
        self.engines: list[str] = []
        self.where = "cpu" if given.rehearse else "cuda"

    def all(self) -> dict[str, Any]:
        """What came of each part."""
        made = (self.make_files, self.build, self.parity, self.latency)
        found = {name: _guarded(part) for name, part in zip(self.PARTS, made, strict=True)}
        return {**found, "model": self.given.model, "environment": describe()}

    def make_files(self) -> dict[str, Any]:
        """The float, half and INT8 file of one network with random weights."""
        from calibration.outcome import Options
        from calibration.placement import target
        from exporter.models.source import SourceOptions, load_model
        from exporter.pipeline import export_onnx
        from exporter.quantise import Inputs, quantise_onnx
        from exporter.results import OnnxOptions

        loaded = load_model(self.given.model, SourceOptions(weights="random"))
        for precision in ("fp32", "fp16"):
            self.files[precision] = self.folder / f"{precision}.onnx"
            export_onnx(loaded, self.files[precision], OnnxOptions(precision=precision))
        self.files["int8"] = self.folder / "int8.onnx"
        report = quantise_onnx(
            Inputs(model=self.files["fp32"], data=self.given.images, images=64), self.files["int8"],
            Options(target("tensorrt"), effort="fast"),
        )  # fmt: skip
        return {"int8_fidelity": report.fidelity.to_json() if report.fidelity else None}

    def build(self) -> dict[str, Any]:
        """An engine of each file by each package: seconds, bytes, what it runs; or why there is none."""
        packages = survey().working
        found: dict[str, Any] = {"packages": {item.name: item.version for item in packages}}
        for item in packages:
            if not item.can_build:  # the lean and the dispatch package only run engines
                continue
            for precision, source in self.files.items():
                found[f"{item.name} {precision}"] = _guarded(partial(self._engine, item, precision, source))
        return found

    def _engine(self, item: Any, precision: str, source: Path) -> dict[str, Any]:
        from exporter.engine import build_engine
        from runtimes.tensorrt.build import BuildOptions
        from runtimes.tensorrt.profile import Size

        # None is named: an engine of TensorRT-RTX is then for every GPU from Ampere on, those it does not list too.
        options = BuildOptions(sizes=(Size(1), Size(8), Size(_LARGEST)))
        path = self.folder / f"{item.name}-{precision}.engine"
        report = build_engine(source, path, options, name=item.name)
        self.engines.append(f"{item.name.replace('_', '-')}:{path}@model={source}")
        told = report.to_json()
        return {name: told[name] for name in ("bytes", "build_seconds", "precision", "summary", "notes")}

    def specs(self) -> list[str]:
        """Everything that is compared and timed, the reference first."""
        network = f"{self.given.model}@weights=random"
        specs = [f"eager:{network},device={self.where}", f"onnxruntime:{self.files['fp32']}"]
        specs += [f"torch-compile:{network},device={self.where},dtype={kind},channels_last=true"
                  for kind in ("float16", "bfloat16")]  # fmt: skip
        if self.given.rehearse:
            return [*specs, f"onnxruntime:{self.files['int8']}"]
        specs += [f"{name}:{path}" for name in ("ort-cuda", "ort-tensorrt") for path in self.files.values()]
        return [*specs, *self.engines]

    def parity(self) -> dict[str, Any]:
        """Everything against eager; INT8 against its simulation as well."""
        from calibration.listing import find_images
        from exporter.compare import CompareOptions, compare_models
        from exporter.proof_inputs import contract_for, prepare_all

        found = {}
        listing = find_images(self.given.images)
        for spec in self.specs()[1:]:  # each alone: one that cannot be opened must not keep the rest

            def compared(spec: str = spec) -> dict[str, Any]:
                models = prepare_all([self.specs()[0], spec])
                report = compare_models(
                    models, listing, contract_for(models, None, {}), CompareOptions(images=64, simulated=16),
                    path=self.given.images.name,
                )  # fmt: skip
                return {"passed": report.passed, "rows": [_without_paths(row) for row in report.results]}

            found[_short(spec)] = _guarded(compared)
        return found

    def latency(self) -> dict[str, Any]:
        """Everything that can be opened, in turns."""
        from exporter.bench import bench_images, bench_models
        from exporter.proof_inputs import contract_for, prepare_all
        from runtimes.turns import Plan

        models: list[Any] = []
        left_out = {}
        for spec in self.specs():

            def opened(spec: str = spec) -> dict[str, Any]:
                (model,) = prepare_all([spec])
                with model.runtime:
                    pass
                models.append(model)
                return {}

            tried = _guarded(opened)
            if tried["status"] == "failed":
                left_out[_short(spec)] = tried["reason"]
        if not models:
            return {"status": "failed", "reason": "nothing can be opened", "left_out": left_out}
        images = bench_images(contract_for(models, None, {}), _LARGEST)
        sizes = (1,) if self.given.rehearse else (1, 8, _LARGEST)
        report = bench_models(
            [model.subject() for model in models], sizes, images, Plan(rounds=self.given.rounds, isolated=False)
        )
        rows = [_without_paths(row) for row in (*report.results, *report.failures)]
        return {"rows": rows, "left_out": left_out, "environment": report.environment}


def _guarded(part: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return {"status": "run", **part()}
    except ResnetExportError as error:
        return {"status": "failed", "reason": str(error)}
    except Exception as error:  # noqa: BLE001  (time on a GPU is rare: what other parts find must not be lost)
        return {"status": "failed", "reason": f"{type(error).__name__}: {error}"}


def _worked(part: dict[str, Any]) -> bool:
    """Whether anything came of a part: of itself, and of one of its own parts where it has some."""
    own = [each["status"] for each in part.values() if isinstance(each, dict) and "status" in each]
    return part["status"] == "run" and (not own or "run" in own)


def _short(spec: str) -> str:
    """Without the folder, which is another one each time."""
    head, _, rest = spec.partition(":")
    file, at, options = rest.partition("@")
    kept = ",".join(option for option in options.split(",") if not option.startswith("model="))
    return f"{head}:{Path(file).name}{at if kept else ''}{kept}"


def _without_paths(row: dict[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in row.items() if name not in ("file", "worst_file", "tolerance", "sha256")}
    for name in ("label", "against"):
        if isinstance(kept.get(name), str):
            kept[name] = _short(kept[name])
    return kept


if __name__ == "__main__":
    sys.exit(main())
