"""The page in a real browser: what is fetched, what is seen, what the keyboard reaches, what is printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exporter.report.html import render_html
from exporter.report.model import Report
from tests.exporter import report_samples as samples
from tests.exporter.chromium import BINARY, Chromium
from tests.exporter.report_documents import bench, evaluate, parity

pytestmark = pytest.mark.skipif(BINARY is None, reason="Chromium is not installed")

REPORTS = {
    "full": samples.full(),
    "failing": samples.full(parity=parity(failing=(3,), crashed=(4,), drift=True)),
    "twelve": samples.full(parity=parity(12), evaluate=evaluate(12), bench=bench(12, (1,))),
    "long names": samples.long_names(),
    "hostile": samples.hostile(),
    "only parity": Report(parity=parity(2)),
    "nothing": Report(),
}
CHARTS = ("pipeline", "trade-off", "sqnr", "agreement", "drift-0", "accuracy", "confusion-4", "latency-0", "layers")
TAB, ENTER = ("Tab", 9), ("Enter", 13)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    with Chromium(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture(autouse=True)
def _fresh(browser: Chromium) -> None:
    browser.size(1100)
    browser.scheme("light")


def _open(browser: Chromium, folder: Path, report: Report) -> None:
    path = folder / "report.html"
    path.write_text(render_html(report), encoding="utf-8")
    browser.open(path)
    browser.evaluate("sessionStorage.length")  # a round trip: what the page has logged by now has arrived


def _events(browser: Chromium, *methods: str) -> list[dict[str, Any]]:
    return [event["params"] for event in browser.events if event.get("method") in methods]


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_fetches_nothing_and_logs_nothing(name: str, browser: Chromium, tmp_path: Path) -> None:
    _open(browser, tmp_path, REPORTS[name])
    requested = [event["request"]["url"] for event in _events(browser, "Network.requestWillBeSent")]
    own = (tmp_path / "report.html").resolve().as_uri()
    assert own in requested
    assert [url for url in requested if url != own and not url.startswith("data:")] == []
    assert _events(browser, "Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled") == []


@pytest.mark.parametrize("width", [360, 1100])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_the_verdict_and_every_chart_are_seen(theme: str, width: int, browser: Chromium, tmp_path: Path) -> None:
    browser.size(width)
    browser.scheme(theme)
    _open(browser, tmp_path, samples.full())
    suffix = "-narrow" if width == 360 else ""
    for ident in ["verdict-title", *(f"chart-{name}{suffix}" for name in CHARTS)]:
        box = browser.evaluate(
            f"(() => {{ const b = document.getElementById('{ident}').getBoundingClientRect();"
            " return [b.left, b.right, b.width, b.height]; })()"
        )
        assert box[2] > 100, ident
        assert box[3] > 20, ident
        assert box[0] >= 0, ident
        assert box[1] <= width, ident


@pytest.mark.parametrize("name", REPORTS)
def test_a_page_is_never_wider_than_a_telephone(name: str, browser: Chromium, tmp_path: Path) -> None:
    browser.size(360)
    _open(browser, tmp_path, REPORTS[name])
    browser.evaluate("document.querySelectorAll('details').forEach((each) => { each.open = true; })")
    assert browser.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


def _luminances(browser: Chromium) -> list[float]:
    """Relative luminance (WCAG 2.2) of the page's paper and of its ink."""
    return [
        browser.evaluate(
            f"(() => {{ const c = getComputedStyle(document.body).{key}.match(/[0-9.]+/g).slice(0, 3)"
            ".map((v) => v / 255).map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));"
            " return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2]; })()"
        )
        for key in ("backgroundColor", "color")
    ]


def test_the_theme_follows_the_system_until_it_is_toggled(browser: Chromium, tmp_path: Path) -> None:
    browser.scheme("dark")
    _open(browser, tmp_path, samples.full())
    paper, ink = _luminances(browser)
    assert paper < ink
    assert browser.evaluate("document.getElementById('theme').getAttribute('aria-pressed')") == "true"
    browser.evaluate("document.getElementById('theme').click()")
    paper, ink = _luminances(browser)
    assert paper > ink
    assert browser.evaluate("document.getElementById('theme').getAttribute('aria-pressed')") == "false"
    browser.evaluate("localStorage.clear()")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_stands_out_from_the_paper(theme: str, browser: Chromium, tmp_path: Path) -> None:
    browser.scheme(theme)
    _open(browser, tmp_path, samples.full())
    low, high = sorted(_luminances(browser))
    assert (high + 0.05) / (low + 0.05) >= 7  # WCAG 2.2, 1.4.6


def test_the_tab_key_reaches_the_skip_link_the_toggle_and_the_sort_buttons(browser: Chromium, tmp_path: Path) -> None:
    _open(browser, tmp_path, Report(parity=parity(2)))
    seen = []
    for _ in range(30):
        browser.press(*TAB)
        seen.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
        style = browser.evaluate("getComputedStyle(document.activeElement).outlineStyle")
        assert style != "none", seen[-1]
        if seen[-1] == "sort":
            break
    assert seen[0] == "skip"
    assert "theme" in seen
    assert seen[-1] == "sort"
    browser.press(*ENTER)
    assert browser.evaluate("document.activeElement.closest('th').getAttribute('aria-sort')") == "ascending"


def test_sorting_orders_numbers_by_value_both_ways_and_keeps_missing_ones_last(
    browser: Chromium, tmp_path: Path
) -> None:
    _open(browser, tmp_path, Report(parity=parity(5, crashed=(2,))))
    column = "document.querySelectorAll('#table-parity th')[2]"
    values = (
        "Array.from(document.querySelectorAll('#table-parity tbody tr'), (row) => row.cells[2].dataset.key ?? null)"
    )
    expected = [30.9, 31.8, 127.9, 131.4]
    for direction, ordered in (("ascending", expected), ("descending", expected[::-1])):
        browser.evaluate(f"{column}.querySelector('button').click()")
        assert browser.evaluate(f"{column}.getAttribute('aria-sort')") == direction
        assert [None if each is None else float(each) for each in browser.evaluate(values)] == [*ordered, None]
    others = browser.evaluate("document.querySelectorAll('#table-parity th[aria-sort=none]').length")
    assert others == browser.evaluate("document.querySelectorAll('#table-parity th').length") - 1


@pytest.mark.parametrize("name", ["full", "nothing"])
def test_a_page_prints(name: str, browser: Chromium, tmp_path: Path) -> None:
    _open(browser, tmp_path, REPORTS[name])
    data = browser.pdf()
    assert data.startswith(b"%PDF-")
    assert data.count(b"/Type /Page\n") + data.count(b"/Type /Page ") >= (3 if name == "full" else 1)


def test_without_script_the_page_reads_the_same(browser: Chromium, tmp_path: Path) -> None:
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    try:
        _open_unscripted(browser, tmp_path)
    finally:
        browser.call("Emulation.setScriptExecutionDisabled", value=False)


def _open_unscripted(browser: Chromium, folder: Path) -> None:
    path = folder / "report.html"
    path.write_text(render_html(samples.full()), encoding="utf-8")
    browser.open(path)
    hidden = "document.getElementById('theme').hidden"
    assert browser.evaluate(hidden)
    assert browser.evaluate("document.getElementById('chart-trade-off').getBoundingClientRect().width") > 100
