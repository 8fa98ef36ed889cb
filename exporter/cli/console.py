"""What a person sees: live stages on stderr, tables on stdout. Colours follow the terminal and ``NO_COLOR``."""

from __future__ import annotations

import time

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from exporter.results import Listener, StageTime

_WIDTH_OF_PIPES = 120  # a table written to a file is not squeezed into 80 columns


def stdout_console() -> Console:
    """For results."""
    return _console(stderr=False)


def stderr_console() -> Console:
    """For progress and remarks."""
    return _console(stderr=True)


def _console(*, stderr: bool) -> Console:
    # Paths and labels are full of brackets and colons: text is text, and no markup.
    console = Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not console.is_terminal:
        console.width = _WIDTH_OF_PIPES
    return console


class _Running:
    """The line of the stage in progress; rendered anew several times a second, so that its seconds move."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._begin = time.perf_counter()
        self._spinner = Spinner("dots", style="cyan")

    def __rich__(self) -> Table:
        row = Table.grid(padding=(0, 1))
        seconds = Text(f"{time.perf_counter() - self._begin:.1f} s", style="dim")
        row.add_row(self._spinner, Text(self._name), seconds)
        return row


class StageLines(Listener):
    """A listener for the pipeline: one line per finished stage, and a moving one for the stage in progress."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live: Live | None = None

    def heading(self, name: str, rest: str) -> None:
        """Say what the following stages are about."""
        self._console.print(Text.assemble((name, "bold"), rest), soft_wrap=True)

    def started(self, name: str) -> None:
        """Show a stage as running."""
        self.close()
        if self._console.is_terminal:
            self._live = Live(_Running(name), console=self._console, transient=True, refresh_per_second=8)
            self._live.start()

    def finished(self, stage: StageTime) -> None:
        """Show a stage as done, with its seconds and its note."""
        self.close()
        line = Text.assemble(("  ✓ ", "green"), f"{stage.name:<20}", (f"{stage.seconds:6.2f} s  ", "dim"), stage.note)
        self._console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Take the moving line away; also after an error."""
        if self._live is not None:
            self._live.stop()
            self._live = None


def print_notes(console: Console, notes: tuple[str, ...], limit: int | None = None) -> None:
    """Print remarks, at most ``limit`` of them."""
    shown = notes if limit is None else notes[:limit]
    for note in shown:
        console.print(Text.assemble(("  note  ", "yellow"), note), soft_wrap=True)
    if len(shown) < len(notes):
        console.print(Text(f"        and {len(notes) - len(shown)} more: --verbose", style="dim"))
