"""A checkpoint file -> named tensors, without ever running code from the file.

``torch.load(weights_only=True)`` interprets the pickle with a short list of allowed classes. When it refuses, the
opcodes are read once more *without being executed* (``pickletools``), only to tell the user what the file holds.
"""

from __future__ import annotations

import argparse
import hashlib
import pickle
import pickletools
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtimes.errors import CheckpointError, first_line

SUFFIXES = (".pt", ".pth", ".th", ".ckpt", ".safetensors", ".bin", ".tar")
# Where training scripts put the weights, the likeliest first. Averaged weights come last: a file that has both is
# most often evaluated with the plain ones, and the choice is reported either way.
_WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params",
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "shadow",
)  # fmt: skip
_NOT_WEIGHTS = ("optim", "scheduler", "scaler", "sched")
_MAX_NESTING = 3
_SAVE_HINT = "save its weights instead: torch.save(model.state_dict(), 'weights.pth')"


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of one file.

    Attributes:
        path: The file.
        sha256: Hash of its bytes.
        tensors: Names as they stand in the file -> tensors on the CPU.
        wrapper: Dotted keys that led to them, for example ``state_dict``; empty when they were at the top.
        others: Other places in the file that hold weights, and were not taken.
    """

    path: Path
    sha256: str
    tensors: Mapping[str, Tensor]
    wrapper: str
    others: tuple[str, ...]


def load_checkpoint(path: Path, key: str | None = None) -> Checkpoint:
    """Read the tensors of a checkpoint file.

    Args:
        path: ``.pt .pth .th .ckpt`` (either format of ``torch.save``) or ``.safetensors``; the content decides.
        key: Dotted path of the mapping to take (``ema.module``), where the file holds several.

    Raises:
        CheckpointError: Missing, empty, truncated, unsafe, not a checkpoint, or without weights.
    """
    kind = _sniff(path)
    content = _load_safetensors(path) if kind == "safetensors" else _load_torch(path, kind)
    wrapper, tensors, others = _unwrap(path, content, key)
    for name, tensor in tensors.items():
        _check_storage(path, name, tensor)
    return Checkpoint(path, file_sha256(path), tensors, wrapper, others)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha(stream)


def _sha(stream: Any) -> str:  # Python 3.10 has no hashlib.file_digest
    digest = hashlib.sha256()
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _sniff(path: Path) -> str:
    """What the first bytes say: ``zip``, ``pickle``, ``tar`` or ``safetensors``."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: give a checkpoint file ({' '.join(SUFFIXES[:5])})")
        with path.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): the download or the copy did not finish")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    if len(head) > 262 and head[257:262] == b"ustar":
        return "tar"
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size):
        return "safetensors"
    start = head[:24].decode("ascii", "replace").strip().splitlines()
    what = f"begins with {start[0]!r}" if start and head[:24].isascii() else f"begins with bytes {head[:8].hex(' ')}"
    raise CheckpointError(
        f"{path} is not a PyTorch checkpoint: it {what}; expected a file written by torch.save or safetensors"
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({first_line(error, 160)}): copy or download it again"
        ) from error


def _load_torch(path: Path, kind: str) -> Any:
    if kind == "zip":
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(_inert_classes()):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        raise _refusal(path, error) from error
    except (EOFError, RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError,
            AttributeError, UnicodeDecodeError, ImportError, MemoryError, OverflowError) as error:  # fmt: skip
        # torch's readers answer broken bytes with whatever the byte at hand leads to.
        raise CheckpointError(
            f"{path} is truncated or damaged ({first_line(error, 160)}): copy or download it again"
        ) from error


