"""``resnet-export init``: a pipeline file to start from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TextIO

import click

from exporter.cli.options import output_options


@click.command("init", short_help="Write a pipeline file with every key and its default.")
@click.argument("file", metavar="[PIPELINE.toml]", default="pipeline.toml", type=click.Path(path_type=Path))
@output_options
@click.pass_obj
def command(document: TextIO | None, /, **given: Any) -> None:
    """Write a commented pipeline file, with every key and its default, for resnet-export run.

    A file that is there is never written over.
    """
    from exporter.files import reserve
    from exporter.run.template import template
    from runtimes.errors import InputError

    file = given["file"]
    with reserve(file) as place:
        if file.exists():
            raise InputError(f"{file} is there already: remove it, or give another name")
        digest = place.commit(template().encode())
    if document is not None:
        from exporter.cli.stdout import write_document

        write_document(document, {"pipeline": str(file), "sha256": digest})
    elif not given["quiet"]:
        click.echo(f"{file}: give model.source and the images, then resnet-export run {file}")
