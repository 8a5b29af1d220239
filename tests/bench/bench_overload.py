"""What a server gets done when twice as much is asked of it as it can do.

python tests/bench/bench_overload.py --seconds 8

First as many clients as it computes at once ask again and again: saturation. Then requests come at random at twice the
rate of answers that this gave; those that are refused with 429 stay away. Goodput is what is answered to its end a second,
counted while the load lasts. Both are done in turn, and the server shares this machine with its clients.
"""

from __future__ import annotations

import argparse
import random
from statistics import median
from typing import Any

from record import add_json_option, recorder
from served import Served, Visit, serving, visit
from traffic import prompt

from dashinfer_lite.cli.terminal import table

Figures = dict[tuple[str, str], float]


def main() -> None:
    """Serve, load, and tell."""
    args = _arguments()
    options = ["--max-batch", str(args.batch), "--max-waiting", str(args.waiting)]
    record = recorder(args.json, "overload", model=args.model or "tiny_chat", batch=args.batch, tokens=args.tokens)
    samples: list[Figures] = []
    with serving(*options, *([args.model] if args.model else [])) as served:
        visit(served.port, _visits(args, [0.0] * 8, seed=0))  # the first touch of everything
        for number in range(args.samples):
            samples.append(_sample(served, args, 2 * number + 1))
    rows = []
    for name, unit in samples[0]:
        values = [sample[name, unit] for sample in samples]
        record.add(name, unit, values)
        rows.append([name, f"{median(values):.4g}", f"{min(values):.4g} - {max(values):.4g}", unit])
    print(table([f"prompts of {args.prompt}, answers of {args.tokens} tokens", "median", "min - max", "unit"], rows))


def _sample(served: Served, args: argparse.Namespace, seed: int) -> Figures:
    most = _saturation(served, args, seed)
    draw, times = random.Random(seed), [0.0]
    while times[-1] < args.seconds:
        times.append(times[-1] + draw.expovariate(args.factor * most))
    visits = _visits(args, times, seed + 1)
    visit(served.port, visits)
    statuses = {one.status for one in visits}
    if not statuses <= {200, 429} or any(one.status == 200 and not one.is_complete for one in visits):
        raise SystemExit(f"some answers broke off: {statuses}")
    # While the queue fills nothing is late yet, and when no more come there is no overload: neither end counts.
    begin, end = args.seconds / 4, args.seconds
    done = [one for one in visits if one.is_complete and begin <= (one.end or 0) < end]
    goodput = len(done) / (end - begin)
    refused = [one for one in visits if one.status == 429]
    waits = sorted((one.first or 0) - one.begin for one in done)
    return {
        ("saturation", "requests/s"): most,
        ("goodput", "requests/s"): goodput,
        ("of saturation", "%"): 100 * goodput / most,
        ("asked", "requests/s"): len(visits) / args.seconds,
        ("refused", "%"): 100 * len(refused) / len(visits),
        ("refusal", "ms"): 1e3 * median((one.end or 0) - one.begin for one in refused) if refused else 0.0,
        ("TTFT median", "ms"): 1e3 * median(waits),
        ("TTFT slowest", "ms"): 1e3 * waits[-1],
    }


def _saturation(served: Served, args: argparse.Namespace, seed: int) -> float:
    """Answers a second with a full batch all the time, and one more batch in the queue."""
    count = round(args.seconds * args.guess)
    visits = _visits(args, [0.0] * count, seed)
    visit(served.port, visits, most=2 * args.batch)
    ends = sorted(one.end or 0 for one in visits)
    # From the end of the first batch to when the last one begins to thin out.
    first, last = args.batch, count - 2 * args.batch
    args.guess = (last - first) / (ends[last] - ends[first])
    return float(args.guess)


def _visits(args: argparse.Namespace, times: list[float], seed: int) -> list[Visit]:
    return [Visit(_body(args, seed * 100_003 + number), begin) for number, begin in enumerate(times)]


def _body(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    ids = [token % args.vocabulary for token in prompt(args.prompt, seed)]
    return {"prompt": ids, "max_tokens": args.tokens, "temperature": 0, "ignore_eos": True, "stream": True}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="default: the demo model")
    parser.add_argument("--factor", type=float, default=2.0, help="of the load over saturation")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each load")
    parser.add_argument("--guess", type=float, default=60.0, help="answers a second, to begin with")
    parser.add_argument("--batch", type=int, default=16, help="sequences that are computed together")
    parser.add_argument("--waiting", type=int, default=32, help="requests that may wait")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--vocabulary", type=int, default=4000, help="prompts are drawn from these ids")
    parser.add_argument("--samples", type=int, default=2)
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
