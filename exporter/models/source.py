"""The one ``MODEL`` argument: a variant's name, a checkpoint file, ``timm:NAME`` or ``package.module:factory``."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from calibration.preprocess import PRESETS, Preprocessing
from exporter.models.blueprint import Blueprint
from exporter.models.checkpoint import SUFFIXES, load_checkpoint
from exporter.models.fit import check_state, check_tensors
from exporter.models.infer import infer
from exporter.models.naming import BOOKKEEPING, Renamed, rename
from exporter.models.resnet import ResNet, build_empty, build_random
from exporter.models.variants import IMAGENET_NAMES, blueprint_for, is_variant
from runtimes.errors import CheckpointError, ModelSourceError, ResnetExportError, UnavailableError, first_line
from runtimes.kinds import is_file, kind_of

RANDOM, DEFAULT = "random", "DEFAULT"


@dataclass(frozen=True)
class SourceOptions:
    """What the user said beside ``MODEL``.

    Attributes:
        weights: A checkpoint file, ``random``, ``DEFAULT`` (the library's own download) or ``None``.
        num_classes: Width of the classifier, where it is not the variant's own.
        in_channels: Channels of the input image, where they are not 3.
        input_size: Height and width in pixels, where they are not the family's.
        checkpoint_key: Dotted path to the weights inside a checkpoint that holds several.
        seed: For ``random``.
        norm_eps: What BatchNorm adds to the variance, where it is not torch's 1e-5; no checkpoint tells it.
        shapes_only: Build without weights (device ``meta``), for looking at a variant.
    """

    weights: str | None = None
    num_classes: int | None = None
    in_channels: int | None = None
    input_size: tuple[int, int] | None = None
    checkpoint_key: str | None = None
    seed: int = 0
    norm_eps: float | None = None
    shapes_only: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A module that can run, and what is known about it.

    Attributes:
        module: In evaluation mode, on the CPU (on ``meta`` with ``shapes_only``).
        name: For people and metadata.
        kind: ``variant``, ``checkpoint``, ``timm`` or ``factory``.
        blueprint: The block table, for networks that are built here.
        in_channels: Of the input image.
        size: Height and width of the input image, in pixels.
        preprocessing: How a file becomes the input.
        sha256: Of the checkpoint file or, without one, of the tensors.
        notes: Assumptions and choices that the user should see, one sentence each.
    """

    module: nn.Module
    name: str
    kind: str
    blueprint: Blueprint | None
    in_channels: int
    size: tuple[int, int]
    preprocessing: Preprocessing
    sha256: str
    notes: tuple[str, ...] = ()

    def with_notes(self, more: Iterable[str]) -> LoadedModel:
        """The same model with more to tell the user."""
        return replace(self, notes=(*self.notes, *more))


def load_model(model: str, options: SourceOptions | None = None) -> LoadedModel:
    """Resolve the ``MODEL`` argument.

    Args:
        model: As the user wrote it.
        options: What stands beside it.

    Raises:
        ModelSourceError: Names nothing, or lacks ``--weights``.
        CheckpointError: The file is broken, unsafe, or does not fit.
        ArchitectureError: A block without the projection that it needs.
        UnavailableError: A package is missing, or a download failed.
    """
    from exporter.models.foreign import load_factory, load_timm

    options = options or SourceOptions()
    path = Path(model)
    if model.startswith("timm:"):
        return load_timm(model.removeprefix("timm:"), options)
    if path.suffix == ".onnx" and not (is_file(model) and kind_of(model) == "checkpoint"):
        raise ModelSourceError(f"{model} is an ONNX file already; expected a PyTorch checkpoint or a variant's name")
    if is_variant(model):
        return _load_variant(model, options)
    found = _found(path)
    if found == "file" or path.suffix in SUFFIXES or (path.parent != Path() and ":" not in model):
        return _load_checkpoint_file(path, options)
    if ":" in model:
        return load_factory(model, options)
    if model and found == "folder":
        raise ModelSourceError(f"{model} is a folder: give a checkpoint file in it, or a variant's name")
    blueprint_for(model)  # raises, with the nearest names
    raise AssertionError("unreachable: blueprint_for refuses what is_variant does not know")


def _found(path: Path) -> str | None:
    try:
        return "folder" if stat.S_ISDIR(path.stat().st_mode) else "file"
    except (OSError, ValueError):  # nothing there, or a name that no file can have
        return None


def _load_checkpoint_file(path: Path, options: SourceOptions) -> LoadedModel:
    if options.weights is not None:
        raise ModelSourceError(f"{path} holds its own weights: leave out --weights, or give a variant's name as MODEL")
    checkpoint = load_checkpoint(path, options.checkpoint_key)
    renamed = rename(checkpoint.tensors)
    found = infer(renamed, options.norm_eps)
    _check_claims(found.blueprint, options, path)
    notes = [*found.assumptions, *_notes(renamed, checkpoint.wrapper, checkpoint.others)]
    module = _fill(build_empty(found.blueprint), renamed.tensors)
    return _finish(module, "checkpoint", options, checkpoint.sha256, tuple(notes))


def _check_claims(blueprint: Blueprint, options: SourceOptions, path: Path) -> None:
    claims = (
        ("--num-classes", options.num_classes, blueprint.num_classes, "classes"),
        ("--in-channels", options.in_channels, blueprint.in_channels, "input channels"),
    )
    for flag, claimed, found, what in claims:
        if claimed is not None and claimed != found:
            raise CheckpointError(f"{path} has {found} {what}, and {flag} says {claimed}: leave {flag} out")


def _load_variant(name: str, options: SourceOptions) -> LoadedModel:
    blueprint = blueprint_for(
        name, num_classes=options.num_classes, in_channels=3 if options.in_channels is None else options.in_channels
    )
    if options.norm_eps is not None:
        blueprint = replace(blueprint, norm_eps=options.norm_eps)
    if options.shapes_only and options.weights is None:
        return _finish(build_empty(blueprint), "variant", options, "")
    if options.weights is None:
        raise ModelSourceError(f"{name} needs weights: give --weights FILE, --weights random or --weights DEFAULT")
    if options.weights == RANDOM:
        module = build_random(blueprint, options.seed)
        return _finish(module, "variant", options, state_sha256(module), (f"random weights, seed {options.seed}",))
    if options.weights == DEFAULT:
        return _load_default(blueprint, options)
    path = Path(options.weights)
    checkpoint = load_checkpoint(path, options.checkpoint_key)
    renamed = rename(checkpoint.tensors)
    _check_heads(blueprint, renamed, path)
    try:
        check_tensors(blueprint, renamed)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_recognised(renamed, name)}") from error
    module = _fill(build_empty(blueprint), renamed.tensors)
    return _finish(
        module, "variant", options, checkpoint.sha256,
        _notes(renamed, checkpoint.wrapper, checkpoint.others),
    )  # fmt: skip


