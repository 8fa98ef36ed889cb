"""Stands in for Triton's ONNX Runtime backend, which PyTriton's server comes without: the server runs it in Python.

It is no part of the tests' own process, and runs in the interpreter of the server.
"""

from __future__ import annotations

import json
import os
from typing import Any

import onnxruntime
import triton_python_backend_utils as triton


class TritonPythonModel:
    """The name and the methods that the server's Python backend asks for."""

    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = os.path.join(args["model_repository"], args["model_version"], config["default_model_filename"])  # noqa: PTH118
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.taken = config["input"][0]["name"]
        self.given = config["output"][0]["name"]

    def execute(self, requests: list[Any]) -> list[Any]:
        return [triton.InferenceResponse([self._run(request)]) for request in requests]

    def _run(self, request: Any) -> Any:
        batch = triton.get_input_tensor_by_name(request, self.taken).as_numpy()
        return triton.Tensor(self.given, self.session.run([self.given], {self.taken: batch})[0])
