"""Small pictures show what the models saw."""

from __future__ import annotations

import base64
import warnings
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from exporter.thumbnails import picture_of


def shown(path: Path, **options: bool) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = picture_of(str(path), **options)
    assert found is not None
    return np.asarray(Image.open(BytesIO(base64.b64decode(found.partition(",")[2]))))


@pytest.mark.parametrize(("upright", "size"), [(True, (20, 40)), (False, (40, 20))])
def test_a_photograph_is_turned_as_the_models_had_it(upright: bool, size: tuple[int, int], tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side
    Image.new("RGB", (20, 40)).save(tmp_path / "a.jpg", exif=exif)
    assert shown(tmp_path / "a.jpg", upright=upright).shape[:2] == size


def test_a_grey_image_of_16_bits_is_not_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 0x4000, np.uint16)).save(tmp_path / "a.png")
    assert abs(int(shown(tmp_path / "a.png").mean()) - 0x40) < 3


def test_a_palette_with_alpha_warns_nobody(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8))
    image.putpalette([255, 0, 0] * 256)
    image.save(tmp_path / "a.png", transparency=bytes([0, 128] * 128))
    assert shown(tmp_path / "a.png").shape == (8, 8, 3)
