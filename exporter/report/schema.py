"""The documents' JSON schemas (``schemas/*.json``, draft 2020-12), and a check against them.

A document names its version (``"schema": 1``). Fields may be added within a version; a new version is made where one is
removed, renamed or given another meaning.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any, Final

from runtimes.errors import InputError, missing_package

DOCUMENTS: Final = ("parity", "drift", "evaluate", "bench")


def schema_of(name: str) -> dict[str, Any]:
    """The JSON schema of a document.

    Args:
        name: One of ``DOCUMENTS``.

    Raises:
        InputError: There is no such document.
    """
    if name not in DOCUMENTS:
        raise InputError(f"no document is called {name!r}: expected one of {', '.join(DOCUMENTS)}")
    text = (resources.files("exporter.report") / "schemas" / f"{name}.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def validate(name: str, document: object) -> None:
    """Hold a document against its schema.

    Args:
        name: One of ``DOCUMENTS``.
        document: What ``json.load`` gives.

    Raises:
        InputError: The document does not fit; the message names the first place that does not.
        UnavailableError: jsonschema is not installed.
    """
    try:
        import jsonschema
    except ImportError as error:
        raise missing_package("jsonschema", "dev") from error
    checker = jsonschema.Draft202012Validator(schema_of(name))
    problems = sorted(checker.iter_errors(document), key=lambda problem: str(problem.json_path))
    if problems:
        first = problems[0]
        raise InputError(f"{name}: at {first.json_path}: {first.message.splitlines()[0][:200]}")
