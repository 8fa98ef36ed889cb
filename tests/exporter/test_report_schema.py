"""The JSON schemas of the documents."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exporter.report.schema import DOCUMENTS, schema_of, validate
from runtimes.errors import InputError
from tests.exporter.report_documents import bench, drift_of, evaluate, parity

pytest.importorskip("jsonschema", reason="jsonschema comes with the dev extra")

SAMPLES: dict[str, Any] = {
    "parity": parity(12, failing=(3,), crashed=(6,), drift=True),
    "drift": drift_of(3, failing=True),
    "evaluate": evaluate(12),
    "bench": bench(12),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_schema_is_a_schema(name: str) -> None:
    from jsonschema import Draft202012Validator

    Draft202012Validator.check_schema(schema_of(name))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_document_as_json_fits_its_schema(name: str) -> None:
    validate(name, json.loads(json.dumps(SAMPLES[name])))


def test_the_drift_inside_a_parity_document_is_held_against_the_same_schema_as_one_alone() -> None:
    inner, alone = schema_of("parity")["$defs"]["drift"], schema_of("drift")
    assert inner["properties"] == alone["properties"]
    assert inner["required"] == alone["required"]


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("parity", "schema", 2),
        ("parity", "passed", "yes"),
        ("evaluate", "results", {}),
        ("bench", "results", [{"runtime": "eager", "label": "eager", "batch": 0}]),
        ("drift", "layers", [{"layer": "conv1"}]),
    ],
)
def test_a_document_that_does_not_fit_is_refused_with_the_place(name: str, key: str, value: object) -> None:
    with pytest.raises(InputError, match=rf"{name}: at \$\.{key}"):
        validate(name, {**SAMPLES[name], key: value})


def test_an_unknown_document_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match="expected one of parity, drift, evaluate, bench"):
        schema_of("latency")
