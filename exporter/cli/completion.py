"""``resnet-export completion``: the script that a shell sources."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion", short_help="Print the completion script for a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    r"""Print the completion script for a shell.

    \b
    bash:  resnet-export completion bash >> ~/.bashrc
    zsh:   resnet-export completion zsh >> ~/.zshrc
    fish:  resnet-export completion fish > ~/.config/fish/completions/resnet-export.fish
    """
    from exporter.cli import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "resnet-export", "_RESNET_EXPORT_COMPLETE").source())
