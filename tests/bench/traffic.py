"""Requests of known lengths with fresh random prompts, and what their token times say."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from statistics import fmean, median, quantiles

FIRST_ID, LAST_ID = 300, 30_000  # of prompts: ordinary tokens in every large vocabulary
LENGTHS_SEED = 7  # the same lengths in every run


@dataclass(slots=True)
class Exchange:
    """A request: its prompt, the length of its answer, when it comes, and when its tokens came, in seconds."""

    prompt: list[int]
    answer: int
    begin: float = 0.0
    times: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return self.times[0] - self.begin

    @property
    def tpot_s(self) -> float:
        return (self.times[-1] - self.times[0]) / max(self.answer - 1, 1)


def prompt(length: int, seed: int) -> list[int]:
    """Random token ids; another seed is another prompt from the first token on, so that no prefix cache helps."""
    draw = random.Random(seed)
    return [draw.randrange(FIRST_ID, LAST_ID) for _ in range(length)]


def mixed(count: int, prompts: tuple[int, int], answers: tuple[int, int], seed: int) -> list[Exchange]:
    """Requests of many lengths; `seed` changes the tokens, not the lengths."""
    lengths = random.Random(LENGTHS_SEED)
    sizes = [(lengths.randint(*prompts), lengths.randint(*answers)) for _ in range(count)]
    return [Exchange(prompt(size, seed * 100_003 + i), answer) for i, (size, answer) in enumerate(sizes)]


def arrive(exchanges: list[Exchange], rate: float, seed: int) -> None:
    """Let them come at random, `rate` a second on average; 0: all at once."""
    draw, now = random.Random(seed), 0.0
    for exchange in exchanges:
        exchange.begin = now
        now += draw.expovariate(rate) if rate else 0.0


def figures(exchanges: list[Exchange]) -> dict[str, tuple[float, str]]:
    """Figure → (value, unit) of requests that are done."""
    ttft, tpot = [one.ttft_s for one in exchanges], [one.tpot_s for one in exchanges]
    return {
        "throughput": (sum(one.answer for one in exchanges) / max(one.times[-1] for one in exchanges), "tokens/s"),
        "TTFT mean": (fmean(ttft), "s"),
        "TTFT median": (median(ttft), "s"),
        "TTFT p95": (_p95(ttft), "s"),
        "TPOT mean": (fmean(tpot), "s"),
        "TPOT p95": (_p95(tpot), "s"),
    }


def _p95(values: list[float]) -> float:
    return quantiles(values, n=20, method="inclusive")[-1] if len(values) > 1 else values[0]
