"""After a failed fold: was it the algebra, or is the network so ill-conditioned that FP32 itself cannot hold it?"""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from runtimes.statistics import compare

#: In float64 a right fold differs by rounding alone: 53 bits leave over 250 dB, minus what the network amplifies.
_RIGHT_ALGEBRA_DB = 150.0


def explain_fold(original: nn.Module, folded: nn.Module, images: npt.NDArray[np.float32]) -> str:
    """One sentence that tells a wrong fold from a network that amplifies rounding.

    Args:
        original: In evaluation mode; untouched.
        folded: Its folded graph; untouched.
        images: ``[N, C, H, W]``, few.

    Returns:
        A sentence for the error, or an empty string where float64 cannot be run.
    """
    try:
        exact = _run(copy.deepcopy(original).double(), images.astype(np.float64))
        exact_folded = _run(copy.deepcopy(folded).double(), images.astype(np.float64))
        own = compare(exact, _run(original, images)).sqnr_db
        algebra = compare(exact, exact_folded).sqnr_db
    except Exception:  # noqa: BLE001  (a network with float32 constants of its own; the verdict stands without it)
        return ""
    if algebra < _RIGHT_ALGEBRA_DB:
        return f"in float64 they differ as well ({algebra:.0f} dB): the fold is wrong, please report it"
    return (
        f"in float64 they agree ({algebra:.0f} dB), so the fold is right, and this network amplifies rounding: "
        f"its own FP32 run is only within {own:.0f} dB of float64"
    )


def _run(module: nn.Module, images: npt.NDArray[np.floating]) -> npt.NDArray[np.float64]:
    with torch.inference_mode():
        output: npt.NDArray[np.float64] = module(torch.from_numpy(images)).double().numpy()
    return output
