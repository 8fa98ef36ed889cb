"""Whether a file that takes pixels computes what the file before it does with the preprocessed images.

Each part is proven by itself, on what it is a part of: the normalisation on pixels, the resize on pictures, what comes
out on the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper

from calibration.pixel_contract import cropped
from calibration.preprocess import Preprocessing
from exporter.feeding import Fed, reading
from exporter.graph.head import CLASSES, SCORES
from exporter.graph.rewrite import image_input
from runtimes.base import Array, Floats, Runtime
from runtimes.errors import ParityError
from runtimes.ort import OrtRuntime
from runtimes.parity import InputBatch, ParityChain, StageResult
from runtimes.tolerance import Tolerance

Pixels = npt.NDArray[np.uint8]

STAGE: Final = "embedded"
#: Heights and widths of pictures, as multiples of a crop in percent: both orientations, odd, and enlarged ones.
_PICTURES: Final = ((150, 201), (233, 141), (117, 117), (61, 97))
#: Two implementations of one filter: a level of 256 where they round apart, and more only where a weight of 1e-6
#: falls out of the support. Pillow and ONNX Runtime measure 0.002 to 0.03 levels on average; a shift by half a pixel,
#: a filter without antialias or a crop beside the middle is beyond 1 in any picture with detail.
_MEAN_LEVELS: Final = 0.25
_CLOSE_PIXELS: Final = 0.98
_PROBABILITY: Final = 1e-5


def pixel_batches(sizes: Sequence[int], shape: tuple[int, int, int]) -> list[InputBatch]:
    """Seeded pictures in the batch sizes that a device may use.

    Args:
        sizes: Images in each.
        shape: Height, width, channels.
    """
    random = np.random.default_rng(20151210)
    return [InputBatch("synthetic", pictures(random, size, shape), size) for size in sizes]


def pictures(random: np.random.Generator, count: int, shape: tuple[int, int, int]) -> Pixels:
    """Pictures with areas, edges and grain, from black to white: ``[N, H, W, C]``."""
    height, width, channels = shape
    coarse = random.integers(0, 256, (count, 8, 8, channels))
    rows, columns = np.arange(height) * 8 // height, np.arange(width) * 8 // width
    areas = coarse[:, rows][:, :, columns]  # [N,8,8,C] -> [N,H,W,C]
    grain = random.normal(0, 24, areas.shape)
    return np.clip(np.rint(areas + grain), 0, 255).astype(np.uint8)


def prove_pixels(
    before: Sequence[Runtime],
    after: bytes,
    contract: Preprocessing,
    batches: Sequence[InputBatch],
    tolerance: Tolerance,
) -> StageResult:
    """Hold a file that takes pixels against models that take the preprocessed images.

    Args:
        before: The models, the first one the reference, the last one that the file was made of.
        after: The file.
        contract: How pixels become their input.
        batches: Pixels ``[N, h, w, C]``.
        tolerance: What they may differ by.

    Raises:
        ParityError: They differ by more; has the rows.
    """
    feed = reading(contract, (None, contract)).feeds[0]
    assert feed is not None  # one of the two takes pixels
    chain = ParityChain()
    for runtime in before:
        chain.add(runtime.name, Fed(runtime, feed), tolerance, batches)
    result = chain.measure(STAGE, OrtRuntime(after, STAGE), tolerance, batches)
    failed = next((row for row in result.rows if not row.passed), None)
    if failed is not None:
        raise ParityError(
            f"stage '{STAGE}' does not compute what '{failed.reference}' does: {failed.finding} ({failed.inputs})",
            [row.to_json() for row in result.rows],
        )
    return result


def prove_resize(model: onnx.ModelProto, contract: Preprocessing) -> str:
    """Hold the resize and crop of a file against Pillow's, on pictures of several sizes.

    Args:
        model: Takes pictures; its tensor ``…picture.pixels`` is compared.
        contract: What it should do.

    Returns:
        What they differ by, in a few words.

    Raises:
        ParityError: By more than two implementations of one filter do.
    """
    random = np.random.default_rng(20151210)
    side = contract.resize or max(contract.size or (0, 0)) * 2
    probe = _probe(model, f"{image_input(model).name}.picture.pixels")
    mean, close = 0.0, 1.0
    for percents in _PICTURES:
        height, width = (max(side * percent // 100, 1) for percent in percents)
        if contract.resize is None and contract.size is not None:
            height, width = max(height, contract.size[0]), max(width, contract.size[1])
        picture = pictures(random, 1, (height, width, contract.channels))
        found, wanted = _outputs(probe, picture)[0], cropped(contract, picture)
        if found.shape != wanted.shape:
            raise ParityError(
                f"stage 'resize' gives {list(found.shape)} of a picture of {width}x{height}, expected "
                f"{list(wanted.shape)}: export without --embed-resize"
            )
        levels = np.abs(found.astype(np.int64) - wanted)
        mean, close = max(mean, float(levels.mean())), min(close, float((levels <= 1).mean()))
    said = f"at most {mean:.2g} levels of 256 on average from Pillow's, {100 * close:.2f} % within 1"
    if mean > _MEAN_LEVELS or close < _CLOSE_PIXELS:
        raise ParityError(f"stage 'resize' differs from the preprocessing: {said}: export without --embed-resize")
    return said


def prove_head(model: onnx.ModelProto, logits: Floats, pixels: Pixels, softmax: bool, top_k: int | None) -> None:
    """Hold the outputs of a file against what they should be of its logits.

    Args:
        model: The file with its head, which takes ``pixels``.
        logits: ``[N, classes]`` of the file without.
        pixels: ``[N, H, W, C]``.
        softmax: Whether it gives probabilities.
        top_k: How many of the best classes it gives; ``None``: all.

    Raises:
        ParityError: They differ.
    """
    values = _softmax(logits) if softmax else logits.astype(np.float64)
    slack = _PROBABILITY * max(float(np.abs(values).max()), 1e-30)
    data = model.SerializeToString()
    if top_k is None:
        (found,) = _outputs(data, pixels)
        agrees = found.shape == values.shape and bool((np.abs(found - values) <= slack).all())
    else:
        scores, classes = _outputs(data, pixels, (SCORES, CLASSES))
        wanted = -np.sort(-values, axis=1)[:, :top_k]
        agrees = scores.shape == classes.shape == wanted.shape and bool(
            (np.abs(scores - wanted) <= slack).all()
            and (np.abs(np.take_along_axis(values, classes, axis=1) - wanted) <= slack).all()
            and all(len(set(row)) == top_k for row in classes.tolist())
        )
    if not agrees:
        raise ParityError("stage 'outputs' does not give what the logits say")


def _softmax(logits: Floats) -> npt.NDArray[np.float64]:
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True), np.float64)


def _probe(model: onnx.ModelProto, tensor: str) -> bytes:
    """The part of a model that makes one uint8 tensor."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info(tensor, TensorProto.UINT8, [None] * 4))
    return bytes(part.SerializeToString())


def _outputs(data: bytes, pixels: Array, names: Sequence[str] | None = None) -> list[Array]:
    """What ONNX Runtime gives for all outputs; :class:`OrtRuntime` is for logits only."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    found: list[Any] = session.run(names, {session.get_inputs()[0].name: pixels})
    return [np.asarray(each) for each in found]
