"""What the document beside an engine has to look like where it is read: a damaged one is told as such, in one line.

Only what is read is looked at, and every key may be missing: older releases did not write all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import NoneType
from typing import Any, Final, TypeAlias

Form: TypeAlias = Any
"""A type; ``(A, B)`` for either; ``[A]`` for a list of such; ``{"key": A}`` for an object with at least these keys, and
``{str: A}`` for one with any."""

_NUMBERS: Final = (int, NoneType)
_TEXT: Final = (str, NoneType)
_LAYER: Final[Form] = {
    "name": str, "kind": str, "modules": [str], "precision": _TEXT, "tactic": str, "operators": [str],
    "is_reformat": bool, "is_quantiser": bool,
}  # fmt: skip
_NODE: Final[Form] = {
    "name": str, "op_type": str, "channels": _NUMBERS, "groups": int, "quantised": (bool, NoneType), "operands": int,
}  # fmt: skip
_OPTIONS: Final[Mapping[str, Form]] = {
    "version_compatible": bool, "hardware_compatible": _TEXT, "strip": bool, "dla_core": _NUMBERS,
}  # fmt: skip
_DOCUMENT: Final[Mapping[str, Form]] = {
    "flavour": str,
    "version": str,
    "precision": str,
    "source_sha256": str,
    "targets": [str],
    "gpu": ({"name": str, "compute_capability": str}, NoneType),
    "summary": ({"counts": {str: {str: int}}, "sentences": [str], "advice": [str]}, NoneType),
    "layers": ([_LAYER], NoneType),
    "network": ([_NODE], NoneType),
}


def damage(document: Mapping[str, Any]) -> str | None:
    """The first key whose value is not what it has to be; ``None`` where all are."""
    options = document.get("options", {})
    if not isinstance(options, dict):
        return "options"
    for name, found, forms in (("", document, _DOCUMENT), ("options.", options, _OPTIONS)):
        for key, form in forms.items():
            if key in found and not _fits(found[key], form):
                return f"{name}{key}"
    return None


def _fits(value: object, form: Form) -> bool:
    if isinstance(form, tuple):
        return any(_fits(value, each) for each in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_fits(each, form[0]) for each in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        if str in form:
            return all(_fits(each, form[str]) for each in value.values())
        return all(key in value and _fits(value[key], each) for key, each in form.items())
    return type(value) is form  # True is no number here
