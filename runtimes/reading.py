"""An ONNX file with its weights, or one line about what is wrong with it."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import onnx
from onnx import numpy_helper

from runtimes.errors import GraphError, ResnetExportError, first_line
from runtimes.screening import check_file, screen, tensors


def read_model(path: Path, instead: str) -> tuple[onnx.ModelProto, str]:
    """A model whose weights are all there.

    Args:
        path: The file.
        instead: What to do where it is no ONNX file, for the message.

    Returns:
        The model, and the sha256 of the file's bytes followed by those of weights that it keeps in other files: it only
        names them, and without their values retrained weights would pass for the same model.

    Raises:
        GraphError: It cannot be read, is not ONNX, has no nodes, its weights are missing, cut short or outside of its
            folder, or it asks for more memory than any residual network needs.
        UnavailableError: This machine has too little memory for it.
    """
    check_file(path)
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
    except OSError as error:
        raise GraphError(f"{path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # protobuf's DecodeError has no public base
        raise GraphError(f"{path} is not an ONNX file ({first_line(error)}): {instead}") from error
    if not model.graph.node:
        raise GraphError(f"{path} is not an ONNX file, or has no nodes: {instead}")
    screen(model, path)
    digest = sha256(data)
    external = [item for item in tensors(model) if item.data_location == onnx.TensorProto.EXTERNAL]
    try:
        onnx.load_external_data_for_model(model, str(path.parent))
    except Exception as error:
        raise GraphError(
            f"{path} keeps its weights in other files, which cannot be read: {first_line(error)}"
        ) from error
    for item in external:
        digest.update(item.raw_data)
    for item in tensors(model):
        try:
            numpy_helper.to_array(item)
        except Exception as error:  # of many kinds: lengths, types, shapes
            name = f"the tensor {item.name}" if item.name else "the constant of a node"
            raise GraphError(f"{path} is damaged: {name} cannot be read ({first_line(error)})") from error
    return model, digest.hexdigest()


def external_files(path: Path) -> list[Path]:
    """Files beside a model in which it keeps weights, so that nobody writes over them; none of what is no model."""
    try:
        model = onnx.load_model_from_string(path.read_bytes())
    except Exception:  # noqa: BLE001  (whoever reads the model tells what is wrong with it)
        return []
    places = {entry.value for item in tensors(model) for entry in item.external_data if entry.key == "location"}
    return [path.parent / place for place in sorted(places)]


def check_external(path: Path, who: str) -> None:
    """Refuse an ONNX file that is not safe to load; see :func:`runtimes.screening.screen`.

    What is missing, or no ONNX file at all, passes: whoever loads it tells what is wrong with it.

    Args:
        path: The file, before a runtime gets it.
        who: Name of the runtime, for messages.

    Raises:
        GraphError: It reads files outside of its folder, is larger than what it holds, or than any network.
        UnavailableError: This machine has too little memory for it.
    """
    try:
        check_file(path)
        try:
            # From bytes: by the suffix of a path, onnx takes another parser than the runtimes do.
            model = onnx.load_model_from_string(path.read_bytes())
        except Exception:  # noqa: BLE001
            return
        screen(model, path)
    except ResnetExportError as error:
        raise type(error)(f"{who}: {error}") from error
