"""Whose engine it is, of which version and for what: told before anything of it is given to a device."""

from __future__ import annotations

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from runtimes.errors import InputError, UnavailableError
from runtimes.tensorrt.plan import read_header
from runtimes.tensorrt.sidecar import read_sidecar
from tests.runtimes.engine_bench import Bench, images, plan


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"targets": ["8.6", "8.9"]}, "is for compute capability 8.6 or 8.9, and here is NVIDIA A100 with 8.0"),
        ({"gpu": {"name": "Orin", "compute_capability": "8.7"}}, "is for Orin .compute capability 8.7."),
        ({"sha256": "0" * 64}, "is not about the engine"),
    ],
)
def test_an_engine_for_something_else_is_refused_with_the_reason(
    document: dict[str, Any], message: str, tmp_path: Path
) -> None:
    bench = Bench(tmp_path)
    bench.describe(**document)
    with pytest.raises(InputError, match=message), bench.runtime():
        pass
    assert not bench.driver.calls


@pytest.mark.parametrize(
    "document",
    [
        {"targets": ["8.0", "8.6"]}, {"gpu": {"name": "A100", "compute_capability": "8.0"}}, {"targets": []},
        {"gpu": {"name": "Orin", "compute_capability": "8.7"}, "options": {"hardware_compatible": "ampere+"}},
    ],
)  # fmt: skip
def test_an_engine_for_this_gpu_is_taken(document: dict[str, Any], tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(**document)
    with bench.runtime() as runtime:
        assert runtime.run(images(1)).shape == (1, 5)


def test_an_engine_of_another_version_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "10.7.0")
    bench.path.write_bytes(plan(bench.fake, (10, 3, 0, 26)))
    with (
        pytest.raises(InputError, match=r"built by tensorrt 10\.3\.0\.26, and tensorrt 10\.7\.0 runs"),
        bench.runtime(),
    ):
        pass


def test_an_engine_of_the_other_package_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path, "10.7.0")
    bench.path.write_bytes(b"vtrt" + bytes(20) + bytes((1, 7, 1, 116)))
    with pytest.raises(UnavailableError, match="tensorrt_rtx is not installed"), bench.runtime():
        pass
    with pytest.raises(InputError, match=r"is an engine of tensorrt_rtx 1\.7\.1\.116, and tensorrt 10\.7\.0"):  # noqa: SIM117
        with bench.runtime(flavour="tensorrt"):
            pass


def test_an_engine_of_another_model_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    with pytest.raises(InputError, match="of a model that nothing tells"), bench.runtime(source_sha256="aa"):
        pass
    bench.describe(source_sha256="bb" * 32)
    with pytest.raises(InputError, match="of the model bbbbbbbbbbbb, expected one of aaaaaaaaaaaa"):  # noqa: SIM117
        with bench.runtime(source_sha256="aa" * 32):
            pass
    with bench.runtime(source_sha256="bb" * 32):
        pass


@pytest.mark.parametrize(
    ("built", "here", "runs"),
    [
        ((8, 6, 1, 6), "10.7.0", True),  # of a later major too
        ((10, 3, 0, 26), "11.4.0", True),
        ((10, 3, 0, 26), "10.7.0", True),
        ((10, 7, 0, 23), "10.3.0", False),
        ((11, 0, 0, 1), "10.16.1.11", False),
    ],
)
def test_a_version_compatible_engine_runs_on_later_versions_only(
    built: tuple[int, ...], here: str, runs: bool, tmp_path: Path
) -> None:
    bench = Bench(tmp_path, here)
    bench.path.write_bytes(plan(bench.fake, built))
    bench.describe(options={"version_compatible": True})
    if not runs:
        with pytest.raises(InputError, match="runs on that version and later ones"), bench.runtime(host_code=True):
            pass
        return
    with bench.runtime(host_code=True) as runtime:
        runtime.run(images(1))
    assert bench.fake.names("Runtime", "engine_host_code_allowed") == [(True,)]


