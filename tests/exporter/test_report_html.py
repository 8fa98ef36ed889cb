"""The HTML report as text: self-contained, inert, deterministic."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from exporter.report.html import render_html
from exporter.report.model import Report
from exporter.report.tables import class_table
from tests.exporter import report_samples as samples
from tests.exporter.report_documents import bench, drift_of, evaluate, parity

VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


class Page(HTMLParser):
    """Elements with their attributes, texts and ids; refuses elements that are closed in the wrong order."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        self.bodies: dict[str, list[str]] = {"script": [], "style": []}
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open, f"left open: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in self.bodies:
            self.bodies[self._open[-1]].append(data)
        else:
            self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


EMPTY: dict[str, Any] = {"schema": 1, "results": []}
REPORTS = {
    "full": samples.full(),
    "failing": samples.full(parity=parity(failing=(3,), crashed=(4,), drift=True)),
    "twelve": samples.full(parity=parity(12), evaluate=evaluate(12), bench=bench(12)),
    "long names": samples.long_names(),
    "hostile": samples.hostile(),
    "only parity": Report(parity=parity(3)),
    "only accuracy": Report(evaluate=evaluate(1)),
    "only latency": Report(bench=bench(1)),
    "nothing": Report(),
    "no results": Report(parity=EMPTY, evaluate=EMPTY, bench=EMPTY),
}


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_well_formed_and_its_references_have_targets(name: str) -> None:
    page = Page(render_html(REPORTS[name]))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = [part for _, each in page.elements for part in each.get("aria-labelledby", "").split()]
    used += [link["href"][1:] for link in page.all("a")]
    assert set(used) <= set(ids)


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_names_nothing_to_fetch(name: str) -> None:
    page = Page(render_html(REPORTS[name]))
    for tag, attributes in page.elements:
        for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            if key in attributes:
                assert attributes[key].startswith(("#", "data:")), (tag, attributes)
        assert not [key for key in attributes if key.startswith("on") or key == "style"]
    (style,) = page.bodies["style"]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_the_own_style_and_script_alone() -> None:
    page = Page(render_html(samples.full()))
    policy = next(each["content"] for each in page.all("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, body in (("style", page.bodies["style"][0]), ("script", page.bodies["script"][1])):
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy


def test_names_from_documents_are_shown_and_do_nothing() -> None:
    text = render_html(samples.hostile())
    page = Page(text)
    assert len(page.all("script")) == 2  # the data and the page's own
    assert not page.all("img")  # neither the one in the names nor the one that would be fetched
    assert any(samples.HOSTILE in each for each in page.texts)
    assert text.count("</script>") == 2


def test_the_embedded_data_are_the_documents_and_hold_no_markup() -> None:
    report = samples.hostile()
    (data, _) = Page(render_html(report)).bodies["script"]
    assert not set("<>&") & set(data)
    assert json.loads(data) == dict(report.documents())


def test_numbers_that_json_does_not_know_are_embedded_as_null() -> None:
    document = parity(1)
    document["results"][0]["sqnr_db"] = float("nan")
    (data, _) = Page(render_html(Report(parity=document))).bodies["script"]
    assert json.loads(data)["parity"]["results"][0]["sqnr_db"] is None


def test_the_same_report_gives_the_same_bytes_and_no_clock_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    first = render_html(samples.full())
    monkeypatch.setattr("time.time", lambda: pytest.fail("the clock was read"))
    assert render_html(samples.full()) == first
    assert "2026" not in Page(render_html(Report(parity=parity(1), date=None))).texts


def test_the_verdict_stands_before_everything_else() -> None:
    page = Page(render_html(REPORTS["failing"]))
    assert page.all("section")[0]["id"] == "verdict"
    text = " ".join(page.texts)
    assert text.index("Do not use 2 of 6 runtimes") < text.index("SQNR is 14.2 dB") < text.index("The way of the model")


def test_sections_without_content_are_left_out_and_missing_documents_are_named() -> None:
    page = Page(render_html(Report(parity=parity(3))))
    assert [each["id"] for each in page.all("section")] == ["verdict", "parity", "tolerances", "environment"]
    assert any("Not part of this report: accuracy, latency." in each for each in page.texts)


def test_every_tolerance_has_its_reason() -> None:
    text = " ".join(Page(render_html(samples.full())).texts)
    for row in parity(5)["results"]:
        assert row["tolerance"]["reason"] in text


def test_hashes_and_versions_are_there() -> None:
    text = " ".join(Page(render_html(samples.full())).texts)
    assert all(row["sha256"] in text for row in parity(5)["results"])
    assert "2026.4.1" in text


@pytest.mark.parametrize(
    "image",
    ["", "https://198.51.100.1/a.png", "data:image/svg+xml;base64,AAAA", 'data:image/png;base64,AA"onerror=', None],
)
def test_only_embedded_png_and_jpeg_are_shown(image: str | None) -> None:
    page = Page(render_html(Report(images=({"image": image, "file": "a", "label": "b", "from": "c", "to": "d"},))))
    assert not page.all("img")
    assert any("no picture" in each for each in page.texts)


def test_a_file_name_that_is_no_text_does_not_stop_the_report() -> None:
    document = parity(1)
    document["results"][0]["label"] = "r\udce9sum\x00.onnx"
    render_html(Report(parity=document)).encode("utf-8")


def _spoiled(value: Any, junk: Any) -> Any:
    """The same objects and lists with ``junk`` for every value but the version."""
    if isinstance(value, dict):
        return {key: item if key == "schema" else _spoiled(item, junk) for key, item in value.items()}
    return [_spoiled(item, junk) for item in value] if isinstance(value, list) else junk


@pytest.mark.parametrize("junk", [None, float("nan"), float("-inf"), 1e308, -1e-308, 10**400, "text", True, [], {}])
def test_documents_with_odd_values_everywhere_are_still_rendered(junk: Any) -> None:
    documents = {"parity": parity(2, drift=True), "evaluate": evaluate(2), "bench": bench(2)}
    spoiled = {name: _spoiled(document, junk) for name, document in documents.items()}
    layers = tuple(_spoiled(row, junk) for row in samples.layers(3))
    page = render_html(Report(**spoiled, layers=layers))
    assert not re.search(r'(?:[xy]|d|r|width|height|c[xy])="[^"]*(?:nan|inf)', page)


def test_a_network_of_a_thousand_layers_and_classes_stays_a_page() -> None:
    many = evaluate(1)
    many["results"][0]["confusion"] = [{"from": str(each), "to": str(each + 1), "count": 1} for each in range(2000)]
    many["results"][0]["per_class"] = [{"class": each, "n": 50, "top1": 0.5} for each in range(1000)]
    page = render_html(Report(parity={**parity(1), "drift": [drift_of(0, layers=1500)]}, evaluate=many))
    assert len(page) < 3_000_000


def test_how_the_layers_were_looked_at_is_said_once() -> None:
    text = " ".join(Page(render_html(samples.full())).texts)
    assert text.count(drift_of(0)["probed"]) == 1


def test_classes_are_shown_by_name() -> None:
    document = evaluate(1)
    for row in document["results"]:
        row["per_class"] = [{"class": 3, "n": 5, "top1": 1.0, "name": "tiger cat"}]
    (cells,) = class_table(document["results"]).rows
    assert cells[0].shown == "tiger cat"