def _check_heads(blueprint: Blueprint, renamed: Renamed, path: Path) -> None:
    """The two mismatches that everybody meets deserve the flag that mends them."""
    head, stem = renamed.tensors.get("fc.weight"), renamed.tensors.get("conv1.weight")
    if head is not None and head.dim() == 2 and head.shape[0] != blueprint.num_classes:
        raise CheckpointError(
            f"{path} has {head.shape[0]} classes, and {blueprint.name} was to have {blueprint.num_classes}: "
            f"give --num-classes {head.shape[0]}, or the file alone as MODEL"
        )
    if stem is not None and stem.dim() == 4 and stem.shape[1] != blueprint.in_channels:
        raise CheckpointError(
            f"{path} has {stem.shape[1]} input channels, and {blueprint.name} was to have {blueprint.in_channels}: "
            f"give --in-channels {stem.shape[1]}, or the file alone as MODEL"
        )


def _recognised(renamed: Renamed, asked: str) -> str:
    """Say which network the tensors do fit, if they fit one."""
    try:
        found = infer(renamed).blueprint.name
    except ResnetExportError:
        return ""
    return f"; the file looks like {found}, not {asked}: give it alone as MODEL"


def _load_default(blueprint: Blueprint, options: SourceOptions) -> LoadedModel:
    import torchvision

    if blueprint.name not in IMAGENET_NAMES:
        raise ModelSourceError(f"torchvision has no weights for {blueprint.name}: give --weights FILE or random")
    weights = torchvision.models.get_model_weights(blueprint.name).DEFAULT
    try:
        state: Mapping[str, Tensor] = weights.get_state_dict(progress=False, check_hash=True)
    except Exception as error:
        raise UnavailableError(
            f"torchvision's weights for {blueprint.name} cannot be downloaded ({first_line(error)}): "
            f"fetch {Path(weights.url).name} where there is a network, and give it as --weights FILE"
        ) from error
    renamed = rename(state)
    _check_heads(blueprint, renamed, Path(weights.url))
    check_tensors(blueprint, renamed)
    module = _fill(build_empty(blueprint), renamed.tensors)
    loaded = _finish(module, "variant", options, state_sha256(module), (f"torchvision weights {weights}",))
    transforms = weights.transforms()
    resize = round(max(loaded.size) * transforms.resize_size[0] / transforms.crop_size[0])
    return replace(loaded, preprocessing=loaded.preprocessing.with_overrides(resize=resize))


