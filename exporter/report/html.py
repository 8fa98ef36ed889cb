"""One HTML file that holds everything it shows and fetches nothing.

The page carries a content security policy that allows its own style sheet and script by their hashes, embedded
pictures, and nothing else: a name from a document that got past the escaping could still neither run nor load anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from importlib import resources
from typing import Any, Final

from markupsafe import Markup

from exporter.report.model import Report
from exporter.report.sections import sections_of
from exporter.report.verdict import Outcome

_NAMES: Final = {"parity": "parity", "evaluate": "accuracy", "bench": "latency"}


def render_html(report: Report) -> str:
    """The page. The same report gives the same text; it can always be encoded as UTF-8."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("exporter.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = _asset("style.css"), _asset("script.js")
    page = environment.get_template("report.html.j2").render(
        report=report,
        verdict=report.verdict,
        findings=[outcome for outcome in report.outcomes() if outcome.status in ("failed", "error")],
        kind_of=_kind,
        sections=sections_of(report),
        absent=[title for name, title in _NAMES.items() if getattr(report, name) is None],
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; "
        "base-uri 'none'; form-action 'none'",
        data=_embedded(dict(report.documents())),
    )
    # File names that are no UTF-8 reach Python as lone surrogates, which no encoding can hold.
    return page.encode("utf-8", "replace").decode("utf-8")


def _asset(name: str) -> str:
    return (resources.files("exporter.report") / "templates" / name).read_text(encoding="utf-8")


def _hash(content: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


def _kind(outcome: Outcome) -> str:
    return f"{_NAMES[outcome.document]}, not run" if outcome.status == "error" else _NAMES[outcome.document]


def _embedded(documents: dict[str, Any]) -> Markup:
    """JSON for a script element: no character in it can end the element or begin a comment."""
    text = json.dumps(_finite(documents), ensure_ascii=True, separators=(",", ":"), sort_keys=True)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _finite(value: Any) -> Any:
    """NaN and Inf as null: browsers' JSON knows neither."""
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
