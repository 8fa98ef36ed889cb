"""Models that the benchmarks measure: exported once, kept under build/."""

from __future__ import annotations

from pathlib import Path

_BUILD = Path(__file__).parent.parent / "build" / "benchmarks"


def exported(model: str) -> Path:
    """The ONNX file of a variant with random weights, or of a checkpoint: latency does not depend on the weights."""
    path = _BUILD / f"{Path(model).stem}.onnx"
    if path.exists():
        return path
    from exporter.models.source import SourceOptions, load_model
    from exporter.pipeline import export_onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    options = SourceOptions() if Path(model).exists() else SourceOptions(weights="random")
    export_onnx(load_model(model, options), path)
    return path
