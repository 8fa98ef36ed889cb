"""The document beside an engine, and what has to hold before the engine is given to a device.

TensorRT refuses most engines that do not fit as well, with a number and a line of C++; what is checked here is told
in words, before anything is loaded. Where there is no document, TensorRT has the only word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from runtimes.errors import InputError, first_line
from runtimes.precision import PRECISIONS, Precision
from runtimes.tensorrt.device import Device
from runtimes.tensorrt.flavour import Flavour
from runtimes.tensorrt.generations import parse_version
from runtimes.tensorrt.plan import PlanHeader
from runtimes.tensorrt.sidecar_form import damage

Capability = tuple[int, int]

_AGAIN: Final = "build it again here with resnet-export engine"
_AMPERE: Final[Capability] = (8, 0)


def sidecar_path(engine: Path) -> Path:
    """Where the document about an engine lies."""
    return engine.with_name(f"{engine.name}.json")


def read_sidecar(engine: Path, sha256: str) -> Mapping[str, Any] | None:
    """The document beside an engine; ``None`` where there is none.

    Args:
        engine: The file.
        sha256: Of its bytes.

    Raises:
        InputError: The document cannot be read, is damaged, or is about another engine.
    """
    path = sidecar_path(engine)
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be read ({first_line(error)}): remove it, or build the engine again"
        ) from error
    if not isinstance(document, dict) or document.get("sha256") != sha256:
        raise InputError(f"{path} is not about the engine {engine}, which has another sha256: build the engine again")
    damaged = damage(document)
    if damaged is not None:
        raise InputError(f"{path} is damaged at {damaged}: remove it, or build the engine again")
    return document


def check_version(header: PlanHeader, document: Mapping[str, Any] | None, flavour: Flavour, label: str) -> None:
    """Refuse an engine of another TensorRT than the one that is to run it.

    Args:
        header: Of the plan.
        document: Beside it.
        flavour: That is to run it.
        label: What the engine is called in messages.

    Raises:
        InputError: It is of another package or version.
    """
    compatible = is_version_compatible(document)
    runs = {header.package, "tensorrt_lean", "tensorrt_dispatch"} if compatible else {header.package}
    here = f"{flavour.name} {flavour.version}"
    if flavour.name not in runs:
        raise InputError(f"{label} is an engine of {header}, and {here} is to run it: {_AGAIN}")
    installed = parse_version(flavour.version)
    # Later majors too: an engine of 8 runs on 9 and 10 ("Version Compatibility" in TensorRT's documentation).
    if installed == header.release or (compatible and installed >= header.release):
        return
    if compatible:
        raise InputError(f"{label} was built by {header}, and runs on that version and later ones, not on {here}")
    # TensorRT-RTX has no such engines ("engines are not compatible between different releases").
    other = "" if header.package == "tensorrt_rtx" else ", or make it --version-compatible"
    raise InputError(f"{label} was built by {header}, and {here} runs its own engines only: {_AGAIN}{other}")


def check_host_code(document: Mapping[str, Any] | None, allowed: bool, label: str, option: str) -> None:
    """Refuse an engine that brings a program of its own, unless the user trusts it.

    A version-compatible engine holds the runtime of the version that built it, as code for the CPU. The document beside
    it comes from where the engine does, and can therefore not vouch for it.

    Args:
        document: Beside the engine.
        allowed: Whether the user has said so.
        label: What the engine is called in messages.
        option: By which the user says so.

    Raises:
        InputError: The engine is version-compatible, and the user has not said so.
    """
    if is_version_compatible(document) and not allowed:
        raise InputError(
            f"{label} is version-compatible, so it brings a program that runs here with your rights: give {option} if "
            f"you trust whoever made it"
        )


def check_weights(document: Mapping[str, Any] | None, label: str) -> None:
    """Refuse an engine without weights.

    Args:
        document: Beside the engine.
        label: What the engine is called in messages.

    Raises:
        InputError: It was stripped of them. (What is refitted is another file, which this document is not about.)
    """
    if options_of(document).get("strip"):
        raise InputError(f"{label} has no weights (--strip): refit it with them first, or build it without --strip")


def check_device(document: Mapping[str, Any] | None, device: Device, label: str) -> None:
    """Refuse an engine that was built for other GPUs.

    Args:
        document: Beside the engine.
        device: That is to run it.
        label: What the engine is called in messages.

    Raises:
        InputError: The GPU is none of those.
    """
    if document is None:
        return
    own = device.compute_capability
    targets = [found for text in document.get("targets", ()) if (found := _capability(text))]
    built_on = document.get("gpu")
    if targets:
        fits, wanted = own in targets, "compute capability " + " or ".join("{}.{}".format(*each) for each in targets)
    elif document.get("flavour") == "tensorrt_rtx" or options_of(document).get("hardware_compatible") == "ampere+":
        fits, wanted = own >= _AMPERE, "compute capability 8.0 and later"
    elif isinstance(built_on, dict):
        built_for = _capability(built_on.get("compute_capability"))
        fits, wanted = built_for in (None, own), f"{built_on.get('name')} (compute capability {_text(built_for)})"
    else:
        return
    if not fits:
        raise InputError(f"{label} is for {wanted}, and here is {device.name} with {_text(own)}: {_AGAIN}")


def check_source(document: Mapping[str, Any] | None, sha256_of_model: str | None, label: str) -> None:
    """Refuse an engine of another model than the one that it is to stand for.

    Args:
        document: Beside the engine.
        sha256_of_model: Of the ONNX file, as :func:`runtimes.reading.read_model` tells it; ``None`` asks nothing.
        label: What the engine is called in messages.

    Raises:
        InputError: It is of another, or of nobody knows which.
    """
    if sha256_of_model is None:
        return
    found = None if document is None else document.get("source_sha256")
    if found != sha256_of_model:
        told = f"of the model {str(found)[:12]}" if found else "of a model that nothing tells"
        raise InputError(f"{label} is an engine {told}, expected one of {sha256_of_model[:12]}: {_AGAIN}")


def options_of(document: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """What an engine was built with; empty where nothing tells."""
    options = None if document is None else document.get("options")
    return options if isinstance(options, dict) else {}


def precision_of(document: Mapping[str, Any] | None) -> Precision | None:
    """What an engine computes in; ``None`` where nothing tells."""
    told = None if document is None else document.get("precision")
    return told if told in PRECISIONS else None


def is_version_compatible(document: Mapping[str, Any] | None) -> bool:
    """Whether an engine runs on later versions too."""
    return bool(options_of(document).get("version_compatible"))


def dla_core_of(document: Mapping[str, Any] | None) -> int | None:
    """The deep learning accelerator that an engine was built for; ``None`` for a GPU."""
    core: int | None = options_of(document).get("dla_core")
    return core


def _capability(text: object) -> Capability | None:
    major, _, minor = str(text).partition(".")
    return (int(major), int(minor)) if major.isdigit() and minor.isdigit() else None


def _text(capability: Capability | None) -> str:
    return "unknown" if capability is None else "{}.{}".format(*capability)
