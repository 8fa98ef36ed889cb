"""What a section of the page is made of; the templates know these and nothing of the documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts.frame import NARROW, WIDE


@dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str
    numeric: bool = False


@dataclass(frozen=True)
class Cell:
    """A cell: what is shown, and what the column is sorted by; without the latter, by what is shown."""

    shown: str
    key: float | None = None
    note: str = ""
    tone: Literal["", "passed", "failed", "name", "prose"] = ""


@dataclass(frozen=True)
class Table:
    """A table; ``folded`` ones are opened by the reader."""

    ident: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Picture:
    """A chart in two widths, of which the page shows the one that fits.

    ``key`` names the colours in it: pairs of a style class and a text. ``folded`` ones are opened by the reader.
    """

    title: str
    wide: Markup
    narrow: Markup
    key: tuple[tuple[str, str], ...] = ()
    folded: bool = False
    kind: Literal["picture"] = "picture"


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    content: str
    kind: Literal["text"] = "text"


@dataclass(frozen=True)
class Pairs:
    """Names and values, one below the other."""

    title: str
    rows: tuple[tuple[str, str], ...]
    kind: Literal["pairs"] = "pairs"


@dataclass(frozen=True)
class Thumbnail:
    """An image whose answer changed; ``source`` is a checked data URI, or empty."""

    source: str
    file: str
    truth: str
    before: str
    after: str
    runtime: str


@dataclass(frozen=True)
class Gallery:
    """Thumbnails."""

    images: tuple[Thumbnail, ...]
    kind: Literal["gallery"] = "gallery"


Block = Table | Picture | Text | Pairs | Gallery


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading."""

    ident: str
    title: str
    lead: str
    blocks: tuple[Block, ...]


def number_cell(value: object, show: Callable[[Any], str], note: str = "") -> Cell:
    """A number with its text; a missing one sorts last."""
    return Cell(show(value), text.number(value), note)


def name_cell(value: object) -> Cell:
    """A name that comes from a document."""
    return Cell(text.plain(value), tone="name")


def picture(
    ident: str,
    title: str,
    draw: Callable[[str, float], Markup | None],
    key: Sequence[tuple[str, str]] = (),
    *,
    folded: bool = False,
) -> tuple[Picture, ...]:
    """A chart at both widths, or nothing where there is nothing to draw.

    Args:
        ident: Unique in the page.
        title: Caption.
        draw: Identifier and width -> chart.
        key: Style classes and what they mean.
        folded: Whether the reader opens it: one of many like it.
    """
    wide, narrow = draw(ident, WIDE), draw(f"{ident}-narrow", NARROW)
    return () if wide is None or narrow is None else (Picture(title, wide, narrow, tuple(key), folded),)
