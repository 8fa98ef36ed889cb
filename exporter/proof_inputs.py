"""What the proof commands read: models on runtimes, the preprocessing that they agree on, images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from calibration.listing import ImageFile
from calibration.preprocess import PRESETS, Preprocessing
from exporter import contracts
from exporter.feeding import reading
from exporter.opening import Opening, prepare
from exporter.subjects import Subject
from runtimes.errors import InputError, TensorError
from runtimes.tensorrt.sidecar import sidecar_path


def prepare_all(texts: Sequence[str]) -> list[Opening]:
    """What the user named, read and not opened yet.

    Args:
        texts: ``NAME:FILE[@option=value,…]`` each.

    Raises:
        InputError: One cannot be used, or two are the same.
        UnavailableError: Memory or a package that reads a model is missing.
    """
    found: list[Opening] = []
    for text in texts:
        model = prepare(text)
        if model.label in [each.label for each in found]:
            raise InputError(f"{model.label} is given twice: a model tells nothing beside itself")
        found.append(model)
    return found


def files_read(models: Sequence[Opening], data: Path | None, listing: Sequence[ImageFile]) -> list[Path]:
    """Every file that a proof command reads, and that none of its reports may replace.

    Args:
        models: With their external weights, the files that their options name, and the document beside an engine.
        data: What the user named; ``None``: no images.
        listing: Images that were found there.
    """
    from runtimes.reading import external_files

    own = [Path(model.spec.file) for model in models if model.spec.kind != "served"]
    named = [Path(value) for model in models for value in model.spec.options.values() if isinstance(value, str)]
    graphs = [model.onnx for model in models if model.onnx is not None]
    beside = [path for graph in graphs for path in external_files(graph)]
    documents = [sidecar_path(path) for path in own if path.name]
    images = dict.fromkeys(image.path for image in listing)
    return [*own, *named, *beside, *documents, *([data] if data else []), *images]


def contract_for(models: Sequence[Opening], preset: str | None, fields: Mapping[str, Any]) -> Preprocessing:
    """The preprocessing that all models are fed with.

    Args:
        models: What they say of it counts where no preset is given.
        preset: Name of one to start from instead.
        fields: Fields that replace others, by the names of :data:`exporter.contracts.FIELDS`; ``None`` keeps one.

    Raises:
        InputError: The models say different ones or none, or the fields contradict each other.
        TensorError: A file declares images of another size.
    """
    if preset is not None:
        told = next((model.preprocessing for model in models if model.preprocessing is not None), None)
        channels, *size = (told.channels, *(told.size or ())) if told else _declared(models)
        contract = contracts.preset(preset, channels or 3, *(size if size and None not in size else (None, None)))
    else:
        agreed = agreed_contract(models)
        if agreed is None:
            raise InputError(
                f"none of the models says how its images are preprocessed: give --preset {' or '.join(PRESETS)}"
            )
        contract = agreed
    chosen = contracts.overridden(contract, contract.channels, fields)
    for model in models:
        if model.takes is not None and model.preprocessing != chosen:
            raise InputError(
                f"{model.label} has another preprocessing in its graph than was asked for: leave the options out"
            )
        _fits(model, model.shape, chosen)
    return chosen


def noise_preset(models: Sequence[Opening]) -> str | None:
    """A preset that makes noise of the size that models without any preprocessing declare; ``None`` where one has some.

    Which one does not matter: noise is not preprocessed.
    """
    silent = all(model.preprocessing is None for model in models)
    return next(iter(PRESETS)) if silent and None not in _declared(models) else None


def _declared(models: Sequence[Opening]) -> tuple[int | None, ...]:
    """Channels, height and width that the first file with four axes declares; ``None`` for what is free."""
    return next((model.shape[1:] for model in models if len(model.shape) == 4), (None, None, None))


def subjects_of(models: Sequence[Opening], contract: Preprocessing) -> tuple[Preprocessing, list[Subject]]:
    """How files are read so that every model gets what it takes, and the models with what remains to be done.

    Args:
        models: Of which some can have a part of the preprocessing in their graph.
        contract: From :func:`contract_for`.
    """
    images = reading(contract, [model.takes for model in models])
    return images.contract, [model.subject(feed) for model, feed in zip(models, images.feeds, strict=True)]


def agreed_contract(models: Sequence[Opening]) -> Preprocessing | None:
    """The preprocessing that all models say; ``None`` where none says any.

    Raises:
        InputError: Two of them say different ones: with either, one model would get what it was not made for.
    """
    told = [(model.label, model.preprocessing) for model in models if model.preprocessing is not None]
    for label, contract in told[1:]:
        first_label, first = told[0]
        if contract.sha256() != first.sha256():
            mine, other = first.to_json(), contract.to_json()
            fields = ", ".join(f"{key} {mine[key]} and {other[key]}" for key in mine if mine[key] != other[key])
            raise InputError(
                f"{first_label} and {label} were made for different preprocessing ({fields}): compare models of one, "
                "or say which with --preset"
            )
    return told[0][1] if told else None


def agreed_labels(models: Sequence[Opening]) -> tuple[str, ...]:
    """The names of the classes, in order; none where no model says them.

    Args:
        models: Of which some may not say their names.

    Raises:
        InputError: Two of them say different ones: answer 3 of one would not be answer 3 of the other.
    """
    told = [(model.label, model.labels) for model in models if model.labels]
    for label, names in told[1:]:
        first_label, first = told[0]
        if names == first:
            continue
        place = next((index for index, pair in enumerate(zip(first, names, strict=False)) if len(set(pair)) > 1), None)
        what = f"{len(first)} and {len(names)}" if place is None else f"{place}: {first[place]!r} and {names[place]!r}"
        raise InputError(
            f"{first_label} and {label} have different classes ({what}): compare models of the same classes"
        )
    return told[0][1] if told else ()


def fits(model: Opening, contract: Preprocessing) -> None:
    """Refuse a contract that makes other images than an open model takes, before images are read.

    Args:
        model: Open.
        contract: How files become its input.

    Raises:
        TensorError: They differ in channels or size.
    """
    _fits(model, model.runtime.inputs[0].shape, contract)


def _fits(model: Opening, shape: tuple[int | None, ...], contract: Preprocessing) -> None:
    made = (contract.channels, *(contract.size or (None, None)))
    if model.takes is not None and len(shape) == 4:
        shape = (shape[0], shape[3], *shape[1:3])  # [N,H,W,C] -> [N,C,H,W]
    if len(shape) == 4 and any(None not in (a, b) and a != b for a, b in zip(shape[1:], made, strict=True)):
        taken, given = ("x".join("any" if side is None else str(side) for side in each) for each in (shape[1:], made))
        raise TensorError(f"{model.label} takes images of {taken}, and the preprocessing makes {given}: give --preset")
