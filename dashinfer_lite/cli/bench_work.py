"""The workloads of the benchmark: requests with fresh prompts, run by pumping the engine step by step."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import TYPE_CHECKING, Final, NamedTuple

from dashinfer_lite.cli.bench_meter import Measured
from dashinfer_lite.sampling_params import SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable

    from dashinfer_lite.cli.bench_cost import Cost
    from dashinfer_lite.devices.base import Executable
    from dashinfer_lite.engine.engine import Engine

MIXED_SEED: Final = 7  # the same lengths in every run; the tokens are fresh


@dataclass(slots=True)
class Times:
    """When each token of each request came, in seconds since all were submitted, and the host's part of each step."""

    tokens: list[list[float]]
    host: list[float] = field(default_factory=list)

    @property
    def ttft_s(self) -> float:
        return fmean(times[0] for times in self.tokens)

    @property
    def tpot_s(self) -> float:
        return fmean((times[-1] - times[0]) / (len(times) - 1) for times in self.tokens if len(times) > 1)


class Bench:
    """An engine that nobody else drives, and the requests that load it."""

    def __init__(self, engine: Engine, executable: Executable, cost: Cost, vocab_size: int) -> None:
        self.cost = cost
        self._engine = engine
        self._executable = executable
        self._tokens = range(min(300, vocab_size // 2), min(30_000, vocab_size))
        self._prompts = 0

    def run(self, prompts: list[int], answers: list[int]) -> Times:
        """Submit prompts of these lengths at once and pump until each has its answer of the given length."""
        begin = time.perf_counter()
        requests = []
        for ids, answer in zip(map(self._prompt, prompts), answers, strict=True):
            params = SamplingParams(temperature=0.0, max_tokens=answer, ignore_eos=True)
            requests.append(self._engine.submit(ids, params))
        times = Times([[] for _ in requests])
        growing = [(request.samples[0].token_ids, seen) for request, seen in zip(requests, times.tokens, strict=True)]
        is_busy = True
        while is_busy:
            before = time.perf_counter()
            is_busy = self._engine.step()
            now = time.perf_counter()
            times.host.append(now - before - self._executable.stats()["last_step_ns"] * 1e-9)
            for token_ids, seen in growing:
                while len(seen) < len(token_ids):
                    seen.append(now - begin)
        for request in requests:
            request.result()  # raises what made it fail
        return times

    def prefill(self, tokens: int) -> Measured:
        """One prompt and the first token of its answer."""
        seconds = self.run([tokens], [1]).ttft_s
        cost = self.cost
        return Measured(seconds, tokens, cost.prefill_bytes(tokens), cost.prefill_operations(tokens), ttft_s=seconds)

    def decode(self, sequences: int, context: int, answer: int) -> Measured:
        """Answers of some sequences that have all seen their prompts; the first tokens do not count."""
        times = self.run([context] * sequences, [answer] * sequences)
        begin = max(seen[0] for seen in times.tokens)
        end = max(seen[-1] for seen in times.tokens)
        counted = sum(moment > begin for seen in times.tokens for moment in seen)
        steps = counted / sequences
        middle = context + answer / 2
        return Measured(
            end - begin,
            counted,
            steps * self.cost.decode_bytes(sequences, middle),
            steps * self.cost.decode_operations(sequences, middle),
            tpot_s=times.tpot_s,
            host_s=median(times.host[-max(1, int(steps)) :]),
        )

    def mixed(self, requests: int, prompts: tuple[int, int], answers: tuple[int, int]) -> Measured:
        """Requests of many lengths that all come at once."""
        lengths = random.Random(MIXED_SEED)
        times = self.run(
            [lengths.randint(*prompts) for _ in range(requests)], [lengths.randint(*answers) for _ in range(requests)]
        )
        seconds = max(seen[-1] for seen in times.tokens)
        return Measured(seconds, sum(map(len, times.tokens)), ttft_s=times.ttft_s, tpot_s=times.tpot_s)

    def _prompt(self, length: int) -> list[int]:
        """Token ids that no earlier prompt began with, so that the prefix cache finds nothing."""
        self._prompts += 1
        draw = random.Random(self._prompts * 7919)
        return [draw.choice(self._tokens) for _ in range(length)]


class Workload(NamedTuple):
    """A line of the benchmark: what bounds it ("read", "matrix" or nothing), the tokens and sequences that it needs."""

    name: str
    roof: str
    context: int
    sequences: int
    run: Callable[[Bench], Measured]


FULL: Final = (
    Workload("prefill 512", "matrix", 513, 1, lambda bench: bench.prefill(512)),
    Workload("prefill 2048", "matrix", 2049, 1, lambda bench: bench.prefill(2048)),
    Workload("decode @128", "read", 176, 1, lambda bench: bench.decode(1, 128, 48)),
    Workload("decode @2048", "read", 2080, 1, lambda bench: bench.decode(1, 2048, 32)),
    Workload("batch 8", "read", 192, 8, lambda bench: bench.decode(8, 128, 64)),
    Workload("batch 32", "read", 192, 32, lambda bench: bench.decode(32, 128, 64)),
    Workload("mixed 32", "", 640, 32, lambda bench: bench.mixed(32, (128, 512), (64, 128))),
)
# They say little about speed, but touch everything.
QUICK: Final = (
    Workload("prefill 64", "matrix", 65, 1, lambda bench: bench.prefill(64)),
    Workload("decode @32", "read", 40, 1, lambda bench: bench.decode(1, 32, 8)),
    Workload("batch 4", "read", 24, 4, lambda bench: bench.decode(4, 16, 8)),
    Workload("mixed 4", "", 40, 4, lambda bench: bench.mixed(4, (16, 32), (4, 8))),
)