def _check_archive(path: Path) -> None:
    """Refuse archives that are cut off, that are not state dicts, or that would unpack to far more than they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} is truncated or damaged ({first_line(error, 160)}): copy or download it again"
        ) from error
    names = {entry.filename.split("/", 1)[-1] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript archive, which holds code: {_SAVE_HINT}")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a zip archive without a data.pkl: expected a file written by torch.save; {_SAVE_HINT}"
        )
    # torch.save stores without compression, so a small file that unpacks to a large one was not made by it.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} has compressed entries, which torch.save never writes: refused; {_SAVE_HINT}")


def _inert_classes() -> list[Any]:
    """Classes beside tensors that training scripts store, and whose construction runs no code of the file's."""
    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    return [
        argparse.Namespace,
        scalar,
        np.dtype,
        *{type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?")},
    ]


def _refusal(path: Path, error: Exception) -> CheckpointError:
    named = sorted(set(_globals(path)))
    if not named:
        return CheckpointError(f"{path} is truncated or damaged ({first_line(error, 160)}): copy or download it again")
    modules = [name for name in named if _looks_like_module(name)]
    if modules:
        top = next((name for name in modules if not name.startswith("torch.nn.")), modules[0])
        return CheckpointError(
            f"{path} holds a whole pickled module ({top}), and loading one runs code from the file: refused; "
            f"where you trust it, {_SAVE_HINT}"
        )
    foreign = [name for name in named if not name.startswith(("torch.", "collections.", "torch._utils"))] or named
    return CheckpointError(
        f"{path} is a pickle that would run {', '.join(foreign[:3])} when loaded: refused; "
        f"if you trust its origin, {_SAVE_HINT}"
    )


def _looks_like_module(name: str) -> bool:
    tail = name.rsplit(".", 1)[-1]
    return name.startswith(("torch.nn.modules.", "torchvision.models.", "timm.")) or tail.lower().startswith(
        ("resnet", "resnext", "basicblock", "bottleneck", "dataparallel")
    )


def _globals(path: Path) -> Iterator[str]:
    """Names that a pickle would import, read from its opcodes; nothing is executed."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entry = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                yield from _pickle_globals(archive.read(entry))
        else:
            yield from _pickle_globals(path.read_bytes())
    except (StopIteration, OSError, ValueError, zipfile.BadZipFile):
        return


def _pickle_globals(data: bytes) -> Iterator[str]:
    position = 0
    while position < len(data):
        strings: list[str] = []
        try:
            for opcode, argument, offset in pickletools.genops(data[position:]):
                if opcode.name in {"GLOBAL", "INST"}:
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                    yield f"{strings[-2]}.{strings[-1]}"
                elif isinstance(argument, str):
                    strings.append(argument)
                if opcode.name == "STOP":
                    position += (offset or 0) + 1
        except Exception:  # noqa: BLE001  (hostile bytes: what was read so far is all there is to say)
            return


def _unwrap(path: Path, content: Any, key: str | None) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    found = dict(_state_dicts(content, "", 0))
    if key is not None:
        if key not in found:
            places = ", ".join(name or "(top level)" for name in found) or "none"
            raise CheckpointError(f"{path} has no weights under {key!r}; places with weights: {places}")
        chosen = key
    elif found:
        chosen = min(found, key=_preference)
    else:
        top = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no convolution weights (top level: {top or 'nothing'}): expected a state dict of a ResNet"
        )
    others = tuple(name or "(top level)" for name in found if name != chosen)
    return chosen, found[chosen], others


def _state_dicts(content: Any, where: str, nesting: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or nesting > _MAX_NESTING:
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if any(tensor.dim() == 4 for tensor in tensors.values()):
        yield where, tensors
    for name, value in content.items():
        if isinstance(name, str) and not any(word in name.lower() for word in _NOT_WEIGHTS):
            yield from _state_dicts(value, f"{where}.{name}" if where else name, nesting + 1)


def _preference(where: str) -> tuple[int, int, str]:
    ranks = [_WRAPPERS.index(part) if part in _WRAPPERS else len(_WRAPPERS) for part in where.split(".") if part]
    return (max(ranks, default=-1), len(ranks), where)


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """A view with stride 0 can claim terabytes out of one number; reading it would never end."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name} is a {tensor.layout} or quantised tensor; expected dense floating point")
    claimed = tensor.numel() * tensor.element_size()
    if claimed > max(tensor.untyped_storage().nbytes(), 1 << 20):
        raise CheckpointError(
            f"{path}: {name} claims {claimed:,} bytes but stores {tensor.untyped_storage().nbytes():,}: refused"
        )
