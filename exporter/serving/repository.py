"""A Triton model repository, written whole or not at all.

::

    REPOSITORY/
      r20/                 config.pbtxt  labels.txt  1/model.onnx      float tensors in, logits out
      r20_preprocessing/   config.pbtxt  1/model.onnx                  the preprocessing contract as a graph
      r20_ensemble/        config.pbtxt  labels.txt  1/                pixels in, logits out

Everything is made in a folder beside REPOSITORY, because a server that polls it would load half-made models, hidden
ones too. Then each model is moved into place, and what was moved is moved back where one of them cannot be.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from exporter.labels import read_labels
from exporter.serving.config import (
    LABELS,
    ServingOptions,
    Warmup,
    ensemble_config,
    max_batch_size,
    model_config,
    sample_shape,
)
from exporter.serving.pbtxt import Message, text
from exporter.serving.placing import placed, staging
from exporter.serving.preprocessing import pixel_spec, preprocessing_model
from exporter.serving.servable import FILE_NAMES, Servable, read_servable
from runtimes.errors import GraphError, InputError

SCHEMA = 1
#: The first line of what this project writes, by which it knows what it may replace.
MARK = "# Written by resnet-export.\n"


@dataclass(frozen=True)
class RepositoryOptions:
    """What goes into a repository.

    Attributes:
        serving: How models are served.
        ensemble: Whether a model gets an ensemble that takes pixels.
        warmup: ``none``, ``zero``, or the path of an image that models are run on before they are called ready.
        labels: File of class names for all models; ``None``: those that each model has with it.
    """

    serving: ServingOptions = field(default_factory=ServingOptions)
    ensemble: bool = True
    warmup: str = "zero"
    labels: Path | None = None


@dataclass(frozen=True)
class RepositoryReport:
    """What was written.

    Attributes:
        repository: The folder.
        models: A row per model and ensemble; see docs/commands.md.
        notes: What the user should know.
    """

    repository: Path
    models: tuple[dict[str, Any], ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The document of ``triton --json``."""
        return {
            "schema": SCHEMA,
            "repository": str(self.repository),
            "models": list(self.models),
            "notes": list(self.notes),
        }


def write_repository(
    sources: Sequence[str], output: Path, options: RepositoryOptions | None = None
) -> RepositoryReport:
    """Write models, and what serves them, into a repository that is there or not.

    Args:
        sources: ``FILE`` or ``NAME=FILE`` each, at least one.
        output: The repository. Models that it holds under other names stay.
        options: What goes in; ``None``: the defaults.

    Raises:
        InputError: A model or an option cannot be used, or a name is taken by something that was not written here.
        GraphError: A model cannot be read.
        UnavailableError: The disk is full, or memory is missing.
    """
    options = options or RepositoryOptions()
    models = [_labelled(read_servable(source), options.labels) for source in sources]
    wanted = [part for model in models for part in _parts(model, options)]
    _check_names([part.name for part in wanted])
    notes = [note for model in models for note in (*model.notes, *_remarks(model, options))]
    with staging(output) as folder:
        rows = [part.write(folder / part.name) for part in wanted]
        placed(folder, output, [part.name for part in wanted], MARK)
    return RepositoryReport(output, tuple(rows), tuple(dict.fromkeys(notes)))


@dataclass(frozen=True)
class _Part:
    """One folder of the repository: a model with its files, or an ensemble, which has none.

    Attributes:
        config: The whole of ``config.pbtxt``.
        model: What is served; for an ensemble the model behind it.
        data: The model's bytes where they are made here; ``None`` copies its file.
        warmup: Name and bytes of a sample.
        is_ensemble: Whether there is no file.
    """

    config: Message
    model: Servable
    data: bytes | None = None
    warmup: tuple[str, bytes] | None = None
    is_ensemble: bool = False

    @property
    def name(self) -> str:
        return str(self.config["name"])

    def write(self, folder: Path) -> dict[str, Any]:
        """Write the folder, and tell of it."""
        version = folder / "1"
        version.mkdir(parents=True)
        (folder / "config.pbtxt").write_text(MARK + text(self.config), encoding="utf-8")
        if self._has_labels:
            (folder / LABELS).write_text("".join(f"{each}\n" for each in self.model.labels), encoding="utf-8")
        if self.warmup is not None:
            (folder / "warmup").mkdir()
            (folder / "warmup" / self.warmup[0]).write_bytes(self.warmup[1])
        if self.data is not None:
            (version / FILE_NAMES[self.model.backend]).write_bytes(self.data)
        elif not self.is_ensemble:
            self._copy(version)
        return {
            "name": self.name,
            "platform": str(self.config["platform"]),
            "max_batch_size": self.config["max_batch_size"],
            "source": None if self.is_ensemble or self.data is not None else str(self.model.source),
            "files": sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()),
        }

    @property
    def _has_labels(self) -> bool:
        return bool(self.model.labels)

    def _copy(self, version: Path) -> None:
        shutil.copyfile(self.model.source, version / FILE_NAMES[self.model.backend])
        for each in self.model.companions:
            place = version / each.relative_to(self.model.source.parent)
            if place.name == FILE_NAMES[self.model.backend]:
                raise GraphError(
                    f"{self.model.source} keeps weights in {each.name}, which is the model's own name there"
                )
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(each, place)


