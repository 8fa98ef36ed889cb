"""Numbers and names as a reader wants them; whatever cannot be shown becomes a dash."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final

from runtimes.statistics import SQNR_CAP_DB

AS_SIMULATED: Final = " as simulated"
DRIFT: Final = ", layer by layer"
MISSING: Final = "–"
_LARGEST: Final = 1e100  # nothing measured is larger, and its square is still finite


def number(value: object) -> float | None:
    """A float that can be reckoned with, or None: a document may hold null, NaN, text or an endless integer."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if abs(value) <= _LARGEST else None


def significant(value: object, digits: int = 3) -> str:
    """Rounded to ``digits`` significant ones, without an exponent where it can be avoided: ``1270``, ``0.042``."""
    known = number(value)
    if known is None:
        return MISSING
    if known == 0:
        return "0"
    magnitude = math.floor(math.log10(abs(known)))
    if not -5 <= magnitude < 9:
        return f"{known:.{digits - 1}e}".replace("-", "−")
    rounded = round(known, digits - 1 - magnitude)
    return f"{rounded:,.{max(digits - 1 - math.floor(math.log10(abs(rounded))), 0)}f}".replace("-", "−")


def exact(value: object) -> str:
    """All of a number up to six digits: ``524,288``."""
    known = number(value)
    return MISSING if known is None else f"{known:,.6g}".replace("-", "−")


def milliseconds(value: object) -> str:
    """``1.27 ms``."""
    return _with_unit(significant(value), "ms")


def decibels(value: object) -> str:
    """``52.3 dB``; the cap of the statistics reads as what it means."""
    known = number(value)
    if known is not None and known >= SQNR_CAP_DB:
        return "identical"
    return MISSING if known is None else f"{known:.1f} dB".replace("-", "−")


def percent(value: object, digits: int = 2) -> str:
    """A fraction as ``99.73 %``; never rounded up to 100 or down to 0."""
    known = number(value)
    if known is None:
        return MISSING
    shown = round(100 * known, digits)
    step = 10.0**-digits
    if shown >= 100 and known < 1:
        shown = 100 - step
    elif shown <= 0 < known:
        shown = step
    return f"{shown:.{digits}f}".rstrip("0").rstrip(".") + " %" if shown in (0, 100) else f"{shown:.{digits}f} %"


def interval(bounds: object, digits: int = 2) -> str:
    """Two fractions as ``98.9–99.9 %``."""
    low, high = pair(bounds)
    if low is None or high is None:
        return MISSING
    return f"{percent(low, digits).removesuffix(' %')}–{percent(high, digits)}"


def pair(bounds: object) -> tuple[float | None, float | None]:
    """Both ends of an interval, each a finite number or None."""
    if isinstance(bounds, Sequence) and not isinstance(bounds, str) and len(bounds) == 2:
        return number(bounds[0]), number(bounds[1])
    return None, None


def count(value: object) -> str:
    """``8,000``."""
    known = number(value)
    return MISSING if known is None else f"{known:,.0f}"


def size(value: object) -> str:
    """Bytes as ``44.7 MB`` (of 10^6 bytes)."""
    known = number(value)
    if known is None:
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(known) >= factor:
            return f"{significant(known / factor)} {unit}"
    return f"{known:.0f} bytes"


def megabytes(value: object) -> str:
    """10^6 bytes as :func:`size` shows them."""
    known = number(value)
    return MISSING if known is None else size(1e6 * known)


def ratio(value: object) -> str:
    """``{"ratio": 2.31, "ci95": [2.25, 2.37]}`` as ``2.31× the time (2.25–2.37)``: below 1 is faster."""
    if not isinstance(value, dict):
        return MISSING
    middle = number(value.get("ratio"))
    if middle is None:
        return MISSING
    low, high = pair(value.get("ci95"))
    bounds = "" if low is None or high is None else f" ({low:.2f}–{high:.2f})"
    return f"{middle:.2f}× the time{bounds}"


def plain(value: object) -> str:
    """Any value of a document as one line of text."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return exact(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {plain(item)}" for key, item in value.items()) or MISSING
    if isinstance(value, (list, tuple)):
        return ", ".join(plain(item) for item in value) or MISSING
    return str(value)


def listing(names: Sequence[str], limit: int = 3) -> str:
    """``a, b and 2 more``."""
    if len(names) > limit + 1:
        return f"{', '.join(names[:limit])} and {len(names) - limit} more"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def plural(number_of: int, noun: str) -> str:
    """``1 runtime``, ``2 runtimes``."""
    return f"{number_of:,} {noun}" + ("" if number_of == 1 else "s")


def middle_cut(name: str, limit: int) -> str:
    """A name of at most ``limit`` characters: its two ends tell names apart, its middle seldom does."""
    if len(name) <= limit:
        return name
    kept = max(limit - 1, 2)
    return f"{name[: kept - kept // 2]}…{name[-(kept // 2) :]}"


def short(name: str, limit: int = 48) -> str:
    """A label of at most ``limit`` characters: folders go first, for it is the file's name that tells labels apart."""
    if len(name) > limit:
        name = re.sub(r"[^\s:]*/", "…/", name)
    return middle_cut(name, limit)


def rows_of(document: Any, key: str = "results") -> list[dict[str, Any]]:
    """The list of objects under a key; empty where there is none."""
    found = document.get(key) if isinstance(document, dict) else None
    return [row for row in found if isinstance(row, dict)] if isinstance(found, (list, tuple)) else []


def measured_or_failed(document: Any) -> list[dict[str, Any]]:
    """The results, and after them what could not be measured, with its ``error``."""
    return rows_of(document) + rows_of(document, "failures")


def mapping(document: Any, key: str) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    found = document.get(key) if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def label_of(row: dict[str, Any]) -> str:
    """What a result is called: its label, else its runtime and file; and that it was held against its simulation."""
    given = row.get("label") or ":".join(str(row[key]) for key in ("runtime", "file") if row.get(key)) or "unnamed"
    return f"{given}{AS_SIMULATED}" if row.get("simulated") else str(given)


def _with_unit(text: str, unit: str) -> str:
    return text if text == MISSING else f"{text} {unit}"
