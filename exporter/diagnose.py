"""After a failed fold: was it the algebra, or is the network so ill-conditioned that FP32 itself cannot hold it?"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from exporter.graph.capture import Captured
from exporter.graph.fold import fold
from runtimes.statistics import compare

#: A right fold in float64 differs by rounding alone: 53 bits leave over 250 dB, minus what the network amplifies.
_RIGHT_ALGEBRA_DB = 150.0


def explain_fold(captured: Captured, folded: Captured, images: npt.NDArray[np.float32]) -> str:
    """One sentence that tells a wrong fold from a network that amplifies rounding.

    The fold is done again with float64 weights. It is right if that gives the original's float64 outputs, and if the
    fold that failed holds the same weights, rounded to its own type.

    Args:
        captured: The original; untouched.
        folded: The fold of it that failed; untouched.
        images: ``[N, C, H, W]``, few.

    Returns:
        A sentence for the error, or an empty string where float64 cannot be run.
    """
    try:
        original = Captured(copy.deepcopy(captured.module).double(), captured.shape)
        again = fold(original).captured.module
        exact = _run(original.module, images.astype(np.float64))
        algebra = compare(exact, _run(again, images.astype(np.float64))).sqnr_db
        own = compare(exact, _run(captured.module, images)).sqnr_db
    except Exception:  # noqa: BLE001  (a network with float32 constants of its own; the verdict stands without it)
        return ""
    if algebra < _RIGHT_ALGEBRA_DB or not _same_weights(again, folded.module):
        return "the fold itself is wrong: please report it with the network"
    return (
        f"done in float64 the fold agrees to {algebra:.0f} dB, so it is right, and this network amplifies rounding: "
        f"its own FP32 run is only within {own:.0f} dB of float64"
    )


def _same_weights(exact: nn.Module, rounded: nn.Module) -> bool:
    wanted = dict(exact.named_parameters())
    return all(
        name in wanted and torch.equal(wanted[name].to(tensor.dtype), tensor)
        for name, tensor in rounded.named_parameters()
    )


def _run(module: nn.Module, images: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    with torch.inference_mode():
        output: npt.NDArray[np.float64] = module(torch.from_numpy(images)).double().numpy()
    return output
