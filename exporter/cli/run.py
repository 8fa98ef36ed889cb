"""``resnet-export run``: a pipeline file, from the checkpoint to the report, done once and kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from exporter.cli.options import output_options, verbose
from exporter.run.keys import SECTIONS, Section
from exporter.run.kinds import Key
from exporter.run.reading import Override

if TYPE_CHECKING:
    from rich.console import Console

    from exporter.run.gates import Gate
    from exporter.run.job import RunReport

_EXAMPLES = """\b
Examples:
  resnet-export init && resnet-export run
  resnet-export run pipeline.toml --dry-run
  resnet-export run pipeline.toml --targets onnxruntime,tensorrt --effort best --set engine.rtx.opt=8
"""
_NOTES_SHOWN = 5


def _option(section: Section, key: Key) -> Callable[[Any], Any]:
    """The option of a key that has one of its own; its text is read as the one of ``--set`` is."""
    told = f"{key.help} ({section.name}.{key.name})."
    name = _parameter(section, key)
    if key.kind == "bool":
        return click.option(f"{key.flag}/--no-{(key.flag or '')[2:]}", name, default=None, help=told)
    words = {"int": "N", "float": "N", "ints": "N,N", "texts": "NAME,NAME", "path": "PATH"}
    shown = "|".join(key.choices) if key.kind == "choice" else words.get(key.kind, "TEXT")
    flags = ("-o", key.flag or "") if key.flag == "--output" else (key.flag or "",)
    return click.option(*flags, name, metavar=shown, help=told)


def _parameter(section: Section, key: Key) -> str:
    return f"{section.name}__{key.name}"


def _key_options(command: Callable[..., Any]) -> Callable[..., Any]:
    flagged = [(section, key) for section in SECTIONS.values() for key in section.keys if key.flag]
    for section, key in reversed(flagged):
        command = _option(section, key)(command)
    return command


@click.command("run", epilog=_EXAMPLES, short_help="Do a whole pipeline, and only what has changed.")
@click.argument("file", metavar="[PIPELINE.toml]", default="pipeline.toml", type=click.Path(path_type=Path))
@click.option("--dry-run", is_flag=True, help="Print what would be done, and why; write nothing.")
@click.option("--set", "sets", multiple=True, metavar="SECTION.KEY=VALUE",
              help="Any key of the file: --set onnx.batch=1, --set engine.rtx.opt=8; lists have commas.")  # fmt: skip
@_key_options
@output_options
@verbose
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Take a model through export, calibration, quantisation, engines and proof, as a file says.

    A stage is done once. It is done again when something that it uses has changed: a file's bytes, an option, the
    version of a tool. Options here go over the file's; paths in them are relative to the working directory. The
    exit code is 1 where a gate fails, after the report is written. docs/pipeline.md has all keys.
    """
    from exporter.run.job import planned, run
    from exporter.run.reading import read_pipeline

    settings = read_pipeline(given["file"], _overrides(given))
    silent = given["quiet"] or given["as_json"]
    if given["dry_run"]:
        report = planned(settings)
    else:
        lines = None if silent else _lines(given["verbose"])
        try:
            report = run(settings, lines, _waiting if not given["quiet"] else lambda holder: None)
        finally:
            if lines is not None:
                lines.close()
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, report.to_json())
    elif not given["quiet"]:
        from exporter.cli.console import stdout_console

        if report.dry:
            _show_plan(stdout_console(), report)
        else:
            _show(stdout_console(), report, given["verbose"])
    if report.passed is False:
        for gate in report.gates if silent else ():
            if not gate.passed:
                click.echo(f"gate {gate.gate} failed: {gate.message}", err=True)
        raise click.exceptions.Exit(1)


def _overrides(given: dict[str, Any]) -> list[Override]:
    """What the command line says over the file; options of their own go over ``--set``."""
    found = []
    for text in given["sets"]:
        address, sign, value = text.partition("=")
        if not sign or "." not in address:
            raise click.UsageError(f"--set {text}: expected SECTION.KEY=VALUE, for example --set onnx.batch=1")
        found.append(Override(f"--set {address.strip()}", address.strip(), value.strip()))
    for section in SECTIONS.values():
        for key in section.keys:
            value = given.get(_parameter(section, key)) if key.flag else None
            if value is not None:
                text = str(value).lower() if isinstance(value, bool) else value
                found.append(Override(key.flag or "", f"{section.name}.{key.name}", text))
    return found


def _waiting(holder: str) -> None:
    click.echo(f"the output folder is in use by {holder}: waiting for it to end (Ctrl-C gives up)", err=True)


def _lines(full: bool) -> Any:
    """Progress on stderr. Made here, so that `--help` imports neither rich nor the work."""
    from exporter.cli.console import StageLines, stderr_console
    from exporter.results import StageTime
    from exporter.run.runner import Listener, Step
    from exporter.run.stage import Stage

    console = stderr_console()
    inner = StageLines(console)

    class Lines(Listener):
        """A moving line for the stage in progress, and one that stays for each that is done."""

        def started(self, stage: Stage) -> None:
            inner.started(stage.name)

        def ended(self, step: Step) -> None:
            record = step.record
            if step.cached or record is None:
                told = (
                    "left out, as before" if step.status == "skipped" else f"cached: {record.summary if record else ''}"
                )
                inner.finished(StageTime(step.stage, 0.0, told))
                return
            told = f"left out: {record.skipped}" if record.skipped else record.summary
            inner.finished(StageTime(step.stage, record.seconds, told))
            if full:
                for reason in step.reasons:
                    console.print(f"      because {reason}", style="dim", soft_wrap=True)

        def close(self) -> None:
            inner.close()

    return Lines()


def _show_plan(console: Console, report: RunReport) -> None:
    from rich.text import Text

    for step in report.steps:
        style = {"cached": "green", "to do": "yellow"}.get(step.status, "dim")
        why = "; ".join(step.reasons)
        if step.cached:
            why = f"left out: {step.record.skipped}" if step.record and step.record.skipped else ""
        console.print(Text.assemble((f"{step.status:<8}", style), f"{step.stage:<22}", (why, "dim")), soft_wrap=True)
    count = sum(step.status == "to do" for step in report.steps)
    console.print(f"{count} of {len(report.steps)} stages to do, in {report.settings.folder}", soft_wrap=True)


def _show(console: Console, report: RunReport, full: bool) -> None:
    from rich.text import Text

    from exporter.cli.console import print_notes

    print_notes(console, report.notes, None if full else _NOTES_SHOWN)
    for gate in report.gates:
        if gate.limit is not None or not gate.passed:
            console.print(_gate_line(gate), soft_wrap=True)
    verdict = ("✓ passed", "bold green") if report.passed else ("✗ failed", "bold red")
    console.print(Text.assemble(verdict))
    done = sum(not step.cached for step in report.steps)
    console.print(Text.assemble(("stages  ", "bold"), f"{done} done, {len(report.steps) - done} cached"))
    console.print(Text.assemble(("folder  ", "bold"), str(report.settings.folder)), soft_wrap=True)
    page = report.settings.folder / "report.html"
    if any(step.stage == "report" for step in report.steps):
        console.print(Text.assemble(("report  ", "bold"), str(page)), soft_wrap=True)


def _gate_line(gate: Gate) -> Any:
    from rich.text import Text

    mark = ("  ✓ ", "green") if gate.passed else ("  ✗ ", "red")
    return Text.assemble(mark, (f"{gate.gate}: ", "bold"), gate.message)
