"""Read ahead in a thread: the next batches are decoded while the caller is busy with the last one."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from runtimes.errors import InputError

_Item = TypeVar("_Item")


def prefetched(source: Iterable[_Item], ahead: int = 1) -> Generator[_Item, None, None]:
    """The items of ``source``, in order, fetched by one thread of its own.

    It pays where both sides let go of Python's lock: decoders of images do, and so do runtimes. The thread begins with
    the first item that is asked for, and has ended when the generator has, however it does: at the end of ``source``,
    by an error of either side, by ``close()`` or by Ctrl-C; at the latest when the item under way is done. Use it in
    ``contextlib.closing`` where it may be left early.

    Image readers change Python's warning filters while they decode, and filters belong to the process: do not change
    them on the other side meanwhile.

    Args:
        source: Iterated over in the thread alone, and closed there where it can be. What it raises is raised here, in
            the place of the item.
        ahead: Items that may be ready or under way, besides the one that the caller has.

    Raises:
        InputError: ``ahead`` is below 1.
    """
    if ahead < 1:
        raise InputError(f"received {ahead} items to read ahead, expected at least 1")
    return _prefetched(source, ahead)


def _prefetched(source: Iterable[_Item], ahead: int) -> Generator[_Item, None, None]:
    end: Any = object()
    with ThreadPoolExecutor(1, thread_name_prefix="prefetch") as pool:
        iterator = pool.submit(iter, source).result()
        waiting = deque(pool.submit(next, iterator, end) for _ in range(ahead))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(pool.submit(next, iterator, end))
                yield item
        finally:
            for future in waiting:
                future.cancel()
            if close := getattr(iterator, "close", None):
                pool.submit(close).result()
