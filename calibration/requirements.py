"""What a network and images have to be for refinement."""

from __future__ import annotations

import numpy as np

from calibration.graph import WEIGHTED, Network, input_size
from calibration.placement import Target, place
from calibration.simulate import Images, Simulation, in_batches
from runtimes.errors import DataError, GraphError, first_line


def check_weights(network: Network) -> None:
    """Refuse weights that are not finite; before the network is rewritten, so that they have their owner's names.

    Raises:
        DataError: A weight holds NaN or infinity.
    """
    for node in network.nodes:
        for name in node.input[1:] if node.op_type in WEIGHTED else ():
            if name in network.initializers and not np.isfinite(network.initializers[name]).all():
                raise DataError(f"the weights {name} hold NaN or infinity: check the checkpoint")


def check_images(network: Network, images: Images) -> None:
    """Refuse images that are not the network's input.

    Raises:
        DataError: They have another type or shape, or hold NaN or infinity.
    """
    expected = input_size(network)[1:]
    fits = images.ndim == 4 and all(own in (None, n) for own, n in zip(expected, images.shape[1:], strict=True))
    if not fits or images.dtype != np.float32:
        sizes = ", ".join("any" if size is None else str(size) for size in expected)
        raise DataError(f"the images are {images.dtype} {list(images.shape)}: the model takes float32 [N, {sizes}]")
    if not np.isfinite(images).all():
        raise DataError("the images hold NaN or infinity: check the preprocessing")


def unsimulated(network: Network, target: Target, images: Images) -> str:
    """Why a network cannot be refined here; empty where it can."""
    if len(network.outputs) > 1:
        return f"the model has {len(network.outputs)} outputs, and which are the logits is not known"
    try:
        # Not the batch that may be written into the network: what comes later are others.
        probe = 3 if input_size(network)[0] == 2 else 2
        logits = in_batches(Simulation(network, place(network, target)).reference, images[:probe], probe)
    except GraphError as error:
        return str(error)
    except RuntimeError as error:  # of shapes: a batch that is fixed may be written into a Reshape
        if input_size(network)[0] is None:
            raise
        return f"the model computes only on a batch of {input_size(network)[0]} ({first_line(error)})"
    fits = logits.ndim == 2 and len(logits) == probe
    return "" if fits else f"the model gives {list(logits.shape)} for {probe} images"
