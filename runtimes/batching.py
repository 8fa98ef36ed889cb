"""Any number of images through a runtime, whatever batch its model takes.

A model with a fixed batch takes neither a shorter last batch nor a longer one: the images are cut into pieces of its
size, and the last piece is filled up with copies of its own first image, whose logits are thrown away::

    5 images, a fixed batch of 2:   [0 1] [2 3] [4 4]  ->  logits of 0 1 2 3 4
"""

from __future__ import annotations

import numpy as np

from runtimes.base import Array, Floats, Runtime


def fixed_batch(runtime: Runtime) -> int | None:
    """Images that the model takes at once, or ``None`` where it takes any number.

    Args:
        runtime: Opened at least once.
    """
    shape = runtime.inputs[0].shape
    return shape[0] if shape else None


def as_input(runtime: Runtime, images: Array) -> Array:
    """Images in the float type that the model takes; images of another kind stay as they are.

    Args:
        runtime: Opened at least once.
        images: ``[N, C, H, W]``.

    Returns:
        ``images`` itself, or a copy that is rounded to the model's float16 or widened to its float64. What is not
        a float stays: the runtime refuses what does not fit, and names both types.
    """
    wanted = np.dtype(runtime.inputs[0].dtype)
    if images.dtype == wanted or images.dtype.kind != "f" or wanted.kind != "f":
        return images
    with np.errstate(over="ignore"):  # beyond float16 is Inf: the logits show it, and they are not finite
        return images.astype(wanted)


def run_padded(runtime: Runtime, images: Array) -> Floats:
    """Run images through a model of any batch.

    Args:
        runtime: Open.
        images: ``[N, C, H, W]``, N ≥ 1, in the element type of the model or in another float type. Left unchanged.

    Returns:
        ``[N, classes]`` float32, one row for each image, owned by the caller.

    Raises:
        TensorError, GraphError: As :meth:`runtimes.base.Runtime.run`.
    """
    batch = as_input(runtime, images)
    size = fixed_batch(runtime)
    if size is None or len(batch) == size or not len(batch):  # an empty batch is the runtime's to refuse
        return runtime.run(batch)
    pieces = [runtime.run(_filled(batch[start : start + size], size)) for start in range(0, len(batch), size)]
    return np.concatenate(pieces)[: len(batch)] if len(pieces) > 1 else pieces[0][: len(batch)].copy()


def _filled(piece: Array, size: int) -> Array:
    if len(piece) == size:
        return piece
    return np.concatenate([piece, np.repeat(piece[:1], size - len(piece), axis=0)])
