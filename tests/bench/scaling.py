"""On paper: what a program would give on more cores and faster memory, and what stops it.

python tests/bench/scaling.py --shapes qwen2.5-0.5b qwen2.5-7b --weights bf16 a16w4-g128 --machines 16x300 48x450 96x600
python tests/bench/bench_op.py --json ops.jsonl && python tests/bench/scaling.py --ops ops.jsonl

An instruction takes as long as the slowest of these:
    its bytes at the memory's bandwidth;
    its bytes, its products and its activations at what one core does, times the threads' worth of work that its pieces
    allow at a time (work.py).
With --ops, products and attention are as far from their limits as they were measured, and operations on activations
take what a core took. To that come the barrier behind each instruction, a hop for each doubling of the cores, and the
host's part of the step. A model, not a promise: no clock that sinks with the cores, no second socket.
"""

from __future__ import annotations

import argparse
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from work import SPLIT, Load, Work, role_of, work_of

from dashinfer_lite.cli.bench_engine import random_source
from dashinfer_lite.cli.bench_model import SHAPES
from dashinfer_lite.cli.terminal import table
from dashinfer_lite.devices import open_device
from dashinfer_lite.graph.build import build
from dashinfer_lite.graph.program import Limits
from dashinfer_lite.loading import DTYPES, Options

if TYPE_CHECKING:
    from dashinfer_lite.graph.program import Program

LOADS = {
    "decode @128": Load(1, 1, 129),
    "decode @2048": Load(1, 1, 2049),
    "batch 32 @128": Load(32, 1, 129),
    "prefill 512": Load(1, 512, 512),
}
STREAMS = ("qkv", "o", "gate_up", "down", "head", "attention")


class Machine(NamedTuple):
    """Cores, and the bandwidth of all of them together in bytes a second."""

    cores: int
    read: float

    @classmethod
    def parse(cls, text: str) -> Machine:
        cores, _, gigabytes = text.partition("x")
        return cls(int(cores), 1e9 * float(gigabytes))


@dataclass(frozen=True, slots=True)
class Core:
    """What one core does: bytes and products a second, activations a second by operation; a barrier's hop in seconds.

    `reached` is the share of its limit that an operation reaches.
    """

    read: float
    matrix: float
    hop_s: float
    touch: float
    touches: dict[str, float] = field(default_factory=dict)
    reached: dict[str, float] = field(default_factory=dict)

    def seconds(self, role: str, work: Work, machine: Machine) -> float:
        """One instruction on a machine of such cores, without its barrier."""
        at_once = work.parallel(machine.cores)
        busy = max(work.streamed / machine.read, work.streamed / (at_once * self.read))
        busy = max(busy, work.operations / (at_once * self.matrix)) / self.reached.get(role, 1.0)
        return max(busy, work.touched / (at_once * self.touches.get(role, self.touch)))

    def least(self, work: Work, machine: Machine) -> float:
        """The same if it were cut into as many pieces as there are cores."""
        if not work.streamed:
            return 0.0
        return max(work.streamed / machine.read, work.operations / (machine.cores * self.matrix))


@dataclass(slots=True)
class Step:
    """Seconds of one step by what they are spent on, and how many of them perfect pieces would save."""

    spent: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    lost: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    limit: float = 0.0

    @property
    def seconds(self) -> float:
        return sum(self.spent.values())


def predict(program: Program, load: Load, core: Core, machine: Machine, host_s: float) -> Step:
    """One step of a program on a machine."""
    step = Step()
    barrier_s = core.hop_s * math.log2(machine.cores) if machine.cores > 1 else 0.0
    for instr in (*program.body, *program.tail):
        role, work = role_of(program, instr), work_of(program, instr, load)
        seconds, least = core.seconds(role, work, machine), core.least(work, machine)
        step.spent[role] += seconds
        step.lost[role] += seconds - least
        step.limit += least
        meets = instr.sync + (instr.op == "attention" and load.context > SPLIT)
        step.spent["barriers"] += meets * barrier_s
    step.lost["barriers"] = step.spent["barriers"]
    step.spent["host"] = step.lost["host"] = host_s
    return step


