"""The table of generations against the names that the real bindings have (``trt_api/``), and against the one here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

import pytest

from runtimes.errors import InputError, UnavailableError
from runtimes.tensorrt.generations import PACKAGES, TABLE, Generation, generation, parse_version

Api: TypeAlias = Mapping[str, list[str]]

FACTS = {path.stem: path for path in sorted((Path(__file__).parent / "trt_api").glob("*.json"))}
HERE = "installed tensorrt_rtx"
PRECISIONS = {"FP16", "INT8", "BF16", "FP8", "TF32"}


def facts(name: str) -> tuple[Generation, Api]:
    """A row of the table, and the classes with their members that its version really has."""
    if name == HERE:
        module = pytest.importorskip("tensorrt_rtx")
        api = {item: dir(getattr(module, item)) for item in dir(module)}
        return generation("tensorrt_rtx", module.__version__), api
    package = "tensorrt_rtx" if name.startswith("rtx-") else "tensorrt"
    return generation(package, name.removeprefix("rtx-")), json.loads(FACTS[name].read_text(encoding="utf-8"))


every_version = pytest.mark.parametrize("name", [*FACTS, HERE])


def test_the_facts_are_of_every_generation_that_changed_names() -> None:
    assert set(FACTS) == {"8.6.1", "10.0.1", "10.3.0", "10.7.0", "10.16.1.11", "11.4.0", "rtx-1.7.1"}


@every_version
def test_precision_flags_are_those_of_the_builder(name: str) -> None:
    row, api = facts(name)
    assert row.precision_flags == PRECISIONS & set(api["BuilderFlag"])


@every_version
def test_the_explicit_batch_flag_is_needed_where_batches_can_be_implicit(name: str) -> None:
    row, api = facts(name)
    assert row.explicit_batch_flag == ("max_batch_size" in api["Builder"])
    assert not row.explicit_batch_flag or "EXPLICIT_BATCH" in api["NetworkDefinitionCreationFlag"]


@every_version
def test_strong_typing_is_as_the_names_have_it(name: str) -> None:
    row, api = facts(name)
    if "STRONGLY_TYPED" not in api["NetworkDefinitionCreationFlag"]:
        assert row.strongly_typed == "absent"
    else:
        assert row.strongly_typed == ("optional" if "precision" in api["ILayer"] else "always")


@every_version
def test_names_that_are_called_exist_and_are_the_newest(name: str) -> None:
    row, api = facts(name)
    for member, where in ((row.supports_model, "OnnxParser"), (row.device_memory_size, "ICudaEngine")):
        assert member in api[where]
        assert member.endswith("_v2") or f"{member}_v2" not in api[where]
    assert row.refit_flag in api["BuilderFlag"]


@every_version
def test_abilities_are_there_as_names(name: str) -> None:
    row, api = facts(name)
    config = api["IBuilderConfig"]
    assert row.progress_monitor == ("progress_monitor" in config) == ("IProgressMonitor" in api)
    assert row.int8_calibrator == ("int8_calibrator" in config) == ("CalibrationAlgoType" in api)
    assert row.int8_calibrator == (row.cache_major_weight is not None)
    assert row.compute_capabilities == ({"num_compute_capabilities", "set_compute_capability"} <= set(config))
    assert row.runtime_cache == ("create_runtime_cache" in api.get("IRuntimeConfig", []))
    assert row.dla != "calibrated" or row.int8_calibrator
    assert row.dla != "explicit" or row.strongly_typed != "absent"


@every_version
def test_engines_for_other_machines_need_their_names_and_a_product_that_serves_them(name: str) -> None:
    row, api = facts(name)
    served = not (name == HERE or name.startswith("rtx-"))  # TensorRT-RTX has the names alone: see the test below
    assert row.version_compatible == (served and "VERSION_COMPATIBLE" in api["BuilderFlag"])
    assert row.hardware_compatibility == (served and "hardware_compatibility_level" in api["IBuilderConfig"])


_TRY = """
import tensorrt_rtx as trt

builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
network = builder.create_network(0)
given = network.add_input("x", trt.float32, (1, 8))
network.mark_output(network.add_activation(given, trt.ActivationType.RELU).get_output(0))
config = builder.create_builder_config()
config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
print(config.hardware_compatibility_level == trt.HardwareCompatibilityLevel.AMPERE_PLUS)
config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
print(builder.build_serialized_network(network, config) is not None)
config.clear_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
print(builder.build_serialized_network(network, config) is not None)
"""


def test_tensorrt_rtx_has_names_that_do_nothing_and_builds_without_a_gpu() -> None:
    module = pytest.importorskip("tensorrt_rtx")
    row = generation("tensorrt_rtx", module.__version__)
    # In a process of its own: the library keeps the first logger that it is given.
    done = subprocess.run([sys.executable, "-c", _TRY], capture_output=True, text=True, check=True)
    # The library's own messages are on stdout, too.
    told = [line == "True" for line in done.stdout.splitlines() if line in {"True", "False"}]
    assert told == [row.hardware_compatibility, row.version_compatible, row.compute_capabilities]


@pytest.mark.parametrize(
    ("package", "version", "opset", "key", "dla", "typed"),
    [
        ("tensorrt", "8.5.2.2", 17, "Bindings", "calibrated", "absent"),
        ("tensorrt", "8.6.2", 17, "Bindings", "calibrated", "absent"),
        ("tensorrt", "9.0.1", 19, "Bindings", "calibrated", "absent"),
        ("tensorrt", "9.3.0.1", 19, "Bindings", "calibrated", "optional"),
        ("tensorrt", "10.0.1", 20, "Bindings", "calibrated", "optional"),
        ("tensorrt", "10.3.0", 20, "Bindings", "calibrated", "optional"),
        ("tensorrt", "10.7.0", 20, "Bindings", "calibrated", "optional"),
        ("tensorrt", "10.8.0", 20, "Bindings", "absent", "optional"),
        ("tensorrt", "10.9.0", 22, "Bindings", "absent", "optional"),
        ("tensorrt", "10.14.1", 22, "Bindings", "absent", "optional"),
        ("tensorrt", "10.15.1", 24, "Bindings", "absent", "optional"),
        ("tensorrt", "11.0.0", 25, "I/O Tensors", "absent", "always"),
        ("tensorrt", "11.4.0", 25, "I/O Tensors", "absent", "always"),
        ("tensorrt", "11.4.1", 25, "I/O Tensors", "explicit", "always"),
        ("tensorrt", "12.0", 25, "I/O Tensors", "explicit", "always"),
        ("tensorrt_lean", "10.9.0", 22, "Bindings", "absent", "optional"),
        ("tensorrt_rtx", "1.2.0", 22, "Bindings", "absent", "always"),
        ("tensorrt_rtx", "1.4.9", 22, "Bindings", "absent", "always"),
        ("tensorrt_rtx", "1.5.0", 25, "I/O Tensors", "absent", "always"),
    ],
)
def test_a_version_gets_the_row_that_begins_last_before_it(
    package: str, version: str, opset: int, key: str, dla: str, typed: str
) -> None:
    row = generation(package, version)
    assert (row.highest_opset, row.inspector_tensors_key, row.dla, row.strongly_typed) == (opset, key, dla, typed)


def test_8_5_has_none_of_what_8_6_brought() -> None:
    row = generation("tensorrt", "8.5.2")
    assert (row.version_compatible, row.hardware_compatibility) == (False, False)
    assert row.precision_flags == {"FP16", "INT8", "TF32"}


@pytest.mark.parametrize("package", PACKAGES)
def test_rows_are_in_order_and_each_changes_something(package: str) -> None:
    rows = TABLE[package]
    assert all(before.since < after.since for before, after in pairwise(rows))
    assert all(replace(before, since=after.since) != after for before, after in pairwise(rows))


def test_every_field_differs_somewhere_or_says_that_it_does_not() -> None:
    rows = [row for table in TABLE.values() for row in table]
    same = {field.name for field in fields(Generation) if len({getattr(row, field.name) for row in rows}) == 1}
    assert same == {"refit_flag"}


@pytest.mark.parametrize(
    ("version", "number"),
    [("8.5.2.2", 8502), ("8.6.1", 8601), ("9.2.0", 9200), ("10.0.1", 100001), ("10.13.3", 101303)],
)
def test_the_number_of_a_calibration_cache_is_that_of_its_version(version: str, number: int) -> None:
    assert generation("tensorrt", version).cache_number(version) == number


@pytest.mark.parametrize(("package", "version"), [("tensorrt", "11.4.1"), ("tensorrt_rtx", "1.7.1")])
def test_without_calibrators_there_is_no_cache_to_number(package: str, version: str) -> None:
    with pytest.raises(UnavailableError, match="Q/DQ"):
        generation(package, version).cache_number(version)


@pytest.mark.parametrize(
    ("package", "version", "words"),
    [
        ("tensorrt", "8.4.1.5", "tensorrt 8.4.1.5 is too old: expected 8.5 or later"),
        ("tensorrt", "8.0.1", "trtexec"),
        ("tensorrt_lean", "8.5.3", "tensorrt_lean 8.5.3 is too old: expected 8.6 or later"),
        ("tensorrt_rtx", "0.9", "expected 1.0 or later"),
        ("tensorrt", "unknown", "tensorrt: received version 'unknown'"),
        ("tensorrt", "", "install the package anew"),
    ],
)
def test_a_version_before_the_table_is_a_lack_of_this_machine(package: str, version: str, words: str) -> None:
    with pytest.raises(UnavailableError) as caught:
        generation(package, version)
    assert words in str(caught.value)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_another_package_is_a_wrong_word() -> None:
    with pytest.raises(InputError, match="tensorrt, tensorrt_rtx, tensorrt_lean, tensorrt_dispatch"):
        generation("onnxruntime", "1.2.3")


@pytest.mark.parametrize(
    ("text", "parsed"),
    [("10.3.0.26", (10, 3, 0)), ("8.6", (8, 6, 0)), ("1.7.1.116", (1, 7, 1)), ("10.0.0b6", (10, 0, 0))],
)
def test_a_version_is_its_first_three_numbers(text: str, parsed: tuple[int, int, int]) -> None:
    assert parse_version(text) == parsed
