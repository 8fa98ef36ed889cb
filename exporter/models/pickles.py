"""Which classes of a pickle are let in, and what to say of a pickle that names others.

Nothing here executes a pickle: the opcodes are read with ``pickletools``.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from runtimes.errors import CheckpointError, first_line

SAVE_HINT = "save its weights instead: torch.save(model.state_dict(), 'weights.pth')"
# Beside their weights, training scripts store arguments, scores and paths. No release of numpy or Python has to be
# asked what they are: they are not weights.
_BYSTANDERS = (
    "argparse.Namespace", "_codecs.encode", "numpy.dtype", "numpy.ndarray",
    "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath", "pathlib.WindowsPath", "pathlib._local.PosixPath", "pathlib._local.WindowsPath",
)  # fmt: skip
# What every state dict names, whole or damaged.
_INERT = re.compile(
    r"collections\.OrderedDict|torch\._utils\._rebuild_\w+|torch\.(storage\.)?\w*Storage|torch\.Size|torch\.device|"
    r"torch\.nn\.parameter\.Parameter|torch\.(b?float|complex|u?int)\d+\w*|torch\.serialization\._get_layout"
)
_MODULE = re.compile(
    r"(torch\.nn\.modules|torchvision\.models|timm)\..+|(.+\.)?(resnet|resnext|basicblock|bottleneck|dataparallel)[^.]*",
    re.IGNORECASE,
)
_MAX_PICKLES = 16  # the older format of torch.save writes five, one after the other, before the raw numbers
_MAX_BYTES = 64 << 20


class _Ignored:
    """Stands where a bystander stood; takes whatever the pickle gives it, and keeps none of it."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


def bystanders() -> list[Callable[..., Any] | tuple[Callable[..., Any], str]]:
    """Stand-ins for harmless classes, as ``torch.serialization.safe_globals`` takes them."""
    return [(_Ignored, name) for name in _BYSTANDERS]


def refusal(path: Path, error: Exception) -> CheckpointError:
    """The error for a pickle that ``weights_only`` refused."""
    data = _pickled(path)
    named = sorted({name for name in _globals(data) if not _INERT.fullmatch(name) and name not in _BYSTANDERS})
    if not named and data[:1] == b"\x80" and data[1:2] > b"\x03":
        return CheckpointError(
            f"{path} uses pickle protocol {data[1]}, which torch reads only by running the pickle: expected protocol "
            f"2, the default of torch.save; {SAVE_HINT}"
        )
    if not named:
        return damaged(path, ValueError("its pickle has instructions that torch.save does not write"))
    modules = [name for name in named if _MODULE.fullmatch(name)]
    if modules:
        top = next((name for name in modules if not name.startswith("torch.nn.")), modules[0])
        return CheckpointError(
            f"{path} holds a whole pickled module ({top}), and loading one runs code from the file: refused; "
            f"where you trust it, {SAVE_HINT}"
        )
    return CheckpointError(
        f"{path} is a pickle that would run {', '.join(named[:3])} when loaded: refused; "
        f"if you trust its origin, {SAVE_HINT}"
    )


def damaged(path: Path, error: Exception) -> CheckpointError:
    """The error for bytes that cannot be what they begin as."""
    return CheckpointError(f"{path} is truncated or damaged ({first_line(error, 160)}): copy or download it again")


def _pickled(path: Path) -> bytes:
    """The pickle of a file, or what follows it too; nothing where there is none."""
    try:
        if not zipfile.is_zipfile(path):
            with path.open("rb") as stream:
                return stream.read(_MAX_BYTES)
        with zipfile.ZipFile(path) as archive:
            entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            with archive.open(entry) as member:
                return member.read(_MAX_BYTES)
    except Exception:  # noqa: BLE001  (hostile bytes)
        return b""


def _globals(data: bytes) -> Iterator[str]:
    """Names that a pickle would import, as far as it can be read."""
    try:
        yield from _read_globals(data)
    except Exception:  # noqa: BLE001  (hostile bytes: what was read so far is all there is to say)
        return


def _read_globals(data: bytes) -> Iterator[str]:
    position = 0
    for _ in range(_MAX_PICKLES):
        strings: list[str] = []
        memo: dict[int, str] = {}
        last = ""
        for opcode, argument, offset in pickletools.genops(data[position:]):
            if opcode.name in {"GLOBAL", "INST"}:
                yield _printable(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                yield _printable(".".join(strings[-2:]))
            elif opcode.name in {"MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"}:
                memo[len(memo) if argument is None else argument] = last
            elif opcode.name in {"GET", "BINGET", "LONG_BINGET"}:
                strings.append(memo.get(argument or 0, "?"))
            elif isinstance(argument, str):
                strings.append(argument)
            elif opcode.name == "STOP":
                position += (offset or 0) + 1
            last = argument if isinstance(argument, str) else ""


def _printable(name: str) -> str:
    """The name as one line of a message: whoever made the file chose it."""
    return name[:80].encode("unicode_escape").decode("ascii")
