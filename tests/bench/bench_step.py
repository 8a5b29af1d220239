"""One device step, without the engine: time by tokens and context, and by operation.

python tests/bench/bench_step.py --shape qwen2.5-0.5b --tokens 1 8 32 512 --context 128
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from contextlib import ExitStack
from pathlib import Path
from statistics import median

from record import Recorder, add_json_option, recorder
from steps import blocks_of, fill_cache, step_of
from work import Load

from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.cli.bench_engine import OpenEngine, folder_source, open_engine, random_source
from dashinfer_lite.cli.bench_meter import Contention, RoofProbe
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.loading import Options

MOST_SEQUENCES = 64


def main() -> None:
    """Measure and print a table, then the operations of the last step."""
    args = _arguments()
    options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache", "threads")})
    source = folder_source(Path(args.model), options) if args.model else random_source(args.shape or "tiny", options)
    loads = [
        Load(1, tokens, args.context + tokens)
        if args.prefill or tokens > MOST_SEQUENCES
        else Load(tokens, 1, args.context + 1)
        for tokens in args.tokens
    ]
    with ExitStack() as stack:
        opened = open_engine(
            source,
            stack,
            options,
            sequences=max(load.sequences for load in loads),
            context=max(load.context for load in loads),
        )
        info, program = opened.info, opened.program
        fill_cache(opened.executable, max(blocks_of(program, load) for load in loads))
        record = recorder(
            args.json, "step", model=source.name, dtype=opened.dtype, quant=str(source.quant), kv=program.kv.dtype,
            tier=info.tier, threads=info.threads,
        )  # fmt: skip
        rows = [_measure(opened, load, args.repeat, record) for load in loads]
        print(table(["sequences x tokens @context", "ms a step", "of the roof", "others"], rows))
        spent = _profile(opened, loads[-1], args.repeat)
        for name, samples in spent.items():
            record.add(f"{loads[-1]} {name}", "s", samples)
        print(table(["operation", "ms"], [[name, f"{1e3 * median(samples):.3f}"] for name, samples in spent.items()]))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES)
    parser.add_argument("--model")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--quant")
    parser.add_argument("--head")
    parser.add_argument("--kv-cache", default="auto")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--context", type=int, default=128, help="tokens that each sequence has before the step")
    parser.add_argument("--prefill", action="store_true", help="the tokens belong to one sequence, not to one each")
    parser.add_argument("--repeat", type=int, default=20)
    add_json_option(parser)
    return parser.parse_args()


def _measure(opened: OpenEngine, load: Load, repeat: int, record: Recorder) -> list[str]:
    """A row of the table."""
    cost, info = cost_of(opened.program, opened.info.head_align), opened.info
    probe = RoofProbe(info.threads, info.tier)
    step = step_of(opened.program, load)
    roofs, others, samples = probe.measure(), Contention(), []
    for _ in range(repeat):
        begin = time.perf_counter()
        opened.executable.wait(opened.executable.submit(step))
        samples.append(time.perf_counter() - begin)
    contention, seconds = others.share(), median(samples)
    operations = cost.prefill_operations(load.context) - cost.prefill_operations(load.context - load.tokens)
    operations += 2.0 * cost.head_weights
    read = cost.step_bytes(load.rows) + load.sequences * load.context * cost.kv_token_bytes
    share = max(
        (read / seconds / roofs.read, "read bandwidth"),
        (operations / seconds / roofs.matrix if load.tokens > 1 and roofs.matrix else 0.0, "matrix peak"),
    )
    record.add(str(load), "s", samples, contention, share=share[0], limit=share[1])
    return [str(load), f"{1e3 * seconds:.2f}", f"{share[0]:.0%} of {share[1]}", f"{contention or 0:.1%}"]


def _profile(opened: OpenEngine, load: Load, repeat: int) -> dict[str, list[float]]:
    """Seconds of each operation in some steps, the longest first."""
    profile = getattr(opened.executable, "profile", None)
    if profile is None:
        return {}
    step, spent = step_of(opened.program, load), defaultdict(list)
    profile(True)
    for _ in range(repeat):
        before = opened.executable.stats()
        opened.executable.wait(opened.executable.submit(step))
        for name, ns in opened.executable.stats().items():
            if name.startswith("ns_"):
                spent[name[3:]].append(1e-9 * (ns - before.get(name, 0)))
    profile(False)
    return dict(sorted(spent.items(), key=lambda item: -median(item[1])))


if __name__ == "__main__":
    main()
