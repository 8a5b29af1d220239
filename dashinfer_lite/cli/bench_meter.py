"""What a measurement needs beside its clock: the machine's roofs, and whether others were in the way."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

STAT = Path("/proc/stat")
PROBE_BYTES = 1 << 30  # read in 2 MB pages: far beyond every cache
PROBE_ROUNDS = 1_000_000  # some 20 ms: a clock that rises for a burst does not count
MOST_CONTENTION = 0.05  # the share of the machine that others may take before a sample is invalid


@dataclass(frozen=True, slots=True)
class Roofs:
    """What the machine can do at best: bytes read a second, matrix operations a second; 0 where it is not known."""

    read: float
    matrix: float


class RoofProbe:
    """Measures the roofs with a thread team like the engine's; the memory it reads stays mapped in between."""

    def __init__(self, threads: int, isa: str, nbytes: int = PROBE_BYTES, rounds: int = PROBE_ROUNDS) -> None:
        from dashinfer_lite import _native

        self._machine = _native.Machine(threads, isa)
        self._machine.map(nbytes)
        self._rounds = rounds

    def measure(self) -> Roofs:
        """One short measurement of each, a few tens of milliseconds in all."""
        return Roofs(self._machine.read_bandwidth(), self._machine.matrix_peak(self._rounds))


class Contention:
    """Which share of the machine's processors other processes took since this was made, stolen time included."""

    def __init__(self) -> None:
        self._begin_s = time.perf_counter()
        self._others_s = _others_s()

    def share(self) -> float | None:
        """From 0 to 1; None where the system does not count."""
        others_s = _others_s()
        if others_s is None or self._others_s is None:
            return None
        capacity_s = (time.perf_counter() - self._begin_s) * (os.cpu_count() or 1)
        return min(max((others_s - self._others_s) / max(capacity_s, 1e-9), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Sample:
    """One measurement: seconds, what was counted in them, the roofs around it, and the others' share of the machine."""

    value: Measured
    roofs: Roofs
    contention: float | None

    @property
    def is_valid(self) -> bool:
        return self.contention is not None and self.contention <= MOST_CONTENTION


@dataclass(frozen=True, slots=True)
class Measured:
    """What a workload did: seconds, tokens counted in them, and the work that needs at the least.

    `ttft_s` and `tpot_s` are means over its requests, `host_s` is the host's share of a step; None: no sense here.
    """

    seconds: float
    tokens: int
    bytes_read: float = 0.0
    operations: float = 0.0
    ttft_s: float | None = None
    tpot_s: float | None = None
    host_s: float | None = None

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds

    def __add__(self, other: Measured) -> Measured:
        return Measured(
            self.seconds + other.seconds,
            self.tokens + other.tokens,
            self.bytes_read + other.bytes_read,
            self.operations + other.operations,
            self._mean(self.ttft_s, other.ttft_s, other),
            self._mean(self.tpot_s, other.tpot_s, other),
            self._mean(self.host_s, other.host_s, other),
        )

    def _mean(self, mine: float | None, others: float | None, other: Measured) -> float | None:
        if mine is None or others is None:
            return None
        return (mine * self.tokens + others * other.tokens) / (self.tokens + other.tokens)


def take_samples(
    work: Callable[[], Measured],
    probe: Callable[[], Roofs],
    count: int,
    least_s: float,
    progress: Callable[[int, int], None],
) -> list[Sample]:
    """Take `count` samples, each between two measurements of the roofs, of which the higher counts; up to twice as
    many samples where some are invalid.

    A sample repeats the work until `least_s` have passed, because the system counts processor time in hundredths of a
    second. The valid ones are returned, or all where there are too few.
    """
    samples: list[Sample] = []
    before = probe()
    while len(samples) < 2 * count and sum(sample.is_valid for sample in samples) < count:
        progress(min(len(samples), count), count)
        others = Contention()
        value = work()
        while value.seconds < least_s:
            value += work()
        share = others.share()
        after = probe()
        # Whatever disturbs a probe lowers it: the better one is nearer to what the machine can do.
        roofs = Roofs(max(before.read, after.read), max(before.matrix, after.matrix))
        samples.append(Sample(value, roofs, share))
        before = after
        if share is None and len(samples) == count:
            break
    valid = [sample for sample in samples if sample.is_valid]
    return valid if len(valid) >= count else samples


def middle(values: Sequence[float | None]) -> float | None:
    """The median of what there is."""
    present = [value for value in values if value is not None]
    return median(present) if present else None


def _others_s() -> float | None:
    """Processor seconds that went to others since boot: all that were busy or stolen, less our own."""
    try:
        fields = [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    if len(fields) < 8 or not any(fields):
        return None
    user, nice, system, _, _, interrupts, soft_interrupts, stolen = fields[:8]
    busy_s = (user + nice + system + interrupts + soft_interrupts + stolen) / os.sysconf("SC_CLK_TCK")
    own = os.times()
    return busy_s - (own.user + own.system + own.children_user + own.children_system)
