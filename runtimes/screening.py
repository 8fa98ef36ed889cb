"""Whether an ONNX file is safe to load: it reads no foreign files, and takes no more memory than it should.

A file names the places of its weights and the sizes of its tensors itself. What it says is checked here against the
files that there are, before anybody reads or reserves anything.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Final

import onnx

from runtimes.constant_sizes import subgraphs, unknown_size, values, written_out
from runtimes.errors import GraphError, UnavailableError
from runtimes.memory import available_memory

LARGEST: Final = 8 * 2**30
"""Bytes that all weights, or one tensor, may have; the largest published residual networks have 4 GB of weights."""
_LARGEST_FILE: Final = 2**31 - 1  # protobuf can hold no more
_SMALL: Final = 1024  # elements of a constant that can be a shape
_GIB: Final = 2**30
_BITS: Final = {
    "FLOAT": 32, "UINT8": 8, "INT8": 8, "UINT16": 16, "INT16": 16, "INT32": 32, "INT64": 64, "BOOL": 8, "FLOAT16": 16,
    "DOUBLE": 64, "UINT32": 32, "UINT64": 64, "COMPLEX64": 64, "COMPLEX128": 128, "BFLOAT16": 16, "FLOAT8E4M3FN": 8,
    "FLOAT8E4M3FNUZ": 8, "FLOAT8E5M2": 8, "FLOAT8E5M2FNUZ": 8, "FLOAT8E8M0": 8, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4,
    "UINT2": 2, "INT2": 2,
}  # fmt: skip


def check_file(path: Path) -> None:
    """Refuse what cannot be read into memory; a folder, or a path with nothing there, is left to whoever opens it.

    Raises:
        GraphError: A device or a pipe, or a file larger than any ONNX file can be.
    """
    try:
        status = path.stat()
    except (OSError, ValueError):
        return
    if stat.S_ISDIR(status.st_mode):
        return
    if not stat.S_ISREG(status.st_mode):
        raise GraphError(f"{path} is not a regular file: expected an ONNX file")
    if status.st_size > _LARGEST_FILE:
        raise GraphError(
            f"{path} has {status.st_size / _GIB:.1f} GiB, and no ONNX file can have more than 2: save its weights as "
            "external data"
        )


def screen(model: onnx.ModelProto, path: Path) -> None:
    """Refuse a model that would read files outside its folder, or take more memory than its files hold.

    Args:
        model: As it was parsed, without external data.
        path: Its file; external data lies in the same folder or below.

    Raises:
        GraphError: External data is elsewhere, missing or too short, or a tensor is declared larger than what is
            there, or than any network needs.
        UnavailableError: This machine has too little memory.
    """
    total = 0
    for item in tensors(model):
        declared = _declared_bytes(item.dims, item.data_type)
        if declared is None:
            if any(size < 0 for size in item.dims):
                raise GraphError(f"{path} is damaged: {_title(item)} is declared as {list(item.dims)}")
            declared = 0
        if item.data_location == onnx.TensorProto.EXTERNAL:
            _check_external_tensor(item, declared, path)
        elif (held := _held_bytes(item)) < declared:
            raise GraphError(
                f"{path} is damaged: {_title(item)} is declared as {list(item.dims)}, {declared} bytes, and holds "
                f"{held} at most"
            )
        total += declared
    total += sum(_declared_bytes(item.dims, item.values.data_type) or 0 for item in model.graph.sparse_initializer)
    _refuse_size(total, f"{path} has weights of", "is that a residual network?")
    name, size = _largest_value(_inferred(model, path))
    _refuse_size(size, f"{path}: the tensor '{name}' has", "make one with a smaller batch or image")


def tensors(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """All that hold values: initializers, and the constants inside nodes, also those of nested graphs."""
    found = [*model.graph.initializer]
    for node in _nodes(model):
        for attribute in node.attribute:
            found += [attribute.t] if attribute.HasField("t") else []
            found += attribute.tensors
        for graph in subgraphs(node):
            found += graph.initializer
    return found


def _nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    waiting = [*model.graph.node, *(node for function in model.functions for node in function.node)]
    for node in waiting:
        yield node
        for graph in subgraphs(node):
            waiting += graph.node


def _check_external_tensor(item: onnx.TensorProto, declared: int, path: Path) -> None:
    entries = {entry.key: entry.value for entry in item.external_data}
    held = _place(entries.get("location", ""), path).stat().st_size
    try:
        offset = int(entries.get("offset", 0))
        length = int(entries.get("length", held - offset))
    except ValueError as error:
        raise GraphError(f"{path} is damaged: the place of {_title(item)} is not a number") from error
    if offset < 0 or length < 0 or offset + length > held:
        raise GraphError(
            f"{path} is damaged: {_title(item)} lies in bytes {offset} to {offset + length} of "
            f"{entries['location']}, which has {held}"
        )
    if length < declared:
        raise GraphError(
            f"{path} is damaged: {_title(item)} is declared as {list(item.dims)}, {declared} bytes, and "
            f"{entries['location']} holds {length} of them"
        )


def _place(location: str, path: Path) -> Path:
    """The file of a tensor, if it is one in the model's folder or below."""
    said = PureWindowsPath(location)  # it knows both separators
    outside = bool(said.drive or said.root) or ".." in said.parts
    place = path.parent / location
    try:
        outside = outside or not place.resolve().is_relative_to(path.parent.resolve())
        if not outside and not stat.S_ISREG(place.stat().st_mode):
            raise GraphError(f"{path} keeps its weights in other files: '{location}' is not a regular file")
    except (OSError, ValueError, RuntimeError) as error:  # missing, a NUL in the name, links in a circle
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise GraphError(f"{path} keeps its weights in other files: '{location}' cannot be read: {reason}") from error
    if outside:
        raise GraphError(
            f"{path} keeps its weights in other files: '{location}' is outside of its folder, and is not read: "
            "put that file beside it"
        )
    return place


