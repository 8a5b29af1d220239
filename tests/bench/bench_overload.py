"""What a server gets done when twice as much is asked of it as it can do.

python tests/bench/bench_overload.py --tokens 256 96 48

For a while a crowd keeps the server's queue full without anybody being refused: that is saturation. Then requests come
at random, twice as many as were answered in that while; and so on in turn. Who is refused with 429 stays away, who is
let in stays to the end, so all tokens that are generated are of use. The server shares this machine with its clients,
whose processor time is told.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from itertools import count
from statistics import fmean, median
from typing import NamedTuple

from crowd import Crowd, Tally, message
from record import MOST_CONTENTION, add_json_option, recorder
from served import Served, serving
from traffic import prompt

from dashinfer_lite.cli.bench_meter import Contention
from dashinfer_lite.cli.terminal import table

WARM_UP_S = 0.7
MOST_TRIES = 1.5  # times as many as are wanted, where others disturb
PROCESSORS = os.cpu_count() or 1
Figures = dict[tuple[str, str], list[float]]


class Phase(NamedTuple):
    """One load: what its clients saw, tokens that were generated, the server's processor time, the others' share."""

    tally: Tally
    seconds: float
    tokens: float
    cpu_s: float
    contention: float

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def main() -> None:
    """Serve, load, and tell."""
    args = _arguments()
    options = ["--max-batch", str(args.batch), "--max-waiting", str(args.waiting)]
    with serving(*options, *([args.model] if args.model else [])) as served:
        for tokens in args.tokens:
            _tell(args, tokens, _figures(args, _phases(served, args, tokens)))


def _phases(served: Served, args: argparse.Namespace, tokens: int) -> list[tuple[Phase, Phase, Phase]]:
    """Saturation, more, saturation: as many times as is wanted, without those that others disturbed."""
    ready: list[bytes] = []
    fresh = (_message(args, tokens, tokens * 1_000_003 + number) for number in count())
    crowd = Crowd(served.port, lambda: ready.pop() if ready else next(fresh), not args.reconnect)
    most = args.batch + args.waiting - 1

    def measured(rate: float | None, seed: int = 0) -> Phase:
        contention, before, cpu_s, begin = Contention(), _generated(served), served.cpu_s, time.perf_counter()
        tally = crowd.keep(most, args.seconds) if rate is None else crowd.come(rate, args.seconds, seed)
        made, cpu_s, seconds = _generated(served) - before, served.cpu_s - cpu_s, time.perf_counter() - begin
        others = (contention.share() or 0.0) - cpu_s / seconds / PROCESSORS
        return Phase(tally, seconds, made, cpu_s, max(0.0, others))

    crowd.keep(most, WARM_UP_S)  # the first touch of everything, and sequences of all ages
    needed = (2 + args.factor) * args.pairs * measured(None).tokens / tokens
    ready += [next(fresh) for _ in range(round(needed))]
    crowd.keep(most, WARM_UP_S)
    found, old = [], measured(None)
    for number in range(round(MOST_TRIES * args.pairs)):
        full = measured(args.factor * old.speed / tokens, number)
        new = measured(None)
        if max(old.contention, full.contention, new.contention) <= MOST_CONTENTION:
            found.append((old, full, new))
        old = new
        if len(found) == args.pairs:
            break
    crowd.end()
    if not found:
        raise SystemExit("others use this machine")
    return found


def _figures(args: argparse.Namespace, turns: list[tuple[Phase, Phase, Phase]]) -> Figures:
    """Samples by name and unit; those of two loads have the load in their name."""
    more = f"at {args.factor:g} times as much"
    calm, full = [turn[2] for turn in turns], [turn[1] for turn in turns]
    figures: Figures = {
        ("saturation", "tokens/s"): [phase.speed for phase in calm],
        (more, "tokens/s"): [phase.speed for phase in full],
        ("goodput", "% of saturation"): [100 * now.speed / fmean((old.speed, new.speed)) for old, now, new in turns],
        ("saturation", "answers/s"): [phase.tally.answered / phase.seconds for phase in calm],
        ("refused", "/s"): [len(phase.tally.refusal_s) / phase.seconds for phase in full],
        ("until a refusal, in ticks of 2", "ms"): [
            1e3 * median(phase.tally.refusal_s) for phase in full if phase.tally.refusal_s
        ],
    }
    for name, phases in (("saturation", calm), (more, full)):
        figures |= {
            (f"TTFT, {name}", "ms"): [1e3 * median(phase.tally.ttft_s) for phase in phases if phase.tally.ttft_s],
            (f"server, {name}", "% of the machine"): [
                100 * phase.cpu_s / phase.seconds / PROCESSORS for phase in phases
            ],
            (f"clients, {name}", "% of the machine"): [
                100 * phase.tally.cpu_s / phase.seconds / PROCESSORS for phase in phases
            ],
        }
    figures["others", "% of the machine"] = [100 * max(phase.contention for phase in turn) for turn in turns]
    return figures


def _tell(args: argparse.Namespace, tokens: int, figures: Figures) -> None:
    common = {"batch": args.batch, "waiting": args.waiting, "prompt": args.prompt, "reconnect": args.reconnect}
    record = recorder(args.json, "overload", model=args.model or "tiny_chat", tokens=tokens, **common)
    contention = max(figures["others", "% of the machine"]) / 100
    rows = []
    for (name, unit), values in figures.items():
        record.add(name, unit, values, contention)
        rows.append([name, f"{median(values):.4g}", f"{min(values):.4g} - {max(values):.4g}", unit])
    print(table([f"prompts of {args.prompt}, answers of {tokens} tokens", "median", "min - max", "unit"], rows))


def _generated(served: Served) -> float:
    return served.metrics()["generation_tokens_total"]


def _message(args: argparse.Namespace, tokens: int, seed: int) -> bytes:
    ids = [token % args.vocabulary for token in prompt(args.prompt, seed)]
    length = random.Random(seed).randint(tokens // 2, tokens * 3 // 2)  # or all would end at once
    body = {"prompt": ids, "max_tokens": length, "temperature": 0, "ignore_eos": True, "stream": True}
    return message("/v1/completions", body, not args.reconnect)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", metavar="FOLDER", help="default: the demo model")
    parser.add_argument("--factor", type=float, default=2.0, help="of what it can answer")
    parser.add_argument("--pairs", type=int, default=12, help="times that more is asked")
    parser.add_argument("--seconds", type=float, default=0.5, help="of each load")
    parser.add_argument("--batch", type=int, default=16, help="sequences that are computed together")
    parser.add_argument("--waiting", type=int, default=32, help="requests that may wait")
    parser.add_argument("--tokens", type=int, nargs="+", default=[96], help="of an answer, on average")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--vocabulary", type=int, default=4000, help="prompts are drawn from these ids")
    parser.add_argument("--reconnect", action="store_true", help="each request opens a connection of its own")
    add_json_option(parser)
    return parser.parse_args()


if __name__ == "__main__":
    main()
