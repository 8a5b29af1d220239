"""Decoding one sequence on several tiers in turns: each tier's speed against the first one's.

python tests/bench/bench_tiers.py --shape qwen2.5-0.5b --weights bf16 a16w8 a16w4-g128 a8w8
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from statistics import median
from typing import TYPE_CHECKING

from record import MOST_CONTENTION, Recorder, add_json_option, recorder
from steps import blocks_of, fill_cache, step_of
from work import Load

from dashinfer_lite import _native
from dashinfer_lite.cli.bench_engine import OpenEngine, open_engine, random_source
from dashinfer_lite.cli.bench_meter import Contention, RoofProbe
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.loading import Options

if TYPE_CHECKING:
    from dashinfer_lite.devices.step import Step

IN_A_ROW = 4  # steps of a tier's turn; the first one is not counted


def main() -> None:
    """Measure one type of weights after the other and print a table of each."""
    runs = [name for name, usable, _ in _native.tiers() if usable]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--weights", nargs="+", default=["bf16", "a16w8", "a16w4-g128", "a8w8"], metavar="TYPE")
    parser.add_argument("--tiers", nargs="+", default=runs, choices=runs)
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--seconds", type=float, default=5, help="for each type of weights (default: 5)")
    add_json_option(parser)
    args = parser.parse_args()
    for weights in args.weights:
        with ExitStack() as stack:
            opened = {tier: _open(args, weights, tier, stack) for tier in args.tiers}
            _measure(args, weights, opened)


def _open(args: argparse.Namespace, weights: str, tier: str, stack: ExitStack) -> tuple[OpenEngine, Step]:
    """An engine on a tier, and a step of one token behind `context` others."""
    options = Options(isa=tier, threads=args.threads, quant=None if weights == "bf16" else weights)
    load = Load(1, 1, args.context + 1)
    opened = open_engine(random_source(args.shape, options), stack, options, sequences=1, context=load.context)
    fill_cache(opened.executable, blocks_of(opened.program, load))
    return opened, step_of(opened.program, load)


def _measure(args: argparse.Namespace, weights: str, opened: dict[str, tuple[OpenEngine, Step]]) -> None:
    threads = next(iter(opened.values()))[0].info.threads
    probe = RoofProbe(threads, args.tiers[-1])
    samples: dict[str, list[float]] = {tier: [] for tier in opened}
    reads, others, end = [probe.measure().read], Contention(), time.perf_counter() + args.seconds
    while time.perf_counter() < end:
        for tier, (engine, step) in opened.items():
            samples[tier] += _turn(engine, step)
        reads.append(probe.measure().read)
    contention, base, rows = others.share() or 0.0, median(samples[args.tiers[0]]), []
    for tier, seconds in samples.items():
        record: Recorder = recorder(
            args.json, "tiers", model=args.shape, weights=weights, tier=opened[tier][0].info.tier, threads=threads
        )  # fmt: skip
        share = base / median(seconds)
        record.add(f"decode @{args.context}", "s", seconds, contention, share=share, read=median(reads))
        valid = "" if contention <= MOST_CONTENTION else " INVALID"
        rows.append([f"{weights} {tier}", f"{1e3 * median(seconds):.2f}", f"{share:.0%}", f"{contention:.1%}{valid}"])
    print(table(["weights, tier", "ms a step", f"of {args.tiers[0]}", "others"], rows), flush=True)


def _turn(engine: OpenEngine, step: Step) -> list[float]:
    """Seconds of some steps, without the first."""
    seconds = []
    for _ in range(IN_A_ROW):
        begin = time.perf_counter()
        engine.executable.wait(engine.executable.submit(step))
        seconds.append(time.perf_counter() - begin)
    return seconds[1:]


if __name__ == "__main__":
    main()
