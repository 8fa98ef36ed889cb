"""What a file says of the preprocessing inside of it: written when it is made, read by whoever feeds it.

``preprocessing`` is always what the caller has to do. Where a part of it is in the graph, ``embedded`` has the whole::

    "preprocessing": uint8, NHWC, scale 1, mean 0, std 1
    "embedded": {"preprocessing": of the network, "preprocessing_sha256", "resize": bool, "how", "output"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

from calibration.pixel_contract import pictures_of, pixels_of
from calibration.preprocess import Preprocessing
from exporter.quantisation_inputs import stored_contract
from runtimes.errors import InputError

Output = Literal["logits", "probabilities", "top-k"]
KEY: Final = "embedded"


@dataclass(frozen=True)
class EmbedOptions:
    """What goes into the graph besides the normalisation.

    Attributes:
        resize: Resize and crop too: the file takes pictures of any size.
        softmax: Probabilities come out, not logits.
        top_k: The best classes come out; ``None``: all, in their own order.
    """

    resize: bool = False
    softmax: bool = False
    top_k: int | None = None

    @property
    def output(self) -> Output:
        """What comes out."""
        if self.top_k is not None:
            return "top-k"
        return "probabilities" if self.softmax else "logits"


class Told(NamedTuple):
    """What a file says of its input and output.

    Attributes:
        network: How a file becomes what the network takes; ``None`` where nothing says so.
        takes: What the input is instead, where a part of that is in the graph; else ``None``.
        output: What comes out.
    """

    network: Preprocessing | None
    takes: Preprocessing | None
    output: Output


def taken(contract: Preprocessing, options: EmbedOptions) -> Preprocessing:
    """What is left to the caller."""
    return pictures_of(contract) if options.resize else pixels_of(contract)


def described(contract: Preprocessing, options: EmbedOptions, how: str) -> dict[str, Any]:
    """The metadata of a file, by name without prefix."""
    left = taken(contract, options)
    return {
        "preprocessing": left.to_json(),
        "preprocessing_sha256": left.sha256(),
        KEY: {
            "preprocessing": contract.to_json(),
            "preprocessing_sha256": contract.sha256(),
            "resize": options.resize,
            "how": how,
            "output": options.output,
        },
    }


def told(metadata: Mapping[str, Any]) -> Told:
    """What :func:`described` wrote, of a file or of an engine's document.

    Raises:
        InputError: It is damaged, or was changed after the export.
    """
    own = stored_contract(metadata)
    inside = metadata.get(KEY)
    if inside is None:
        return Told(own, None, "logits")
    network = stored_contract(inside) if isinstance(inside, Mapping) else None
    output = inside.get("output") if isinstance(inside, Mapping) else None
    if network is None or own is None or output not in ("logits", "probabilities", "top-k"):
        raise InputError("the model's metadata on its embedded preprocessing are damaged: embed it again")
    return Told(network, own, output)