def _declared_bytes(dims: Sequence[int], kind: int) -> int | None:
    """Size of a tensor; ``None`` for strings, unknown types and sizes that no tensor has."""
    names = {number: name for name, number in onnx.TensorProto.DataType.items()}
    bits = _BITS.get(names.get(kind, ""))
    if bits is None or any(size < 0 for size in dims):
        return None
    return -(-math.prod(dims) * bits // 8)


def _held_bytes(item: onnx.TensorProto) -> int:
    """What the file itself has of a tensor; an upper bound where it lists numbers, of which none has more than 16."""
    if item.HasField("raw_data"):
        return len(item.raw_data)
    fields = (item.float_data, item.int32_data, item.int64_data, item.double_data, item.uint64_data)
    return 16 * sum(len(field) for field in fields)


def _refuse_size(size: int, what: str, advice: str) -> None:
    if size > LARGEST:
        raise GraphError(f"{what} {size / _GIB:.1f} GiB, at most {LARGEST // _GIB} GiB are loaded: {advice}")
    free = available_memory()
    if free is not None and size > free:
        raise UnavailableError(f"{what} {size / _GIB:.1f} GiB, and this machine has {free / _GIB:.1f} GiB free")


def _inferred(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """The model without weights and functions, with the sizes of its tensors for one image, as far as they are known.

    Runtimes compute constant parts when they load a model: a few bytes that are a shape can ask for any amount, and
    such a part of unknown size is refused.
    """
    skeleton = written_out(_without_weights(model))
    if skeleton is None:
        raise GraphError(f"{path} has functions that call each other without end: export it without functions")
    for item in skeleton.graph.input:
        sizes = item.type.tensor_type.shape.dim
        if sizes and not sizes[0].HasField("dim_value"):
            sizes[0].dim_value = 1
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, data_prop=True)
    except Exception:  # noqa: BLE001  (whoever loads the model tells what is wrong with it)
        inferred = skeleton
    if (name := unknown_size(inferred.graph)) is not None:
        raise GraphError(
            f"{path}: the size of the constant '{name}' is not known before it is made: simplify the model, so that it "
            "is stored"
        )
    return inferred


def _largest_value(inferred: onnx.ModelProto) -> tuple[str, int]:
    """The tensor that takes the most memory while the model is loaded or run on one image."""
    largest = ("", 0)
    for item in values(inferred.graph):
        kind = item.type.tensor_type
        sizes = [dim.dim_value if dim.HasField("dim_value") else 1 for dim in kind.shape.dim]
        size = _declared_bytes(sizes, kind.elem_type) or 0
        largest = max(largest, (item.name, size), key=lambda found: found[1])
    return largest


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model of the same shapes, cheap to copy."""
    skeleton = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    skeleton.graph.CopyFrom(
        onnx.GraphProto(
            name="shapes", node=graph.node, input=graph.input, output=graph.output, value_info=graph.value_info
        )
    )
    for item in graph.initializer:
        small = math.prod(item.dims) <= _SMALL and item.data_location != onnx.TensorProto.EXTERNAL
        shape = onnx.TensorProto(name=item.name, data_type=item.data_type, dims=item.dims)
        skeleton.graph.initializer.append(item if small else shape)
    return skeleton


def _title(item: onnx.TensorProto) -> str:
    return f"the tensor {item.name}" if item.name else "the constant of a node"
