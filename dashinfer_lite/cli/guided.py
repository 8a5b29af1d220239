"""The options that say what an answer must look like."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    import argparse

    from dashinfer_lite.guided import Guided


def add_guided_options(parser: argparse.ArgumentParser) -> None:
    """Add --json-object, --json-schema, --regex, --choice and --grammar; at most one of them is given."""
    group = parser.add_argument_group("what answers must look like (needs the extra [guided])")
    options = group.add_mutually_exclusive_group()
    options.add_argument("--json-object", action="store_true", help="a JSON object")
    options.add_argument("--json-schema", metavar="FILE", help="a JSON value that this schema accepts")
    options.add_argument("--regex", metavar="R", help="a text that this regular expression matches as a whole")
    options.add_argument("--choice", metavar="A,B", help="one of these texts")
    options.add_argument("--grammar", metavar="FILE", help="a text of this Lark grammar")


def guided(args: argparse.Namespace) -> Guided | None:
    """What was given; RequestError names what is wrong with it."""
    from dashinfer_lite.guided import Guided

    if args.json_object:
        return Guided(json_object=True)
    if args.json_schema is not None:
        return Guided(json_schema=_text_of(args.json_schema))
    if args.regex is not None:
        return Guided(regex=args.regex)
    if args.choice is not None:
        return Guided(choice=args.choice.split(","))
    return Guided(grammar=_text_of(args.grammar)) if args.grammar is not None else None


def _text_of(name: str) -> str:
    try:
        return Path(name).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"{name}: not UTF-8 text: {error}") from None
