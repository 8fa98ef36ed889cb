"""A model on a server that speaks the Open Inference Protocol (KServe v2), Triton above all.

::

    with TritonRuntime("http://localhost:8000/r20") as runtime:
        logits = runtime.run(images)   # [N, C, H, W] -> [N, classes] float32

A batch beyond the server's ``max_batch_size`` is cut into requests of that size. What ``resnet-export triton`` wrote
into the model's configuration (preprocessing, class names, precision, hashes) is read back as :attr:`told`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from runtimes.base import Array, Binding, Runtime, TensorSpec
from runtimes.errors import GraphError, InputError, UnavailableError
from runtimes.remote_address import Address
from runtimes.remote_client import Client

PREFIX: Final = "resnet_export."
"""Of the parameters of a model's configuration that this project writes; each is a JSON text."""

_NUMPY_NAMES: Final = {
    "FP16": "float16", "FP32": "float32", "FP64": "float64", "UINT8": "uint8", "INT8": "int8", "INT32": "int32",
    "INT64": "int64",
}  # fmt: skip
_WIRE_NAMES: Final = {name: wire for wire, name in _NUMPY_NAMES.items()}
_OUTPUT_DTYPES: Final = ("float32", "float16")


class TritonRuntime(Runtime):
    """Runs a model with one input and one output on a server.

    Args:
        url: ``http://HOST:8000/MODEL`` or ``grpc://HOST:8001/MODEL``; with ``https`` and ``grpcs`` over TLS.
        name: Name in messages and reports.
        version: Of the model; ``None``: the highest that is loaded when it is opened, and that one from then on.
        timeout: Seconds that connecting, and each answer, may take.
        cast_input: Whether a model that takes float16 is fed float32 here, rounded on the way in.
        source_sha256: Of the ONNX file that the model has to be, or to be made from, where the server tells;
            ``None`` asks nothing.

    Raises:
        InputError: What is no URL of a model, a version beside another in the URL, or a timeout that is not above 0.

    Opening raises ``UnavailableError`` where the package is missing, the server cannot be reached, or the model is not
    ready; ``InputError`` for a model that the server does not have or that is made from another file;
    ``GraphError`` for one with other inputs and outputs.
    """

    def __init__(
        self,
        url: str,
        name: str = "triton",
        version: str | None = None,
        timeout: float = 60.0,
        cast_input: bool = False,
        source_sha256: str | None = None,
    ) -> None:
        super().__init__(name)
        if not (math.isfinite(timeout) and timeout > 0):
            raise InputError(f"{name}: received a timeout of {timeout} s, expected a number above 0")
        self._address = Address.parse(url)
        if version is not None and self._address.version not in (None, version):
            raise InputError(f"{url} names a version, and version={version} another: give one of them")
        self._asked = version or self._address.version or ""
        self._version = self._asked
        self._timeout = timeout
        self._cast_input = cast_input
        self._source_sha256 = source_sha256
        self._rounds_input = False
        self._limit = 0
        self._wire = ("", "", "")
        self._told: dict[str, Any] = {}
        self._client: Client | None = None

    @property
    def told(self) -> Mapping[str, Any]:
        """What the model's configuration says in this project's parameters, by name without prefix; empty for others.

        Known from the first opening on.
        """
        return dict(self._told)

    def _open(self) -> Binding:
        client = self._client = Client(self._address, self._timeout)
        server = client.server()
        if not client.is_ready(self._asked):
            raise self._not_ready(client.index())
        described, config = client.metadata(self._asked), client.config(self._asked)
        self._version = self._asked or _highest(described.get("versions", ()))
        self._limit = int(config.get("max_batch_size", 0))
        self._told = _told(config.get("parameters", {}), self._label())
        self._check_source()
        taken, given = self._spec(described, "input"), self._spec(described, "output")
        self._wire = (taken.name, _WIRE_NAMES[taken.dtype], given.name)
        self._rounds_input = self._cast_input and taken.dtype == "float16"
        return Binding(
            input=replace(taken, dtype="float32") if self._rounds_input else taken,
            output=given,
            used={
                "server": str(server.get("name", "")),
                "server_version": str(server.get("version", "")),
                "protocol": self._address.protocol,
                "model": self._address.model,
                "version": self._version,
                "platform": str(described.get("platform") or config.get("backend", "")),
                "max_batch_size": self._limit,
            },
        )

    def _run(self, batch: Array) -> Array:
        assert self._client is not None  # the base class runs nothing before _open
        if self._rounds_input:
            with np.errstate(over="ignore"):  # beyond float16 is Inf, which the logits show
                batch = batch.astype(np.float16)
        size = self._limit or len(batch)
        taken, datatype, given = self._wire
        pieces = [
            self._client.infer(taken, datatype, given, batch[start : start + size], self._version)
            for start in range(0, len(batch), size)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._client = None

    def _spec(self, described: Mapping[str, Any], role: str) -> TensorSpec:
        tensors = described.get(f"{role}s", ())
        if len(tensors) != 1:
            names = ", ".join(str(each.get("name")) for each in tensors)
            raise GraphError(f"{self._label()} has {len(tensors)} {role}s ({names}), expected exactly one")
        tensor = tensors[0]
        wire = str(tensor.get("datatype"))
        dtype = _NUMPY_NAMES.get(wire)
        if dtype is None or (role == "output" and dtype not in _OUTPUT_DTYPES):
            expected = _OUTPUT_DTYPES if role == "output" else tuple(_NUMPY_NAMES.values())
            raise GraphError(
                f"{self._label()}: {role} '{tensor.get('name')}' is {dtype or wire}, "
                f"expected one of {', '.join(expected)}"
            )
        sizes = [int(size) for size in tensor.get("shape", ())]  # gRPC's JSON has them as text
        shape = tuple(size if size > 0 else None for size in sizes)
        return TensorSpec(str(tensor.get("name")), dtype, shape or (None,) * (4 if role == "input" else 2))

    def _not_ready(self, index: Sequence[Mapping[str, Any]]) -> Exception:
        own = [each for each in index if each.get("name") == self._address.model]
        if own:
            reasons = [str(each["reason"]) for each in own if each.get("reason")]
            why = f": {reasons[0].splitlines()[0][:200]}" if reasons else ""
            return UnavailableError(f"{self._label()} is not ready{why}: see the server's log, or give another version")
        names = sorted({str(each.get("name")) for each in index})
        has = f"it has {', '.join(names[:10])}" if names else "and does not tell which it has"
        return InputError(
            f"{self.name}: {self._address.server} has no model '{self._address.model}' that is ready: {has}"
        )

    def _check_source(self) -> None:
        made_from = self._told.get("source_sha256")
        if None not in (self._source_sha256, made_from) and made_from != self._source_sha256:
            raise InputError(
                f"{self._label()} is made from the ONNX file {str(made_from)[:12]}…, and option model names "
                f"{str(self._source_sha256)[:12]}…: give the file that the server has"
            )

    def _label(self) -> str:
        version = f" version {self._version}" if self._version else ""
        return f"{self.name}: model '{self._address.model}'{version} on {self._address.server}"


def _highest(versions: Sequence[str]) -> str:
    """The version that a request without one gets, which is Triton's rule; none where they are no numbers."""
    numbers = [int(each) for each in versions if str(each).isdecimal()]
    return str(max(numbers)) if numbers else ""


def _told(parameters: Mapping[str, Any], label: str) -> dict[str, Any]:
    try:
        return {
            name.removeprefix(PREFIX): json.loads(value["string_value"])
            for name, value in parameters.items()
            if name.startswith(PREFIX)
        }
    except (ValueError, TypeError, KeyError) as error:
        raise GraphError(f"{label} has damaged parameters ({error}): write its repository again") from error
