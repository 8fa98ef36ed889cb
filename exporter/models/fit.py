"""Whether the tensors of a file fit a network: the same names, the same shapes, and numbers to compute with."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from exporter.models.blueprint import Blueprint
from exporter.models.naming import Renamed
from exporter.models.resnet import build_empty
from runtimes.errors import CheckpointError

_LISTED = 4  # tensors named in one message


def check_tensors(blueprint: Blueprint, renamed: Renamed) -> None:
    """Hold every tensor against the blueprint: missing, unexpected, of another shape or type, NaN or Inf.

    Raises:
        CheckpointError: Names the tensors as the file does.
    """
    check_state(build_empty(blueprint).state_dict(), renamed, blueprint.name)


def check_state(expected: Mapping[str, Tensor], renamed: Renamed, network: str) -> None:
    """The comparison behind :func:`check_tensors`, for any module's state dict.

    Args:
        expected: Tensors that the module has, with or without values.
        renamed: What the file has.
        network: Name of the module, for the message.

    Raises:
        CheckpointError: As in :func:`check_tensors`.
    """
    expected = {name: tensor for name, tensor in expected.items() if not name.endswith("num_batches_tracked")}
    have, origin = renamed.tensors, renamed.origin
    problems = []
    if missing := [name for name in expected if name not in have]:
        problems.append(f"missing: {_some(missing)}")
    if unexpected := [origin[name] for name in have if name not in expected]:
        problems.append(f"unexpected: {_some(unexpected)}")
    differing = [
        f"{origin[name]} is {list(have[name].shape)}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in have and have[name].shape != tensor.shape
    ]
    if differing:
        problems.append(f"other shapes: {_some(differing)}")
    if problems:
        raise CheckpointError(f"the checkpoint does not fit {network}: {'; '.join(problems)}")
    _check_values({origin[name]: have[name] for name, tensor in expected.items() if tensor.is_floating_point()})


def _check_values(tensors: Mapping[str, Tensor]) -> None:
    """``tensors``, under the names of the file, are all meant to be real numbers."""
    other = [f"{name} is {str(tensor.dtype)[6:]}" for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if other:
        raise CheckpointError(
            f"the checkpoint has weights that are not floating point: {_some(other)}; quantised weights cannot be used "
            "without their scales: give the checkpoint from before the quantisation"
        )
    # As float32, which is what they will be used as: 1e300 is finite only as long as it stays a float64.
    broken = [_broken(name, tensor.float()) for name, tensor in tensors.items() if not tensor.float().isfinite().all()]
    if broken:
        raise CheckpointError(
            f"the checkpoint has values that are not finite: {_some(broken)}; it is from a diverged or damaged run"
        )
    negative = [name for name, tensor in tensors.items() if name.endswith("running_var") and (tensor.float() < 0).any()]
    if negative:
        raise CheckpointError(f"the checkpoint has negative variances: {_some(negative)}; it is damaged")


def _broken(name: str, tensor: Tensor) -> str:
    nan, inf = int(tensor.isnan().sum()), int(tensor.isinf().sum())
    return f"{name} ({nan} NaN, {inf} Inf of {tensor.numel()})"


def _some(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")
