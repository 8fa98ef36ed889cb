"""Other people's names for the same layers -> torchvision's.

Each rule is a row: a pattern for one dotted component group, and what it becomes. A key that no rule touches stays
as it is, so that an unknown layer is reported under the name that its owner gave it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor

from runtimes.errors import CheckpointError

#: Wrappers that put a component before every name: DataParallel and DDP, Lightning, torch.compile, mm*, SSL.
PREFIXES = (
    "module", "model", "_orig_mod", "backbone", "net", "network", "resnet", "encoder", "base_model",
    "ema_model", "features_extractor", "student",
)  # fmt: skip
#: Counters that carry no weight: BatchNorm's and AveragedModel's, and those that FLOP counters leave behind.
BOOKKEEPING = ("num_batches_tracked", "n_averaged", "total_ops", "total_params")

_CLASSIFIER = r"(?:fc|linear|classifier|last_linear|logits|output|head\.fc|head|dense)(?:\.[01])?"
_STAGE = r"(?:layers?[._]?|stages?[._]?|groups?[._]?|res)(?P<stage>\d{1,3})(?:\.blocks?|\.layers?|\.units?)?"
_SHORTCUT = r"(?:shortcut|skip|skip_connection|identity_downsample|proj|projection|residual_conv|match|downsample)"
_ROWS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), becomes)
    for pattern, becomes in (
        (rf"^{_CLASSIFIER}\.(weight|bias)$", r"fc.\1"),
        (r"^(?:(?:stem|layer0)\.conv1?|stem\.0|conv_1|conv1\.0|conv0|conv1\.conv|stem_conv|conv_stem)\.", "conv1."),
        (r"^(?:(?:stem|layer0)\.(?:bn1?|norm1?)|stem\.1|bn_1|conv1\.(?:1|bn)|bn0|bn|norm1|stem_bn|bn_stem)\.", "bn1."),
        (r"^conv(?P<stage>[2-5])_x\.", r"layer@\g<stage>."),
        (rf"^{_STAGE}\.", r"layer@\g<stage>."),
        (r"^(layer@\d+)[._](?:block)?(\d{1,5})\.", r"\1.\2."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.0\.", r"\1.conv1."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.1\.", r"\1.bn1."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.3\.", r"\1.conv2."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.4\.", r"\1.bn2."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.6\.", r"\1.conv3."),
        (r"^(layer@\d+\.\d+)\.(?:residual_function|residual|body)\.7\.", r"\1.bn3."),
        (r"^(layer@\d+\.\d+)\.conv_?([123]|[abc])\.", r"\1.conv@\2."),
        (r"^(layer@\d+\.\d+)\.(?:bn|norm)_?([123]|[abc])\.", r"\1.bn@\2."),
        (rf"^(layer@\d+\.\d+)\.{_SHORTCUT}\.(?:0|conv)\.", r"\1.downsample.0."),
        (rf"^(layer@\d+\.\d+)\.{_SHORTCUT}\.(?:1|bn|norm)\.", r"\1.downsample.1."),
    )
)
_LETTERED = re.compile(r"(conv|bn)@([123abc])\.")
_STAGED = re.compile(r"^layer@(\d+)\.(?=\d+\.)")
_DEEP_STEM = re.compile(r"(?:conv1|stem)\.3\.weight")


@dataclass(frozen=True)
class Renamed:
    """Tensors under torchvision's names.

    Attributes:
        tensors: New name -> tensor; bookkeeping counters are left out.
        origin: New name -> name in the file, for messages that its owner understands.
        prefixes: Components that were stripped, in the order they were met.
    """

    tensors: Mapping[str, Tensor]
    origin: Mapping[str, str]
    prefixes: tuple[str, ...]


def rename(tensors: Mapping[str, Tensor]) -> Renamed:
    """Bring a state dict to torchvision's names.

    Raises:
        CheckpointError: Two tensors would get one name (a file with two models in it), a stage is missing, or the
            names are those of a deep stem.
    """
    stripped: list[str] = []
    middle: dict[str, str] = {}
    for name in tensors:
        if name.rsplit(".", 1)[-1] not in BOOKKEEPING:
            middle[name] = _apply_rows(_strip(name, stripped))
    stages = _stage_numbers(middle.values())
    _require_one_stem(middle, stages)
    result: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    for name, renamed in middle.items():
        final = _STAGED.sub(lambda match: f"layer{stages[match[1]]}.", renamed)
        final = final.replace("layer@", "layer", 1) if final.startswith("layer@") else final
        if final in origin:
            raise CheckpointError(
                f"the checkpoint holds {origin[final]!r} and {name!r}, both of which mean {final!r}: where it has more "
                "than one model, choose one by its prefix: --checkpoint-key PREFIX"
            )
        origin[final], result[final] = name, tensors[name]
    return Renamed(result, origin, tuple(stripped))


def _strip(name: str, stripped: list[str]) -> str:
    parts = name.split(".")
    while len(parts) > 2 and parts[0] in PREFIXES:
        if parts[0] not in stripped:
            stripped.append(parts[0])
        parts = parts[1:]
    return ".".join(parts)


def _apply_rows(name: str) -> str:
    for pattern, becomes in _ROWS:
        name = pattern.sub(becomes, name)
    return _LETTERED.sub(lambda m: f"{m[1]}{m[2] if m[2].isdigit() else 'abc'.index(m[2]) + 1}.", name)


def _stage_numbers(names: Iterable[str]) -> dict[str, int]:
    """Stages are numbered from 0 (timm-like), 1 (torchvision) or 2 (the paper's conv2_x): only the order matters."""
    seen = sorted({match[1] for name in names if (match := _STAGED.match(name))}, key=int)
    for before, after in pairwise(seen):
        if int(after) != int(before) + 1:
            raise CheckpointError(
                f"the checkpoint has stages {', '.join(seen)}, and none between {before} and {after}: tensors are "
                "missing; save the whole model.state_dict()"
            )
    return {number: position for position, number in enumerate(seen, start=1)}


def _require_one_stem(middle: Mapping[str, str], stages: Mapping[str, int]) -> None:
    """ResNet-C, -D and -S put three convolutions where ours has one; its second BatchNorm is what we call ``bn1``."""
    deep = next((name for name, renamed in middle.items() if _DEEP_STEM.fullmatch(renamed)), None)
    if deep and stages:
        raise CheckpointError(
            f"{deep}: a stem of several convolutions (ResNet-C, -D, -S and relatives), not one; "
            "use timm:NAME with --weights"
        )
