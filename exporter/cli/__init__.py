"""The command line: one small module per command, each of which parses, calls one function and prints its result.

Exit codes: 0 all good; 1 a check failed; 2 wrong usage or unusable input; 3 this machine lacks something;
130 interrupted; 70 a fault of this program. Nothing heavy is imported before a command runs.
"""

from __future__ import annotations

import importlib
import signal
import sys
import traceback
from collections.abc import Sequence
from io import TextIOWrapper
from types import FrameType
from typing import NoReturn, TextIO

import click

from exporter.cli.stdout import failure_document, only_json_on_stdout
from runtimes.errors import ResnetExportError, UnavailableError, first_line

_INTERRUPTED, _OWN_FAULT = 130, 70

# Command -> its module and the line that `--help` shows, so that `--help` imports none of the modules.
_COMMANDS = {
    "run": ("exporter.cli.run", "Do a whole pipeline, from the checkpoint to the report, and only what has changed."),
    "init": ("exporter.cli.init", "Write a pipeline file with every key and its default."),
    "inspect": ("exporter.cli.inspect", "Show a model's data flow, residual blocks, checks and cost."),
    "onnx": ("exporter.cli.onnx", "Fold, export, simplify and prove a model: PyTorch in, ONNX out."),
    "calibrate": (
        "exporter.cli.calibrate",
        "Read the ranges of a model's activations off images: ONNX in, ranges out.",
    ),
    "quantize": ("exporter.cli.quantize", "Make an INT8 file for one target, and say what it cost."),
    "lint": ("exporter.cli.lint", "Check a quantised file of any maker for the runtime that it is meant for."),
    "embed": ("exporter.cli.embed", "Put the preprocessing into an ONNX file: pixels in, classes out."),
    "engine": ("exporter.cli.engine", "Build a TensorRT engine of an ONNX file, for GPUs that are here or not."),
    "layers": ("exporter.cli.layers", "Show what an engine runs, layer by layer, and why INT8 may be no faster."),
    "parity": ("exporter.cli.parity", "Hold models on runtimes against the first: do they still compute the same?"),
    "evaluate": ("exporter.cli.evaluate", "Measure accuracy on labelled images, and what a model changes."),
    "bench": ("exporter.cli.bench", "Measure latency, throughput and memory of models beside each other."),
    "report": ("exporter.cli.report", "Make one report of what parity, evaluate and bench found."),
    "bundle": ("exporter.cli.bundle", "Put everything that a device needs into one folder or file, with the proof."),
    "verify": ("exporter.cli.verify", "Check a bundle: its files, and what it computes on this machine."),
    "triton": ("exporter.cli.triton", "Write a model repository for a Triton server."),
    "doctor": ("exporter.cli.doctor", "Show what this machine can run, and what to install for the rest."),
    "completion": ("exporter.cli.completion", "Print the completion script for a shell."),
}


class _LazyGroup(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(_COMMANDS[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in _COMMANDS.items()])


_EPILOG = """\b
Examples:
  resnet-export init && resnet-export run
  resnet-export inspect checkpoint.pth
  resnet-export onnx checkpoint.pth -o model.onnx --data images/
  resnet-export onnx resnet50 --weights checkpoint.pth -o model.onnx --opset 13
  resnet-export onnx timm:resnet50d --weights DEFAULT -o model.onnx --precision fp16
  resnet-export calibrate model.onnx --data images/ -o ranges.json

\b
Exit codes:
  0  all good
  1  a check failed: no file is left at the output path
  2  wrong usage, or an input that cannot be used
  3  this machine lacks something: a package, a download, disk space
  130  interrupted

\b
Shell completion:
  resnet-export completion bash >> ~/.bashrc
"""


@click.group(cls=_LazyGroup, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="resnet-export", message="%(prog)s %(version)s")
def cli() -> None:
    """Take a trained ResNet from PyTorch to a file that a device runs, with the proof that it computes the same.

    MODEL is a checkpoint file (its architecture is read from its tensors), a variant's name (resnet18 … resnet152,
    resnext50_32x4d, wide_resnet50_2, resnet20 … resnet1202), timm:NAME, or package.module:factory.
    """


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and leave with its exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup stays nohup
            signal.signal(number, _terminate)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file's name may hold what the locale has no letter for
            stream.reconfigure(errors="backslashreplace")
    asks_for_text = {"--help", "-h", "--version"} & set(arguments)
    if "--json" in arguments[1:] and not asks_for_text:
        try:
            with only_json_on_stdout() as document:
                code = _run(arguments, document)
        except OSError as error:  # the document could not be delivered: nobody is left to read it, or no room
            line, code = _verdict(error)
            click.echo(f"error: {line}", err=True)
        sys.exit(code)
    sys.exit(_run(arguments, None))


def _terminate(_signal: int, _frame: FrameType | None) -> NoReturn:
    """SIGTERM and SIGHUP end the run as Ctrl-C does, so that half-made files are removed."""
    raise KeyboardInterrupt


def _run(arguments: Sequence[str], document: TextIO | None) -> int:
    try:
        # Without its standalone mode, click returns the code of an Exit, and None after a command.
        code = cli.main(args=list(arguments), prog_name="resnet-export", standalone_mode=False, obj=document)
    except BrokenPipeError:
        return 0  # the reader, `head` for one, has seen enough
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001  (the last boundary: a person gets a line)
        if "--debug" in arguments:
            traceback.print_exc()
        line, code = _verdict(error)
        click.secho("error: ", fg="red", bold=True, err=True, nl=False)
        click.echo(line, err=True)
        if document is not None:
            failure_document(document, line, code, error)
        return code
    return int(code or 0)


def _verdict(error: BaseException) -> tuple[str, int]:
    """One line and the exit code for anything that can end a command."""
    if isinstance(error, KeyboardInterrupt | click.Abort):
        return "interrupted; a file is whole or absent", _INTERRUPTED
    if isinstance(error, click.ClickException):
        usage = getattr(error, "ctx", None)
        hint = f" (see {usage.command_path} --help)" if usage is not None else ""
        return f"{_one_line(error.format_message())}{hint}", 2
    if _is_out_of_memory(error):
        return (
            "there is not enough memory: give a smaller --input-size, --batch or --images",
            UnavailableError.exit_code,
        )
    if isinstance(error, ResnetExportError):
        return _one_line(str(error)), error.exit_code
    if isinstance(error, OSError) and error.filename is None:
        return f"stdout cannot be written: {error.strerror or error}", UnavailableError.exit_code
    what = f"internal fault, {type(error).__name__}: {first_line(error)}"
    return f"{what} (run again with --debug for the traceback)", _OWN_FAULT


def _is_out_of_memory(error: BaseException | None) -> bool:
    """MemoryError, or what torch's allocator raises in its place, anywhere along the chain of causes."""
    while error is not None:
        if isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
            return True
        error = error.__cause__
    return False


def _one_line(text: str) -> str:
    return " ".join(text.split())
