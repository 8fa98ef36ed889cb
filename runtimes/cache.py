"""Where things that can be made again are kept between runs: the user's cache folder, as the XDG rules have it."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

from runtimes.errors import UnavailableError

_NAME: Final = "resnet-export"


def cache_folder(kind: str, key: str, root: Path | None = None) -> Path:
    """A folder that can be written to, made where it is not there yet.

    Args:
        kind: What is kept, for example ``"ort-tensorrt"``.
        key: Hash of everything that what is kept depends on: other things with this key would be taken for it.
        root: Instead of ``$XDG_CACHE_HOME/resnet-export``, or ``~/.cache/resnet-export`` where that is not set.

    Returns:
        ``root/kind/key``, absolute.

    Raises:
        UnavailableError: It cannot be made or written to. Work goes on without it; the message says why there is none.
    """
    try:
        folder = (root or _root()).absolute() / kind / key
        # What is kept may be loaded and run: nobody else shall put something there.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError) as error:  # pathlib's, for a user without a home
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise UnavailableError(f"nothing is kept for the next run: no cache folder can be used ({reason})") from error
    return folder


def _root() -> Path:
    given = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # "All paths must be absolute; a relative one is to be ignored": XDG Base Directory Specification.
    return (given if given.is_absolute() else Path.home() / ".cache") / _NAME
