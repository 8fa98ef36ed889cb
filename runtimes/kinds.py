"""What kind of model a file is, told by its first bytes, for a suffix is only a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import BinaryIO, Final, Literal

from runtimes.errors import InputError

Kind = Literal["onnx", "tensorrt", "tensorrt-rtx", "checkpoint", "served", "source"]
"""Two are no files: ``served`` is the URL of a model, ``source`` the name of a network or of code that makes one."""

TITLES: Final[Mapping[Kind, str]] = MappingProxyType(
    {
        "onnx": "an ONNX file",
        "tensorrt": "a TensorRT engine",
        "tensorrt-rtx": "a TensorRT-RTX engine",
        "checkpoint": "a PyTorch checkpoint",
        "served": "the URL of a model on a server",
        "source": "the name of a network",
    }
)
ENGINE_TAGS: Final[Mapping[bytes, Kind]] = MappingProxyType({b"ftrt": "tensorrt", b"vtrt": "tensorrt-rtx"})
"""First bytes of engines."""
_URL: Final = re.compile(r"(?:https?|grpcs?)://", re.IGNORECASE)
_MAGIC: Final[Mapping[bytes, Kind]] = {
    **ENGINE_TAGS,
    b"PK\x03\x04": "checkpoint",  # torch.save writes a zip archive
}
_SUFFIXES: Final[Mapping[str, Kind]] = {
    ".onnx": "onnx",
    **dict.fromkeys((".engine", ".plan", ".trt"), "tensorrt"),
    **dict.fromkeys((".pt", ".pth", ".th", ".ckpt", ".bin", ".safetensors"), "checkpoint"),
}
_PICKLE: Final = b"\x80"  # PROTO, the first opcode of what older releases of torch.save wrote
# The fields of onnx.ModelProto (onnx.proto): ir_version and graph are in every model.
_IR_VERSION, _GRAPH = 1, 7
_MODEL_FIELDS: Final = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 14, 20, 25, 26})
_VARINT, _LENGTH = 0, 2  # wire types of protobuf


def kind_of(text: str) -> Kind:
    """What a file is, or the name of a network where there is no such file.

    A file that nothing can be told of by its bytes is what its suffix says: whoever reads it says what is wrong.

    Args:
        text: Path, URL or name.

    Raises:
        InputError: The file is missing, cannot be read, or is of no known kind.
    """
    if is_url(text):
        return "served"
    path = Path(text)
    told = _SUFFIXES.get(path.suffix.lower())
    if not is_file(text):
        if told is None:
            return "source"
        raise InputError(f"there is no file {text}: expected a model, or NAME:FILE with the name of a runtime")
    try:
        with path.open("rb") as stream:
            found = _kind(stream)
    except OSError as error:
        raise InputError(f"{text} cannot be read: {error.strerror or error}") from error
    if found is None and told is None:
        raise InputError(f"{text} is neither an ONNX file nor an engine nor a checkpoint: expected one of these")
    return found or told or "source"


def is_url(text: str) -> bool:
    """Whether a text is the URL of a model on a server."""
    return _URL.match(text) is not None


def is_file(text: str) -> bool:
    """Whether a text names a file that exists; a text that no file can have as its name does not."""
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


def _kind(stream: BinaryIO) -> Kind | None:
    head = stream.read(16)
    if head[:4] in _MAGIC:
        return _MAGIC[head[:4]]
    # safetensors: the length of a JSON header in 8 bytes, and the header.
    if head[:1] == _PICKLE or head[5:9] == b"\0\0\0{":
        return "checkpoint"
    stream.seek(0)
    return "onnx" if _is_onnx(stream) else None


def _is_onnx(stream: BinaryIO) -> bool:
    """Whether the outermost fields are those of a model; nothing inside them is read, and they may be cut short."""
    seen: set[int] = set()
    while (tag := _varint(stream)) is not None:
        field, wire = tag >> 3, tag & 7
        if field not in _MODEL_FIELDS or wire not in (_VARINT, _LENGTH):
            return False
        seen.add(field)
        size = _varint(stream)
        if wire == _LENGTH and size is not None:
            stream.seek(size, 1)
        if {_IR_VERSION, _GRAPH} <= seen:
            return True
    return False


def _varint(stream: BinaryIO) -> int | None:
    """A number in groups of seven bits, the lowest first; ``None`` at the end, or where it has more than 64 bits."""
    value = 0
    for shift in range(0, 70, 7):
        byte = stream.read(1)
        if not byte:
            return None
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value if value < 2**63 else None
    return None
