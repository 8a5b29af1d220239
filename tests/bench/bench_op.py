"""Every kernel alone, on a model's own shapes, as a share of what the machine can do.

python tests/bench/bench_op.py --shape qwen2.5-0.5b --roles qkv o gate_up down head --rows 1 8 32 512
python tests/bench/bench_op.py --roles attention --kv bf16 int8 uint4
python tests/bench/bench_op.py --json after.jsonl

Weights and KV cache are larger than the caches of a processor. What is compared (types of the weights or of the cache)
takes turns. The limit of an operation is the longer of reading its bytes at read bandwidth and doing its products at
matrix peak; activations count only where nothing else is read, and they may be faster than memory.
"""

from __future__ import annotations

import argparse
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING

from isolate import fill_slots, isolate
from record import MOST_CONTENTION, Recorder, add_json_option, recorder
from steps import GREEDY, blocks_of, fill_cache, step_of
from work import Load, Work, role_of, work_of

from dashinfer_lite import _native
from dashinfer_lite.cli.bench_meter import Contention, RoofProbe, Roofs
from dashinfer_lite.cli.bench_model import SHAPES, RandomWeights, shape_config, tensor_shapes
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.devices.native import NativeDevice
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.graph.quant import QuantPolicy
from dashinfer_lite.loading import DTYPES, KV_DTYPES
from dashinfer_lite.model_defs import find_model
from dashinfer_lite.sampling_params import SamplingParams
from dashinfer_lite.weights.loader import load_weights

if TYPE_CHECKING:
    from dashinfer_lite.devices import DeviceInfo
    from dashinfer_lite.devices.native import NativeExecutable
    from dashinfer_lite.devices.step import Step
    from dashinfer_lite.graph.program import Program

PRODUCTS = ("qkv", "o", "gate_up", "down", "head")
BY_ROW = ("embed", "rope_table", "rms_norm", "quantize", "rope_kv", "gather_rows")
EXPERTS = ("route", "expert_linear", "expert_sum")
ROLES = (*PRODUCTS, *EXPERTS, "attention", *BY_ROW, "sample")
MOST_SEQUENCES = 64  # with more rows they belong to one sequence
ALL_BYTES = 256 << 20  # of weights and cache that a step reads
FEW, MANY = 8, 512  # copies of an instruction
ATTENTION = (Load(1, 1, 4096), Load(8, 1, 4096), Load(1, 512, 512), Load(1, 512, 4096))
DRAWS = {
    "greedy": GREEDY,
    "top_p": SamplingParams(temperature=0.8, top_p=0.9),
    "logprobs": SamplingParams(temperature=0, logprobs=5),
}


@dataclass(slots=True)
class Case:
    """One operation in one step: where it runs, and what one call of it has to do."""

    name: str
    executable: NativeExecutable
    step: Step
    op: str
    copies: int
    work: Work
    has_matrix_unit: bool
    samples: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)
    contention: float = 0.0
    limit: str = ""

    def measure(self, probe: RoofProbe, least_s: float) -> None:
        """One sample: the median call of as many steps as fit."""
        roofs, others, end = probe.measure(), Contention(), time.perf_counter() + least_s
        calls = [self.call()]
        while time.perf_counter() < end:
            calls.append(self.call())
        self.samples.append(median(calls))
        self.limit, least = self._least(roofs)
        self.shares.append(least / self.samples[-1])
        self.contention = max(self.contention, others.share() or 0.0)

    def call(self) -> float:
        """Seconds of one of the calls in a step."""
        before = self.executable.stats().get(f"ns_{self.op}", 0)
        self.executable.wait(self.executable.submit(self.step))
        return 1e-9 * (self.executable.stats()[f"ns_{self.op}"] - before) / self.copies

    def _least(self, roofs: Roofs) -> tuple[str, float]:
        work = self.work
        if not work.streamed:
            return "read, by activations", work.touched / roofs.read
        read_s = work.streamed / roofs.read
        matrix_s = work.operations / roofs.matrix if roofs.matrix and self.has_matrix_unit else 0.0
        return ("matrix", matrix_s) if matrix_s > read_s else ("read", read_s)


