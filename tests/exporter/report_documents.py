"""Documents as the proof commands write them, made of fixed numbers."""

from __future__ import annotations

import math
from typing import Any

_RUNTIMES = (
    # label, precision, SQNR, agreement, top-1, p50 at batch 1, bytes
    ("onnxruntime r50.onnx", "fp32", 131.4, 1.0, 0.7613, 21.4, 102_240_000),
    ("openvino r50.onnx", "fp32", 127.9, 1.0, 0.7613, 14.9, 102_240_000),
    ("onnxruntime r50-fp16.onnx", "fp16", 61.2, 0.9993, 0.7611, 23.0, 51_190_000),
    ("openvino r50-int8.onnx", "int8", 31.8, 0.9871, 0.7588, 5.62, 26_010_000),
    ("onnxruntime r50-int8.onnx", "int8", 30.9, 0.9854, 0.7579, 8.31, 26_010_000),
)
_MORE = (
    ("torch-compile r50.pth", "fp32", 133.0, 1.0, 0.7613, 19.8, 102_400_000),
    ("tensorrt r50-fp16.engine", "fp16", 58.9, 0.9989, 0.7612, 0.71, 51_900_000),
    ("tensorrt r50-int8.engine", "int8", 30.2, 0.9849, 0.7577, 0.48, 27_200_000),
    ("tensorrt-rtx r50-fp16.engine", "fp16", 59.4, 0.9990, 0.7612, 0.74, 51_800_000),
    ("tensorrt-rtx r50-int8.engine", "int8", 30.0, 0.9846, 0.7575, 0.49, 27_100_000),
    ("ort-cuda r50.onnx", "fp32", 118.2, 1.0, 0.7613, 1.92, 102_240_000),
    ("ort-tensorrt r50-fp16.onnx", "bf16", 48.3, 0.9961, 0.7604, 0.79, 51_190_000),
)
_BOUNDS = {
    "fp32": (100.0, 60.0, 512.0),
    "fp16": (40.0, 20.0, 524288.0),
    "bf16": (30.0, 15.0, None),
    "int8": (20.0, 10.0, None),
}
_REASONS = {
    "fp32": "Only the order of float32 operations differs: rounding noise grows about as the square root of the terms.",
    "fp16": "Each operation rounds to 11 significant bits; independent roundings of 152 layers leave 48 dB.",
    "bf16": "Each operation rounds to 8 significant bits; independent roundings of 152 layers leave 30 dB.",
    "int8": "Eight bits per tensor: 255 steps leave 30 to 40 dB, of which the depth takes up to 10.",
}
_ENVIRONMENT = {
    "cpu": "AMD EPYC 7763 64-Core Processor",
    "cores": 8,
    "load_before": 0.12,
    "load_after": 0.98,
    "mhz": 2450.0,
    "governor": "performance",
    "python": "3.11.7",
    "platform": "Linux-6.1-x86_64-glibc2.36",
    "versions": {
        "torch": "2.14.1",
        "onnx": "1.21.0",
        "onnxruntime": "1.25.0",
        "openvino": "2026.4.1",
        "numpy": "2.3.4",
    },
}


def rows(count: int = 5) -> list[tuple[Any, ...]]:
    """Numbers of the first ``count`` runtimes, of at most twelve."""
    return list((*_RUNTIMES, *_MORE)[:count])


def parity(
    count: int = 5, failing: tuple[int, ...] = (), crashed: tuple[int, ...] = (), drift: bool = False
) -> dict[str, Any]:
    """A parity document; ``failing`` and ``crashed`` are indices of results."""
    results = [_parity_row(index, index in failing, index in crashed) for index in range(count)]
    return {
        "schema": 1,
        "command": "parity",
        "reference": {
            "runtime": "eager",
            "file": "r50.pth",
            "used": {"torch": "2.14.1", "threads": 8},
            "sha256": "11ad3fa6" + "0" * 56,
            "bytes": 102_530_000,
            "precision": "fp32",
        },
        "data": {
            "path": "imagenet/val",
            "images": 8000,
            "sha256": "5f" * 32,
            "preprocessing": {"resize": 256, "crop": 224},
        },
        "results": results,
        "passed": not failing and not crashed,
        "drift": [drift_of(3, failing=3 in failing), drift_of(0)] if drift else None,
        "environment": _ENVIRONMENT,
    }


