"""Reports of fixed numbers: what the report's tests render."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import Any

from exporter.report.model import Report
from tests.exporter.report_documents import bench, evaluate, parity

HOSTILE = "<script>alert(1)</script>\"'><img src=http://198.51.100.1/x onerror=alert(2)>.onnx"
"""A name that would run a script or fetch something wherever it is written unescaped."""


def stages() -> tuple[dict[str, Any], ...]:
    """The way of a model to INT8."""
    return (
        {"name": "checkpoint", "sqnr_db": None, "passed": None, "note": "ResNet-50, 25.6 M parameters"},
        {"name": "folded", "sqnr_db": 134.2, "passed": True, "note": "53 of 53 BatchNorms folded"},
        {"name": "ONNX", "sqnr_db": 132.8, "passed": True, "note": "opset 17, torch.export"},
        {"name": "simplified", "sqnr_db": 132.8, "passed": True, "note": "122 nodes"},
        {"name": "calibrated", "sqnr_db": 38.1, "passed": True, "note": "entropy, 512 images"},
        {"name": "INT8", "sqnr_db": 31.8, "passed": True, "note": "per channel, biases as INT32, 2 layers kept FP32"},
    )


def layers(count: int = 54) -> tuple[dict[str, Any], ...]:
    """Ranges of the layers."""
    return tuple(
        {
            "layer": f"layer{1 + each * 4 // count}.{each // 3 % 6}.conv{1 + each % 3}",
            "low": -3.0 - 2.2 * math.sin(each) if each % 3 else 0.0,
            "high": 4.5 + 3.1 * math.cos(0.7 * each) + (9.0 if each == 40 else 0.0),
            "scale": (4.5 + 3.1 * math.cos(0.7 * each)) / 127,
            "sqnr_db": 38.0 - 0.1 * each + 3 * math.sin(2.3 * each),
        }
        for each in range(count)
    )


def images(count: int = 6) -> tuple[dict[str, Any], ...]:
    """Thumbnails with other answers."""
    pairs = (
        ("tabby", "tabby", "tiger cat"),
        ("lynx", "tabby", "lynx"),
        ("cup", "espresso", "cup"),
        ("tench", "goldfish", "lynx"),
    )
    return tuple(
        {
            "image": _png(each),
            "file": f"val/ILSVRC2012_val_{4711 + each:08}.JPEG",
            "label": pairs[each % 4][0],
            "from": pairs[each % 4][1],
            "to": pairs[each % 4][2],
            "runtime": "openvino r50-int8.onnx",
        }
        for each in range(count)
    )


def _png(seed: int, side: int = 48) -> str:
    """A small colour picture as a data URI."""
    lines = b"".join(
        b"\0"
        + bytes(
            int(127 + 100 * math.sin((x * (1 + channel) + y * seed) / 9)) for x in range(side) for channel in range(3)
        )
        for y in range(side)
    )
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines)), (b"IEND", b""))
    data = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )
    return "data:image/png;base64," + base64.b64encode(b"\x89PNG\r\n\x1a\n" + data).decode()


def full(**changes: Any) -> Report:
    """A report with everything in it that passes; ``changes`` replace fields."""
    fields: dict[str, Any] = {
        "parity": parity(drift=True),
        "evaluate": evaluate(),
        "bench": bench(),
        "title": "ResNet-50 to INT8",
        "date": "21 November 2026",
        "stages": stages(),
        "layers": layers(),
        "images": images(),
    }
    return Report(**{**fields, **changes})


def hostile() -> Report:
    """Every name in the report is HOSTILE."""
    documents = {"parity": parity(2, failing=(1,), drift=True), "evaluate": evaluate(2), "bench": bench(2)}
    names = {
        "label",
        "file",
        "runtime",
        "against",
        "class",
        "from",
        "to",
        "finding",
        "layer",
        "op",
        "probed",
        "first",
        "reason",
        "precision",
        "cpu",
        "path",
        "worst_file",
    }

    def spoil(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: spoil(item, name) for name, item in value.items()}
        if isinstance(value, list):
            return [spoil(item) for item in value]
        return HOSTILE if key in names and isinstance(value, str) else value

    images_ = tuple(
        {**row, "file": HOSTILE, "label": HOSTILE, "image": "http://198.51.100.1/x.png"} for row in images(2)
    )
    stages_ = tuple({**row, "name": HOSTILE, "note": HOSTILE} for row in stages())
    layers_ = tuple({**row, "layer": HOSTILE} for row in layers(4))
    spoiled = {name: spoil(document) for name, document in documents.items()}
    return Report(**spoiled, title=HOSTILE, date=HOSTILE, stages=stages_, layers=layers_, images=images_)


def long_names(report_rows: int = 4) -> Report:
    """Labels that no column is made for."""

    def lengthen(document: dict[str, Any]) -> dict[str, Any]:
        folder = "build/2026-11-21/imagenet/resnet50_v1.5_tv2_augmented_ema/export_int8_percentile"
        rows = document["results"]
        labels = [f"{row['runtime']}:{folder}/{row['file']}@threads=8,batch=16" for row in rows]
        return {**document, "results": [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]}

    return Report(
        parity=lengthen(parity(report_rows)),
        evaluate=lengthen(evaluate(report_rows)),
        bench=lengthen(bench(report_rows)),
        title="A" * 120,
    )
