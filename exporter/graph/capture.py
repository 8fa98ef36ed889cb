"""Any convolutional module -> one flat graph of ATen operators, by ``torch.export``.

The graph keeps each operator's module path, so that names survive every later stage, and every parameter is an
attribute under its own path. Folding and both ONNX exporters start from it; the module itself is never changed.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from runtimes.errors import GraphError, first_line

#: Two images: with one, torch.export would take the batch for a constant of the network.
_TRACED_BATCH = 2


@dataclass(frozen=True)
class InputShape:
    """What the exported graph takes.

    Attributes:
        channels: Image channels.
        height: Pixels.
        width: Pixels.
        batch: Fixed number of images, or ``None`` for any number.
        dynamic_size: Whether height and width are free (the given ones are then only the traced ones).
    """

    channels: int
    height: int
    width: int
    batch: int | None = None
    dynamic_size: bool = False

    def example(self) -> Tensor:
        """A zero tensor ``[N, C, H, W]`` to trace with."""
        return torch.zeros(self.batch or _TRACED_BATCH, self.channels, self.height, self.width)

    def dynamic_dimensions(self) -> dict[int, Any]:
        """``torch.export``'s description of the free dimensions."""
        free: dict[int, Any] = {}
        if self.batch is None:
            free[0] = torch.export.Dim("batch", min=1)
        if self.dynamic_size:
            # DYNAMIC rather than a named range: the lower bound (one pixel at the last stage) follows from strides.
            free[2] = free[3] = torch.export.Dim.DYNAMIC
        return free

    def __str__(self) -> str:
        size = f"{self.height}x{self.width}" + (" (any size)" if self.dynamic_size else "")
        return f"{'any batch' if self.batch is None else f'batch {self.batch}'}, {self.channels} channels, {size}"


@dataclass(frozen=True)
class Captured:
    """A flat graph, and what it was traced with.

    Attributes:
        module: Callable graph; images ``[N, C, H, W]`` -> logits ``[N, classes]``. Parameters are shared with the
            module it came from until a pass replaces them.
        shape: The input.
    """

    module: fx.GraphModule
    shape: InputShape


def capture(module: nn.Module, shape: InputShape) -> Captured:
    """Trace a module into a flat graph.

    Args:
        module: Any module that takes one image tensor and returns one ``[N, classes]`` tensor.
        shape: Its input.

    Raises:
        GraphError: ``torch.export`` cannot trace it for this shape, or the output is not ``[N, classes]``.
    """
    program = trace(module, shape)
    flat = program.module(check_guards=False)
    captured = Captured(rebuild(flat), shape)
    _check_output(captured)
    return captured


def trace(module: nn.Module, shape: InputShape) -> torch.export.ExportedProgram:
    """``torch.export`` with its failures translated.

    Raises:
        GraphError: With the first line of torch's reason and the next step.
    """
    free = shape.dynamic_dimensions()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.export.export(module, (shape.example(),), dynamic_shapes=(free,), strict=False)
    except Exception as error:  # torch.export passes on whatever the module raised
        raise GraphError(_explain(error, shape)) from error


def _explain(error: Exception, shape: InputShape) -> str:
    text = str(error)
    first = first_line(error)
    if any(sign in text for sign in ("Kernel size can't be greater", "too small", "Output size")):
        return f"the network cannot take {shape.height}x{shape.width} images ({first}): give a larger --input-size"
    if "channels" in text and "expected input" in text:
        return f"the network does not take {shape.channels} channels ({first}): give --in-channels"
    if "onstraint" in text or "specializ" in text:
        which = "--batch N" if not shape.dynamic_size else "--batch N, or no --dynamic-size"
        return f"the network fixes a dimension that was asked to be free ({first}): give {which}"
    return f"torch.export cannot capture this network for {shape}: {first}"


def rebuild(flat: fx.GraphModule) -> fx.GraphModule:
    """A graph module of its own: same operators, same tensors, nothing shared that a pass could change in place.

    ``ExportedProgram.module()`` forbids ``eval()``, which the TorchScript exporter calls; a rebuilt one does not.
    """
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    result = graph.graph_copy(flat.graph, values)
    graph.output(result)
    graph.set_codegen(flat.graph._codegen)
    return fx.GraphModule(flat, graph).eval()


def _check_output(captured: Captured) -> None:
    result = next(node for node in captured.module.graph.nodes if node.op == "output").args[0]
    results = result if isinstance(result, list | tuple) else (result,)
    value = results[0].meta.get("val") if len(results) == 1 and isinstance(results[0], fx.Node) else None
    if not isinstance(value, Tensor) or value.dim() != 2:
        got = f"a tensor of {value.dim()} dimensions" if isinstance(value, Tensor) else f"{len(results)} values"
        raise GraphError(
            f"the network returns {got}; expected logits [N, classes]: wrap it so that it returns only them"
        )


def module_path(node: fx.Node) -> str:
    """Module path of the layer that an operator belongs to; empty at the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path)
