"""The Open Inference Protocol (KServe v2) through ``tritonclient``: one interface to its HTTP and its gRPC client.

What the two raise shares no base: transport errors, JSON errors, and one class for whatever the server answered. Here
each becomes an error of this project that names the server.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from runtimes.base import Array
from runtimes.errors import GraphError, ResnetExportError, UnavailableError, first_line, missing_package
from runtimes.remote_address import Address

_T = TypeVar("_T")
# Answers that are about the machine: HTTP's codes, and the names of gRPC's.
_AWAY: Final = frozenset({"502", "503", "504", "UNAVAILABLE"})
_LATE: Final = frozenset({"408", "DEADLINE_EXCEEDED", "CANCELLED"})
# Answers of a server that does not have an optional part of the protocol, or does not know the model.
_WITHOUT: Final = frozenset({"400", "404", "405", "501", "NOT_FOUND", "UNIMPLEMENTED", "INVALID_ARGUMENT"})
_PORTS: Final = "Triton listens on 8000 for http and 8001 for grpc"


class Client:
    """A connection to the server of a model.

    Args:
        address: The model.
        timeout: Seconds that connecting, and each answer, may take.

    Raises:
        UnavailableError: ``tritonclient`` is missing.
    """

    def __init__(self, address: Address, timeout: float) -> None:
        self._address = address
        self._timeout = timeout
        self._module = _module(address)
        self._grpc = address.protocol == "grpc"
        timeouts = {} if self._grpc else {"connection_timeout": timeout, "network_timeout": timeout}
        self._limits = {"client_timeout": timeout} if self._grpc else {}
        self._client = self._module.InferenceServerClient(address.place, ssl=address.secure, **timeouts)

    def close(self) -> None:
        """Let the connection go."""
        self._client.close()

    def server(self) -> Mapping[str, Any]:
        """What the server says of itself: ``name`` and ``version``.

        Raises:
            GraphError: Something else answered.
            UnavailableError: Nothing did.
        """
        try:
            found: Mapping[str, Any] = self._ask(self._client.get_server_metadata)
        except GraphError as error:
            reason = _reason(error.__cause__) if isinstance(error.__cause__, Exception) else str(error)
            raise GraphError(
                f"{self._address.server} does not speak the Open Inference Protocol ({reason}): mend the URL; {_PORTS}"
            ) from error
        return found

    def is_ready(self, version: str) -> bool:
        """Whether the model can be asked; of one that the server does not have it cannot."""

        def ready() -> bool:
            return bool(self._client.is_model_ready(self._address.model, version, **self._limits))

        return self._optional(ready) or False

    def metadata(self, version: str) -> Mapping[str, Any]:
        """``name``, ``versions``, ``platform``, ``inputs`` and ``outputs`` of the model."""
        found: Mapping[str, Any] = self._ask(self._client.get_model_metadata, self._address.model, version)
        return found

    def config(self, version: str) -> Mapping[str, Any]:
        """Triton's configuration of the model; empty from a server of another make, which has none."""
        found = self._optional(lambda: self._ask(self._client.get_model_config, self._address.model, version))
        told: Mapping[str, Any] = found or {}
        config: Mapping[str, Any] = told.get("config", told)  # gRPC wraps it
        return config

    def index(self) -> list[Mapping[str, Any]]:
        """``name``, ``state`` and ``reason`` of the models that the server has; empty where it does not tell."""
        found: Any = self._optional(lambda: self._ask(self._client.get_model_repository_index))
        return list(found.get("models", ()) if isinstance(found, Mapping) else found or ())

    def infer(self, input_name: str, datatype: str, output_name: str, batch: Array, version: str) -> Array:
        """Run one request, with tensors as raw bytes both ways.

        Raises:
            GraphError: The server could not run the model, or answered something else.
            UnavailableError: It cannot be reached, or took too long.
        """
        tensor = self._module.InferInput(input_name, list(batch.shape), datatype)
        tensor.set_data_from_numpy(batch)
        wanted = [self._module.InferRequestedOutput(output_name)]

        def run() -> Array | None:
            found = self._client.infer(
                self._address.model, [tensor], model_version=version, outputs=wanted, **self._limits
            )
            array: Array | None = found.as_numpy(output_name)
            return array

        output = self._told(run, f"failed on {list(batch.shape)}")
        if output is None:
            raise GraphError(f"{self._where()} answered without the output '{output_name}'")
        return output

    def _ask(self, method: Callable[..., Any], *arguments: str) -> Any:
        as_json = {"as_json": True} if self._grpc else {}
        found = self._told(lambda: method(*arguments, **as_json, **self._limits), "was not described")
        if not isinstance(found, Mapping | list):
            raise GraphError(f"{self._where()}: received {str(found)[:80]!r}, expected a description")
        return found

    def _optional(self, call: Callable[[], _T]) -> _T | None:
        """What a call gives; ``None`` where the server says that it does not have it."""
        try:
            return self._told(call, "")
        except GraphError as error:
            if _status(error.__cause__) in _WITHOUT:
                return None
            raise

    def _told(self, call: Callable[[], _T], what: str) -> _T:
        try:
            return call()
        except ResnetExportError:
            raise
        except Exception as error:  # of gevent, ssl, socket, grpc, rapidjson and tritonclient, which share no base
            raise self._translated(error, what) from error

    def _translated(self, error: Exception, what: str) -> ResnetExportError:
        status, server = _status(error), self._address.server
        reason = _reason(error)
        if status in _LATE or isinstance(error, TimeoutError):
            return UnavailableError(
                f"{server} gave no answer within {self._timeout:g} s: give @timeout=SECONDS, or see whether it is busy"
            )
        if status in _AWAY or isinstance(error, OSError) or _is_transport(error):
            return UnavailableError(f"{server} cannot be reached ({reason}): start it or mend the URL; {_PORTS}")
        return GraphError(f"{self._where()} {what}: {reason}")

    def _where(self) -> str:
        return f"model '{self._address.model}' on {self._address.server}"


def _module(address: Address) -> Any:
    try:
        if address.protocol == "grpc":
            import tritonclient.grpc as module
        else:
            import tritonclient.http as module
    except (ImportError, RuntimeError) as error:  # RuntimeError: tritonclient is there without its extra
        raise missing_package(f"tritonclient[{address.protocol}]", "triton") from error
    return module


def _is_transport(error: Exception) -> bool:
    """Whether a connection broke: geventhttpclient's own errors derive from Exception alone."""
    return type(error).__module__.split(".")[0] in ("geventhttpclient", "gevent")


def _status(error: BaseException | None) -> str:
    """``"404"`` of HTTP, ``"NOT_FOUND"`` of gRPC; empty for what no server answered."""
    status = getattr(error, "status", None)
    return str(status() or "").removeprefix("StatusCode.") if callable(status) else ""


def _reason(error: Exception) -> str:
    message = getattr(error, "message", None)
    text = str(message() or "") if callable(message) else ""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        text = str(json.loads(text)["error"])  # some servers wrap it
    return first_line(Exception(text)) if text else first_line(error)
