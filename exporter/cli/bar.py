"""How far a pass over images is, on stderr."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress


class Bar:
    """Progress on stderr: a bar where it is a terminal, and one line at the end where it is not."""

    def __init__(self) -> None:
        from exporter.cli.console import stderr_console

        self._console = stderr_console()
        self._bar: Progress | None = None
        self._begin = time.perf_counter()

    def show(self, images: int, total: int) -> None:
        """Move the bar; the first call is where the run starts, which speed and time left are counted from."""
        if not self._console.is_terminal:
            return
        if self._bar is None:
            self._bar = _progress(self._console)
            self._bar.add_task("observe", total=total, completed=images, first=images, speed="")
        task = self._bar.tasks[0]
        speed = (images - task.fields["first"]) / max(task.elapsed or 0.0, 1e-9)
        self._bar.update(task.id, completed=images, speed=f"{speed:.1f} images/s" if speed else "")

    def close(self) -> None:
        """Take the bar away; also after an error."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def note(self, text: str) -> None:
        """Say something beside the bar."""
        from exporter.cli.console import print_notes

        print_notes(self._console, (text,))

    def finished(self, images: int) -> None:
        """Say how long it took."""
        from rich.text import Text

        seconds = time.perf_counter() - self._begin
        line = Text.assemble(("  ✓ ", "green"), f"{'observe':<20}", (f"{seconds:6.2f} s  ", "dim"))
        self._console.print(line.append(f"{images} images, {images / seconds:.1f} images/s"), soft_wrap=True)


def _progress(console: Console) -> Progress:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
    progress = Progress(*columns, TimeRemainingColumn(), console=console, transient=True)
    progress.start()
    return progress