def _parity_row(index: int, failing: bool, crashed: bool) -> dict[str, Any]:
    label, precision, sqnr, agreement, _, _, size = rows(12)[index]
    if failing:
        sqnr, agreement = 14.2, 0.8312
    least, decision, ulp = _BOUNDS[precision]
    finding = f"SQNR is {sqnr:.6g} dB, at least {least:g} dB is required" if failing else None
    row: dict[str, Any] = {
        "runtime": label.split()[0],
        "file": label.split()[1],
        "label": label,
        "precision": precision,
        "against": "int8-sim r50-int8.onnx" if precision == "int8" else "eager r50.pth",
        "n": 8000,
        "max_abs": 3e-5 * 10 ** ((130 - sqnr) / 20),
        "mean_abs": 2e-6 * 10 ** ((130 - sqnr) / 20),
        "max_rel": 2e-6,
        "max_ulp": 18.0 * 10 ** ((130 - sqnr) / 20),
        "sqnr_db": sqnr,
        "decision_sqnr_db": sqnr - 6.3,
        "cosine": 0.99999,
        "top1_agreement": agreement,
        "top1_ci95": [max(agreement - 0.0031, 0.0), min(agreement + 0.0009, 1.0)],
        "tolerance": {
            "min_sqnr_db": least,
            "min_decision_db": decision,
            "max_ulp": ulp,
            "min_top1": None,
            "reason": _REASONS[precision],
        },
        "passed": not failing,
        "finding": finding,
        "worst_sample": 4711,
        "worst_file": "n02123045/ILSVRC2012_val_00004711.JPEG",
        "used": {"threads": 8, "device": "CPU"},
        "sha256": f"{index:02x}" * 32,
        "bytes": size,
        "seconds": 12.5 + index,
        "error": None,
    }
    if crashed:
        dead = dict.fromkeys(
            (
                "n",
                "max_abs",
                "mean_abs",
                "max_rel",
                "max_ulp",
                "sqnr_db",
                "decision_sqnr_db",
                "cosine",
                "top1_agreement",
                "top1_ci95",
                "worst_sample",
                "worst_file",
            )
        )
        row |= {
            **dead,
            "passed": False,
            "finding": None,
            "error": "no CUDA device: install the driver, or leave out tensorrt",
        }
    return row


def drift_of(index: int, layers: int = 54, failing: bool = False) -> dict[str, Any]:
    """A drift document of one runtime, whose error grows with the depth; a failing one has a fault at two thirds."""
    label, precision, sqnr, *_ = rows(12)[index]
    bound, found = _BOUNDS[precision][0], []
    for depth in range(layers):
        value = sqnr + 12 - 9 * math.sqrt(depth / layers) + 2.5 * math.sin(1.7 * depth)
        if failing and depth >= 36:
            value = 13.0 + 1.2 * math.sin(depth) + 0.1 * (depth - 36)
        name = f"layer{1 + depth * 4 // layers}.{depth // 3 % 6}.conv{1 + depth % 3}"
        rms = 0.4 + 0.1 * (depth % 5)
        error = rms * 10 ** (-value / 20)
        found.append(
            {
                "layer": name,
                "op": "Conv",
                "depth": depth,
                "sqnr_db": value,
                "mean_abs": 0.8 * error,
                "max_abs": 6 * error,
                "rms": rms,
                "bound_db": bound,
                "passed": value >= bound,
            }
        )
    first = next((row["layer"] for row in found if not row["passed"]), None)
    return {
        "runtime": label.split()[0],
        "file": label.split()[1],
        "label": label,
        "layers": found,
        "first": first,
        "probed": "Every convolution and addition was read out on 64 images, as extra outputs of the graph.",
    }


