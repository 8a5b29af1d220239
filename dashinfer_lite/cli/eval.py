"""Compare quantization modes of a model: accuracy, memory and speed, beside the 16-bit run.

Every mode scores the same text and answers the same items; what differs is how weights and KV cache are kept. Without
PATH the embedded demo model is evaluated. Items are asked where --items gives some, and of the demo model. Without
--text a text of the demo model's kind is taken: its perplexity says little about another model, agreement does.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite import __version__
from dashinfer_lite.cli.eval_mode import DEFAULT, DEFAULT_OF_QUANTIZED, GRAMMAR, STORED, Mode
from dashinfer_lite.cli.options import add_run_options
from dashinfer_lite.cli.progress import ProgressBar
from dashinfer_lite.cli.terminal import tolerate_encoding
from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    import argparse

    from dashinfer_lite.cli.eval_result import Evaluation
    from dashinfer_lite.cli.eval_run import Run, Work

HELP = "compare quantization modes: accuracy, memory and speed"

TOKENS, WINDOW = 4096, 512


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `eval` takes."""
    parser.epilog = GRAMMAR
    parser.add_argument("path", nargs="?", metavar="PATH", help="a model folder (default: the embedded demo model)")
    parser.add_argument(
        "--modes", nargs="+", metavar="MODE", help=f"what to compare (default: {' '.join(DEFAULT)}); see below"
    )
    parser.add_argument("--reference", metavar="MODE", help="what to compare with (default: bf16, or stored integers)")
    parser.add_argument("--against", metavar="FOLDER", help="the folder of the reference (default: PATH)")
    parser.add_argument("--text", metavar="FILE", help="a text that the model has not seen")
    parser.add_argument("--tokens", type=int, default=TOKENS, metavar="N", help=f"of the text (default: {TOKENS})")
    parser.add_argument("--window", type=int, default=WINDOW, metavar="N", help=f"tokens at a time (default: {WINDOW})")
    parser.add_argument("--items", metavar="FILE", help="questions with known answers, a JSON object a line")
    parser.add_argument("--limit", type=int, metavar="N", help="ask only so many items; 0: none")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; -: to the output, without the table")
    parser.add_argument("--plot", metavar="FILE", help="write accuracy over memory as SVG")
    add_run_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run one mode after the other, and report."""
    tolerate_encoding()
    for name, least in (("tokens", 2), ("window", 2), ("limit", 0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise RequestError(f"--{name} {value}: expected at least {least}")
    evaluation = evaluate(args)
    if args.json != "-":
        print(evaluation.text())
    if args.json:
        text = json.dumps(evaluation.as_json(), indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    if args.plot:
        from dashinfer_lite.cli.eval_plot import evaluation_svg

        Path(args.plot).write_text(evaluation_svg(evaluation), encoding="utf-8")
    return 0


def evaluate(args: argparse.Namespace) -> Evaluation:
    """The reference first, then each mode; one model is in memory at a time."""
    from dashinfer_lite.cli.eval_result import Evaluation, Line

    work = _work(args)
    reference, modes = _modes(args)
    first = _run(args, reference, work, None)
    lines = [Line.of(first, work.items, None)]
    for mode in modes:
        done = _run(args, mode, work, first)
        lines.append(Line.of(done, work.items, first))
    return Evaluation(
        model=first.model,
        device=first.device,
        version=__version__,
        text_name=Path(args.text).name if args.text else "the built-in text",
        window=work.window,
        positions=len(first.text.nll),
        kept=len(first.text.kept),
        lines=lines,
    )


def _work(args: argparse.Namespace) -> Work:
    from dashinfer_lite.cli.eval_data import built_in, evenly, parse_items, read_text
    from dashinfer_lite.cli.eval_run import Work

    if args.items:
        items = parse_items(read_text(args.items), args.items)
    else:
        is_demo = _is_demo(args.path) or (args.against is not None and _is_demo(args.against))
        items = parse_items(built_in("items.jsonl"), "items.jsonl") if is_demo else []
    return Work(
        text=read_text(args.text) if args.text else built_in("text.txt"),
        tokens=args.tokens,
        window=args.window,
        items=evenly(items, args.limit),
        story_names=frozenset(built_in("names.txt").split()),
    )


def _is_demo(path: str | None) -> bool:
    from dashinfer_lite.loading import demo_model_folder

    return path is None or Path(path).resolve() == demo_model_folder().resolve()


def _modes(args: argparse.Namespace) -> tuple[Mode, list[Mode]]:
    """The reference, and the modes to compare with it; the reference itself is left out of these."""
    from dashinfer_lite.loading import demo_model_folder
    from dashinfer_lite.weights import ModelFolder

    folder = ModelFolder(args.path if args.path is not None else demo_model_folder())
    with folder.open_weights() as weights:
        is_integer = bool(getattr(weights, "grids", None))
    names = args.modes or ((STORED,) if args.against else DEFAULT_OF_QUANTIZED if is_integer else DEFAULT)
    reference = Mode.parse(args.reference or (STORED if is_integer and not args.against else "bf16"))
    modes = [Mode.parse(name) for name in dict.fromkeys(names)]
    return reference, [mode for mode in modes if args.against or mode != reference]


def _run(args: argparse.Namespace, mode: Mode, work: Work, reference: Run | None) -> Run:
    from dashinfer_lite.cli.eval_run import run_mode
    from dashinfer_lite.loading import Options

    options = Options(
        **{name: getattr(args, name) for name in ("device", "kv_memory", "threads", "max_context", "max_batch")}
    )
    path = args.against if args.against and reference is None else args.path
    with ProgressBar(mode.name, amount=lambda value: f"{value:.0f}") as bar:

        def progress(part: str, done: int, total: int) -> None:
            bar.label = f"{mode.name}: {part}".ljust(24)
            bar(done, total)

        return run_mode(path, mode, options, work, reference, progress)
