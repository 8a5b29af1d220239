"""What a load test found: the field's usual figures, as a table and as JSON under the field's usual names."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean, median, pstdev
from typing import TYPE_CHECKING, Any

from dashinfer_lite import __version__
from dashinfer_lite.cli.terminal import table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.cli.bench_serve_load import Outcome

TIMES = {
    "ttft": "Time to First Token",
    "tpot": "Time per Output Token, first one left out",
    "itl": "Inter-Token Latency",
    "e2el": "End-to-End Latency",
}
MOST_ERRORS = 5


@dataclass(frozen=True)
class Result:
    """A whole run; `limits` are those of goodput, in seconds by name."""

    url: str
    model: str
    request_rate: float
    concurrency: int | None
    limits: dict[str, float]
    outcomes: list[Outcome]

    @cached_property
    def answered(self) -> list[Outcome]:
        """The requests that came to their end."""
        return [outcome for outcome in self.outcomes if outcome.error is None]

    @cached_property
    def duration(self) -> float:
        """Seconds from the first request to the end of the last one."""
        begin = min(outcome.begin for outcome in self.outcomes)
        return max(outcome.begin + outcome.end for outcome in self.outcomes) - begin

    @cached_property
    def good(self) -> list[Outcome]:
        """The answered requests that kept every limit; a time that was not measured keeps none."""
        return [
            outcome
            for outcome in self.answered
            if all(max(_times(outcome, name), default=math.inf) <= limit for name, limit in self.limits.items())
        ]

    @property
    def title(self) -> str:
        rate = "all at once" if math.isinf(self.request_rate) else f"{self.request_rate:g} requests a second"
        most = "" if self.concurrency is None else f", at most {self.concurrency} at a time"
        return f"{self.model} at {self.url}: {len(self.outcomes)} requests, {rate}{most}"

    def times(self, name: str) -> list[float]:
        """All of ttft, tpot, itl or e2el, in seconds."""
        return [value for outcome in self.answered for value in _times(outcome, name)]

    def text(self) -> str:
        """The figures as tables."""
        figures = self.as_json()
        rows = [
            ["Successful requests", f"{figures['completed']:,}"],
            ["Failed requests", f"{figures['failed']:,}"],
            ["Benchmark duration (s)", f"{figures['duration']:.2f}"],
            ["Peak concurrent requests", f"{figures['max_concurrent_requests']:,}"],
            ["Total input tokens", f"{figures['total_input_tokens']:,}"],
            ["  of them cached", f"{figures['total_cached_tokens']:,}"],
            ["Total generated tokens", f"{figures['total_output_tokens']:,}"],
            ["Request throughput (req/s)", f"{figures['request_throughput']:.2f}"],
            ["Output token throughput (tok/s)", f"{figures['output_throughput']:.2f}"],
            ["Total token throughput (tok/s)", f"{figures['total_token_throughput']:.2f}"],
        ]
        if self.limits:
            share = len(self.good) / len(self.outcomes)
            rows.append(["Request goodput (req/s)", f"{figures['request_goodput']:.2f}"])
            rows.append([f"  within {self._limit_words()}", f"{share:.1%}"])
        spreads = [
            [words, *(f"{1e3 * value:.2f}" for value in (fmean(found), median(found), percentile(found, 99)))]
            for name, words in TIMES.items()
            if (found := self.times(name))
        ]
        parts = [self.title, "", table(["", ""], rows).split("\n", 2)[2]]
        if spreads:
            parts += ["", table(["milliseconds", "mean", "median", "p99"], spreads)]
        errors = Counter(outcome.error for outcome in self.outcomes if outcome.error is not None)
        parts += ["", *(f"failed: {count} x {words}" for words, count in errors.most_common(MOST_ERRORS))]
        return "\n".join(parts).rstrip()

    def as_json(self) -> dict[str, Any]:
        """Plain values; times are milliseconds, as their names say."""
        per_s = 1 / max(self.duration, 1e-9)
        prompt = sum(outcome.prompt_tokens for outcome in self.answered)
        output = sum(outcome.output_tokens for outcome in self.answered)
        figures: dict[str, Any] = {
            "version": __version__,
            "url": self.url,
            "model_id": self.model,
            "num_prompts": len(self.outcomes),
            "request_rate": "inf" if math.isinf(self.request_rate) else self.request_rate,
            "max_concurrency": self.concurrency,
            "completed": len(self.answered),
            "failed": len(self.outcomes) - len(self.answered),
            "duration": self.duration,
            "max_concurrent_requests": peak(self.outcomes),
            "total_input_tokens": prompt,
            "total_cached_tokens": sum(outcome.cached_tokens for outcome in self.answered),
            "total_output_tokens": output,
            "request_throughput": len(self.answered) * per_s,
            "output_throughput": output * per_s,
            "total_token_throughput": (prompt + output) * per_s,
        }
        if self.limits:
            figures["goodput_limits_ms"] = {name: 1e3 * limit for name, limit in self.limits.items()}
            figures["request_goodput"] = len(self.good) * per_s
        for name in TIMES:
            found = [1e3 * value for value in self.times(name)]
            figures[f"mean_{name}_ms"] = fmean(found) if found else None
            figures[f"median_{name}_ms"] = median(found) if found else None
            figures[f"std_{name}_ms"] = pstdev(found) if found else None
            figures[f"p99_{name}_ms"] = percentile(found, 99) if found else None
        figures["errors"] = [outcome.error for outcome in self.outcomes if outcome.error is not None]
        return figures

    def _limit_words(self) -> str:
        return ", ".join(f"{name} {1e3 * limit:g} ms" for name, limit in self.limits.items())


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` percent of the values lie, on a line between its two neighbours."""
    ordered = sorted(values)
    place = share / 100 * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def peak(outcomes: Sequence[Outcome]) -> int:
    """The most requests that were under way at once."""
    begins = [(outcome.begin, 1) for outcome in outcomes]
    ends = [(outcome.begin + outcome.end, -1) for outcome in outcomes]
    most = now = 0
    for _, step in sorted(begins + ends):
        now += step
        most = max(most, now)
    return most


def _times(outcome: Outcome, name: str) -> list[float]:
    if name == "itl":
        return outcome.itl
    value = {"ttft": outcome.ttft, "tpot": outcome.tpot, "e2el": outcome.end}[name]
    return [] if value is None else [value]
