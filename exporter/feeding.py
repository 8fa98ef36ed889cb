"""Models that take pixels beside models that take tensors, over one stream of decoded images.

The stream holds what the most demanding of the models takes; the others get the rest of their preprocessing here, bit
for bit as reading for them alone would have given it::

    tensors only           file ─▶ float32 [N,C,h,w] ─▶ all
    pixels too             file ─▶ uint8 [N,h,w,C]   ─▶ normalise ─▶ those that take tensors
    whole pictures too     file ─▶ uint8 [1,H,W,C]   ─▶ resize, crop ─▶ those that take pixels ─▶ normalise ─▶ the rest
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from calibration.pixel_contract import cropped, pictures_of, pixels_of
from calibration.preprocess import Preprocessing
from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.batching import as_input

#: From what was read to what a model takes.
Feed = Callable[[Array], Array]


@dataclass(frozen=True)
class Reading:
    """How files are read for several models.

    Attributes:
        contract: What the files become.
        feeds: By model: the rest of its preprocessing; ``None`` where there is none.
    """

    contract: Preprocessing
    feeds: tuple[Feed | None, ...]


@dataclass(frozen=True)
class _Rest:
    """What is left of a contract; a class, because it has to be picklable."""

    contract: Preprocessing
    whole: bool
    normalises: bool

    def __call__(self, images: Array) -> Array:
        pixels = cropped(self.contract, images) if self.whole else images
        return self.contract.normalise(pixels) if self.normalises else pixels


def reading(contract: Preprocessing, takes: Sequence[Preprocessing | None]) -> Reading:
    """How files are read so that every model gets what it takes.

    Args:
        contract: How a file becomes the input of the networks.
        takes: By model: what its input is instead, where a part of ``contract`` is in the graph.
    """
    if not any(takes):
        return Reading(contract, (None,) * len(takes))
    whole = any(each is not None and each.any_size for each in takes)
    read = pictures_of(contract) if whole else pixels_of(contract)
    rests = {taken: _Rest(contract, whole, normalises=taken is None) for taken in dict.fromkeys(takes) if taken != read}
    return Reading(read, tuple(rests.get(taken) for taken in takes))


def fed(runtime: Runtime, feed: Feed | None) -> Runtime:
    """A runtime that takes what was read; itself where there is nothing to be done."""
    return runtime if feed is None else Fed(runtime, feed)


class Fed(Runtime):
    """A runtime behind the rest of its preprocessing.

    Args:
        runtime: Opened and closed with this one, unless it is open already.
        feed: uint8 ``[N, H, W, C]`` -> its input.
    """

    def __init__(self, runtime: Runtime, feed: Feed) -> None:
        super().__init__(runtime.name)
        self._inner, self._feed = runtime, feed
        self._opened = False

    def _open(self) -> Binding:
        if not self._inner.is_open:
            self._inner.__enter__()
            self._opened = True
        taken, given = self._inner.inputs[0], self._inner.outputs[0]
        batch, channels = (taken.shape[0], taken.shape[1]) if taken.dtype != "uint8" else taken.shape[::3]
        pixels = TensorSpec(taken.name, "uint8", (batch, None, None, channels))
        return Binding(pixels, replace(given, dtype="float32"), self._inner.used)

    def _run(self, batch: Array) -> Array:
        return self._inner.run(as_input(self._inner, self._feed(batch)))

    def _close(self) -> None:
        if self._opened:
            self._opened = False
            self._inner.__exit__(None, None, None)
