"""A checkpoint file -> named tensors, without ever running code from the file.

``torch.load(weights_only=True)`` interprets the pickle with a short list of allowed classes; ``pickles`` adds those
that may stand beside weights, and explains a refusal.
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from exporter.files import file_sha256
from exporter.models.pickles import SAVE_HINT, bystanders, damaged, refusal
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
        key: Where the weights are, in a file that holds several: the dotted path of a mapping (``ema.module``), or
            the prefix that all names of one model have (``ema_model``).

    Raises:
        CheckpointError: Missing, empty, truncated, unsafe, not a checkpoint, or without weights.
    """
    kind = _sniff(path)
    content = _load_safetensors(path) if kind == "safetensors" else _load_torch(path, kind)
    wrapper, tensors, others = _unwrap(path, content, key)
    for name, tensor in tensors.items():
        _check_storage(path, name, tensor)
    return Checkpoint(path, file_sha256(path), tensors, wrapper, others)


def _sniff(path: Path) -> str:
    """What the first bytes say: ``zip``, ``pickle`` or ``safetensors``."""
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise CheckpointError(f"{path} is a folder: give a checkpoint file ({' '.join(SUFFIXES[:5])})")
        if not path.is_file():
            raise CheckpointError(f"{path} is not a regular file: a pipe or a device cannot be read twice")
        with path.open("rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path with a NUL in it
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{str(path)[:200]!r} cannot be read: {reason}") from error
    if size == 0:
        raise CheckpointError(f"{path} is empty (0 bytes): the download or the copy did not finish")
    if head.startswith(b"PK\x03\x04"):
        return "zip"
    if head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05":
        return "pickle"
    if len(head) > 262 and head[257:262] == b"ustar":
        raise CheckpointError(
            f"{path} is a tar archive: expected a checkpoint file; unpack it first, and where PyTorch before 0.1.10 "
            "wrote it, load it there and save it again"
        )
    if path.suffix == ".safetensors" or (head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size):
        return "safetensors"
    start = head[:24].decode("ascii", "replace").strip().splitlines()
    what = f"begins with {start[0]!r}" if start and head[:24].isascii() else f"begins with bytes {head[:8].hex(' ')}"
    raise CheckpointError(
        f"{path} is not a PyTorch checkpoint: it {what}; expected a file written by torch.save or safetensors"
    )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({first_line(error, 160)}): copy or download it again"
        ) from error


def _load_torch(path: Path, kind: str) -> Any:
    if kind == "zip":
        _check_archive(path)
    try:
        with torch.serialization.safe_globals(bystanders()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on pickle protocols; what matters raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=kind == "zip")
    except pickle.UnpicklingError as error:
        raise refusal(path, error) from error
    except Exception as error:
        # torch's readers answer broken bytes with whatever the byte at hand leads to.
        raise damaged(path, error) from error


def _check_archive(path: Path) -> None:
    """Refuse archives that are cut off, that are not state dicts, or that would unpack to far more than they are."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:
        raise damaged(path, error) from error
    names = {entry.filename.split("/", 1)[-1] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript archive, which holds code: {SAVE_HINT}")
    if not any(name.endswith("data.pkl") for name in names):
        raise CheckpointError(
            f"{path} is a zip archive without a data.pkl: expected a file written by torch.save; {SAVE_HINT}"
        )
    # torch.save stores without compression, so a small file that unpacks to a large one was not made by it.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise CheckpointError(f"{path} has compressed entries, which torch.save never writes: refused; {SAVE_HINT}")


def _unwrap(path: Path, content: Any, key: str | None) -> tuple[str, dict[str, Tensor], tuple[str, ...]]:
    found = dict(_state_dicts(content, "", {}, 0))
    if key is not None:
        found |= _prefixed(found, key) if key not in found else {}
        if key not in found:
            places = ", ".join(name or "(top level)" for name in found) or "none"
            raise CheckpointError(f"{path} has no weights under {key!r}; places with weights: {places}")
        chosen = key
    elif found:
        chosen = min(found, key=_preference)
    else:
        top = ", ".join(map(str, list(content)[:6])) if isinstance(content, Mapping) else type(content).__name__
        raise CheckpointError(
            f"{path} holds no convolution weights (top level: {first_line(ValueError(top or 'nothing'))}): "
            "expected a state dict of a ResNet"
        )
    others = tuple(name or "(top level)" for name in found if name != chosen)
    return chosen, found[chosen], others


def _state_dicts(
    content: Any, where: str, seen: dict[int, dict[str, Tensor]], nesting: int
) -> Iterator[tuple[str, dict[str, Tensor]]]:
    if not isinstance(content, Mapping) or nesting > _MAX_NESTING:
        return
    known = id(content) in seen  # a mapping may be reached by two ways, or hold itself
    tensors = seen.setdefault(id(content), {} if known else _weights(content))
    if tensors:
        yield where, tensors
    if known:
        return
    for name, value in content.items():
        if isinstance(name, str) and not any(word in name.lower() for word in _NOT_WEIGHTS):
            yield from _state_dicts(value, f"{where}.{name}" if where else name, seen, nesting + 1)


def _weights(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors directly in a mapping that has the weight of a convolution, else nothing."""
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    # The name matters: a mean of [1, 3, 1, 1] or an optimizer's moments are no convolution.
    if any(tensor.dim() == 4 and name.rsplit(".", 1)[-1].startswith("weight") for name, tensor in tensors.items()):
        return tensors
    return {}


def _prefixed(found: Mapping[str, Mapping[str, Tensor]], key: str) -> dict[str, dict[str, Tensor]]:
    """The part of one mapping whose names begin with ``key``, with or without the way to the mapping before it."""
    for where, tensors in found.items():
        prefix = f"{key.removeprefix(f'{where}.')}."
        part = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
        if part:
            return {key: part}
    return {}


def _preference(where: str) -> tuple[int, int, str]:
    ranks = [_WRAPPERS.index(part) if part in _WRAPPERS else len(_WRAPPERS) for part in where.split(".") if part]
    return (max(ranks, default=-1), len(ranks), where)


def _check_storage(path: Path, name: str, tensor: Tensor) -> None:
    """A view with stride 0 can claim terabytes out of one number; reading it would never end."""
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{path}: {name} is a {tensor.layout} or quantised tensor; expected dense floating point")
    if tensor.device.type != "cpu":
        raise CheckpointError(f"{path}: {name} has a shape and no values (device {tensor.device}); {SAVE_HINT}")
    claimed = tensor.numel() * tensor.element_size()
    if claimed > max(tensor.untyped_storage().nbytes(), 1 << 20):
        raise CheckpointError(
            f"{path}: {name} claims {claimed:,} bytes but stores {tensor.untyped_storage().nbytes():,}: refused"
        )