def _labelled(model: Servable, labels: Path | None) -> Servable:
    names = read_labels(labels) if labels else model.labels
    classes = model.output.shape[1]
    if names and classes is not None and len(names) != classes:
        where = f"--labels {labels}" if labels else str(model.source)
        raise InputError(
            f"{where} has {len(names)} names, and {model.source} tells {classes} classes apart: give --labels"
        )
    # One line each, whatever a name holds: Triton reads the n-th line as the n-th class.
    flat = tuple(" ".join(name.split()) for name in names)
    parameters = {**model.parameters, **({"classes": {"count": len(flat), "labels": list(flat)}} if flat else {})}
    return replace(model, labels=flat, parameters=parameters)


def _parts(model: Servable, options: RepositoryOptions) -> list[_Part]:
    most = max_batch_size(model, options.serving)
    warmup, sample = _warmup(model, options, most)
    has_labels = bool(model.labels)
    parts = [_Part(model_config(model, options.serving, has_labels, warmup), model, warmup=sample)]
    if not options.ensemble or _no_ensemble(model) is not None or model.preprocessing is None:
        return parts
    graph = preprocessing_model(model.preprocessing, model.input)
    first = Servable(
        name=f"{model.name}_preprocessing",
        source=Path("preprocessing.onnx"),
        backend="onnxruntime",
        input=pixel_spec(model.input),
        output=model.input,
        most=None,
        sample=None if model.sample is None else (*model.sample[1:], model.sample[0]),
        preprocessing=None,
        labels=(),
        parameters={"preprocessing": model.preprocessing.to_json()},
    )
    # Its batches are those of the model: one that the step puts together is one that the model takes.
    serving = replace(options.serving, max_batch=most or None, preferred=options.serving.preferred if most else ())
    zero = Warmup("zero") if options.warmup != "none" else None
    parts.append(
        _Part(model_config(first, serving, False, zero), first, data=graph.SerializeToString(deterministic=True))
    )
    config = ensemble_config(f"{model.name}_ensemble", (first, model), most, has_labels)
    parts.append(_Part(config, model, is_ensemble=True))
    return parts


def _no_ensemble(model: Servable) -> str | None:
    """Why a model gets no ensemble; ``None`` where it does."""
    contract, (_, channels, *image) = model.preprocessing, model.input.shape
    if contract is None:
        return f"{model.source} does not say how its images are preprocessed: there is no ensemble that takes pixels"
    if model.input.dtype not in ("float32", "float16"):
        return f"{model.source} takes {model.input.dtype}, not normalised floats: there is no ensemble before it"
    if channels not in (None, contract.channels) or (contract.size and not _same(image, contract.size)):
        return f"{model.source} takes other images than its preprocessing makes: there is no ensemble that takes pixels"
    return None


def _same(image: Sequence[int | None], size: tuple[int, int]) -> bool:
    return all(own in (None, made) for own, made in zip(image, size, strict=True))


def _warmup(model: Servable, options: RepositoryOptions, most: int) -> tuple[Warmup | None, tuple[str, bytes] | None]:
    """What the model is run on first, and the bytes of an image where it is one."""
    if options.warmup in ("none", "zero"):
        return (Warmup("zero") if options.warmup == "zero" else None), None
    import numpy as np

    from calibration.images import load_batch
    from calibration.listing import find_images

    if model.preprocessing is None:
        raise InputError(f"{model.source} does not say how images are preprocessed: give --warmup zero")
    image = load_batch(find_images(Path(options.warmup))[:1], model.preprocessing)  # [1,C,H,W]
    shape = sample_shape(replace(model, sample=image.shape[1:]), most) or image.shape[1:]
    fed = np.broadcast_to(image[0], shape).astype(model.input.dtype)
    name = "image.bin"
    return Warmup("image", name), (name, fed.tobytes())


def _remarks(model: Servable, options: RepositoryOptions) -> list[str]:
    remarks = [why] if options.ensemble and (why := _no_ensemble(model)) is not None else []
    batch = model.input.shape[0]
    if batch is not None:
        remarks.append(f"{model.source} takes exactly {batch} images: the server puts no requests together")
    if options.warmup == "zero" and model.sample is None:
        remarks.append(f"{model.source} does not say how large images are: it is not warmed up")
    if not model.labels:
        remarks.append(f"{model.source} has no class names: give --labels for the server's classification extension")
    return remarks


def _check_names(names: Sequence[str]) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"two models would be called {twice[0]} on the server: give NAME=FILE")
