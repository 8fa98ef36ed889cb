"""Small pictures of images whose answer changed, to lie inside a report."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image, ImageOps

from calibration.arrays import row_pixels
from calibration.decoding import DECODER_ERRORS, FORMATS
from calibration.pixels import to_rgb
from runtimes.errors import DataError

_MOST: Final = 24
_SIDE: Final = 96
_ROW: Final = re.compile(r"^(?P<path>.+\.np[yz])\[(?P<row>\d+)\]$")


def thumbnails(
    results: Iterable[Mapping[str, Any]], most: int = _MOST, *, upright: bool = True
) -> Iterator[dict[str, Any]]:
    """The first changed images of each runtime; one that can no longer be read is left out.

    Args:
        results: Of ``evaluate``.
        most: Pictures in all, shared evenly among the runtimes that changed any.
        upright: Whether the models saw photographs upright, as their EXIF says, or as they are stored.
    """
    changed = [row for row in results if isinstance(row.get("changes"), list) and row["changes"]]
    for row in changed:
        for change in row["changes"][: max(most // len(changed), 1)]:
            name = change.get("file") if isinstance(change, Mapping) else None
            picture = picture_of(name, upright=upright) if isinstance(name, str) else None
            if picture is not None:
                yield {"image": picture, "runtime": row.get("label"), **change}


def picture_of(name: str, *, upright: bool = True) -> str | None:
    """A ``data:`` URI of a small JPEG; ``None`` where the file cannot be read.

    Args:
        name: Path, or ``path.npy[row]``.
        upright: Whether it is turned as its EXIF says.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="PIL")  # it was read once, and what is to be told was told
            stored = _opened(name)
            # As the models saw it: Pillow's own conversion makes 16-bit grey white.
            image = to_rgb(ImageOps.exif_transpose(stored) if upright else stored)
        image.thumbnail((_SIDE, _SIDE))
        stream = BytesIO()
        image.save(stream, "JPEG", quality=80)
    except (*DECODER_ERRORS, OSError, DataError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _opened(name: str) -> Image.Image:
    row = _ROW.match(name)
    if row is None:
        return Image.open(name, formats=FORMATS)
    return Image.fromarray(row_pixels(Path(row["path"]), int(row["row"])))
