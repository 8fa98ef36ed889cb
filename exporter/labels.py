"""Names of classes, from a file of the user's."""

from __future__ import annotations

from pathlib import Path

from runtimes.errors import InputError


def read_labels(path: Path) -> tuple[str, ...]:
    """Class names, one per line; blank lines at the end do not count.

    Raises:
        InputError: The file cannot be read as text, or holds nothing.
    """
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").rstrip().splitlines())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--labels {path} cannot be read ({error}): expected one class name per line") from error
    if not names:
        raise InputError(f"--labels {path} is empty: expected one class name per line")
    return names