@pytest.mark.parametrize("built", [(1, 3, 0, 5), (1, 7, 0, 9), (1, 8, 0, 1)])
def test_tensorrt_rtx_runs_engines_of_its_own_release_only(built: tuple[int, ...], tmp_path: Path) -> None:
    bench = Bench(tmp_path, "rtx-1.7.1")
    bench.path.write_bytes(plan(bench.fake, built))
    with pytest.raises(InputError, match=r"tensorrt_rtx 1\.7\.1 runs its own engines only") as caught, bench.runtime():
        pass
    assert "--version-compatible" not in str(caught.value)  # it has none
    bench.path.write_bytes(plan(bench.fake, (1, 7, 1, 116)))
    with bench.runtime() as runtime:
        runtime.run(images(1))


def test_a_program_in_an_engine_is_run_only_where_the_user_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(options={"version_compatible": True})
    with pytest.raises(InputError, match=r"brings a program.*give host_code=true"), bench.runtime():
        pass
    assert not bench.driver.calls
    with bench.runtime(host_code=True):
        pass
    assert bench.fake.names("Runtime", "engine_host_code_allowed") == [(True,)]


def test_an_engine_without_weights_is_not_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(options={"strip": True})
    with pytest.raises(InputError, match=r"has no weights .--strip.: refit it"), bench.runtime():
        pass
    assert not bench.driver.calls


@pytest.mark.parametrize("core", [0, 1, None])
def test_an_engine_of_a_dla_is_loaded_for_that_core(core: int | None, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(options={"dla_core": core})
    with bench.runtime() as runtime:
        runtime.run(images(1))
    assert bench.fake.names("Runtime", "DLA_core") == ([] if core is None else [(core,)])
    names = [name for owner, name, _ in bench.fake.calls if owner == "Runtime"]
    assert names[-1] == "deserialize_cuda_engine"


def test_a_header_tells_the_version() -> None:
    header = read_header(b"ftrt" + bytes(20) + bytes((10, 3, 0, 26)), "it")
    assert (header.package, header.version, header.release) == ("tensorrt", (10, 3, 0, 26), (10, 3, 0))


@pytest.mark.parametrize("head", [b"ptrt" + bytes(24), b"ftrt\1\0\0\0" + bytes(16) + bytes((200, 201, 0, 0)), b"ptrt"])
def test_where_the_header_is_not_known_the_document_is_believed(head: bytes) -> None:
    header = read_header(head, "it", {"flavour": "tensorrt", "version": "8.5.2.2"})
    assert (str(header), header.release) == ("tensorrt 8.5.2", (8, 5, 2))
    for document in (None, {}, {"flavour": "tensorrt"}, {"flavour": "tensorrt", "version": "new"}, {"version": "8.5"}):
        with pytest.raises(InputError, match=r"is no TensorRT engine|header of a kind that is not known"):
            read_header(head, "it", document)


DAMAGES: dict[str, Any] = {
    "layers": 7,
    "layers ": [{"name": "x"}],
    "layers  ": [7],
    "summary": {},
    "summary ": {"counts": {"Conv": {"INT8": "many"}}, "sentences": [], "advice": []},
    "network": 7,
    "network ": [{"name": "a", "op_type": "Conv"}],
    "targets": 5,
    "targets ": [8.6],
    "options": [1],
    "options.strip": {"strip": "yes"},
    "options.dla_core": {"dla_core": True},
    "gpu": "A100",
    "gpu ": {"name": "A100"},
    "precision": ["int8"],
}


@pytest.mark.parametrize("key", DAMAGES)
def test_a_damaged_document_is_told_with_the_place(key: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.describe(**{key.strip().partition(".")[0]: DAMAGES[key]})
    with pytest.raises(InputError, match=rf"is damaged at {key.strip()}: remove it") as caught, bench.runtime():
        pass
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 200_000, "{", "\xff", '"text"', "[]", "null", ""])
def test_what_is_no_document_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    engine = tmp_path / "n.engine"
    engine.with_name("n.engine.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"n\.engine\.json") as caught:
        read_sidecar(engine, sha256(b"").hexdigest())
    assert "\n" not in str(caught.value)


def test_a_document_may_say_less_and_more_than_is_read(tmp_path: Path) -> None:
    engine, digest = tmp_path / "n.engine", sha256(b"").hexdigest()
    assert read_sidecar(engine, digest) is None
    text = {"sha256": digest, "options": {"new": [1]}, "summary": None, "gpu": None, "layers": None, "else": 1}
    engine.with_name("n.engine.json").write_text(json.dumps(text))
    assert read_sidecar(engine, digest) == text
