"""What calibration and quantisation read: the float model, the preprocessing that it was trained with, the images.

Nothing here needs torch.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from calibration.graph import Network, input_size, read_network
from calibration.images import ImageFile, find_images, sample
from calibration.preprocess import PRESETS, Preprocessing
from exporter.contracts import overridden
from exporter.contracts import preset as named
from exporter.graph.metadata import read_metadata
from runtimes.errors import GraphError, InputError, first_line
from runtimes.reading import read_model

# Fields that a contract from nothing needs. The size is the model's; no --resize means none, so no filter either.
_NEEDED: Final = ("color", "scale", "mean", "std")


def open_model(path: Path) -> tuple[Network, dict[str, Any]]:
    """A float ONNX file, and what it says about itself.

    Args:
        path: The file.

    Returns:
        The network, and its metadata by name without prefix; empty for a file from elsewhere.

    Raises:
        GraphError: It cannot be read, is quantised already, is not FP32, or its metadata are damaged.
    """
    network = read_network(path)
    return network, _metadata_of(network, path)


def open_any(path: Path) -> tuple[Network, dict[str, Any]]:
    """As :func:`open_model`, of any precision, quantised ones included.

    Raises:
        GraphError: It cannot be read, does not take one batch of images, or its metadata are damaged.
    """
    model, digest = read_model(path, "make one with resnet-export onnx")
    network = Network(model, digest)
    constants = set(network.initializers)
    inputs = [item for item in model.graph.input if item.name not in constants]
    if len(inputs) != 1 or len(inputs[0].type.tensor_type.shape.dim) != 4:
        raise GraphError(f"{path} has {len(inputs)} inputs, expected one batch of images of 4 dimensions")
    return network, _metadata_of(network, path)


def _metadata_of(network: Network, path: Path) -> dict[str, Any]:
    try:
        return read_metadata(network.model)
    except json.JSONDecodeError as error:
        raise GraphError(f"{path} has damaged metadata ({error}): export the model again") from error


def contract_of(
    network: Network, metadata: Mapping[str, Any], preset: str | None, fields: Mapping[str, Any]
) -> Preprocessing:
    """How a file becomes the input of a network.

    Args:
        network: What the contract has to fit.
        metadata: From :func:`open_model`.
        preset: Name of a preset to start from instead of the file's own contract.
        fields: Fields that replace others, by the names of :data:`FIELDS`; ``None`` keeps one.

    Raises:
        InputError: Neither the file nor the options say it, the fields contradict each other, or the contract
            contradicts the network's input.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        contract = stored_contract(metadata) if preset is None else named(preset, *input_size(network)[1:])
    except InputError as error:
        raise InputError(str(error) if preset else f"{error}, or give --preset") from error
    if contract is None:
        contract = _from_nothing(network, given)
    if given:
        contract = overridden(contract, input_size(network)[1], given)
    _check_fits(network, contract)
    return contract


def stored_contract(metadata: Mapping[str, Any]) -> Preprocessing | None:
    """The contract that a model or an engine has with it; ``None`` for one from elsewhere.

    Args:
        metadata: From :func:`open_model`, or an engine's document.

    Raises:
        InputError: It is damaged, or was changed after the export.
    """
    if "preprocessing" not in metadata:
        return None
    try:
        contract = Preprocessing.from_json(metadata["preprocessing"])
    except InputError as error:
        raise InputError(
            f"the model's own preprocessing cannot be used ({first_line(error)}): export it again"
        ) from error
    if metadata.get("preprocessing_sha256", contract.sha256()) != contract.sha256():
        raise InputError("the model's own preprocessing was changed after it was exported: export it again")
    return contract


def choose_images(root: Path, count: int, seed: int) -> list[ImageFile]:
    """The images that ``root`` names, or ``count`` of them, as evenly over their classes as there are.

    Args:
        root: Folder, folder of class folders, list or array file; see :func:`calibration.images.find_images`.
        count: Number of images; 0: all.
        seed: Of the sample.

    Raises:
        DataError: There is no image.
        InputError: ``count`` is negative.
    """
    return sample(find_images(root), count, seed)


def _from_nothing(network: Network, given: Mapping[str, Any]) -> Preprocessing:
    needed = (*_NEEDED, "interpolation") if "resize" in given else _NEEDED
    missing = [f"--{name}" for name in needed if name not in given]
    if missing:
        raise InputError(
            f"the model does not say how its images are preprocessed: give --preset {' or '.join(PRESETS)}, or all of "
            f"{', '.join(f'--{name}' for name in needed)} ({', '.join(missing)} missing)"
        )
    _, channels, height, width = input_size(network)
    size = None if height is None or width is None else (height, width)
    # Whichever preset: all that remains of it is that the number of channels is right.
    return replace(PRESETS["imagenet"].for_input(channels), size=size, resize=None, crop="none")


def _check_fits(network: Network, contract: Preprocessing) -> None:
    _, channels, height, width = input_size(network)
    if contract.channels != channels:
        raise InputError(
            f"the preprocessing makes {contract.channels} channels ({contract.color}), the model takes {channels}: "
            f"give another --preset or --color"
        )
    if contract.size is None:
        return
    if any(own not in (None, made) for own, made in zip((height, width), contract.size, strict=True)):
        taken = "x".join("any" if own is None else str(own) for own in (height, width))
        raise InputError(
            f"the preprocessing makes images of {contract.size[0]}x{contract.size[1]}, the model takes {taken} "
            f"(height x width): give --preset"
        )
