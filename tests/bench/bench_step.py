"""One device step, without the engine: time by tokens and context, and by operation.

python tests/bench/bench_step.py --shape qwen2.5-0.5b --tokens 1 8 32 512 --context 128
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.cli.bench_engine import OpenEngine, folder_source, open_engine, random_source
from dashinfer_lite.cli.bench_meter import Contention, RoofProbe
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.devices.step import Step
from dashinfer_lite.engine.draw import Draw
from dashinfer_lite.loading import BLOCK_TOKENS, Options
from dashinfer_lite.sampling_params import SamplingParams

GREEDY = Draw(SamplingParams(temperature=0), 0, 0, (), [], 1, 2)


def prefill_step(opened: OpenEngine, tokens: int, context: int) -> Step:
    """A step that gives one sequence `tokens` more tokens after `context` that it has."""
    step = _step(opened, tokens + context)
    step.T, step.B, step.R = tokens, 1, 1
    step.tokens[:tokens] = range(100, 100 + tokens)
    step.positions[0, :tokens] = range(context, context + tokens)
    step.q_offset[1] = tokens
    step.kv_len[0] = context + tokens
    step.block_table[0] = range(step.max_blocks)
    step.logit_row[0] = tokens - 1
    return step


def decode_step(opened: OpenEngine, sequences: int, context: int) -> Step:
    """A step that gives each of some sequences one token after `context` that it has."""
    step = _step(opened, context + 1)
    step.T = step.B = step.R = sequences
    for b in range(sequences):
        step.tokens[b] = 100 + b
        step.positions[0, b] = context
        step.q_offset[b + 1] = b + 1
        step.kv_len[b] = context + 1
        step.block_table[b] = range(b * step.max_blocks, (b + 1) * step.max_blocks)
        step.logit_row[b] = b
    return step


def _step(opened: OpenEngine, tokens: int) -> Step:
    step = Step(opened.program.limits, -(-tokens // BLOCK_TOKENS), max_rows=64)
    step.position_rows = opened.program.position_rows
    step.sample[:] = GREEDY.record
    step.sample["slot"] = -1
    return step


def main() -> None:
    """Measure and print a table, then the operations of the last step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--head")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--context", type=int, default=128)
    parser.add_argument("--prefill", action="store_true", help="the tokens belong to one sequence, not to one each")
    parser.add_argument("--repeat", type=int, default=20)
    args = parser.parse_args()
    options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache", "threads")})
    source = folder_source(Path(args.model), options) if args.model else random_source(args.shape or "tiny", options)
    with ExitStack() as stack:
        most = max(args.tokens)
        is_prefill = args.prefill or most > 64
        opened = open_engine(
            source,
            stack,
            options,
            sequences=1 if args.prefill else min(most, 64),
            context=args.context + (most if is_prefill else 1) + 1,
        )
        cost = cost_of(opened.program, opened.info.head_align)
        probe = RoofProbe(opened.info.threads, opened.info.tier)
        rows = []
        for tokens in args.tokens:
            decodes = not args.prefill and tokens <= 64
            step = (decode_step if decodes else prefill_step)(opened, tokens, args.context)
            kind = f"{tokens} x 1" if decodes else f"1 x {tokens}"
            roofs, contention, samples = probe.measure(), Contention(), []
            for _ in range(args.repeat):
                begin = time.perf_counter()
                opened.executable.wait(opened.executable.submit(step))
                samples.append(time.perf_counter() - begin)
            seconds = median(samples)
            if decodes:
                share = cost.decode_bytes(tokens, args.context + 1) / seconds / roofs.read
            else:
                share = cost.prefill_operations(tokens) / seconds / roofs.matrix if roofs.matrix else float("nan")
                reading = cost.prefill_bytes(tokens) / seconds / roofs.read
                decodes, share = (True, reading) if reading > share else (False, share)
            roof = "read bandwidth" if decodes else "matrix peak"
            rows.append([kind, f"{1e3 * seconds:.2f}", f"{share:.0%} of {roof}", f"{contention.share() or 0:.1%}"])
        print(table(["sequences x tokens", "ms a step", "of the roof", "others"], rows))
        profile = getattr(opened.executable, "profile", None)
        if profile is not None:
            before = opened.executable.stats()
            profile(True)
            opened.executable.wait(opened.executable.submit(step))
            after = opened.executable.stats()
            spent = {name: after[name] - before.get(name, 0) for name in after if name.startswith("ns_")}
            order = sorted(spent.items(), key=lambda item: -item[1])
            print(table(["operation", "ms"], [[name[3:], f"{1e-6 * ns:.3f}"] for name, ns in order]))


if __name__ == "__main__":
    main()
