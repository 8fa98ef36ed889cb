"""A server of the Open Inference Protocol that misbehaves as it is told: for error paths, never as a proof."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

INPUT = {"name": "input", "datatype": "FP32", "shape": [-1, 3, 4, 4]}
OUTPUT = {"name": "logits", "datatype": "FP32", "shape": [-1, 5]}


@dataclass
class Script:
    """What the server says; ``None`` in place of an answer closes the connection.

    Attributes:
        metadata: Of the model ``net``.
        config: Of the model; ``None``: it has none, as servers of another make.
        index: Models that it has.
        ready: Whether the model is.
        server: What it says of itself.
        infer: From the request's batch to status and body.
        delay: Seconds before it answers to a request to infer.
        batches: Sizes of the batches that came.
        versions: Parts of the path behind the model's name that were asked to infer.
    """

    metadata: dict[str, Any] = field(
        default_factory=lambda: {
            "name": "net", "versions": ["1"], "platform": "fake", "inputs": [INPUT], "outputs": [OUTPUT],
        }
    )  # fmt: skip
    config: dict[str, Any] | None = None
    index: list[dict[str, str]] = field(default_factory=lambda: [{"name": "net", "version": "1", "state": "READY"}])
    ready: bool = True
    server: Any = field(default_factory=lambda: {"name": "fake", "version": "0.1", "extensions": []})
    infer: Callable[[int], tuple[int, bytes] | None] = field(default_factory=lambda: zeros)
    delay: float = 0.0
    batches: list[int] = field(default_factory=list)
    versions: list[str] = field(default_factory=list)


def answer(array: np.ndarray[Any, Any], name: str = "logits", datatype: str = "FP32") -> tuple[int, bytes]:
    """A tensor as JSON numbers, which the protocol allows too."""
    tensor = {"name": name, "datatype": datatype, "shape": list(array.shape), "data": array.ravel().tolist()}
    return 200, json.dumps({"model_name": "net", "model_version": "1", "outputs": [tensor]}).encode()


def zeros(batch: int) -> tuple[int, bytes]:
    return answer(np.zeros((batch, 5), np.float32))


@contextmanager
def serving(script: Script) -> Iterator[str]:
    """The URL of the model ``net``."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self.path
            if path.endswith("/ready"):
                self.reply(200 if script.ready else 404, b"")
            elif path.endswith("/config"):
                self.reply_json(script.config, 404)
            elif path.startswith("/v2/models/net"):
                self.reply_json(script.metadata, 500)
            elif path == "/v2":
                self.reply_json(script.server, 404)
            else:
                self.reply(404, b'{"error": "unknown path"}')

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v2/repository/index":
                self.reply_json(script.index, 404)
                return
            size = int(self.headers.get("Inference-Header-Content-Length", len(body)))
            batch = json.loads(body[:size])["inputs"][0]["shape"][0]
            script.batches.append(batch)
            script.versions.append(self.path.removeprefix("/v2/models/net").removesuffix("/infer"))
            time.sleep(script.delay)
            found = script.infer(batch)
            if found is None:
                self.close_connection = True
            else:
                self.reply(*found)

        def reply_json(self, value: Any, otherwise: int) -> None:
            if isinstance(value, bytes):
                self.reply(200, value)
            elif value is None:
                self.reply(otherwise, b'{"error": "not here"}')
            else:
                self.reply(200, json.dumps(value).encode())

        def reply(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/net"
    finally:
        server.shutdown()
        server.server_close()
