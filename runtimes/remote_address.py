"""Where a model on a server is: ``http://host:8000/r20``, ``grpc://host:8001/r20``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

from runtimes.errors import InputError
from runtimes.kinds import is_url

Protocol = Literal["http", "grpc"]

EXAMPLES: Final = "http://HOST:8000/MODEL or grpc://HOST:8001/MODEL"
# The path of the protocol itself, which is what a browser's address bar holds.
_WHOLE: Final = re.compile(r"(?P<base>.*?)/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?")
_PORTS: Final = {"http": 80, "https": 443, "grpc": 8001, "grpcs": 443}


@dataclass(frozen=True)
class Address:
    """A model on a server.

    Attributes:
        protocol: How it is spoken to.
        secure: Whether over TLS.
        place: Host and port, and for HTTP what stands before ``/v2``, as ``host:8000/models``.
        model: Its name there.
        version: That the URL names; ``None`` where it names none.
    """

    protocol: Protocol
    secure: bool
    place: str
    model: str
    version: str | None = None

    @property
    def server(self) -> str:
        """The server's URL, for messages."""
        return f"{self.protocol}{'s' if self.secure else ''}://{self.place}"

    @classmethod
    def parse(cls, url: str) -> Address:
        """Read a URL.

        Args:
            url: ``http``, ``https``, ``grpc`` or ``grpcs``. The last part of its path is the model; the longer
                ``/v2/models/MODEL/versions/1`` of the protocol is understood too. Without a port: 80 for ``http``,
                443 over TLS, 8001 for ``grpc``.

        Raises:
            InputError: It is none of these, names no model, or holds a password.
        """
        if not is_url(url):
            raise InputError(f"received {url!r}, expected the URL of a model, as {EXAMPLES}")
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS[parts.scheme]
        except ValueError as error:
            raise InputError(f"{url} is no URL ({error}): expected {EXAMPLES}") from error
        if parts.username is not None:
            raise InputError(
                f"the URL of {parts.hostname} holds a name or password, which reports would show: leave it out"
            )
        if parts.query or parts.fragment:
            raise InputError(f"{url} has something behind the model's name: expected {EXAMPLES}")
        base, model, version = _path(parts.path.rstrip("/"))
        if not parts.hostname or not model:
            raise InputError(f"{url} names no {'model' if parts.hostname else 'host'}: expected {EXAMPLES}")
        protocol: Protocol = "grpc" if parts.scheme.startswith("grpc") else "http"
        if base and protocol == "grpc":
            raise InputError(f"{url} has more than one part behind the port: expected grpc://HOST:8001/MODEL")
        host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
        return cls(protocol, parts.scheme.endswith("s"), f"{host}:{port}{base}", model, version)


def _path(path: str) -> tuple[str, str, str | None]:
    """What stands before the model, its name, and its version."""
    if whole := _WHOLE.fullmatch(path):
        return whole["base"], unquote(whole["model"]), whole["version"]
    base, _, model = path.rpartition("/")
    return base, unquote(model), None
