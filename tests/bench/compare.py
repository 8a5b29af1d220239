"""Two result files side by side: lines of JSON from the scripts here, or the document of `dashinfer-lite bench --json`.

python tests/bench/compare.py before.jsonl after.jsonl     (or: make bench-compare A=before.jsonl B=after.jsonl)

What several lines of a file say about the same figure is pooled, so append as many alternating runs as there are. A
change counts where it is beyond the noise: the larger spread (interquartile range over median) of the two, and 2 %.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from dashinfer_lite.cli.terminal import table

LEAST_NOISE, UNKNOWN_NOISE = 0.02, 0.1
KEYS = ("bench", "peer", "model", "dtype", "quant", "kv", "tier", "threads", "name", "unit")
MORE_IS_BETTER = ("tokens/s",)
Key = tuple[str, ...]


def figures_of(path: Path) -> dict[Key, list[float]]:
    """The valid samples of each figure in a file; ValueError says which line is no result."""
    text = path.read_text()
    figures: dict[Key, list[float]] = defaultdict(list)
    for line in _lines(text, str(path)):
        if line.get("valid", True):
            figures[tuple(str(line.get(key, "")) for key in KEYS)] += line["samples"]
    return dict(figures)


def compare(a: dict[Key, list[float]], b: dict[Key, list[float]]) -> list[list[str]]:
    """Rows of the table for the figures that both have: medians, B over A so that more is better, noise, verdict."""
    common = [key for key in a if key in b]
    # What all figures share says nothing in a row.
    shown = [i for i in range(len(KEYS)) if KEYS[i] == "name" or len({key[i] for key in common}) > 1]
    rows = []
    for key in common:
        before, after, unit = median(a[key]), median(b[key]), key[-1]
        gain = after / before if unit in MORE_IS_BETTER else before / after
        noise = max(LEAST_NOISE, spread(a[key]), spread(b[key]))
        verdict = "REGRESSION" if gain < 1 - noise else "better" if gain > 1 + noise else ""
        name = " ".join(filter(None, (key[i] for i in shown if KEYS[i] != "unit")))
        rows.append([name, f"{before:.4g}", f"{after:.4g}", unit, f"{gain:.3f}", f"{noise:.1%}", verdict])
    return rows


def spread(samples: list[float]) -> float:
    """The interquartile range over the median; of fewer than four samples their whole range, of one a guess."""
    if len(samples) < 2:
        return UNKNOWN_NOISE
    low, high = (min(samples), max(samples)) if len(samples) < 4 else quantiles(samples, n=4)[::2]
    return (high - low) / median(samples)


def _lines(text: str, where: str) -> list[dict[str, Any]]:
    try:
        document = json.loads(text)
    except ValueError:
        document = None
    if isinstance(document, dict) and "workloads" in document:
        return _workloads(document)
    lines = []
    for number, row in enumerate(text.splitlines(), 1):
        try:
            line = json.loads(row)
            lines.append({"samples": [line["value"]]} | line)
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{where}, line {number}: expected a figure with name, value and unit") from None
    return lines


def _workloads(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The workloads of `dashinfer-lite bench --json` as lines."""
    common = {key: document.get(key) for key in ("model", "dtype", "quant", "tier", "threads")}
    common |= {"bench": "bench", "kv": document.get("kv_dtype")}
    lines = []
    for workload in document["workloads"]:
        own = common | {"name": workload["name"], "valid": workload["valid"]}
        lines.append(own | {"unit": "tokens/s", "samples": workload["samples_tokens_per_s"]})
        for key, name in (("ttft_s", "TTFT"), ("tpot_s", "TPOT"), ("host_s_per_step", "host a step")):
            if workload.get(key):
                lines.append(own | {"name": f"{workload['name']}, {name}", "unit": "s", "samples": [workload[key]]})
    return lines


def main() -> int:
    """Print the table; 1 where something became slower."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("a", type=Path, metavar="A")
    parser.add_argument("b", type=Path, metavar="B")
    args = parser.parse_args()
    try:
        a, b = figures_of(args.a), figures_of(args.b)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    rows = compare(a, b)
    print(table(["figure", "A", "B", "unit", "B against A", "noise", ""], rows))
    alone = len(set(a) ^ set(b))
    print(f"\n{len(rows)} figures in both, {alone} in one only; above 1 B is faster, invalid samples are left out")
    return 1 if any(row[-1] == "REGRESSION" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
