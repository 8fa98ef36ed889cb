"""Which answers became which, as a matrix of shades."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from exporter.report import text
from exporter.report.charts import svg

LARGEST = 12
"""Classes up to which a matrix can be read; a ranked table serves more."""


def counts_of(rows: Sequence[Mapping[str, Any]]) -> Counter[tuple[str, str]]:
    """(from, to) -> images."""
    found: Counter[tuple[str, str]] = Counter()
    for row in rows:
        known = text.number(row.get("count"))
        if known is not None and known > 0:
            found[str(row.get("from")), str(row.get("to"))] += int(known)
    return found


def confusion_chart(ident: str, rows: Sequence[Mapping[str, Any]], width: float) -> Markup | None:
    """A cell for each pair of classes; None for no changes, or for more classes than can be read.

    Args:
        ident: Unique in the page.
        rows: ``{"from", "to", "count"}`` each.
        width: In user units.
    """
    counts = counts_of(rows)
    classes = sorted({name for pair in counts for name in pair}, key=_natural)
    if not 0 < len(classes) <= LARGEST:
        return None
    # Columns whose names would not fit are headed by the numbers of the rows.
    numbered = any(svg.text_width(name) > 40.0 for name in classes)
    names = [f"{index + 1}  {name}" for index, name in enumerate(classes)] if numbered else classes
    gutter = min(max(svg.text_width(name) for name in names) + 10, 0.4 * width)
    side = min((width - gutter - 4) / len(classes), 40.0)
    room = svg.characters(gutter - 8)
    most = max(counts.values())
    top = 44.0
    parts = [svg.label("from ↓   to →", 0, 12, tone="axis-name")]
    for index, name in enumerate(names):
        middle = side * (index + 0.5)
        full = classes[index]
        parts.append(
            svg.label(text.middle_cut(name, room), gutter - 8, top + middle, anchor="end", tone="name", full=full)
        )
        head = str(index + 1) if numbered else text.middle_cut(name, svg.characters(side))
        parts.append(svg.label(head, gutter + middle, top - 12, anchor="middle", tone="name", full=full))
    for row, source in enumerate(classes):
        for column, target in enumerate(classes):
            parts.append(
                _cell(
                    counts[source, target],
                    most,
                    (gutter + side * column, top + side * row),
                    side,
                    f"{source} → {target}",
                )
            )
    height = top + side * len(classes) + 4
    return svg.chart(
        ident, (gutter + side * len(classes) + 4, height), "Which answers became which", summary(rows), parts
    )


def summary(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the chart shows, as a sentence."""
    counts = counts_of(rows)
    if not counts:
        return "No answer changed."
    (source, target), most = min(counts.items(), key=lambda item: (-item[1], item[0]))
    changed, images = text.plural(sum(counts.values()), "changed answer"), text.plural(most, "image")
    return f"{changed}; most often {source} became {target} ({images})."


def _cell(count: int, most: int, corner: tuple[float, float], side: float, pair: str) -> Markup:
    x, y = corner
    shade = 0 if not count else 1 + round(3 * (count - 1) / max(most - 1, 1))
    square = svg.tag("rect", x=x + 1, y=y + 1, width=side - 2, height=side - 2, rx=3, class_=f"cell shade-{shade}")
    if not count:
        return square
    number = svg.label(str(count), x + side / 2, y + side / 2, anchor="middle", tone=f"cell-text shade-text-{shade}")
    return svg.group(square, number, title=f"{pair}: {text.plural(count, 'image')}")


def _natural(name: str) -> tuple[int, float, str]:
    return (0, float(name), name) if name.isdecimal() else (1, 0.0, name)
