"""Arrays that the caller's own code prepares, as batches: any Python iterable, a torch DataLoader among them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from runtimes.errors import DataError, InputError, first_line

if TYPE_CHECKING:
    from calibration.preprocess import Preprocessing

Tensor = npt.NDArray[np.float32]


def array_batches(source: Iterable[Any], contract: Preprocessing, batch: int) -> Iterator[Tensor]:
    """Preprocessed arrays in batches of one length, however long the pieces are that ``source`` gives.

    Args:
        source: Gives floating arrays ``[C, H, W]`` or ``[N, C, H, W]``, or tuples or lists whose first member is
            one (a torch ``DataLoader`` gives images and labels). Tensors of other libraries are converted where
            numpy can. It is read once, as far as the caller reads the result; each array is copied.
        contract: Names the channels and the size that the arrays must have. Nothing else of it is applied: the
            arrays are preprocessed already.
        batch: Images in a batch; the last may have fewer.

    Returns:
        An iterator over float32 arrays ``[N, C, H, W]``. It raises ``DataError``, with the item's position counted
        from 0, for an item of another form, dtype, shape or size, or with NaN or infinity, and when ``source``
        gives nothing at all. What ``source`` itself raises passes through.

    Raises:
        InputError: ``batch`` is out of range, or ``source`` cannot be iterated over.
    """
    if batch < 1:
        raise InputError(f"the batch is {batch} images: give 1 or more")
    try:
        items = iter(source)
    except TypeError as error:
        raise InputError(
            f"the source of images is a {type(source).__name__}: give an iterable of arrays [C,H,W] or [N,C,H,W]"
        ) from error
    return _array_batches(items, contract, batch)


def _array_batches(items: Iterator[Any], contract: Preprocessing, batch: int) -> Iterator[Tensor]:
    held: list[Tensor] = []
    count = 0
    shape: tuple[int, ...] = ()
    for position, item in enumerate(items):
        rows = _rows(position, item, contract)
        shape = shape or rows.shape[1:]
        if rows.shape[1:] != shape:
            raise DataError(
                f"images differ in size: item 0 has {list(shape)}, item {position} {list(rows.shape[1:])}: "
                f"give all of them one size"
            )
        held.append(rows)
        count += len(rows)
        if count < batch:
            continue
        joined = np.concatenate(held)
        whole = count - count % batch
        # A copy, so that a short remainder does not keep a long item in memory.
        held, count = [joined[whole:].copy()], count - whole
        for start in range(0, whole, batch):
            yield joined[start : start + batch]
    if not shape:
        raise DataError("the source of images gave nothing: give at least one (a generator can be read only once)")
    if count:
        yield np.concatenate(held)


def _rows(position: int, item: Any, contract: Preprocessing) -> Tensor:
    """Item number ``position`` as a copy, float32 ``[N, C, H, W]``."""
    values = _as_array(position, item)
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"item {position} is {values.dtype}: give floating arrays that are preprocessed already")
    shape = values.shape if values.ndim == 4 else (1, *values.shape)
    size = contract.size or shape[2:]
    if len(shape) != 4 or 0 in shape or shape[1:] != (contract.channels, *size):
        height, width = contract.size or ("H", "W")
        raise DataError(
            f"item {position} has the shape {list(values.shape)}: give [C,H,W] or [N,C,H,W], not empty, "
            f"with [C,H,W] = [{contract.channels},{height},{width}]"
        )
    with np.errstate(over="ignore"):
        # Always a copy: a generator may write its next item into the same array.
        tensor: Tensor = values.astype(np.float32, order="C").reshape(shape)
    if not np.isfinite(tensor).all():
        raise DataError(f"item {position} holds NaN, infinity or more than float32 can: preprocess it again")
    return tensor


def _as_array(position: int, item: Any) -> npt.NDArray[Any]:
    if isinstance(item, tuple | list):
        if not item:
            raise DataError(f"item {position} is an empty {type(item).__name__}: give the images as its first member")
        item = item[0]
    try:
        # By name, not by type: torch need not be imported to take its tensors, from a device and out of a graph.
        for method in ("detach", "cpu"):
            item = getattr(item, method, lambda item=item: item)()
        return np.asarray(item)
    except (TypeError, ValueError, RuntimeError) as error:
        raise DataError(
            f"item {position} is a {type(item).__name__} that numpy cannot take ({first_line(error)}): "
            f"give floating arrays [C,H,W] or [N,C,H,W]"
        ) from error