def evaluate(count: int = 5, classes: int = 10, passed: bool = True) -> dict[str, Any]:
    """An evaluate document whose first result is the reference."""
    reference = ("eager r50.pth", "fp32", 300.0, 1.0, 0.7613, 30.2, 102_530_000)
    names = [
        "tench",
        "goldfish",
        "tiger cat",
        "tabby",
        "lynx",
        "sports car",
        "convertible",
        "espresso",
        "cup",
        "mushroom",
    ]
    results = []
    for index, (label, _, _, agreement, top1, _, _) in enumerate([reference, *rows(count)]):
        changed = round(8000 * (1 - agreement))
        pairs = [
            ("tabby", "tiger cat", 5),
            ("tiger cat", "tabby", 3),
            ("lynx", "tabby", 2),
            ("cup", "espresso", 2),
            ("convertible", "sports car", 1),
        ]
        results.append(
            {
                "runtime": label.split()[0],
                "file": label.split()[1],
                "label": label,
                "n": 8000,
                "top1": top1,
                "top1_ci95": [top1 - 0.0094, top1 + 0.0092],
                "top5": top1 + 0.1676,
                "top5_ci95": [top1 + 0.1616, top1 + 0.1732],
                "per_class": [
                    {"class": name, "n": 50, "top1": round(top1 + 0.02 * math.sin(3 * each + index), 2)}
                    for each, name in enumerate(names[:classes])
                ],
                "mcnemar_p": None if not index else min(1.0, 0.9 / (1 + changed / 20)),
                "only_reference_right": changed // 3,
                "only_this_right": changed // 4,
                "changed": changed,
                "changes": [
                    {"file": f"val/{each:05}.jpg", "label": a, "from": a, "to": b}
                    for each, (a, b, _) in enumerate(pairs)
                ]
                if changed
                else [],
                "confusion": [{"from": a, "to": b, "count": each} for a, b, each in pairs] if changed > 50 else [],
                "seconds": 40.0 + index,
                "used": {"threads": 8},
            }
        )
    return {
        "schema": 1,
        "command": "evaluate",
        "data": {"path": "imagenet/val", "images": 8000},
        "results": results,
        "passed": passed,
        "environment": _ENVIRONMENT,
    }


def bench(count: int = 5, batches: tuple[int, ...] = (1, 8)) -> dict[str, Any]:
    """A bench document whose first result is the slowest and the one that the others are held against."""
    reference = ("eager r50.pth", "fp32", 300.0, 1.0, 0.7613, 30.2, 102_530_000)
    results = []
    for batch in batches:
        for index, (label, _, _, _, _, p50, size) in enumerate([reference, *rows(count)]):
            median = p50 * batch**0.93
            quotient = p50 / 30.2
            results.append(
                {
                    "runtime": label.split()[0],
                    "file": label.split()[1],
                    "label": label,
                    "batch": batch,
                    "p50_ms": median,
                    "p90_ms": 1.04 * median,
                    "p99_ms": (1.11 + 0.05 * (index % 3)) * median,
                    "mean_ms": 1.01 * median,
                    "min_ms": 0.97 * median,
                    "images_per_s": 1000 * batch / median,
                    "peak_rss_mb": 310.0 + 1.1 * size / 1e6,
                    "cold_start_ms": 120.0 + 40 * index,
                    "bytes": size,
                    "spread": 0.012 + 0.006 * index,
                    "noisy": index == 4,
                    "rounds": 20,
                    "runs": 400,
                    "threads": 8,
                    "used": {"threads": 8},
                    "ratio_to_first": {
                        "ratio": quotient,
                        "ci95": [0.98 * quotient, 1.03 * quotient],
                        "faster": None if not index else quotient < 1,
                    },
                }
            )
    return {"schema": 1, "command": "bench", "results": results, "environment": _ENVIRONMENT}
