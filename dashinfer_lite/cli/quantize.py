"""Quantize a model's weights once, into a folder that loads fast; it is used like the model itself.

Tensors are streamed: memory stays small whatever the size of the model. What is not quantized (norms, biases, an
untied embedding, and everything that no mode names) is copied as it is, with tokenizer and configuration.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite.cli.options import add_quant_options
from dashinfer_lite.cli.progress import ProgressBar
from dashinfer_lite.cli.terminal import seconds, size, tolerate_encoding
from dashinfer_lite.errors import ModelError, RequestError

if TYPE_CHECKING:
    from collections.abc import Iterable

HELP = "write a folder with quantized weights"

DEFAULT = "a16w4-g128"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `quantize` takes."""
    parser.add_argument("source", metavar="IN", help="a Hugging Face model folder")
    parser.add_argument("target", metavar="OUT", help="the folder to write; it must be new or empty")
    add_quant_options(parser)
    parser.set_defaults(quant=DEFAULT)
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=_override,
        metavar="PATTERN=MODE",
        help='another mode for modules whose names match, such as "*.down_proj=a16w8" or "model.layers.0.*=none"; '
        "the first match counts; may be repeated",
    )
    parser.add_argument("--force", action="store_true", help="replace a model that OUT holds")


def run(args: argparse.Namespace) -> int:
    """Decide, stream, and say what became of the weights."""
    tolerate_encoding()
    from dashinfer_lite.graph.instant_quant import instant_quant
    from dashinfer_lite.graph.quant import QuantPolicy, matrix_specs
    from dashinfer_lite.model_defs import find_model
    from dashinfer_lite.weights import ModelFolder
    from dashinfer_lite.weights.save_quantized import save_quantized

    policy = QuantPolicy.parse(args.quant, overrides=dict(args.override), head=args.head)
    folder = ModelFolder(args.source)
    model = find_model(folder.architecture, folder.config)
    with folder.open_weights() as weights:
        if getattr(weights, "grids", None):
            raise ModelError(f"{folder.path}: its weights are integers already; quantize the model it was made from")
        specs = matrix_specs(model.forward, model.config.from_folder(folder), policy)
        if not specs:
            raise RequestError("nothing is to be quantized; choose a --quant, or another --override")
        begin = time.perf_counter()
        with ProgressBar("quantizing") as progress:
            saved = save_quantized(
                folder,
                weights,
                Path(args.target),
                {module: spec.grid for module, spec in specs.items()},
                policy.describe(),
                instant_quant,
                force=args.force,
                progress=progress,
            )
    print(f"{args.target}: {_counts(map(str, specs.values()))}")
    share = saved.target_bytes / max(saved.source_bytes, 1)
    taken = seconds(time.perf_counter() - begin)
    print(f"{size(saved.source_bytes)} became {size(saved.target_bytes)} ({share:.0%}) in {taken}")
    return 0


def _override(text: str) -> tuple[str, str | None]:
    pattern, separator, mode = text.rpartition("=")
    if not separator or not pattern or not mode:
        raise argparse.ArgumentTypeError(f"{text!r}: expected PATTERN=MODE, such as *.down_proj=a16w8")
    return pattern, None if mode == "none" else mode


def _counts(names: Iterable[str]) -> str:
    return ", ".join(
        f"{count} {'matrix' if count == 1 else 'matrices'} as {name}" for name, count in Counter(names).items()
    )
