"""What a quantised file does to the logits: both files over images, in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibration.collect import batch_size
from calibration.graph import Network, input_size
from calibration.images import BadFile, batches
from calibration.listing import ImageFile
from calibration.preprocess import Preprocessing
from runtimes.batching import run_padded
from runtimes.ort import OrtRuntime
from runtimes.statistics import Accumulator


@dataclass(frozen=True)
class Fidelity:
    """What the quantised file does to the logits, on images that nothing was learned from.

    Attributes:
        images: Number of images.
        sqnr_db: Of its logits against the float file's, in decibels.
        agreement: Fraction of the images with the same largest logit.
        top1_float: Accuracy of the float file, where labels are known.
        top1_int8: Accuracy of the quantised file.
        runtime: What ran the quantised file.
        unseen: Whether it is known that the images took no part in calibration; ranges from a file do not tell.
    """

    images: int
    sqnr_db: float
    agreement: float
    top1_float: float | None
    top1_int8: float | None
    runtime: str
    unseen: bool

    def to_json(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return dict(vars(self))


def measure(
    network: Network,
    data: bytes,
    files: Sequence[ImageFile],
    contract: Preprocessing,
    *,
    fused: bool,
    threads: int | None = None,
    max_bad: float = 0.01,
    on_bad: Callable[[BadFile], None] | None = None,
) -> tuple[Fidelity, list[ImageFile]]:
    """Run a float and a quantised file over images, batch by batch.

    Args:
        network: The float file.
        data: Bytes of the quantised file.
        files: Images.
        contract: How they become its input.
        fused: ONNX Runtime's own fusions are what its users get; what other runtimes compute is what the Q/DQ says.
        threads: Of an operator; ``None``: one per core.
        max_bad: Fraction of the images that may be unusable.
        on_bad: Hears of those.

    Returns:
        What the quantised file costs, and the images that could be used.

    Raises:
        DataError: More images than allowed are unusable.
    """
    statistics = Accumulator()
    right = np.zeros(2, np.int64)
    labelled = 0
    used: list[ImageFile] = []
    with (
        OrtRuntime(network.model.SerializeToString(), "float", threads=threads) as exact,
        OrtRuntime(data, "int8", threads=threads, optimize=fused) as rough,
    ):
        size = _batch(network, files, contract)
        for tensor, taken in batches(files, contract, size, max_bad=max_bad, on_bad=on_bad):
            used.extend(taken)
            logits = [run_padded(runtime, tensor) for runtime in (exact, rough)]
            statistics.update(*logits)
            labels = np.array([-1 if file.label is None else file.label for file in taken])
            labelled += int((labels >= 0).sum())
            right += [int((each.argmax(axis=1) == labels).sum()) for each in logits]
            classes = logits[0].shape[1]
    result = statistics.result()
    known = labelled == result.n and _are_classes(used, classes)
    fidelity = Fidelity(
        images=result.n,
        sqnr_db=result.sqnr_db,
        agreement=result.top1_agreement,
        top1_float=int(right[0]) / result.n if known else None,
        top1_int8=int(right[1]) / result.n if known else None,
        runtime="onnxruntime" if fused else "onnxruntime, Q/DQ taken literally",
        unseen=True,
    )
    return fidelity, used


def _batch(network: Network, files: Sequence[ImageFile], contract: Preprocessing) -> int:
    _, _, height, width = input_size(network)
    if height is None or width is None:
        first, _ = next(iter(batches(files, contract, 1, max_bad=1.0)))
        height, width = first.shape[2:]
    return batch_size(network, height, width)


def _are_classes(files: Sequence[ImageFile], classes: int) -> bool:
    """Whether labels can be the model's classes: as many folders as it has, or numbers from a list."""
    names = {file.class_name for file in files if file.class_name is not None}
    return len(names) == classes if names else max(file.label or 0 for file in files) < classes
