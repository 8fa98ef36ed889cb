"""SVG elements as text: escaped by type, with numbers of fixed precision, coloured by the page's style sheet alone."""

from __future__ import annotations

from collections.abc import Iterable

from markupsafe import Markup, escape

FONT_SIZE = 12
"""Of all text in charts, in user units; the style sheet sets the same."""


def tag(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """One element.

    Args:
        name: Name of the element.
        children: Text, which is escaped, or elements, which are not.
        attributes: ``class_`` stands for ``class``, ``_`` elsewhere for ``-``; None leaves an attribute out.
    """
    pairs = [
        Markup(' {}="{}"').format(
            key.rstrip("_").replace("_", "-"), value if isinstance(value, str) else _number(value)
        )
        for key, value in attributes.items()
        if value is not None
    ]
    head = Markup(name) + Markup("").join(pairs)
    inner = Markup("").join(escape(child) for child in children)
    return Markup("<{}>{}</{}>").format(head, inner, Markup(name)) if children else Markup("<{}/>").format(head)


def chart(ident: str, size: tuple[float, float], title: str, description: str, parts: Iterable[str]) -> Markup:
    """A whole picture with a text alternative.

    Args:
        ident: Unique in the page.
        size: Width and height in user units, which are pixels unless the page is narrower.
        title: Its short name for those who do not see it.
        description: What it shows, in a sentence or two.
        parts: Elements, the lowest first.
    """
    width, height = size
    return tag(
        "svg",
        tag("title", title, id=f"{ident}-title"),
        tag("desc", description, id=f"{ident}-desc"),
        *parts,
        id=ident,
        class_="chart",
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        width=width,
        height=height,
        role="img",
        aria_labelledby=f"{ident}-title {ident}-desc",
    )


def label(content: str, x: float, y: float, *, anchor: str = "start", tone: str = "", full: str = "") -> Markup:
    """A line of text whose middle is at ``y``; ``full`` is shown on hovering where ``content`` was cut."""
    hover = (tag("title", full),) if full and full != content else ()
    tone = f"label {tone}".strip()
    return tag("text", *hover, content, x=x, y=y, dy="0.35em", text_anchor=anchor, class_=tone)


def line(x1: float, y1: float, x2: float, y2: float, tone: str) -> Markup:
    """A straight line."""
    return tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=tone)


def path(points: Iterable[tuple[float, float]], tone: str) -> Markup:
    """A line through points."""
    steps = " L".join(f"{_number(x)} {_number(y)}" for x, y in points)
    return tag("path", d=f"M{steps}", class_=tone)


def group(*children: str, title: str = "", tone: str | None = None) -> Markup:
    """Elements with one hover text."""
    return tag("g", *((tag("title", title),) if title else ()), *children, class_=tone)


def text_width(content: str) -> float:
    """About how wide a text is: system fonts differ, and a label that is thought too wide does no harm."""
    return 0.6 * FONT_SIZE * len(content)


def characters(width: float) -> int:
    """How many characters fit into a width; the inverse of :func:`text_width`."""
    return max(int(width / (0.6 * FONT_SIZE)), 3)


def _number(value: float | None) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if value is not None else ""
