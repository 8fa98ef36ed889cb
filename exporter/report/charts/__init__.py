"""Charts as inline SVG: no script, no font, no colour of their own; the page's style sheet themes them."""

from exporter.report.charts.confusion import confusion_chart
from exporter.report.charts.drift import drift_chart
from exporter.report.charts.frame import NARROW, WIDE
from exporter.report.charts.pipeline import pipeline_chart
from exporter.report.charts.ranges import ranges_chart
from exporter.report.charts.rows import Row, rows_chart
from exporter.report.charts.tradeoff import trade_off_chart

__all__ = [
    "NARROW",
    "WIDE",
    "Row",
    "confusion_chart",
    "drift_chart",
    "pipeline_chart",
    "ranges_chart",
    "rows_chart",
    "trade_off_chart",
]
