"""Decode files in other processes: in order, ahead of the caller, and no further ahead than told.

::

    files --chunks--> worker processes --outcomes--> caller, in the order of the files
          |<---- a bounded number of files ---->|

The processes are spawned, not forked: a fork copies the locks of other threads (torch and ONNX Runtime have many) as
they are, and hangs on the first that was held. A spawned process imports what it needs instead, which is numpy and
Pillow, and also the script that was started, so that script has to keep its work under
``if __name__ == "__main__"``.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from threading import Thread
from typing import TYPE_CHECKING

from calibration.decoding import Tensor, outcome
from runtimes.errors import DataError, UnavailableError

if TYPE_CHECKING:
    from concurrent.futures import Future, ProcessPoolExecutor

    from calibration.listing import ImageFile
    from calibration.preprocess import Preprocessing

# Files in one message to a worker: enough that messages cost little, few enough that every worker has some.
_CHUNK = 8
# Starting a process takes about as long as decoding 16 MiB of photographs (half a second to one).
_WORTH_FILES = 256
_WORTH_BYTES = 16 << 20
_MOST_WORKERS = 8
# So many files are looked at to guess the size of all.
_PROBED = 16


def worker_count(files: Sequence[ImageFile]) -> int:
    """How many processes to decode ``files`` with, when the user does not say.

    Args:
        files: What will be decoded; a few of them are looked up on the disk, none is read.

    Returns:
        0 where starting processes would take longer than they save: few or tiny files, or array files. Otherwise
        from 1 to 8, one less than the processors that this process may use.
    """
    if len(files) < _WORTH_FILES or any(file.row is not None for file in files):
        return 0
    probed = files[:: len(files) // _PROBED]
    if sum(map(_bytes, probed)) / len(probed) * len(files) < _WORTH_BYTES:
        return 0
    # The affinity mask, not os.cpu_count(): a container may have two of a machine's hundred.
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(usable - 1, _MOST_WORKERS))


def outcomes(
    files: Sequence[ImageFile], contract: Preprocessing, workers: int, ahead: int
) -> Generator[Tensor | str, None, None]:
    """What became of each file, in order; closing the iterator ends the processes.

    Args:
        files: Image files, or rows of array files.
        contract: How the pixels become a tensor.
        workers: Number of processes, at least 1.
        ahead: So many files may be decoded before the caller asks for them, where that is enough to keep all
            workers busy; it bounds the memory.

    Yields:
        float32 array of shape ``[C, H, W]``, or the reason why there is none.

    Raises:
        DataError: A worker died.
        UnavailableError: The machine does not let processes be started.
    """
    from concurrent.futures.process import BrokenProcessPool

    pool = _pool(workers)
    waiting: deque[Future[list[Tensor | str]]] = deque()
    # Two chunks for each worker, or it would idle between them.
    most = max(2 * workers, -(-ahead // _CHUNK))
    given = done = 0
    try:
        while done < len(files):
            while given < len(files) and len(waiting) <= most:
                waiting.append(_submit(pool, files[given : given + _CHUNK], contract, workers))
                given += _CHUNK
            chunk = waiting.popleft().result()
            yield from chunk
            done += len(chunk)
    except BrokenProcessPool as error:
        raise DataError(
            f"a process that decodes images died at {files[done].path} or one of the images after it: use fewer "
            f"workers if memory is short, or workers=0 to find the image; a script that asks for workers has to do "
            f"its work under if __name__ == '__main__'"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pool(workers: int) -> ProcessPoolExecutor:
    from concurrent.futures import ProcessPoolExecutor

    from PIL import Image, ImageFile

    # The settings of Pillow decide which files are bad, and a new process would start with its defaults.
    settings = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES)
    try:
        return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _prepare, settings)
    except OSError as error:
        raise _no_processes(workers, error) from error


def _submit(
    pool: ProcessPoolExecutor, files: Sequence[ImageFile], contract: Preprocessing, workers: int
) -> Future[list[Tensor | str]]:
    # The pool starts its processes here, and they inherit the mask: Ctrl+C reaches every process of the terminal,
    # and each worker would answer with a traceback where the parent is about to end it anyway.
    try:
        with _interrupts_held():
            return pool.submit(_decode_all, list(files), contract)
    except OSError as error:
        raise _no_processes(workers, error) from error


def _decode_all(files: Sequence[ImageFile], contract: Preprocessing) -> list[Tensor | str]:
    return [outcome(file, contract) for file in files]


@contextmanager
def _interrupts_held() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _prepare(max_pixels: int | None, truncated: bool) -> None:
    """First call in a worker."""
    from PIL import Image, ImageFile

    Image.MAX_IMAGE_PIXELS = max_pixels
    ImageFile.LOAD_TRUNCATED_IMAGES = truncated
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # A parent that is killed ends no pool, and its workers would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _bytes(file: ImageFile) -> int:
    try:
        return file.path.stat().st_size
    except OSError:  # reported when it is decoded
        return 0


def _no_processes(workers: int, error: OSError) -> UnavailableError:
    return UnavailableError(
        f"{workers} processes that decode images cannot be started ({error.strerror or error}): "
        f"use fewer workers, or workers=0"
    )
