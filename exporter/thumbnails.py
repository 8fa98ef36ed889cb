"""Small pictures of images whose answer changed, to lie inside a report."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from PIL import Image

from calibration.arrays import row_pixels
from calibration.decoding import DECODER_ERRORS, FORMATS
from runtimes.errors import DataError

_MOST: Final = 24
_SIDE: Final = 96
_ROW: Final = re.compile(r"^(?P<path>.+\.np[yz])\[(?P<row>\d+)\]$")


def thumbnails(results: Iterable[Mapping[str, Any]], most: int = _MOST) -> Iterator[dict[str, Any]]:
    """The first changed images of each runtime; one that can no longer be read is left out.

    Args:
        results: Of ``evaluate``.
        most: Pictures in all, shared evenly among the runtimes that changed any.
    """
    changed = [row for row in results if isinstance(row.get("changes"), list) and row["changes"]]
    for row in changed:
        for change in row["changes"][: max(most // len(changed), 1)]:
            name = change.get("file") if isinstance(change, Mapping) else None
            picture = picture_of(name) if isinstance(name, str) else None
            if picture is not None:
                yield {"image": picture, "runtime": row.get("label"), **change}


def picture_of(name: str) -> str | None:
    """A ``data:`` URI of a small JPEG; ``None`` where the file cannot be read.

    Args:
        name: Path, or ``path.npy[row]``.
    """
    try:
        image = _opened(name)
        image.thumbnail((_SIDE, _SIDE))
        stream = BytesIO()
        image.convert("RGB").save(stream, "JPEG", quality=80)
    except (*DECODER_ERRORS, OSError, DataError, Image.DecompressionBombError):
        return None
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _opened(name: str) -> Image.Image:
    row = _ROW.match(name)
    if row is None:
        return Image.open(name, formats=FORMATS)
    return Image.fromarray(row_pixels(Path(row["path"]), int(row["row"])))
