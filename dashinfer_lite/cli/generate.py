"""Continue texts: prompts come from the command line, from --file, or from the input.

One prompt streams. Several run together and come out in order, an empty line between them; --json gives one object a
line instead. Figures go to the error stream, so that the output can be piped.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.figures import figures
from dashinfer_lite.cli.guided import add_guided_options, guided
from dashinfer_lite.cli.options import add_model_options, add_sampling_options, load, sampling_params
from dashinfer_lite.cli.terminal import Style, is_terminal, tolerate_encoding
from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    import argparse

    from dashinfer_lite.cli.options import Loaded
    from dashinfer_lite.engine.request import Request
    from dashinfer_lite.outputs import Logprobs, RequestOutput

HELP = "continue one or several texts"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `generate` takes."""
    parser.add_argument("prompt", nargs="*", help="a text to continue")
    parser.add_argument(
        "--file",
        action="append",
        default=[],
        metavar="FILE",
        help="a file that is a prompt; -: the input; may be repeated",
    )
    parser.add_argument(
        "--lines", action="store_true", help="every line of a file or of the input is a prompt of its own"
    )
    parser.add_argument("--chat", action="store_true", help="put each prompt as a question, in the model's chat format")
    parser.add_argument("--json", action="store_true", help="one JSON object a prompt: answers, tokens, usage, timings")
    parser.add_argument("--quiet", action="store_true", help="no figures on the error stream")
    add_model_options(parser)
    add_sampling_options(parser, max_tokens=128)
    group = parser.add_argument_group("reports (with --json)")
    group.add_argument("--n", type=int, metavar="N", help="so many answers a prompt")
    group.add_argument(
        "--logprobs", type=int, metavar="N", help="log probabilities of the tokens and of the N most likely ones"
    )
    group.add_argument("--prompt-logprobs", type=int, metavar="N", help="the same for the tokens of the prompt")
    add_guided_options(parser)


def run(args: argparse.Namespace) -> int:
    """Read the prompts, run them all at once, and write their answers in order."""
    tolerate_encoding()
    reports = {
        name: value for name in ("n", "logprobs", "prompt_logprobs") if (value := getattr(args, name)) is not None
    }
    if reports and not args.json:
        raise RequestError("--n, --logprobs and --prompt-logprobs need --json")
    params = sampling_params(args, guided=guided(args), **reports)
    prompts = _prompts(args)
    loaded = load(args)
    with loaded.llm as llm:
        requests: list[Request] = []
        try:
            for prompt in prompts:
                if args.chat:
                    requests.append(llm.submit(messages=[{"role": "user", "content": prompt}], params=params))
                else:
                    requests.append(llm.submit(prompt, params))
            for number, request in enumerate(requests):
                _write(loaded, request, number, args)
        finally:
            for request in requests:
                request.cancel()
    return 0


def _prompts(args: argparse.Namespace) -> list[str]:
    files = args.file
    if not args.prompt and not files:
        if is_terminal(sys.stdin):
            raise RequestError("no prompt: give a text, --file FILE, or pipe one in")
        files = ["-"]
    prompts = list(args.prompt)
    for name in files:
        try:
            text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise RequestError(f"{name}: not UTF-8 text: {error}") from None
        prompts += [line for line in text.splitlines() if line.strip()] if args.lines else [text]
    if not prompts:
        raise RequestError("no prompt: the input has no lines with text")
    return prompts


def _write(loaded: Loaded, request: Request, number: int, args: argparse.Namespace) -> None:
    """Write one prompt's answer as it comes, or its object when it is done."""
    if args.json:
        print(json.dumps(_as_json(request.result()), ensure_ascii=False), flush=True)
        return
    if number:
        print()
    for piece in request:
        print(piece, end="", flush=True)
    print(flush=True)
    if not args.quiet:
        print(Style(sys.stderr).dim(figures(loaded, request.result())), file=sys.stderr)


def _as_json(output: RequestOutput) -> dict[str, Any]:
    """An output as plain values, by the names of the Python interface."""
    plain = asdict(output)
    plain["prompt_logprobs"] = _plain_logprobs(output.prompt_logprobs)
    for answer, plain_answer in zip(output.outputs, plain["outputs"], strict=True):
        plain_answer["logprobs"] = _plain_logprobs(answer.logprobs)
    return plain


def _plain_logprobs(positions: list[Logprobs] | list[Logprobs | None] | None) -> list[dict[str, Any] | None] | None:
    """JSON has no integer keys: the token ids become strings."""
    if positions is None:
        return None
    return [
        None if entry is None else {str(token): asdict(value) for token, value in entry.items()} for entry in positions
    ]
