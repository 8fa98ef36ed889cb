"""INT8 ResNet-50 on the CPU: our files beside those of `quantize_static` and NNCF, on the runtimes they are for.

All sessions are open at once and run in interleaved rounds, two threads each, so that a noisy machine hurts all alike;
the ratios are medians of ratios within a round. Bounds that the project holds itself to: our `onnxruntime` file takes
at most as long as `quantize_static` with U8 activations, our `openvino` file at most as long as NNCF's, at batch 1
and 8. Outputs are compared with the float file's as well: a fast file that computes something else is no peer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

sys.path.insert(0, str(Path(__file__).parent))
from machine import describe

from runtimes.statistics import compare

_HERE = Path(__file__).parent
_DIGITS = _HERE.parent / "examples" / "digits" / "images" / "test"
_THREADS = 2
_CALIBRATION = 32
BOUNDS = {"onnxruntime": 1.0, "openvino": 1.0}

Images = npt.NDArray[np.float32]
Run = Callable[[Images], Images]


def main() -> None:
    """Make the files, measure, print the ratios, write the results file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--images", type=Path, default=_DIGITS, help="photographs; default: the embedded digits")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=_HERE / "results" / "int8_cpu.json")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        result = measure(given.model, given.images, given.rounds, Path(folder))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result["ratios"], indent=2))
    exceeded = [f"{name} {batch}" for name, row in result["ratios"].items() for batch, ratio in row.items()
                if ratio > BOUNDS[name]]  # fmt: skip
    if exceeded:
        sys.exit(f"beyond its bound: {', '.join(exceeded)}")


def measure(name: str, root: Path, rounds: int, folder: Path) -> dict[str, Any]:
    """Latencies, ratios, fidelity and operator counts."""
    float_file = folder / "float.onnx"
    export(name, float_file)
    images = read(float_file, root)
    files = {"onnxruntime": folder / "ort.onnx", "openvino": folder / "ov.onnx"}
    for target, path in files.items():
        quantise(float_file, images, target, path)
    peer_file = folder / "static.onnx"
    quantize_static(float_file, images, peer_file)
    runs: dict[str, Run] = {
        "float, onnxruntime": onnxruntime_run(float_file),
        "quantize_static, onnxruntime": onnxruntime_run(peer_file),
        "ours, onnxruntime": onnxruntime_run(files["onnxruntime"]),
        "float, openvino": openvino_run(float_file),
        "nncf, openvino": nncf_run(float_file, images),
        "ours, openvino": openvino_run(files["openvino"]),
    }
    times = {batch: interleaved(runs, images[:batch], rounds) for batch in (1, 8)}
    reference = runs["float, onnxruntime"](images)
    return {
        "model": name,
        "threads": _THREADS,
        "median_ms": {
            each: {f"batch {b}": round(1e3 * statistics.median(t[each]), 2) for b, t in times.items()} for each in runs
        },
        "ratios": {
            target: {f"batch {b}": ratio(t[f"ours, {target}"], t[f"{peer}, {target}"]) for b, t in times.items()}
            for target, peer in (("onnxruntime", "quantize_static"), ("openvino", "nncf"))
        },
        "sqnr_db": {each: round(compare(reference, run(images)).sqnr_db, 2) for each, run in runs.items()},
        "optimised_ops": {
            "quantize_static": optimised(peer_file, folder),
            "ours": optimised(files["onnxruntime"], folder),
        },
        "bounds": BOUNDS,
        "environment": describe(),
    }


def ratio(ours: list[float], peer: list[float]) -> float:
    """Median over the rounds."""
    return round(statistics.median(a / b for a, b in zip(ours, peer, strict=True)), 3)


def interleaved(runs: dict[str, Run], batch: Images, rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round; the order turns around every other round."""
    found: dict[str, list[float]] = {name: [] for name in runs}
    for each in range(rounds + 3):
        for name in list(runs) if each % 2 else list(runs)[::-1]:
            begin = time.perf_counter()
            runs[name](batch)
            if each >= 3:  # the first rounds warm up
                found[name].append(time.perf_counter() - begin)
    return found


def export(name: str, path: Path) -> None:
    """A folded float file with random weights: latency does not depend on them."""
    from exporter.models.source import SourceOptions, load_model
    from exporter.pipeline import export_onnx

    export_onnx(load_model(name, SourceOptions(weights="random")), path)


def read(model: Path, root: Path) -> Images:
    """Some images as the model takes them."""
    from calibration.images import batches
    from exporter.quantisation_inputs import choose_images, contract_of, open_model

    network, metadata = open_model(model)
    files = choose_images(root, _CALIBRATION, 0)
    contract = contract_of(network, metadata, None, {})
    return np.concatenate([tensor for tensor, _ in batches(files, contract, 8)])


def quantise(model: Path, images: Images, target: str, path: Path) -> None:
    """Our file, effort fast: refinement changes numbers, not operators."""
    from calibration.collect import Collector, collect
    from calibration.outcome import Options
    from calibration.placement import target as find
    from calibration.quantise import quantise as make
    from calibration.ranges import Ranges
    from exporter.quantisation_inputs import contract_of, open_model

    network, metadata = open_model(model)
    collector = Collector(network)
    collect(collector, (images[i : i + 8] for i in range(0, len(images), 8)))
    contract = contract_of(network, metadata, None, {})
    ranges = Ranges(network.sha256, contract, len(images), "0" * 64, collector.observers, {})
    onnx.save(make(network, ranges, Options(find(target), effort="fast")).model, path)


def quantize_static(model: Path, images: Images, path: Path) -> None:
    """ONNX Runtime's own tool as its documentation recommends it for x86: U8 activations, S8 weights per channel."""
    from onnxruntime import quantization

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left: Iterator[Images] = (images[i : i + 1] for i in range(len(images)))

        def get_next(self) -> dict[str, Images] | None:
            image = next(self._left, None)
            return None if image is None else {"input": image}

    quantization.quantize_static(
        str(model), str(path), Reader(), quant_format=quantization.QuantFormat.QDQ, per_channel=True,
        activation_type=quantization.QuantType.QUInt8, weight_type=quantization.QuantType.QInt8,
    )  # fmt: skip


def onnxruntime_run(path: Path) -> Run:
    """A session on the CPU with two threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = _THREADS
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: np.asarray(session.run(None, {"input": batch})[0])


def openvino_run(path: Path) -> Run:
    """A compiled model on the CPU with two threads, in float32 where it is not INT8."""
    import openvino

    return compiled(openvino.Core().read_model(str(path)))


def compiled(model: Any) -> Run:
    """An OpenVINO model with the hints that all of them get."""
    import openvino

    hints = {
        "INFERENCE_NUM_THREADS": _THREADS,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", hints).create_infer_request()

    def run(batch: Images) -> Images:
        request.infer([batch])
        return np.array(request.get_output_tensor().data)

    return run


def nncf_run(path: Path, images: Images) -> Run:
    """NNCF's post-training quantisation, with its defaults."""
    import nncf
    import openvino

    dataset = nncf.Dataset([images[i : i + 1] for i in range(len(images))])
    return compiled(nncf.quantize(openvino.Core().read_model(str(path)), dataset, subset_size=len(images)))


def optimised(path: Path, folder: Path) -> dict[str, int]:
    """Operators that ONNX Runtime's optimiser leaves of a file."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return dict(Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node))


if __name__ == "__main__":
    main()
