"""What a server gets done when twice as much is asked of it as it can do.

python tests/bench/bench_overload.py --pairs 10 --seconds 1.2

Requests come at random without a pause: for a while a little more of them than the server can answer, which is
saturation, then twice as many as it can, and so on in turn. Who is refused with 429 stays away; who is let in stays to
the end, so all tokens that are generated are of use. The server shares this machine with its clients.
"""

from __future__ import annotations

import argparse
import random
import threading
import time
from itertools import pairwise
from statistics import fmean, median
from typing import Any

from record import add_json_option, recorder
from served import Served, Visit, serving, visit
from traffic import prompt

from dashinfer_lite.cli.terminal import table

ENOUGH = 1.2  # of what it can answer: the queue is always full


def main() -> None:
    """Serve, load, and tell."""
    args = _arguments()
    options = ["--max-batch", str(args.batch), "--max-waiting", str(args.waiting)]
    with serving(*options, *([args.model] if args.model else [])) as served:
        visit(served.port, _visits(args, [0.0] * 8, seed=0))  # the first touch of everything
        rates = _phases(served, args, _capacity(served, args))
    ratios = [over / fmean((before, after)) for before, over, after in zip(rates, rates[1:], rates[2:], strict=False)]
    figures = {
        ("saturation", "tokens/s"): rates[::2],
        (f"at {args.factor:g} times as much", "tokens/s"): rates[1::2],
        ("goodput", "% of saturation"): [100 * ratio for ratio in ratios[::2]],
        **args.seen,
    }
    record = recorder(args.json, "overload", model=args.model or "tiny_chat", batch=args.batch, tokens=args.tokens)
    for (name, unit), values in figures.items():
        record.add(name, unit, values)
    rows = [
        [name, f"{median(values):.4g}", f"{min(values):.4g} - {max(values):.4g}", unit]
        for (name, unit), values in figures.items()
    ]
    print(table([f"prompts of {args.prompt}, answers of {args.tokens} tokens", "median", "min - max", "unit"], rows))


def _phases(served: Served, args: argparse.Namespace, capacity: float) -> list[float]:
    """Tokens a second of each phase: saturation, more, saturation, and so on; the queue is full from the beginning."""
    draw, ends = random.Random(1), [args.seconds * (number + 1) for number in range(2 * args.pairs + 1)]
    times, at = [0.0] * (args.batch + args.waiting), 0.0
    begin = args.seconds / 2
    while at < begin + ends[-1]:
        is_more = at > begin and int((at - begin) / args.seconds) % 2 == 1
        times.append(at)
        at += draw.expovariate((args.factor if is_more else ENOUGH) * capacity / args.tokens)
    visits = _visits(args, times, seed=2)
    marks: list[tuple[float, float]] = []

    def mark() -> None:
        zero = time.perf_counter()
        for end in (0.0, *ends):
            time.sleep(max(0.0, begin + end - (time.perf_counter() - zero)))
            marks.append((time.perf_counter(), served.metrics()["generation_tokens_total"]))

    marker = threading.Thread(target=mark)
    marker.start()
    visit(served.port, visits)
    marker.join()
    if {one.status for one in visits} - {200, 429} or any(one.status == 200 and not one.is_complete for one in visits):
        raise SystemExit("some answers broke off")
    refused = [one for one in visits if one.status == 429]
    args.seen = {
        ("refused", "%"): [100 * len(refused) / len(visits)],
        ("until a refusal", "ms"): [1e3 * median((one.end or 0) - one.begin for one in refused)],
        ("TTFT of who is let in", "ms"): [1e3 * median(one.first - one.begin for one in visits if one.first)],
    }
    return [(count - old) / (at - since) for (since, old), (at, count) in pairwise(marks)]


def _capacity(served: Served, args: argparse.Namespace) -> float:
    """About how many tokens a second it generates with a full batch."""
    visits = _visits(args, [0.0] * (args.batch * 6), seed=1)
    visit(served.port, visits, most=2 * args.batch)
    visits.sort(key=lambda one: one.end or 0)
    first, *counted = visits[args.batch : -2 * args.batch]  # while the batch is full
    seconds = (counted[-1].end or 0) - (first.end or 0)
    return float(sum(one.body["max_tokens"] for one in counted) / seconds)


def _visits(args: argparse.Namespace, times: list[float], seed: int) -> list[Visit]:
    return [Visit(_body(args, seed * 100_003 + number), begin) for number, begin in enumerate(times)]


def _body(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    ids = [token % args.vocabulary for token in prompt(args.prompt, seed)]
    tokens = random.Random(seed).randint(args.tokens // 2, args.tokens * 3 // 2)  # or all would end at once
    return {"prompt": ids, "max_tokens": tokens, "temperature": 0, "ignore_eos": True, "stream": True}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="default: the demo model")
    parser.add_argument("--factor", type=float, default=2.0, help="of what it can answer")
    parser.add_argument("--pairs", type=int, default=10, help="times that more is asked")
    parser.add_argument("--seconds", type=float, default=1.2, help="of each load")
    parser.add_argument("--batch", type=int, default=16, help="sequences that are computed together")
    parser.add_argument("--waiting", type=int, default=32, help="requests that may wait")
    parser.add_argument("--tokens", type=int, default=256, help="of an answer, on average")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--vocabulary", type=int, default=4000, help="prompts are drawn from these ids")
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
