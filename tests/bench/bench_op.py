"""One product x[M,K] · w[N,K]ᵀ, by number of rows and tier, from weights that no cache holds.

python tests/bench/bench_op.py --n 4864 --k 896 --rows 1 8 32 512 --isa amx avx512
"""

from __future__ import annotations

import argparse
from statistics import median

from dashinfer_lite import _native
from dashinfer_lite.cli.bench_cost import cost_of
from dashinfer_lite.cli.bench_meter import Contention, RoofProbe
from dashinfer_lite.cli.bench_model import RandomWeights
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.devices import open_device
from dashinfer_lite.devices.step import Step
from dashinfer_lite.engine.draw import Draw
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.builder import Graph
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.loading import DTYPES
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.weights.loader import load_weights

VOCABULARY = 64
ALL_BYTES = 256 << 20  # of weights: far more than caches hold


def declare(g: Graph, sizes: tuple[int, int, int]) -> None:
    """Products of one input with many weights, summed; a small head and attention make it a model."""
    n, k, copies = sizes
    x = g.embed("embed", VOCABULARY, k)
    y = g.linear(x, "w0", n)
    for i in range(1, copies):
        y = y + g.linear(x, f"w{i}", n)
    q, kv = g.linear(x, "q", heads=(1, 32)), g.linear(x, "kv", heads=(1, 32))
    y = y + g.linear(g.attention(q, kv, kv), "o", n)
    g.logits(y, "head", VOCABULARY)


def measure(isa: str, dtype: str, n: int, k: int, all_rows: list[int], repeat: int) -> list[list[str]]:
    """Rows of the table for one tier."""
    copies = max(1, ALL_BYTES // (n * k * (4 if dtype == "fp32" else 2)))
    shapes = {f"w{i}.weight": (n, k) for i in range(copies)}
    shapes |= {"embed.weight": (VOCABULARY, k), "q.weight": (32, k), "kv.weight": (32, k), "o.weight": (n, 32)}
    weights = RandomWeights(shapes | {"head.weight": (VOCABULARY, n)})
    device = open_device("cpu", isa=isa)
    limits = Limits(max_tokens=max(all_rows))
    kind = DTYPES[dtype]
    program = build(
        declare, (n, k, copies), device.info, dtype=kind, kv_dtype="bf16", limits=limits, blocks=-(-max(all_rows) // 32)
    )
    executable = device.create(program)
    load_weights(program, weights, executable, threads=device.info.threads)
    cost = cost_of(program, device.info.head_align)
    probe = RoofProbe(device.info.threads, isa)
    executable.profile(True)
    draw = Draw(SamplingParams(temperature=0), 0, 0, (), [], 1, 2)
    table_rows = []
    for rows in all_rows:
        step = Step(limits, -(-rows // 32), max_rows=1)
        step.T, step.B, step.R = rows, 1, 1
        step.positions[0, :rows] = range(rows)
        step.q_offset[1] = step.kv_len[0] = rows
        step.block_table[0] = range(step.max_blocks)
        step.logit_row[0] = rows - 1
        step.sample[:] = draw.record
        step.sample["slot"] = -1
        roofs, others, samples = probe.measure(), Contention(), []
        for _ in range(repeat):
            before = executable.stats().get("ns_linear", 0)
            executable.wait(executable.submit(step))
            samples.append(1e-9 * (executable.stats()["ns_linear"] - before))
        seconds = median(samples)
        operations = 2.0 * cost.matmul_weights * rows
        matrix = f"{operations / seconds / roofs.matrix:.0%}" if roofs.matrix else "-"
        table_rows.append(
            [
                f"{isa} {dtype}",
                str(rows),
                f"{1e3 * seconds / copies:.3f}",
                f"{operations / seconds / 1e9:.0f}",
                f"{cost.linear_bytes / seconds / roofs.read:.0%}",
                matrix,
                f"{others.share() or 0:.1%}",
            ]
        )
    executable.close()
    device.close()
    return table_rows


def main() -> None:
    """Measure each tier that runs here."""
    runs = [name for name, usable, _ in _native.tiers() if usable]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=4864)
    parser.add_argument("--k", type=int, default=896)
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--isa", nargs="+", default=runs[:2], choices=runs)
    parser.add_argument("--dtype", nargs="+", default=["bf16"], choices=list(DTYPES))
    parser.add_argument("--repeat", type=int, default=10)
    args = parser.parse_args()
    rows = [
        row
        for isa in args.isa
        for dtype in args.dtype
        for row in measure(isa, dtype, args.n, args.k, args.rows, args.repeat)
    ]
    header = ["tier", "M", "ms a product", "GFLOP/s", "of read bandwidth", "of matrix peak", "others"]
    print(table(header, rows))


if __name__ == "__main__":
    main()
