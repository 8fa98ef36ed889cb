"""Networks that are not built here: ``timm:NAME``, and ``package.module:factory`` for any ``nn.Module``."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from calibration.preprocess import PRESETS, Preprocessing
from exporter.models.source import DEFAULT, RANDOM, LoadedModel, SourceOptions, fill_foreign, state_sha256
from runtimes.errors import ModelSourceError, UnavailableError, first_line, missing_package

_SMALL = 64  # below this many pixels a network is taken for one of CIFAR's kind


def load_timm(name: str, options: SourceOptions) -> LoadedModel:
    """A network of timm, with timm's own preprocessing.

    Raises:
        UnavailableError: timm is not installed, or its download failed.
        ModelSourceError: No such name, or no ``--weights``.
    """
    try:
        import timm
    except ImportError:
        raise missing_package("timm", "timm") from None
    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=3) or timm.list_models("resnet*")[:3]
        raise ModelSourceError(f"timm has no model {name!r}: the nearest are {', '.join(near)}")
    if options.weights is None and not options.shapes_only:
        raise ModelSourceError(f"timm:{name} needs weights: give --weights FILE, --weights random or --weights DEFAULT")
    if options.weights == DEFAULT and not timm.is_model_pretrained(name):
        raise ModelSourceError(f"timm has no weights for {name}: give --weights FILE or random")
    wanted = {"num_classes": options.num_classes, "in_chans": options.in_channels}
    arguments: dict[str, Any] = {key: value for key, value in wanted.items() if value is not None}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            module = timm.create_model(name, pretrained=options.weights == DEFAULT, **arguments)
    except Exception as error:
        if options.weights == DEFAULT:
            raise UnavailableError(
                f"timm's weights for {name} cannot be downloaded ({first_line(error)}): "
                "fetch them where there is a network, and give --weights FILE"
            ) from error
        raise ModelSourceError(f"timm cannot build {name}: {first_line(error)}") from error
    return _finish(module, f"timm:{name}", "timm", options, getattr(module, "pretrained_cfg", {}) or {})


def load_factory(target: str, options: SourceOptions) -> LoadedModel:
    """The module that ``package.module:factory`` gives; the current folder is on the import path.

    Raises:
        ModelSourceError: It cannot be imported, raises, or gives something else than a module.
    """
    module_name, _, attribute = target.partition(":")
    if options.num_classes is not None:
        raise ModelSourceError(f"{target} has the classes that its code gives it: leave out --num-classes")
    if options.weights == DEFAULT:
        raise ModelSourceError(f"{target} has no weights to download: give --weights FILE, or leave it out")
    with torch.random.fork_rng(devices=[]):  # both, because a module may be made when its file is imported
        torch.manual_seed(options.seed)
        factory = _imported(target, module_name, attribute)
        module = factory if isinstance(factory, nn.Module) else _called(target, factory, options.seed)
    if not isinstance(module, nn.Module):
        raise ModelSourceError(
            f"{target} gives {type(module).__name__}: expected a torch.nn.Module, or a function of no arguments that "
            "returns one"
        )
    return _finish(module, target, "factory", options, {})


def _imported(target: str, module_name: str, attribute: str) -> Any:
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # last: a file there must not stand in for an installed package
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ModelSourceError(f"{target}: {module_name} cannot be imported ({first_line(error)})") from error
    except AttributeError as error:
        raise ModelSourceError(f"{target}: {first_line(error)}") from error
    except (Exception, SystemExit) as error:  # a script that parses its arguments when imported ends in SystemExit
        raise ModelSourceError(f"{target}: importing it raised {type(error).__name__}: {first_line(error)}") from error
    return found


def _called(target: str, factory: Any, seed: int) -> Any:
    torch.manual_seed(seed)
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ModelSourceError(f"{target}() raised {type(error).__name__}: {first_line(error)}") from error


def _finish(module: nn.Module, name: str, kind: str, options: SourceOptions, config: dict[str, Any]) -> LoadedModel:
    if options.norm_eps is not None:
        raise ModelSourceError(f"{name} has the eps that its code gives it: leave out --bn-eps")
    module = module.eval().requires_grad_(False)
    notes: tuple[str, ...] = ()
    if options.weights in (None, RANDOM, DEFAULT):
        sha256 = "" if options.shapes_only else state_sha256(module)
        drawn = "random weights" if kind == "timm" else "the weights that its code gives it"
        notes = (f"{drawn}, seed {options.seed}",) if options.weights == RANDOM else ()
    else:
        sha256, notes = fill_foreign(module, Path(str(options.weights)), options.checkpoint_key, name)
    convolution = next((layer for layer in module.modules() if isinstance(layer, nn.Conv2d)), None)
    if convolution is None:
        raise ModelSourceError(f"{name} has no convolution: this toolkit exports convolutional image classifiers")
    channels = options.in_channels or convolution.in_channels
    size = options.input_size or tuple(config.get("input_size", (0, 224, 224))[1:])
    contract = _contract(config, channels, (size[0], size[1]))
    return LoadedModel(module, name, kind, None, channels, (size[0], size[1]), contract, sha256, notes)


def _contract(config: dict[str, Any], channels: int, size: tuple[int, int]) -> Preprocessing:
    contract = PRESETS["cifar" if min(size) < _SMALL else "imagenet"].for_input(channels, *size)
    if not config or channels != 3:
        return contract
    return contract.with_overrides(
        crop="center",
        resize=int(max(size) / config.get("crop_pct", 0.875)),
        interpolation=config.get("interpolation", "bilinear"),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
