"""The bytes inside of a ``.zst`` file, as many as the reader has allowed, and proof at the end that it was whole."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any, Final

from runtimes.errors import InputError, first_line, missing_package

_WINDOW: Final = 1 << 27
"""Most bytes that a frame may make the reader hold; what is packed here asks for less."""
_PIECE: Final = 2048
"""Compressed bytes that are taken at a time: even a run of zeros makes no more than some ten megabytes of them."""


def require_zstd() -> Any:
    """The zstandard package.

    Raises:
        UnavailableError: It is not installed.
    """
    try:
        import zstandard
    except ImportError as error:
        raise missing_package("zstandard", "bundle") from error
    return zstandard


class BoundedReader:
    """Reads one frame; ``tarfile`` takes it for a file.

    Args:
        stream: The compressed file.
        path: Its name, for messages.

    Raises InputError where the frame is damaged or gives more than was allowed.
    """

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        self._zstandard = require_zstd()
        self._frame = self._zstandard.ZstdDecompressor(max_window_size=_WINDOW).decompressobj()
        self._stream, self._path = stream, path
        self._held = bytearray()
        self._allowed = 0

    def allow(self, size: int) -> None:
        """Let so many bytes more be read."""
        self._allowed += size

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes; fewer at the end only."""
        while len(self._held) < size and not self._frame.eof:
            piece = self._stream.read(_PIECE)
            if not piece:
                raise InputError(f"{self._path} is cut short: copy it again")
            try:
                self._held += self._frame.decompress(piece)
            except (self._zstandard.ZstdError, MemoryError) as error:
                raise InputError(f"{self._path} is damaged ({first_line(error)}): copy it again") from error
        taken = bytes(self._held[:size])
        del self._held[:size]
        self._allowed -= len(taken)
        if self._allowed < 0:
            raise InputError(f"{self._path} holds more than its manifest announces: it was not unpacked to the end")
        return taken

    def finish(self) -> None:
        """Read to the end.

        Raises:
            InputError: There is more than zeros behind the last file, or more behind the frame.
        """
        while rest := self.read(1 << 16):
            if rest.strip(b"\0"):
                raise InputError(f"{self._path} holds bytes behind its last file: copy it again")
        if self._frame.unused_data or self._stream.read(1):
            raise InputError(f"{self._path} has bytes behind its end: copy it again")
