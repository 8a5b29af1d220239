"""Measure throughput and latency, and how much of the machine's own limits they reach.

Beside every sample the read bandwidth of the memory and the peak of the matrix unit are measured with a thread team
like the engine's. A line is INVALID where other processes took over 5 % of the processors. --shape makes a model of a
real shape with random weights in memory; without it and without --model the embedded demo model is measured.
"""

from __future__ import annotations

import json
import time
from argparse import SUPPRESS, RawDescriptionHelpFormatter
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from dashinfer_lite import __version__
from dashinfer_lite.cli import bench_serve
from dashinfer_lite.cli.options import add_model_option, add_threads_option, add_type_options
from dashinfer_lite.cli.progress import ProgressBar
from dashinfer_lite.cli.terminal import tolerate_encoding
from dashinfer_lite.errors import RequestError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from dashinfer_lite.cli.bench_meter import RoofProbe
    from dashinfer_lite.cli.bench_result import Line, Result
    from dashinfer_lite.cli.bench_work import Bench, Workload

HELP = "throughput and latency, beside the machine's own limits"

SHAPES = (
    "tiny",
    "tiny-moe",
    "qwen2.5-0.5b",
    "qwen2.5-1.5b",
    "qwen2.5-7b",
    "llama-3.2-1b",
    "glm-4-1b",
    "qwen3-moe-1b",
)
LEAST_SAMPLE_S = 1.0
QUICK_PROBE_BYTES, QUICK_PROBE_ROUNDS = 64 << 20, 2_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what `bench` takes."""
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--shape", choices=SHAPES, metavar="SHAPE", help=f"random weights of this shape: {', '.join(SHAPES)}"
    )
    add_model_option(source)
    add_type_options(parser)
    add_threads_option(parser)
    parser.add_argument(
        "--kv-memory", metavar="SIZE", help="most memory for the KV cache (default: what the workloads need)"
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", help='only these workloads, such as "decode @128"')
    parser.add_argument("--samples", type=int, default=5, metavar="N", help="samples a workload (default: 5)")
    parser.add_argument("--quick", action="store_true", help="small and short: shows that it works, not how fast")
    parser.add_argument("--json", metavar="FILE", help="write the results as JSON; -: to the output, without the table")
    parser.add_argument("--plot", metavar="FILE", help="write the roofline as SVG")
    commands = parser.add_subparsers(metavar="serve", title="of a server instead")
    served = commands.add_parser(
        "serve",
        help=bench_serve.HELP,
        description=bench_serve.__doc__,
        formatter_class=RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    bench_serve.add_arguments(served)
    served.add_argument("--debug", action="store_true", default=SUPPRESS, help="show the traceback of an error")
    served.set_defaults(run=bench_serve.run)


def run(args: argparse.Namespace) -> int:
    """Load, measure one workload after the other, and report."""
    tolerate_encoding()
    if args.samples < 1:
        raise RequestError(f"--samples {args.samples}: expected at least 1")
    from dashinfer_lite.cli.bench_work import FULL, QUICK

    chosen = _chosen(QUICK if args.quick else FULL, args.only)
    result = _measure(args, chosen)
    if args.json != "-":
        print(result.text())
    if args.json:
        text = json.dumps(result.as_json(), indent=1)
        if args.json == "-":
            print(text)
        else:
            Path(args.json).write_text(text + "\n")
    if args.plot:
        from dashinfer_lite.cli.bench_plot import roofline_svg

        Path(args.plot).write_text(roofline_svg(result), encoding="utf-8")
    return 0


def _chosen(workloads: Sequence[Workload], only: Sequence[str] | None) -> list[Workload]:
    known = [workload.name for workload in workloads]
    for name in only or ():
        if name not in known:
            raise RequestError(f"--only {name!r}: there is no such workload; there are {', '.join(known)}")
    return [workload for workload in workloads if only is None or workload.name in only]


def _measure(args: argparse.Namespace, chosen: Sequence[Workload]) -> Result:
    from dashinfer_lite import _native
    from dashinfer_lite.cli.bench_cost import cost_of
    from dashinfer_lite.cli.bench_engine import folder_source, open_engine, random_source
    from dashinfer_lite.cli.bench_meter import PROBE_BYTES, PROBE_ROUNDS, RoofProbe
    from dashinfer_lite.cli.bench_result import Result
    from dashinfer_lite.cli.bench_work import Bench
    from dashinfer_lite.loading import Options, demo_model_folder, parse_size

    kv_memory = None if args.kv_memory is None else parse_size("--kv-memory", args.kv_memory)
    begin = time.perf_counter()
    with ExitStack() as stack:
        options = Options(**{name: getattr(args, name) for name in ("dtype", "quant", "head", "kv_cache", "threads")})
        if args.shape is not None:
            source = random_source(args.shape, options)
        else:
            source = folder_source(Path(args.model) if args.model else demo_model_folder(), options)
        with ProgressBar("loading") as progress:
            opened = open_engine(
                source,
                stack,
                options,
                sequences=max(workload.sequences for workload in chosen),
                context=max(workload.context for workload in chosen),
                kv_memory=kv_memory,
                progress=progress,
            )
        load_s = time.perf_counter() - begin
        info, program = opened.info, opened.program
        cost = cost_of(program, info.head_align)
        bench = Bench(opened.engine, opened.executable, cost, program.vocab_size)
        bench.decode(1, 16, 4)  # the first touch of everything
        memory = _native.memory()[0]
        sizes = (QUICK_PROBE_BYTES, QUICK_PROBE_ROUNDS) if args.quick else (PROBE_BYTES, PROBE_ROUNDS)
        probe = RoofProbe(info.threads, info.tier, *sizes)
        count, least_s = (1, 0.0) if args.quick else (args.samples, LEAST_SAMPLE_S)
        lines = [_line(workload, bench, probe, count, least_s) for workload in chosen]
        cpu = _native.cpu()
        return Result(
            model=source.name,
            dtype=opened.dtype,
            quant=str(source.quant),
            kv_dtype=program.kv.dtype,
            tier=info.tier,
            threads=info.threads,
            processor=cpu.get("model") or cpu.get("vendor", ""),
            packed_bytes=cost.packed_bytes,
            kv_token_bytes=cost.kv_token_bytes,
            load_s=load_s,
            memory_bytes=memory,
            version=__version__,
            lines=lines,
        )


def _line(workload: Workload, bench: Bench, probe: RoofProbe, count: int, least_s: float) -> Line:
    from dashinfer_lite.cli.bench_meter import take_samples
    from dashinfer_lite.cli.bench_result import Line

    with ProgressBar(workload.name.ljust(14), amount=lambda sample: f"{sample:.0f}") as progress:
        samples = take_samples(lambda: workload.run(bench), probe.measure, count, least_s, progress)
    return Line.of(workload.name, workload.roof, samples)
