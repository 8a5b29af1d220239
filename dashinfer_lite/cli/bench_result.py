"""What a benchmark found: one line a workload, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from dashinfer_lite.cli.bench_meter import Roofs, middle
from dashinfer_lite.cli.terminal import seconds, size, table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.cli.bench_meter import Sample

ROOF_NAMES = {"read": "read bandwidth", "matrix": "matrix peak", "": ""}


@dataclass(frozen=True, slots=True)
class Line:
    """A workload's medians. `share` is the part of its roof that it reached, by the roofs around each sample."""

    name: str
    roof: str
    rates: list[float]
    seconds: float
    bytes_read: float
    operations: float
    share: float | None
    ttft_s: float | None
    tpot_s: float | None
    host_s: float | None
    roofs: Roofs
    contention: float | None
    is_valid: bool

    @property
    def rate(self) -> float:
        return median(self.rates)

    @classmethod
    def of(cls, name: str, roof: str, samples: Sequence[Sample]) -> Line:
        """The medians of a workload's samples; valid only where all of them are."""
        values = [sample.value for sample in samples]
        roof = _binding(samples, roof)
        contention = [sample.contention for sample in samples if sample.contention is not None]
        return cls(
            name=name,
            roof=roof,
            rates=[value.rate for value in values],
            seconds=median(value.seconds for value in values),
            bytes_read=median(value.bytes_read for value in values),
            operations=median(value.operations for value in values),
            share=middle([_share(sample, roof) for sample in samples]),
            ttft_s=middle([value.ttft_s for value in values]),
            tpot_s=middle([value.tpot_s for value in values]),
            host_s=middle([value.host_s for value in values]),
            roofs=Roofs(median(s.roofs.read for s in samples), median(s.roofs.matrix for s in samples)),
            contention=max(contention) if contention else None,
            is_valid=all(sample.is_valid for sample in samples),
        )

    def cells(self) -> list[str]:
        """The line of the table."""
        spread = f"{min(self.rates):.1f} - {max(self.rates):.1f}"
        return [
            self.name,
            f"{self.rate:.1f}",
            spread,
            _or_dash(self.ttft_s, seconds),
            _or_dash(self.tpot_s, seconds),
            _or_dash(self.share, lambda share: f"{share:.0%} of {ROOF_NAMES[self.roof]}"),
            _or_dash(self.host_s, lambda host: f"{1e3 * host:.2f} ms"),
            _or_dash(self.contention, lambda share: f"{share:.1%}"),
            "" if self.is_valid else "INVALID",
        ]

    def as_json(self) -> dict[str, Any]:
        """Plain values; units stand in the names."""
        return {
            "name": self.name,
            "tokens_per_s": self.rate,
            "samples_tokens_per_s": self.rates,
            "ttft_s": self.ttft_s,
            "tpot_s": self.tpot_s,
            "host_s_per_step": self.host_s,
            "roof": self.roof or None,
            "share_of_roof": self.share,
            "bytes_read": self.bytes_read,
            "operations": self.operations,
            "seconds": self.seconds,
            "read_bytes_per_s": self.roofs.read,
            "matrix_operations_per_s": self.roofs.matrix,
            "contention": self.contention,
            "valid": self.is_valid,
        }


@dataclass(frozen=True, slots=True)
class Result:
    """A whole run."""

    model: str
    dtype: str
    quant: str
    kv_dtype: str
    tier: str
    threads: int
    processor: str
    packed_bytes: int
    kv_token_bytes: int
    load_s: float
    memory_bytes: int
    version: str
    lines: list[Line]

    @property
    def title(self) -> str:
        weights = self.dtype if self.quant == "none" else f"{self.quant} ({self.dtype})"
        return f"{self.model}, {weights} weights, {self.kv_dtype} KV cache"

    @property
    def subtitle(self) -> str:
        return f"{self.processor}, tier {self.tier}, {self.threads} threads, dashinfer-lite {self.version}"

    @property
    def is_valid(self) -> bool:
        return all(line.is_valid for line in self.lines)

    def text(self) -> str:
        """The table, what stands above it, and how to read it."""
        header = ["workload", "tok/s", "min - max", "TTFT", "a token", "of the roof", "host a step", "others", ""]
        return "\n".join(
            [
                self.title,
                self.subtitle,
                f"loaded in {seconds(self.load_s)}: {size(self.packed_bytes)} of weights, "
                f"{size(self.kv_token_bytes)} of KV cache a token; {size(self.memory_bytes)} resident",
                f"roofs: {self._roofs()}",
                "",
                table(header, [line.cells() for line in self.lines]),
                "",
                "Medians. `others`: the share of the processors that other processes took; over 5 % a line is invalid.",
            ]
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values; units stand in the names."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name != "lines"}
        return plain | {"valid": self.is_valid, "workloads": [line.as_json() for line in self.lines]}

    def _roofs(self) -> str:
        read = median(line.roofs.read for line in self.lines)
        matrix = median(line.roofs.matrix for line in self.lines)
        peak = f"{matrix / 1e12:.2f} Tera-operations a second in registers" if matrix else "no matrix unit"
        return f"{read / 1e9:.1f} GB/s read, {peak}"


def _binding(samples: Sequence[Sample], roof: str) -> str:
    """The roof of a workload: products wait for the weights where these take longer to read than to multiply."""
    waits = [
        sample.value.bytes_read * sample.roofs.matrix > sample.value.operations * sample.roofs.read
        for sample in samples
        if sample.roofs.matrix
    ]
    return "read" if roof == "matrix" and 2 * sum(waits) > len(waits) else roof


def _share(sample: Sample, roof: str) -> float | None:
    value, roofs = sample.value, sample.roofs
    if roof == "read" and roofs.read and value.bytes_read:
        return value.bytes_read / value.seconds / roofs.read
    if roof == "matrix" and roofs.matrix and value.operations:
        return value.operations / value.seconds / roofs.matrix
    return None


def _or_dash(value: float | None, show: Any) -> str:
    return "-" if value is None else str(show(value))