def program_of(shape: str, weights: str) -> Program:
    """A shape's program, without its weights."""
    options = Options(dtype=weights) if weights in DTYPES else Options(quant=weights)
    source = random_source(shape, options)
    device = open_device("cpu", threads=1)
    try:
        return build(
            source.forward, source.config, device.info, dtype=DTYPES.get(weights, "bf16"), kv_dtype="bf16",
            limits=Limits(), blocks=1, quant=source.quant,
        )  # fmt: skip
    finally:
        device.close()
        source.weights.close()


def measured(path: Path, weights: str, core: Core) -> Core:
    """The core as the lines of bench_op.py saw it: the shares of products and attention, the pace of the rest."""
    touches, reached = dict(core.touches), dict(core.reached)
    for row in path.read_text().splitlines():
        line = json.loads(row)
        role, kind = line["name"].split()[:2]
        if line.get("bench") != "op" or not line["valid"]:
            continue
        if role in STREAMS:
            if kind in (weights, "bf16") and (role == "attention" or kind == weights):
                reached[role] = max(reached.get(role, 0.0), min(line["share"], 1.0))
        elif "1 x 1 @" in line["name"]:  # one row is one core's work
            touches[role] = line["touched"] / line["value"]
    return Core(core.read, core.matrix, core.hop_s, core.touch, touches, reached)


def main() -> None:
    """Print a table for each shape and type of weights, then the tasks of each operation."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES[1:]))
    parser.add_argument("--weights", nargs="+", default=["bf16", "a16w4-g128"])
    parser.add_argument("--machines", nargs="+", default=["2x30", "16x300", "48x450", "96x600"], metavar="CORESxGB/S")
    parser.add_argument("--core-read", type=float, default=15.0, metavar="GB/S", help="of one core (default: 15)")
    parser.add_argument("--core-matrix", type=float, default=3.4, metavar="TFLOP/S", help="of one core (default: 3.4)")
    parser.add_argument("--core-touch", type=float, default=8.0, metavar="GB/S", help="of activations (default: 8)")
    parser.add_argument("--hop", type=float, default=0.5, metavar="US", help="of a barrier (default: 0.5)")
    parser.add_argument("--host", type=float, nargs=2, default=(0.25, 0.7), metavar="MS", help="at batch 1 and 32")
    parser.add_argument("--ops", type=Path, metavar="FILE", help="lines of bench_op.py to take measured figures from")
    args = parser.parse_args()
    machines = [Machine.parse(text) for text in args.machines]
    plain = Core(1e9 * args.core_read, 1e12 * args.core_matrix, 1e-6 * args.hop, 1e9 * args.core_touch)
    for shape in args.shapes:
        for weights in args.weights:
            program, core = program_of(shape, weights), plain
            if args.ops is not None:
                core = measured(args.ops, weights, plain)
            print(f"\n{shape}, {weights}")
            rows = []
            for name, load in LOADS.items():
                host_s = 1e-3 * (args.host[0] + (args.host[1] - args.host[0]) * (load.sequences - 1) / 31)
                rows += [
                    _row(name, load, machine, predict(program, load, core, machine, host_s)) for machine in machines
                ]
            print(table(["load", "cores", "GB/s", "ms", "tokens/s", "of the limit", "goes to"], rows))
            print(_tasks(program))


def _row(name: str, load: Load, machine: Machine, step: Step) -> list[str]:
    lost = sorted(step.lost.items(), key=lambda item: -item[1])[:4]
    return [
        name,
        str(machine.cores),
        f"{machine.read / 1e9:.0f}",
        f"{1e3 * step.seconds:.2f}",
        f"{load.rows / step.seconds:.0f}",
        f"{step.limit / step.seconds:.0%}",
        ", ".join(f"{what} {seconds / step.seconds:.0%}" for what, seconds in lost if seconds > 0.01 * step.seconds),
    ]


def _tasks(program: Program) -> str:
    """How many threads each operation can keep busy, by load."""
    roles: dict[str, list[str]] = {}
    for instr in (*program.body, *program.tail):
        works = [work_of(program, instr, load) for load in LOADS.values()]
        roles.setdefault(role_of(program, instr), [str(work.tasks) for work in works])
    meets = sum(instr.sync for instr in (*program.body, *program.tail))
    rows = [[role, *tasks] for role, tasks in roles.items()]
    return f"\n{table(['tasks', *LOADS], rows)}\n{meets} barriers a step"


if __name__ == "__main__":
    main()
