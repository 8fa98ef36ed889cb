"""TensorRT's bindings as far as their names go: a module that has what a release has, and nothing else.

Made from the lists of names in ``trt_api/``. It computes nothing: what a build asks of it is written down, and a name
that the release does not have is an AttributeError, as it would be there.
"""

from __future__ import annotations

import json
import weakref
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

FACTS = Path(__file__).parent / "trt_api"
VERSIONS = sorted(path.stem for path in FACTS.glob("*.json"))
# Of the bindings themselves, which the lists leave out.
_PYTHON = ("__init__", "__class__", "__dict__")


class Member(int):
    """A member of an enumeration, with its name."""

    name = ""


class _Object:
    """Whatever a release makes."""


class Fake:
    """A release.

    Attributes:
        module: What is imported.
        calls: Every method called, and every attribute set: (class, name, arguments).
        results: What a method gives, by (class, name); else an object of the class that it makes, or ``None``.
        values: What an attribute is, by (class, name); other names are methods.
        gone: Classes of the objects that are no more, in the order in which they went.
    """

    def __init__(self, version: str) -> None:
        self.version = version.removeprefix("rtx-")
        self.package = "tensorrt_rtx" if version.startswith("rtx") else "tensorrt"
        self.facts = json.loads((FACTS / f"{version}.json").read_text())
        self.calls: list[tuple[str, str, tuple[Any, ...]]] = []
        self.gone: list[str] = []
        self._objects: list[tuple[str, weakref.ref[Any]]] = []
        made = {
            ("Builder", "create_network"): "INetworkDefinition",
            ("Builder", "create_builder_config"): "IBuilderConfig",
            ("Builder", "create_optimization_profile"): "IOptimizationProfile",
            ("IBuilderConfig", "create_timing_cache"): "ITimingCache",
        }
        self.values: dict[tuple[str, str], Any] = {}
        self.results: dict[tuple[str, str], Any] = {
            **{key: (lambda *_, name=name: self.object(name)) for key, name in made.items()},
            ("Builder", "build_serialized_network"): lambda *_: b"plan",
            ("OnnxParser", "parse"): lambda *_: True,
            ("IBuilderConfig", "add_optimization_profile"): lambda *_: 0,
            ("IBuilderConfig", "set_timing_cache"): lambda *_: True,
            ("ITimingCache", "serialize"): lambda *_: b"kernels",
        }
        self.module: Any = SimpleNamespace(__name__=f"{self.package}_{version}", __version__=self.version)
        for name, members in self.facts.items():
            setattr(self.module, name, self._type(name, members))

    def names(self, cls: str, call: str) -> list[Any]:
        """Arguments of every call of a method."""
        return [arguments for owner, name, arguments in self.calls if (owner, name) == (cls, call)]

    def living(self) -> list[str]:
        """Classes of the objects that somebody still holds."""
        return [name for name, reference in self._objects if reference() is not None]

    def _note(self, cls: str, name: str, arguments: tuple[Any, ...]) -> None:
        # Objects by their class alone: noted as they are, they would live for ever.
        told = tuple(type(each).__qualname__ if isinstance(each, _Object) else each for each in arguments)
        self.calls.append((cls, name, told))

    def object(self, name: str) -> Any:
        """An object of a class, which has the class's methods and attributes only."""
        fake, known = self, set(self.facts[name])

        class Object(_Object):
            def __getattr__(self, attribute: str) -> Any:
                if attribute not in known:
                    raise AttributeError(f"{name} of {fake.version} has no {attribute}")
                if (name, attribute) in fake.values:
                    return fake.values[name, attribute]
                return partial(fake._called, name, attribute)

            def __setattr__(self, attribute: str, value: Any) -> None:
                if attribute not in known:
                    raise AttributeError(f"{name} of {fake.version} has no {attribute}")
                fake._note(name, attribute, (value,))

        Object.__qualname__ = name
        made = Object()
        self._objects.append((name, weakref.ref(made)))
        weakref.finalize(made, self.gone.append, name)
        return made

    def _called(self, cls: str, name: str, *arguments: Any) -> Any:
        self._note(cls, name, arguments)
        result = self.results.get((cls, name))
        try:
            return result(*arguments) if result else None
        finally:
            del arguments  # the bindings are no Python, and have no frames that a traceback could hold

    def _type(self, name: str, members: list[str]) -> type:
        fake = self
        values: dict[str, Any] = {}
        for place, member in enumerate(members):
            if member.isupper() or member.replace("_", "").isupper():
                values[member] = Member(place)
                values[member].name = member
        if name == "ILogger":  # its severities are members of a class of its own
            for place, member in enumerate(("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")):
                values[member] = Member(place)
        if name in ("ILogger", "IProgressMonitor", "IInt8EntropyCalibrator2"):  # subclassed, and called back
            return type(name, (), {**values, "__init__": lambda self: None})
        if values or not members:
            return type(name, (), values)

        def make(cls: type, *arguments: Any) -> Any:
            fake._note(name, "__init__", arguments)
            return fake.object(name)

        return type(name, (), {"__new__": make})
