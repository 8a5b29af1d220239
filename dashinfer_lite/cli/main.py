"""The entry point: picks the command, runs it, and turns every failure into one line and an exit code."""

from __future__ import annotations

import argparse
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from dashinfer_lite import __version__
from dashinfer_lite.errors import DashInferError, RequestError

if TYPE_CHECKING:
    from collections.abc import Sequence

COMMANDS = ("chat", "generate", "info", "serve", "bench", "quantize", "eval")

OK, FAILED, MISUSED, INTERRUPTED = 0, 1, 2, 130

EPILOG = """\
exit codes: 0 done; 1 the model, the device or the machine cannot do it; 2 the command line or a parameter is wrong;
130 interrupted. Errors are one line on the error stream; --debug shows where they come from.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; only --help, --version and a wrong command line raise SystemExit."""
    args = _parser().parse_args(argv)
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return _reader_left()
    except Exception as error:
        if args.debug:
            raise
        print(f"dashinfer-lite: error: {_sentence(error)}", file=sys.stderr)
        return MISUSED if isinstance(error, RequestError) else FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dashinfer-lite",
        description="Runs language models on the CPU.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"dashinfer-lite {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name in COMMANDS:
        module = import_module(f"dashinfer_lite.cli.{name}")
        command = commands.add_parser(
            name,
            help=module.HELP,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        module.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run)
    return parser


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, DashInferError | OSError) and text:
        return text
    if isinstance(error, MemoryError):
        return f"out of memory{f': {text}' if text else ''}; a smaller --kv-memory or model needs less"
    return f"{type(error).__name__}: {text} (a mistake of this program; --debug shows the traceback)"


def _reader_left() -> int:
    """Whoever reads our output has gone (`… | head`): nothing is wrong, and nothing more can be written."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return FAILED
