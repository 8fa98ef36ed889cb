"""From the documents of the proof commands to a page, a text for a pull request, and a file for CI."""

from exporter.report.html import render_html
from exporter.report.junit import render_junit
from exporter.report.markdown import render_markdown
from exporter.report.model import Report

__all__ = ["Report", "render_html", "render_junit", "render_markdown"]