def _notes(renamed: Renamed, wrapper: str, others: tuple[str, ...]) -> tuple[str, ...]:
    notes = []
    if others:
        notes.append(f"weights taken from {wrapper or 'the top level'}; the file has others under {', '.join(others)}")
    dtypes = {tensor.dtype for tensor in renamed.tensors.values() if tensor.is_floating_point()} - {torch.float32}
    if dtypes:
        notes.append(f"weights stored as {', '.join(sorted(str(dtype)[6:] for dtype in dtypes))}, used as float32")
    return tuple(notes)


def _fill(module: ResNet, tensors: Mapping[str, Tensor]) -> ResNet:
    """Give a module without storage its tensors; counters that inference never reads start at zero.

    The tensors are copied: those of a file are a view of it, and would change or vanish when training writes it anew.
    """
    state = {
        name: tensors[name].detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if name in tensors
        else torch.zeros((), dtype=torch.long)
        for name in module.state_dict()
    }
    module.load_state_dict(state, assign=True)
    return module


def fill_foreign(module: nn.Module, path: Path, key: str | None, name: str) -> tuple[str, tuple[str, ...]]:
    """Load a checkpoint into a module that is not ours; the names have to be the module's own.

    Args:
        module: Changed in place.
        path: Checkpoint.
        key: Place of the weights inside it.
        name: For messages.

    Returns:
        The file's sha256, and notes for the user.

    Raises:
        CheckpointError: Missing and unexpected keys, other shapes, values that are not finite.
    """
    checkpoint = load_checkpoint(path, key)
    tensors = _strip_common_prefix(checkpoint.tensors, set(module.state_dict()))
    wanted = {name: tensor for name, tensor in tensors.items() if name.rsplit(".", 1)[-1] not in BOOKKEEPING}
    renamed = Renamed(wanted, {name: name for name in wanted}, ())
    check_state(module.state_dict(), renamed, name)
    module.load_state_dict(dict(wanted), strict=False)
    return checkpoint.sha256, _notes(renamed, checkpoint.wrapper, checkpoint.others)


def _strip_common_prefix(tensors: Mapping[str, Tensor], wanted: set[str]) -> Mapping[str, Tensor]:
    """``module.`` and the like, as long as stripping brings more names home."""
    while not wanted & tensors.keys():
        heads = {name.split(".", 1)[0] for name in tensors if "." in name}
        if len(heads) != 1:
            break
        tensors = {name.split(".", 1)[1]: tensor for name, tensor in tensors.items() if "." in name}
    return tensors


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of a module's tensors, in their order."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _finish(module: ResNet, kind: str, options: SourceOptions, sha256: str, notes: tuple[str, ...] = ()) -> LoadedModel:
    blueprint = module.blueprint
    size = options.input_size or (blueprint.input_size, blueprint.input_size)
    if min(size) < blueprint.total_stride:
        raise ModelSourceError(
            f"--input-size {size[0]}x{size[1]} is too small for {blueprint.name}, which divides it by "
            f"{blueprint.total_stride}: expected at least {blueprint.total_stride}x{blueprint.total_stride}"
        )
    preset = PRESETS["imagenet" if blueprint.input_size > 32 else "cifar"]
    contract = preset.for_input(blueprint.in_channels, *size)
    return LoadedModel(
        module, blueprint.name, kind, blueprint, blueprint.in_channels, size, contract, sha256, notes
    )  # fmt: skip
