"""What is done again and what is not, on stages that cost nothing."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from exporter.run.hashes import Hashes
from exporter.run.runner import Step
from exporter.run.stage import Input, Made, Stage
from runtimes.errors import GraphError, InputError, UnavailableError
from tests.exporter.run_pipelines import Toy, contents


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    (tmp_path / "source.txt").write_text("s")
    return Toy(tmp_path / "out")


def done(steps: list[Step]) -> list[str]:
    return [step.stage for step in steps if not step.cached]


def test_every_stage_is_done_once(toy: Toy) -> None:
    assert done(toy.run()) == ["first", "second", "third"]
    before = contents(toy.folder)
    again = toy.run()
    assert done(again) == []
    assert [step.status for step in again] == ["cached"] * 3
    assert toy.log == ["first", "second", "third"]
    assert contents(toy.folder) == before
    assert (toy.folder / "c.txt").read_text() == "sabc"


def test_another_option_redoes_what_depends_on_it_and_nothing_else(toy: Toy) -> None:
    toy.run()
    toy.letter = "B"
    (planned,) = [step for step in toy.plan() if step.stage == "second"]
    assert planned.reasons == ("letter: b → B",)
    assert done(toy.run()) == ["second", "third"]
    toy.letter = "b"
    assert done(toy.run()) == ["second", "third"]  # the files are the other letter's


def test_another_input_redoes_from_there(toy: Toy) -> None:
    toy.run()
    toy.source.write_text("S")
    reasons = {step.stage: step.reasons for step in toy.plan()}
    assert reasons["first"] == ("the source changed",)
    assert reasons["second"] == ("first may change what it reads",)
    assert done(toy.run()) == ["first", "second", "third"]


def test_the_same_bytes_of_an_earlier_stage_end_the_chain(toy: Toy) -> None:
    toy.run()
    (toy.folder / "a.txt").unlink()
    assert [step.status for step in toy.plan()] == ["to do", "to do", "to do"]
    assert done(toy.run()) == ["first"]


@pytest.mark.parametrize("name", ["in/b.txt", "in/b.json"])
def test_an_altered_output_is_made_again(toy: Toy, name: str) -> None:
    toy.run()
    before = contents(toy.folder)
    path = toy.folder / name
    times = path.stat()
    changed = bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:]
    path.write_bytes(changed)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # size and time as before
    (step,) = [step for step in toy.plan() if step.stage == "second"]
    assert f"{name} was altered" in step.reasons[0]
    assert done(toy.run()) == ["second"]
    assert contents(toy.folder) == before


def test_a_deleted_output_is_made_again(toy: Toy) -> None:
    toy.run()
    (toy.folder / "c.txt").unlink()
    assert [step.reasons for step in toy.plan()] == [(), (), ("c.txt is missing",)]
    assert done(toy.run()) == ["third"]


def test_another_version_of_a_tool_is_told(toy: Toy) -> None:
    toy.run()
    first, *others = toy.stages()
    stages = (replace(first, tools={"numpy": ("numpy",)}), *others)
    (told,) = toy.plan(stages)[0].reasons
    assert told.startswith("numpy: none → ")
    toy.run(stages)
    stages = (replace(first, tools={"numpy": ("no-such-distribution",)}), *others)
    assert toy.plan(stages)[0].reasons[0].endswith("→ none")


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"stage": "first"}', "null", '{"schema": 99}'])
def test_a_damaged_record_is_as_good_as_none(toy: Toy, damage: str) -> None:
    toy.run()
    (toy.store.own / "stages" / "first.json").write_text(damage)
    assert toy.plan()[0].reasons == ("it has not been done yet",)
    assert done(toy.run()) == ["first"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"version": 1, "files": 3}', '{"version": 1, "files": {"a": 1}}'])
def test_damaged_hashes_are_computed_again(toy: Toy, damage: str) -> None:
    toy.run()
    (toy.store.own / "hashes.json").write_text(damage)
    assert done(toy.run()) == []


def test_a_plan_writes_nothing(toy: Toy) -> None:
    assert [step.reasons for step in toy.plan()] == [("it has not been done yet",)] * 3
    assert not toy.folder.exists()


def test_a_stage_that_fails_leaves_those_before_it(toy: Toy) -> None:
    def fails() -> Made:
        raise GraphError("no")

    first, second, third = toy.stages()
    with pytest.raises(GraphError):
        toy.run((first, replace(second, function=fails), third))
    assert done(toy.run()) == ["second", "third"]


def test_a_stage_that_leaves_a_file_out_is_refused(toy: Toy) -> None:
    first, *others = toy.stages()
    with pytest.raises(InputError, match=r"first has not left .*a\.txt"):
        toy.run((replace(first, function=lambda: Made("nothing")), *others))


def _lacking() -> Made:
    raise UnavailableError("there is no such thing here")


def test_an_optional_stage_is_left_out_once_and_tried_again_when_tools_change(toy: Toy) -> None:
    first, second, third = toy.stages()
    toy.run()
    lacking = replace(second, function=_lacking, optional=True, options={"letter": "new"})
    step = toy.run((first, lacking))[1]
    assert (step.status, step.cached) == ("skipped", False)
    assert step.record is not None
    assert step.record.skipped == "there is no such thing here"
    assert not (toy.folder / "in" / "b.txt").exists()  # of the run before, and no longer what was asked for
    assert toy.run((first, lacking))[1].cached
    assert done(toy.run((first, replace(lacking, tools={"numpy": ("numpy",)})))) == ["second"]
    with pytest.raises(UnavailableError):
        toy.run((first, replace(lacking, optional=False, options={}), third))


def test_halves_of_a_killed_run_are_swept_away_and_other_files_are_not(toy: Toy) -> None:
    toy.run()
    half, foreign = toy.folder / ".a.txt.4711.part", toy.folder / ".notes.4711.part"
    for path in (half, foreign, toy.store.own / ".hashes.json.1.part"):
        path.write_bytes(b"half")
    toy.run()
    assert not half.exists()
    assert foreign.exists()
    assert not list(toy.store.own.glob(".*.part"))


def test_a_hash_of_a_file_that_has_just_changed_is_not_remembered(tmp_path: Path) -> None:
    path, store = tmp_path / "file", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    hashes = Hashes(store)
    first = hashes.file(path)
    hashes.save()
    assert not store.exists()  # nothing was settled enough
    path.write_bytes(b"two")
    assert Hashes(store).file(path) != first


def test_a_remembered_hash_is_used_only_for_the_very_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, store = tmp_path / "file", tmp_path / "hashes.json"
    path.write_bytes(b"one")
    monkeypatch.setattr("exporter.run.hashes.time.time_ns", lambda: path.stat().st_ctime_ns + 10**10)
    hashes = Hashes(store)
    digest = hashes.file(path)
    hashes.save()
    monkeypatch.setattr("exporter.run.hashes.file_sha256", lambda path: "read again")
    assert Hashes(store).file(path) == digest
    times = path.stat()
    other = tmp_path / "other"
    other.write_bytes(b"two")
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)  # same name, size and time, another inode
    assert Hashes(store).file(path) == "read again"


def test_a_set_of_images_is_its_contents_names_and_labels(tmp_path: Path) -> None:
    for name in ("0/a.png", "1/b.png"):
        (tmp_path / "set" / name).parent.mkdir(parents=True)
        (tmp_path / "set" / name).write_bytes(name.encode())
    first = Hashes().images(tmp_path / "set")
    assert Hashes().images(tmp_path / "set") == first
    assert Hashes().images(tmp_path / "missing") is None
    (tmp_path / "set" / "0").rename(tmp_path / "set" / "2")  # the labels change places
    second = Hashes().images(tmp_path / "set")
    (tmp_path / "set" / "2" / "a.png").write_bytes(b"other")
    assert len({first, second, Hashes().images(tmp_path / "set")}) == 3


def test_the_code_of_a_factory_counts_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "nets_of_mine"
    package.mkdir()
    for name in ("__init__", "a", "b"):
        (package / f"{name}.py").write_text("raise RuntimeError('never imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    first = Hashes().code("nets_of_mine.a")
    assert first is not None
    (package / "b.py").write_text("1")
    assert Hashes().code("nets_of_mine.a") not in (first, None)
    assert Hashes().code("no_such_module_anywhere") is None


def test_an_input_that_is_missing_is_told_by_the_stage_itself(toy: Toy) -> None:
    toy.source.unlink()
    with pytest.raises(FileNotFoundError):
        toy.run()
    assert Input("the source", toy.source).digest(Hashes()) == "none"


def test_equal_stages_have_equal_keys_in_any_order_of_their_options(toy: Toy) -> None:
    stage: Stage = toy.stages()[0]
    one, two = (replace(stage, options=options) for options in ({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    toy.run((one,))
    assert toy.plan((two,))[0].cached
