"""Why an INT8 engine may be no faster than an FP16 one, read from its layers.

The causes are those that users of TensorRT met (NVIDIA/TensorRT issues 993, 1293, 3197, 4021) and those of its
developer guide, "Recommended Practices for Q/DQ Placement".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from runtimes.tensorrt.inspect import EngineLayers
from runtimes.tensorrt.inspect_types import QUANTISED

_VECTOR: Final = "Thirty-two wide channel"  # the layout of INT8 kernels: 32 channels at a time
_VECTOR_CHANNELS: Final = 32
_SMALL_BATCH: Final = 8
_NAMED: Final = 5


def listed(modules: Sequence[str]) -> str:
    """Names for a sentence: the first few, and how many more there are."""
    more = len(modules) - _NAMED
    return ", ".join(modules[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def advice_on(
    engine: EngineLayers,
    *,
    conversions: Sequence[str],
    quantisers: Sequence[str],
    float_adds: Sequence[str],
    channels: Mapping[str, int],
    has_qdq: bool,
) -> tuple[str, ...]:
    """Sentences on what costs an INT8 engine its speed; none for an engine that has nothing to do with INT8.

    Args:
        engine: Its layers.
        conversions: Modules inside the network whose tensors are copied into another type.
        quantisers: Q/DQ that run as layers of their own.
        float_adds: Adds of residual blocks that run by themselves, in float.
        channels: Input channels of each convolution, where they are known.
        has_qdq: Whether the network is quantised.
    """
    narrow = any(layer.precision in QUANTISED for layer in engine.layers if layer.computes and layer.weighted)
    if not narrow and not has_qdq:
        return ()
    found = []
    if not narrow:
        found.append(
            "the network has Q/DQ, and no layer with weights runs in INT8: "
            "TensorRT 8 and 10 need BuilderFlag.INT8 for it unless the network is strongly typed"
        )
    if conversions:
        found.append(
            f"layers that only convert tensors to another type: {len(conversions)} (for {listed(conversions)}); "
            "each float island among INT8 layers costs a copy on its way in and one on its way out"
        )
    if quantisers:
        found.append(
            f"Q/DQ that run as layers of their own: {len(quantisers)} ({listed(quantisers)}); "
            "place them where the layer before or after can take them in"
        )
    if float_adds:
        found.append(
            f"residual Adds that run in float by themselves: {len(float_adds)} ({listed(float_adds)}); "
            "quantise one side of each, the shortcut, so that it fuses with the convolution of the other"
        )
    found.extend(_sizes(engine, channels) if narrow else ())
    return tuple(found)


def _sizes(engine: EngineLayers, channels: Mapping[str, int]) -> list[str]:
    found = []
    few = [name for name, number in channels.items() if number < _VECTOR_CHANNELS]
    vectorised = any(_VECTOR in tensor.format for layer in engine.layers for tensor in layer.inputs)
    if vectorised and 2 * len(few) > len(channels):
        found.append(
            f"Conv with fewer than {_VECTOR_CHANNELS} input channels: {len(few)} of {len(channels)}; "
            f"the INT8 layout holds {_VECTOR_CHANNELS} at a time, and the rest is padding"
        )
    batches = [x.inputs[0].shape[0] for x in engine.layers if x.weighted and x.inputs and x.inputs[0].shape]
    if batches and 0 < max(batches) < _SMALL_BATCH:
        found.append(
            f"the batch is {max(batches)}: small layers then wait for memory and for kernel launches, "
            "which no precision shortens; compare with a larger batch"
        )
    return found
