"""Send requests to an OpenAI-compatible server and measure what its clients see.

Prompts are random tokens of a fixed length, no two alike, or come from a file. They are sent all at once, at a rate
with random gaps (a Poisson process, the same in every run), or as many at a time as --concurrency says. A first request
that is not counted warms the server up. Times are this client's, from before it connects: to the first token (TTFT), of
each later one on average (TPOT), between two pieces of a stream (ITL), and of the whole request (E2EL).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite.cli.progress import ProgressBar
from dashinfer_lite.cli.terminal import tolerate_encoding
from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    from dashinfer_lite.cli.bench_serve_result import Result

HELP = "the figures of a server: throughput, goodput, TTFT, TPOT, ITL"

URL = "http://127.0.0.1:8000"
KEY_VARIABLE = "DASHINFER_API_KEY"
LIMITS = ("ttft", "tpot", "e2el")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `bench serve` takes."""
    group = parser.add_argument_group("server")
    group.add_argument("--url", default=URL, help=f"its address (default: {URL})")
    group.add_argument("--model", metavar="NAME", help="default: the first that it lists")
    group.add_argument("--api-key", metavar="KEY", help=f"default: {KEY_VARIABLE}")
    group = parser.add_argument_group("requests")
    group.add_argument("--num-prompts", type=int, metavar="N", help="default: 100, or as many as the file has")
    group.add_argument("--input-len", type=int, default=128, metavar="N", help="tokens a prompt (default: 128)")
    group.add_argument("--output-len", type=int, default=128, metavar="N", help="tokens an answer (default: 128)")
    group.add_argument("--prompts", metavar="FILE", help="a prompt a line; .jsonl: an object with prompt or messages")
    group.add_argument("--chat", action="store_true", help="send prompts as messages of a chat")
    group.add_argument("--temperature", type=float, default=0.0, metavar="T", help="default: 0")
    group.add_argument(
        "--ignore-eos",
        action=argparse.BooleanOptionalAction,
        help="answers have their full length (default: with random prompts)",
    )
    group.add_argument(
        "--stream", action=argparse.BooleanOptionalAction, default=True, help="read answers as they come (default)"
    )
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of prompts and gaps (default: 0)")
    group = parser.add_argument_group("load")
    group.add_argument("--request-rate", type=float, default=math.inf, metavar="R", help="a second (default: inf)")
    group.add_argument("--concurrency", type=int, metavar="N", help="at most so many at a time (default: no bound)")
    group.add_argument("--warmup", type=int, default=1, metavar="N", help="requests that are not counted (default: 1)")
    group.add_argument("--timeout", type=float, default=600.0, metavar="S", help="seconds a request (default: 600)")
    group = parser.add_argument_group("figures")
    group.add_argument(
        "--goodput", nargs="+", default=[], metavar="NAME:MS", help="count what keeps these limits: ttft:500 tpot:50"
    )
    group.add_argument("--json", metavar="FILE", help="write the figures as JSON; -: to the output, without the table")
    group.add_argument("--plot", metavar="FILE", help="write requests and throughput over time as SVG")


def run(args: argparse.Namespace) -> int:
    """Send everything, wait for the answers, and report; 1 where not one request was answered."""
    tolerate_encoding()
    _check(args)
    result = asyncio.run(_measure(args, _limits(args.goodput)))
    if args.json != "-":
        print(result.text())
    if args.json:
        text = json.dumps(result.as_json(), indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n", encoding="utf-8")
    if args.plot:
        from dashinfer_lite.cli.bench_serve_plot import timeline_svg

        Path(args.plot).write_text(timeline_svg(result), encoding="utf-8")
    return 0 if result.answered else 1


async def _measure(args: argparse.Namespace, limits: dict[str, float]) -> Result:
    from dashinfer_lite.cli.bench_serve_http import Server
    from dashinfer_lite.cli.bench_serve_load import arrivals, run_load
    from dashinfer_lite.cli.bench_serve_result import Result
    from dashinfer_lite.cli.bench_serve_work import file_jobs, random_jobs

    server = Server(args.url, args.api_key or os.environ.get(KEY_VARIABLE), args.timeout)
    model = args.model or await server.first_model()
    fields = {"model": model, "temperature": args.temperature, "max_tokens": args.output_len}
    if args.ignore_eos if args.ignore_eos is not None else not args.prompts:
        fields["ignore_eos"] = True
    count = args.num_prompts
    if args.prompts:
        warm_up = jobs = file_jobs(Path(args.prompts), count, fields, args.chat)
    else:
        count = 100 if count is None else count
        both = await random_jobs(server, count + args.warmup, args.input_len, fields, args.chat, args.seed)
        warm_up, jobs = both[count:], both[:count]
    await run_load(server, warm_up[: args.warmup], [0.0] * args.warmup, args.stream, args.concurrency, lambda *_: None)
    times = arrivals(len(jobs), args.request_rate, args.seed)
    with ProgressBar("requests", amount=lambda amount: f"{amount:.0f}") as progress:
        outcomes = await run_load(server, jobs, times, args.stream, args.concurrency, progress)
    return Result(args.url, model, args.request_rate, args.concurrency, limits, outcomes)


def _check(args: argparse.Namespace) -> None:
    for option in ("num_prompts", "input_len", "output_len", "concurrency"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise RequestError(f"--{option.replace('_', '-')} is {value}; it must be at least 1")
    if args.warmup < 0:
        raise RequestError(f"--warmup is {args.warmup}; it must not be negative")
    if not args.request_rate > 0:
        raise RequestError(f"--request-rate is {args.request_rate}; it must be above 0, or inf")
    if not 0 < args.timeout < math.inf:
        raise RequestError(f"--timeout is {args.timeout}; it must be a number of seconds above 0")


def _limits(words: list[str]) -> dict[str, float]:
    """Seconds by name, of words such as ttft:500."""
    limits = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            limits[name] = float(value) / 1000
        except ValueError:
            limits[name] = math.nan
        if name not in LIMITS or not limits[name] > 0:
            raise RequestError(f"--goodput {word}: expected one of {', '.join(LIMITS)}, a colon, and milliseconds")
    return limits
