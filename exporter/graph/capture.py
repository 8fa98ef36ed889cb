"""Any convolutional module -> one flat graph of ATen operators, by ``torch.export``.

The graph keeps each operator's module path, so that names survive every later stage, and every parameter is an
attribute under its own path. Folding and both ONNX exporters start from it; the module itself is never changed.
"""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from exporter.graph.quiet import quiet
from runtimes.errors import GraphError, first_line

#: Two images: with one, torch.export would take the batch for a constant of the network.
_TRACED_BATCH = 2
_EXPECTED_OUTPUT = "expected one float tensor, the logits [N, classes]: wrap it so that it returns only them"


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

    def another_size(self) -> InputShape:
        """The same input with larger images, of which every stride of a ResNet still divides each side."""
        return replace(self, height=self.height + 32, width=self.width + 64)

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

    @property
    def classes(self) -> int:
        """Number of logits."""
        result = next(node for node in self.module.graph.nodes if node.op == "output").args[0]
        value = (result[0] if isinstance(result, list | tuple) else result).meta["val"]  # [N, classes]
        return int(value.shape[1])


def capture(module: nn.Module, shape: InputShape) -> Captured:
    """Trace a module into a flat graph.

    Args:
        module: Any module that takes one image tensor and returns one ``[N, classes]`` tensor.
        shape: Its input.

    Raises:
        GraphError: The module is in training mode, ``torch.export`` cannot trace it for this shape, or the output
            is not ``[N, classes]``.
    """
    _refuse_training(module)
    program = trace(module, shape)
    structure = program.call_spec.out_spec
    if structure is None or not structure.is_leaf():
        kind = "nothing" if structure is None else f"a {structure.type.__name__}"
        raise GraphError(f"the network returns {kind}; {_EXPECTED_OUTPUT}")
    flat = program.module(check_guards=False)
    captured = Captured(rebuild(flat), shape)
    _check_output(captured)
    if shape.dynamic_size:
        _refuse_fixed_size(captured)
    return captured


def _refuse_training(module: nn.Module) -> None:
    """Traced as it is, a BatchNorm in training mode would update the statistics of the caller's module."""
    for path, part in module.named_modules():
        if part.training:
            culprit = f"module '{path}'" if path else "the network"
            raise GraphError(f"{culprit} is in training mode: call .eval()")


def trace(module: nn.Module, shape: InputShape) -> torch.export.ExportedProgram:
    """``torch.export`` with its failures translated.

    Raises:
        GraphError: With the first line of torch's reason and the next step.
    """
    free = shape.dynamic_dimensions()
    try:
        # Where the graph breaks off, torch prints what it had so far: the first line of its reason says more.
        with quiet(), contextlib.redirect_stderr(io.StringIO()):
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
    if "data-dependent" in text:
        return (
            f"the network's path depends on the values in the image ({first}), and a graph has one path: "
            "write the choice with torch.where"
        )
    if "onstraint" in text or "specializ" in text:
        free = ["--batch N"] * (shape.batch is None) + ["no --dynamic-size"] * shape.dynamic_size
        return f"the network fixes a dimension that was asked to be free ({first}): give {' or '.join(free)}"
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
    nodes = captured.module.graph.nodes
    result = next(node for node in nodes if node.op == "output").args[0]
    image = next(node for node in nodes if node.op == "placeholder").meta["val"]  # [N, C, H, W]
    (value,) = result if isinstance(result, list | tuple) else (result,)
    logits = value.meta.get("val") if isinstance(value, fx.Node) else None
    if not isinstance(logits, Tensor) or logits.dim() != 2 or not logits.is_floating_point():
        got = f"{logits.dtype} of {logits.dim()} dimensions" if isinstance(logits, Tensor) else "no tensor"
        raise GraphError(f"the network returns {got}; {_EXPECTED_OUTPUT}")
    # As text: comparing two free dimensions would make torch assume that they are equal.
    if str(logits.shape[0]) != str(image.shape[0]) or not isinstance(logits.shape[1], int):
        shown = [str(size) for size in logits.shape]
        raise GraphError(
            f"the network returns [{', '.join(shown)}] for {image.shape[0]} images; expected one row of a fixed number "
            "of logits for each image: give --batch N and no --dynamic-size, or mend its last reshape"
        )


def _refuse_fixed_size(captured: Captured) -> None:
    """torch.export takes ``H * W == 64`` for a condition on free sizes: only another size shows that they are not."""
    shape = captured.shape
    other = shape.another_size()
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():  # shapes only: nothing is computed
            captured.module(other.example())
    except Exception as error:  # whatever the operator at hand raises for a shape that it does not take
        raise GraphError(
            f"the network takes {shape.height}x{shape.width} images and not {other.height}x{other.width} "
            f"({first_line(error)}): give no --dynamic-size"
        ) from error


def module_path(node: fx.Node) -> str:
    """Module path of the layer that an operator belongs to; empty at the top level."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next(reversed(stack.values()))[0] if stack else ""
    return str(path)
