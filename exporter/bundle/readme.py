"""``README.md`` of a bundle, for whoever holds the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXT = """# What this is

A residual network that tells {classes} classes apart, in {count}, with golden inputs and outputs by which any device
can show that it still computes the same. Made by resnet-export {version}; `manifest.json` has the sha256 and size of
every file.

| model | file | made for | precision | input | output |
|---|---|---|---|---|---|
{rows}

The reference is `{reference}`: the others are held against it.

# First: check

```
python3 run.py check
```

needs Python 3.8 or later, numpy, and ONNX Runtime (`pip install numpy onnxruntime pillow`) or TensorRT. It verifies
every file, makes the tensors of the golden pixels again (with Pillow) and compares them bit for bit, runs every model
that it can, and holds the outputs against the goldens within the tolerance that `manifest.json` gives a reason for.
Exit code 0: all good; 1: a check failed; 2: wrong usage; 3: this machine lacks something.

# On an NVIDIA GPU or a Jetson

```
python3 run.py build{build}
python3 run.py check
python3 run.py classify photo.jpg
python3 run.py bench --batch 1
```

`build` makes an engine with the TensorRT that is installed (8.5 to 11, by its Python API or trtexec) and puts it beside
this folder, in `FOLDER.local`. An engine runs on the GPU and the TensorRT that built it, and nowhere else: copy this
folder, not the engine. {dla}

# Preprocessing

`preprocessing.json` says how a file becomes an input. `run.py` does exactly that; a program of your own has to as well,
and `goldens/pixels` with `goldens/input.npy` show whether it does.

# Files

| | |
|---|---|
| `models/` | the models |
| `goldens/pixels/` | golden images, decoded and upright |
| `goldens/input.npy` | the same after preprocessing, float32 [N, C, H, W] |
| `goldens/reference.npy` | what the reference makes of them, float32 [N, classes] |
| `goldens/outputs/` | what each model made of them, INT8 in exact integer arithmetic |
| `preprocessing.json`{labels} | the contract{label_text} |
| `LICENSE.txt` | of the weights{given} |
| `manifest.sha256` | of the manifest: `sha256sum -c manifest.sha256` |

The hashes find damage. They are no signature: who alters a file, the manifest and its hash together is not found.
"""


def readme(document: Mapping[str, Any]) -> str:
    """The text.

    Args:
        document: The manifest.
    """
    models = document["models"]
    for_dla = next((model["id"] for model in models if model["dla"]), None)
    dla = (
        f"For a deep learning accelerator: `python3 run.py build --model {for_dla} --dla 0`."
        if for_dla
        else "For a deep learning accelerator, INT8 needs a bundle that was made with --dla."
    )
    first = next((model["id"] for model in models if model["kind"] == "onnx" and model["target"] == "tensorrt"), None)
    return _TEXT.format(
        classes=document["classes"],
        count="one file" if len(models) == 1 else f"{len(models)} files",
        version=document["made_by"]["resnet-export"],
        rows="\n".join(_row(model) for model in models),
        reference=document["goldens"]["reference_model"],
        build=f" --model {first}" if first else "",
        dla=dla,
        labels=", `labels.txt`" if document["labels"] else "",
        label_text="; the names of the classes, one a line" if document["labels"] else "",
        given="" if document["license"]["given"] else ": none was given",
    )


def _row(model: Mapping[str, Any]) -> str:
    tensors = [
        f"`{each['name']}` {each['dtype']} {_shape(each['shape'])}" for each in (*model["inputs"], *model["outputs"])
    ]
    return f"| `{model['id']}` | `{model['file']}` | {model['target']} | {model['precision']} | {' | '.join(tensors)} |"


def _shape(shape: list[int | None]) -> str:
    return "[" + ", ".join("N" if size is None else str(size) for size in shape) + "]"
