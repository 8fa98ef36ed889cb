"""From the documents of the proof commands to a page, a text for a pull request, and a file for CI.

::

    report = Report(parity=parity, bench=bench)   # exporter.report.model
    render_html(report)                           # exporter.report.html
    render_markdown(report)                       # exporter.report.markdown
    render_junit(report)                          # exporter.report.junit
"""