class Opener:
    """Makes executables of a shape's operations on one device."""

    def __init__(self, shape: str, isa: str, threads: int | None) -> None:
        self._config = shape_config(shape) | {"num_hidden_layers": 1}
        self._shapes = tensor_shapes(self._config)
        self._device = NativeDevice(_native.cpu_capsule(), threads=threads or 0, isa=isa)

    @property
    def info(self) -> DeviceInfo:
        return self._device.info

    def close(self) -> None:
        self._device.close()

    def cases(self, role: str, weights: str, kv: str, loads: list[Load], stack: ExitStack) -> list[Case]:
        """A case for each load, all on one executable, which `stack` closes; none where the model has no such role."""
        program = self._program(weights, kv, max(loads, key=lambda load: load.sequences * load.context))
        instr = next((one for one in (*program.body, *program.tail) if role_of(program, one) == role), None)
        if instr is None:
            return []
        works = [work_of(program, instr, load) for load in loads]
        streamed = min(work.streamed for work in works)
        copies = min(max(FEW, int(ALL_BYTES / streamed)), MANY) if streamed else FEW
        if instr in program.tail:
            copies = 1
        program = isolate(program, role, copies)
        executable = self._device.create(program)
        stack.callback(executable.close)
        read = {part.name for weight in program.weights for part in weight.parts}
        reader = RandomWeights({name: self._shapes[name] for name in read})
        load_weights(program, reader, executable, threads=self.info.threads)
        if program.kv.layers:
            fill_cache(executable, max(blocks_of(program, load) for load in loads))
        fill_slots(executable, program, max(load.rows for load in loads))
        executable.profile(True)
        runs_on_matrix = weights not in ("fp32", "fp16") and (role != "attention" or kv != "fp32")
        kind = kv if role == "attention" else "" if role == "sample" else weights
        draws = DRAWS if role == "sample" else {"": GREEDY}
        return [
            Case(
                " ".join(filter(None, [role, kind, str(load), draw])), executable, step_of(program, load, params),
                instr.op, copies, work, runs_on_matrix,
            )
            for draw, params in draws.items()
            for load, work in zip(loads, works, strict=True)
        ]  # fmt: skip

    def _program(self, weights: str, kv: str, load: Load) -> Program:
        model = find_model(self._config["architectures"][0], self._config)
        config = model.config.from_dict(self._config, where="shape")
        dtype = DTYPES.get(weights, "bf16")
        quant = QuantPolicy.parse(None if weights in DTYPES else weights)
        blocks = load.sequences * -(-load.context // 32)
        return build(
            model.forward, config, self.info, dtype=dtype, kv_dtype=KV_DTYPES[kv], limits=Limits(), blocks=blocks,
            quant=quant,
        )  # fmt: skip


def loads_of(role: str, rows: list[int]) -> list[Load]:
    """The steps in which an operation is measured."""
    if role == "attention":
        return list(ATTENTION)
    if role in ("head", "sample", "gather_rows"):
        rows = [min(count, MOST_SEQUENCES) for count in rows]
    loads = [Load(count, 1, 128) if count <= MOST_SEQUENCES else Load(1, count, count) for count in rows]
    return list(dict.fromkeys(loads))


def groups_of(args: argparse.Namespace) -> list[list[tuple[str, str, str]]]:
    """(role, weights, KV cache) of what is measured; a group takes turns."""
    groups = []
    for role in args.roles:
        kinds = [(role, args.weights[0], kv) for kv in args.kv] if role == "attention" else []
        if role in (*PRODUCTS, *EXPERTS[1:], "quantize"):
            kinds = [(role, weights, args.kv[0]) for weights in args.weights]
        groups.append(kinds or [(role, args.weights[0], args.kv[0])])
    return groups


def report(cases: list[Case], record: Recorder, threads: int) -> None:
    """Print a group and record it."""
    rows = []
    for case in cases:
        seconds, work = median(case.samples), case.work
        moved = work.streamed or work.touched
        rows.append(
            [
                case.name,
                f"{1e6 * seconds:.1f}",
                f"{moved / seconds / 1e9:.1f}",
                f"{work.operations / seconds / 1e9:.0f}" if work.operations else "-",
                f"{median(case.shares):.0%} of {case.limit}"
                if case.work.streamed
                else f"{median(case.shares):.1f} x read",
                f"{work.tasks}",
                f"{case.contention:.1%}" + ("" if case.contention <= MOST_CONTENTION else " INVALID"),
            ]
        )
        record.add(
            case.name, "s", case.samples, case.contention, share=median(case.shares), limit=case.limit,
            streamed=work.streamed, touched=work.touched, operations=work.operations, tasks=work.tasks,
            parallel=work.parallel(threads),
        )  # fmt: skip
    print(table(["operation", "us a call", "GB/s", "GFLOP/s", "share", "tasks", "others"], rows), flush=True)


def ratios(cases: list[Case], kinds: list[str]) -> list[str]:
    """How long a call takes against the first kind of the same load."""
    by_name = {case.name: median(case.samples) for case in cases}
    lines = []
    for kind in kinds[1:]:
        for name, seconds in by_name.items():
            base = by_name.get(name.replace(f" {kind} ", f" {kinds[0]} "))
            if base is not None and f" {kind} " in name:
                lines.append(f"{name}: {seconds / base:.2f} x the time of {kinds[0]}")
    return lines


def main() -> None:
    """Measure group by group."""
    runs = [name for name, usable, _ in _native.tiers() if usable]
    types = [*DTYPES, "a16w8", "a16w8-g128", "a16w4", "a16w4-g128", "a16w4-g64", "a8w8"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="qwen2.5-0.5b")
    parser.add_argument("--roles", nargs="+", default=list(ROLES), choices=ROLES)
    parser.add_argument(
        "--weights", nargs="+", default=["bf16", "a16w8", "a16w4-g128", "a8w8"], choices=types, metavar="TYPE"
    )
    parser.add_argument("--kv", nargs="+", default=["bf16", "int8", "uint4"], choices=list(KV_DTYPES))
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 512])
    parser.add_argument("--isa", default=runs[0], choices=runs)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--samples", type=int, default=3, help="of each case (default: 3)")
    parser.add_argument("--seconds", type=float, default=0.3, help="a sample lasts (default: 0.3)")
    add_json_option(parser)
    args = parser.parse_args()
    with closing(Opener(args.shape, args.isa, args.threads)) as opener:
        info = opener.info
        probe = RoofProbe(info.threads, info.tier)
        record = recorder(args.json, "op", model=args.shape, tier=info.tier, threads=info.threads)
        for group in groups_of(args):
            with ExitStack() as stack:
                cases = []
                for role, weights, kv in group:
                    cases += opener.cases(role, weights, kv, loads_of(role, args.rows), stack)
                for _ in range(args.samples):
                    for case in cases:
                        case.measure(probe, args.seconds)
                if cases:
                    report(cases, record, info.threads)
                    print(*ratios(cases, args.kv if group[0][0] == "attention" else args.weights), "", sep="\n")


if __name__ == "__main__":
    main()
