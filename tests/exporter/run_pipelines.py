"""Pipelines for the tests of ``run``: one of values that cost nothing, and one on the embedded network."""

from __future__ import annotations

import hashlib
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.files import Output
from exporter.run.hashes import Hashes
from exporter.run.layout import OWN_FOLDER
from exporter.run.runner import Listener, Step, execute, plan
from exporter.run.stage import Input, Made, Stage
from exporter.run.store import Store, sweep

DIGITS = Path(__file__).resolve().parents[2] / "examples" / "digits"
#: Seconds, and what depends on them: the only fields of a document in which two runs may differ.
TIMED = frozenset({"seconds", "build_seconds"})


class Toy:
    """``source ─▶ first ─▶ second (two files) ─▶ third``: each output is its input with a letter behind it.

    Args:
        folder: Output folder; the source lies beside it.
        log: Where each stage writes its name when it is done for real.
        seconds: That a stage takes.
    """

    def __init__(self, folder: Path, log: list[str] | None = None, seconds: float = 0.0) -> None:
        self.folder, self.log, self.seconds = folder, log if log is not None else [], seconds
        self.source = folder.parent / "source.txt"
        self.letter = "b"
        self.store = Store(folder / OWN_FOLDER)

    def stages(self) -> tuple[Stage, ...]:
        a, b, extra, c = (self.folder / name for name in ("a.txt", "in/b.txt", "in/b.json", "c.txt"))
        return (
            Stage("first", (Input("the source", self.source),), (a,), self._does("first", self.source, {a: "a"})),
            Stage("second", (Input("a", a),), (b, extra), self._does("second", a, {b: self.letter, extra: "x"}),
                  {"letter": self.letter}),
            Stage("third", (Input("b", b),), (c,), self._does("third", b, {c: "c"})),
        )  # fmt: skip

    def _does(self, name: str, source: Path, outputs: dict[Path, str]) -> Callable[[], Made]:
        def function() -> Made:
            text = source.read_text()
            for path, letter in outputs.items():
                path.parent.mkdir(parents=True, exist_ok=True)
                time.sleep(self.seconds)
                Output(path).commit((text + letter).encode())
            self.log.append(name)
            return Made(f"{len(outputs)} files")

        return function

    def run(self, stages: tuple[Stage, ...] | None = None, listener: Listener | None = None) -> list[Step]:
        todo = stages or self.stages()
        hashes = Hashes(self.folder / OWN_FOLDER / "hashes.json")
        with self.store.lock(lambda holder: print(f"waiting for {holder}", flush=True)):  # noqa: T201
            sweep(self.store.own, (path for stage in todo for path in stage.outputs))
            try:
                return execute(todo, self.store, hashes, self.folder, listener)
            finally:
                hashes.save()

    def plan(self, stages: tuple[Stage, ...] | None = None) -> list[Step]:
        return plan(stages or self.stages(), self.store, Hashes(), self.folder)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that a run left, bookkeeping aside."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and OWN_FOLDER not in path.parts
    }


def settled(folder: Path) -> dict[str, str]:
    """The same of what has to be equal byte for byte, with documents of parity and accuracy without their times."""
    found = {
        name: digest for name, digest in contents(folder).items() if name.endswith(".onnx") or name == "ranges.json"
    }
    for name in ("parity", "evaluate"):
        path = folder / f"{name}.json"
        if path.exists():
            plain = json.dumps(_timeless(json.loads(path.read_bytes())), sort_keys=True)
            found[path.name] = hashlib.sha256(plain.encode()).hexdigest()
    return found


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _timeless(each) for name, each in value.items() if name not in TIMED}
    return [_timeless(each) for each in value] if isinstance(value, list) else value


def digits(folder: Path, text: str = "", targets: str = '["onnxruntime"]') -> Path:
    """A pipeline file on the embedded network, as small as a whole one can be; ``text`` stands behind it."""
    file = folder / "pipeline.toml"
    file.write_text(f"""
[model]
source = "{DIGITS / "digits_resnet14.pth"}"
[data]
calibration = "{DIGITS / "images" / "calibration"}"
evaluation = "{DIGITS / "images" / "test"}"
images = 40
workers = 0
[quantize]
targets = {targets}
effort = "fast"
[parity]
images = 32
simulated = 8
drift = false
[evaluate]
images = 40
[bench]
rounds = 2
turn_ms = 1
cold = false
{text}
""")
    return file


if __name__ == "__main__":  # a process of its own, for tests that end it or start two
    toy = Toy(Path(sys.argv[1]), seconds=float(sys.argv[2]))
    toy.run()
    print(",".join(toy.log), flush=True)  # noqa: T201
