"""Scales, labels and charts."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup

from exporter.report.charts import svg
from exporter.report.charts.confusion import confusion_chart
from exporter.report.charts.drift import drift_chart
from exporter.report.charts.frame import NARROW, WIDE
from exporter.report.charts.labels import Box, Disc, place
from exporter.report.charts.pipeline import pipeline_chart
from exporter.report.charts.ranges import ranges_chart
from exporter.report.charts.scale import fitting, linear, logarithmic
from exporter.report.charts.tradeoff import trade_off_chart
from exporter.report.measures import latency_rows, sqnr_rows
from exporter.report.model import Report
from tests.exporter import report_samples as samples
from tests.exporter.report_documents import bench, drift_of, evaluate, parity

finite = st.floats(-1e12, 1e12, allow_subnormal=False)


@given(st.lists(finite, max_size=20), st.booleans())
def test_a_linear_axis_holds_all_values_with_a_few_even_ticks(values: list[float], zero: bool) -> None:
    scale = linear(values, 0.0, 100.0, zero=zero)
    assert scale.low < scale.high
    assert 2 <= len(scale.ticks) <= 13
    slack = 1e-6 * (scale.high - scale.low)
    for value in values:
        assert scale.low - slack <= value <= scale.high + slack
        assert 0.0 <= scale(value) <= 100.0


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=20))
def test_a_logarithmic_axis_holds_all_values(values: list[float]) -> None:
    scale = logarithmic(values, 0.0, 100.0)
    assert scale.low <= min(values)
    assert scale.high >= max(values)
    assert all(left < right for left, right in pairwise(scale.ticks))


def test_ticks_are_round() -> None:
    assert linear([3.0, 97.0], 0, 1).ticks == (0.0, 50.0, 100.0)
    assert linear([0.731, 0.779], 0, 1).ticks == (0.72, 0.74, 0.76, 0.78)
    assert logarithmic([0.3, 40.0], 0, 1).ticks == (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0)


def test_values_that_span_decades_are_drawn_on_a_logarithmic_axis() -> None:
    assert fitting([0.5, 30.0], 0, 1, zero=True).log
    assert not fitting([5.0, 30.0], 0, 1, zero=True).log
    assert not fitting([0.0, 30.0], 0, 1, zero=True).log


def test_fractions_do_not_get_an_axis_beyond_one_hundred() -> None:
    scale = linear([99.2, 100.0], 0, 1, limits=(0.0, 100.0))
    assert scale.high == 100.0
    assert linear([100.0], 0, 1, limits=(0.0, 100.0)).high >= 100.0


@given(st.lists(st.tuples(st.floats(40, 700), st.floats(40, 300), st.floats(4, 18)), max_size=12, unique=True))
def test_every_label_gets_a_place(points: list[tuple[float, float, float]]) -> None:
    discs = [Disc(*point) for point in points]
    assert len(place(discs, [90.0] * len(discs), Box(0, 0, 800, 340))) == len(points)


def test_labels_of_neighbours_do_not_cover_each_other() -> None:
    discs = [Disc(300.0 + 9 * index, 150.0 + (index % 3) * 4, 8.0) for index in range(12)]
    boxes = [placed.box for placed in place(discs, [130.0] * 12, Box(40, 20, 840, 380))]
    assert sum(left.overlap(right) for index, left in enumerate(boxes) for right in boxes[:index]) == 0.0


def test_text_is_escaped_and_elements_are_not() -> None:
    hostile = '<b onclick="x">&'
    drawn = svg.tag("g", svg.tag("title", hostile), id=hostile)
    parsed = ET.fromstring(drawn)
    assert parsed.get("id") == hostile
    assert [child.tag for child in parsed] == ["title"]
    assert parsed[0].text == hostile


DRAWINGS: dict[str, Callable[[str, float], Markup | None]] = {
    "pipeline": lambda ident, width: pipeline_chart(ident, samples.stages(), width),
    "drift": lambda ident, width: drift_chart(ident, drift_of(3, failing=True), width),
    "one layer": lambda ident, width: drift_chart(ident, drift_of(3, layers=1), width),
    "layers": lambda ident, width: ranges_chart(ident, samples.layers(), width),
    "sqnr": sqnr_rows(parity(12)["results"]),
    "latency": latency_rows(bench(12)["results"], {}),
    "trade-off": lambda ident, width: trade_off_chart(
        ident, Report(evaluate=evaluate(12), bench=bench(12)).trade_off, width
    ),
    "confusion": lambda ident, width: confusion_chart(ident, evaluate(5)["results"][4]["confusion"], width),
}


@pytest.mark.parametrize("width", [NARROW, WIDE])
@pytest.mark.parametrize("name", DRAWINGS)
def test_a_chart_is_well_formed_named_and_within_its_width(name: str, width: int) -> None:
    drawn = DRAWINGS[name]("the-id", width)
    assert drawn is not None
    root = ET.fromstring(drawn)
    assert root.get("role") == "img"
    assert float(root.get("width") or 0) <= width
    labelled = {child.get("id"): child.text for child in root if child.tag in ("title", "desc")}
    assert set((root.get("aria-labelledby") or "").split()) == set(labelled)
    assert all(labelled.values())
    assert "nan" not in drawn
    assert "inf" not in drawn
    for text in root.iter("text"):
        assert -1 <= float(text.get("x") or 0) <= width


def test_the_first_layer_out_of_its_bound_is_marked_and_named() -> None:
    document = drift_of(3, failing=True)
    drawn = drift_chart("d", document, WIDE)
    assert drawn is not None
    assert f"first out of its bound: {document['first']}" in drawn
    assert drawn.count('class="ring"') == 1
    # A document may give the whole row instead of the name.
    row = next(each for each in document["layers"] if not each["passed"])
    assert drift_chart("d", {**document, "first": row}, WIDE) == drawn


def test_identical_and_missing_layers_do_not_stretch_the_axis() -> None:
    document = drift_of(0)
    document["layers"][0]["sqnr_db"] = 300.0
    document["layers"][1]["sqnr_db"] = None
    drawn = drift_chart("d", document, WIDE)
    assert drawn is not None
    assert ">300<" not in drawn
    assert "53 layers" in drawn


@pytest.mark.parametrize("width", [NARROW, WIDE])
def test_nothing_to_draw_draws_nothing(width: int) -> None:
    assert pipeline_chart("a", (), width) is None
    assert drift_chart("a", {"layers": []}, width) is None
    assert ranges_chart("a", ({"layer": "x", "low": None, "high": float("nan")},), width) is None
    assert trade_off_chart("a", Report().trade_off, width) is None
    assert confusion_chart("a", [], width) is None
    assert sqnr_rows([{"label": "x", "sqnr_db": None}])("a", width) is None
    assert latency_rows([{"label": "x", "p50_ms": 0}], {})("a", width) is None


def test_a_confusion_of_many_classes_is_left_to_the_table() -> None:
    rows = [{"from": str(each), "to": str(each + 1), "count": 1} for each in range(12)]
    assert confusion_chart("a", rows, WIDE) is None
    assert confusion_chart("a", rows[:11], WIDE) is not None
