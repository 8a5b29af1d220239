"""How long a model folder takes to load, from the page cache, in a process of its own for every sample.

python tests/bench/bench_load.py MODEL MODEL-int4
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

from record import MOST_CONTENTION, add_json_option, recorder

from dashinfer_lite import LLM
from dashinfer_lite.cli.bench_meter import Contention
from dashinfer_lite.cli.terminal import table


def main() -> None:
    """Load the folders in turns and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", type=Path, metavar="FOLDER", help="Hugging Face folders, also quantized")
    parser.add_argument("--quant", help="quantize while loading")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--samples", type=int, default=3, help="of each folder (default: 3)")
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    add_json_option(parser)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(_load(args.models[0], args.quant, args.threads)))
        return
    for folder in args.models:
        _warm(folder)
    found = [[_child(folder, args) for folder in args.models] for _ in range(args.samples)]
    rows = []
    for folder, samples in zip(args.models, zip(*found, strict=True), strict=True):
        seconds, gb = [sample["seconds"] for sample in samples], samples[0]["bytes"] / 1e9
        contention = max(sample["contention"] for sample in samples)
        record = recorder(args.json, "load", model=folder.name, quant=samples[0]["quant"], tier=samples[0]["tier"])
        record.add("load", "s", seconds, contention, bytes=samples[0]["bytes"], threads=samples[0]["threads"])
        others = f"{contention:.1%}" + ("" if contention <= MOST_CONTENTION else " INVALID")
        rows.append([folder.name, f"{median(seconds):.2f}", f"{gb:.2f}", f"{gb / median(seconds):.2f}", others])
    print(table(["folder", "s", "GB of weights", "GB/s", "others"], rows))


def _warm(folder: Path) -> None:
    """Read every file once, so that the page cache has it."""
    for path in folder.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass


def _child(folder: Path, args: argparse.Namespace) -> dict[str, float]:
    """One sample in a new process."""
    command = [sys.executable, __file__, "--one", str(folder)]
    command += ["--quant", args.quant] if args.quant else []
    command += ["--threads", str(args.threads)] if args.threads else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def _load(folder: Path, quant: str | None, threads: int | None) -> dict[str, object]:
    """Load once; the package is imported already, what it imports itself counts."""
    others, begin = Contention(), time.perf_counter()
    with LLM(folder, quant=quant, threads=threads, progress=lambda done, total: True) as llm:
        seconds, contention, info = time.perf_counter() - begin, others.share() or 0.0, llm.info
    return {
        "seconds": seconds,
        "contention": contention,
        "bytes": info["weight_bytes"],
        "quant": str(info["quant"]),
        "tier": info["tier"],
        "threads": info["threads"],
    }


if __name__ == "__main__":
    main()
