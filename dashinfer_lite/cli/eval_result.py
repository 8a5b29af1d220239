"""What an evaluation found: a table, JSON, and how to read them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.eval_stats import Paired, compare, mean_interval
from dashinfer_lite.cli.terminal import size, table

if TYPE_CHECKING:
    from dashinfer_lite.cli.eval_data import Item
    from dashinfer_lite.cli.eval_run import Run

HEADER = ("mode", "weights", "KV/token", "tok/s", "items right", "difference", "perplexity", "same top-1", "KL")
LEGEND = """\
weights and KV/token: memory. tok/s: decoding one sequence, on this machine as it was just now.
difference: of the items right to those of {reference}, item by item, in percentage points, with its 95 % interval;
an interval that holds 0: the items do not tell them apart.
same top-1: how often the most likely next token is that of {reference}.
KL: mean divergence from {reference} in nats a token, over the full vocabulary at {kept} of {positions} positions."""


@dataclass(frozen=True, slots=True)
class Line:
    """A mode beside the reference; what compares is None for the reference itself."""

    name: str
    weight_bytes: int
    kv_token_bytes: int
    tokens_per_s: float | None
    right: int
    items: int
    tasks: dict[str, tuple[int, int]]
    paired: Paired | None
    nll: float
    nll_difference: float | None
    nll_interval: float | None
    top1: float | None
    kl: float | None
    kl_interval: float | None
    kl_99: float | None

    @property
    def perplexity(self) -> float:
        return math.exp(min(self.nll, 700.0))

    @classmethod
    def of(cls, run: Run, items: Sequence[Item], reference: Run | None) -> Line:
        """Compare a run with the reference's; None: it is the reference."""
        total = Counter(item["task"] for item in items)
        right = Counter(item["task"] for item, is_right in zip(items, run.right, strict=True) if is_right)
        text = run.text
        compared: dict[str, Any] = dict.fromkeys(
            ("paired", "nll_difference", "nll_interval", "top1", "kl", "kl_interval", "kl_99")
        )
        if reference is not None:
            if items:
                compared["paired"] = compare(reference.right, run.right)
            compared["nll_difference"], compared["nll_interval"] = mean_interval(
                (text.nll - reference.text.nll).tolist()
            )
            compared["top1"] = float((text.best == reference.text.best).mean())
            assert text.kl is not None
            compared["kl"], compared["kl_interval"] = mean_interval(text.kl.tolist())
            compared["kl_99"] = float(sorted(text.kl)[math.ceil(0.99 * len(text.kl)) - 1])
        return cls(
            name=run.name,
            weight_bytes=run.weight_bytes,
            kv_token_bytes=run.kv_token_bytes,
            tokens_per_s=run.tokens_per_s,
            right=sum(run.right),
            items=len(items),
            tasks={task: (right[task], count) for task, count in total.items()},
            nll=float(text.nll.mean()),
            **compared,
        )

    def cells(self) -> list[str]:
        """The line of the table."""
        paired = self.paired
        return [
            self.name,
            size(self.weight_bytes),
            size(self.kv_token_bytes),
            "-" if self.tokens_per_s is None else f"{self.tokens_per_s:.1f}",
            f"{self.right} of {self.items}" if self.items else "-",
            f"{100 * paired.difference:+.1f} [{100 * paired.low:+.1f}, {100 * paired.high:+.1f}]" if paired else "-",
            f"{self.perplexity:.4f}",
            "-" if self.top1 is None else f"{self.top1:.2%}",
            "-" if self.kl is None else f"{self.kl:.6f}",
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values; units stand in the names."""
        tasks = {task: {"right": right, "items": count} for task, (right, count) in self.tasks.items()}
        return asdict(self) | {"perplexity": self.perplexity, "tasks": tasks}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """All modes of a model; the first line is the reference."""

    model: str
    device: str
    version: str
    text_name: str
    window: int
    positions: int
    kept: int
    lines: list[Line]

    @property
    def title(self) -> str:
        return f"{self.model}: quantization beside {self.lines[0].name}"

    @property
    def subtitle(self) -> str:
        items = f", {self.lines[0].items} items" if self.lines[0].items else ""
        return (
            f"{self.positions} tokens of {self.text_name} in windows of {self.window}{items}; {self.device}, "
            f"dashinfer-lite {self.version}"
        )

    def text(self) -> str:
        """The table, what stands above it, and how to read it."""
        legend = LEGEND.format(reference=self.lines[0].name, kept=self.kept, positions=self.positions)
        return "\n".join(
            [self.title, self.subtitle, "", table(HEADER, [line.cells() for line in self.lines]), "", legend]
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values; the first mode is the reference."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "lines"}
        return plain | {"reference": self.lines[0].name, "modes": [line.as_json() for line in self.lines]}
