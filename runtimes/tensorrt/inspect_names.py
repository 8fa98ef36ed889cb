"""Which nodes of the ONNX file an engine layer stands for, told from its ``Metadata`` or, without it, from its name.

TensorRT 8.6 and later list the nodes: ``[ONNX Layer: a]`` each, with U+001E or U+001F between them, or nothing at all.
(NVIDIA/TensorRT issues 2779, 4020 and 4397; ``trex/parser.py`` of its engine explorer.) TensorRT 8.5 has names only:

=====================================================  ============================================================
``conv1.weight + QuantizeLinear_7 + Conv_9``           nodes and constants fused into one kernel
``a + b || c + d``                                     two kernels that read one tensor, merged (issue 3737)
``PWN(Add_53)``, ``PWN(PWN(a), PWN(b))``               point-wise operators (issues 1862, 3583)
``{ForeignNode[a...b]}``                               a part that another compiler took, from one node to another
``Reformatting CopyNode for Input Tensor 0 to a + b``  a copy into the layout that a kernel wants
``QuantizeLinear_20_quantize_scale_node``              a Q of TensorRT 8.0 to 8.4 (issue 1293)
``(Unnamed Layer* 360) [Shuffle]``                     a layer that TensorRT's parser added
``__myl_CastMulAdd_myl0_8``, ``a+b_myl0_9``            kernels of the Myelin compiler (issue 4397)
=====================================================  ============================================================

A Relu that a convolution took in is often not in the name; the layer's ``Activation`` tells it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_METADATA = re.compile(r"\[ONNX Layer: (.+?)\](?=\[|$)")
_BETWEEN = re.compile("[\x1e\x1f\ufffd]+")  # the last one: what a lossy copy makes of the other two

_PROFILE = re.compile(r" \[profile (\d+)\]$")
_REFORMAT = re.compile(r"^Reformatt(?:ing|ed) (?:CopyNode for )?(?:Input|Output) Tensor \d+ (?:to|from) ")
_FOREIGN = re.compile(r"\{ForeignNode\[(.+?)\.\.\.(.+?)\]\}")
_UNNAMED = re.compile(r"\(Unnamed Layer\* ?\d+\) \[[^\]]*\]\w*")
_POINTWISE = re.compile(r"\bPWN\(")
_MYELIN_KERNEL = re.compile(r"^__my[el]\w*?_([A-Z]\w*?)(?:_myl\d+_\d+|_0x[0-9a-f]+)?$")
_MYELIN_SUFFIX = re.compile(r"_myl\d+_\d+$")
_HELPER = re.compile(r"^(?:copied_)?(?:un)?(?:squeeze|reshape|shuffle|transpose)(?:_node|_tensor)?_(?:before|after)_")
_SUFFIX = re.compile(r"_(?:de)?quantize_scale_node$| copy$|_clone_\d+$")

_QUANTISER = re.compile(r"(?:^|[/._])(?:De)?[Qq]uantizeLinear(?:_\d+)?$|\.(?:de)?quantized$")
_CONSTANT = re.compile(r"\.(?:weight|bias|scale|zero_point|constant|value)(?:\.float)?$")


def profile_of(name: str) -> int:
    """Index of the optimisation profile that a layer belongs to; the first one's layers carry none in their names."""
    found = _PROFILE.search(name)
    return int(found[1]) if found else 0


def nodes_of(name: str, metadata: str = "") -> tuple[str, ...]:
    """Names of ONNX nodes and constants that a layer stands for, each once, in the order in which they are told.

    Args:
        name: The layer's ``Name``.
        metadata: Its ``Metadata``, which is believed before the name.
    """
    listed = _METADATA.findall(_BETWEEN.sub("", metadata))
    return tuple(dict.fromkeys(listed or _split(_PROFILE.sub("", name))))


def spans_of(name: str) -> tuple[tuple[str, str], ...]:
    """First and last node of each part that another compiler took; a name tells no more of it."""
    return tuple(((first, *_split(first))[-1], (last, *_split(last))[-1]) for first, last in _FOREIGN.findall(name))


def is_reformat_name(name: str) -> bool:
    """Whether a name says that the layer only copies a tensor into another layout or type."""
    return bool(_REFORMAT.match(name)) or name.endswith(" copy")


def is_quantiser(node: str) -> bool:
    """Whether a node's name is one of a ``QuantizeLinear`` or ``DequantizeLinear``: ours, PyTorch's or TensorRT's."""
    return bool(_QUANTISER.search(node))


def modules_of(nodes: tuple[str, ...]) -> tuple[str, ...]:
    """Those of a layer's nodes that are named by a module path: no Q/DQ, no constants."""
    return tuple(node for node in nodes if not is_quantiser(node) and not _CONSTANT.search(node))


def kernel_operators(name: str) -> tuple[str, ...]:
    """Operators in the name of a Myelin kernel, abbreviated as there: ``("Cast", "Mul", "Add")``; empty for others."""
    found = _MYELIN_KERNEL.match(name)
    return tuple(re.findall(r"[A-Z][a-z]+\d*", found[1])) if found else ()


def _split(name: str) -> Iterator[str]:
    name = _REFORMAT.sub("", name)
    if _MYELIN_KERNEL.match(name):
        return
    for first, last in _FOREIGN.findall(name):
        yield from (*_split(first), *_split(last))
    name = _POINTWISE.sub("", _UNNAMED.sub("", _FOREIGN.sub("", name)))
    if _MYELIN_SUFFIX.search(name):  # Myelin joins without spaces
        name = _MYELIN_SUFFIX.sub("", name).replace("+", " + ")
    for part in re.split(r" \+ | \|\| |, ", name):
        part = _SUFFIX.sub("", part.strip())  # noqa: PLW2901  # what is left of it after each step
        while part.endswith(")") and part.count(")") > part.count("("):  # of a PWN
            part = part[:-1]  # noqa: PLW2901
        if part not in ("", "+") and not _HELPER.match(part):
            yield part
