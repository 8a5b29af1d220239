"""Counters of an engine."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(slots=True)
class Counters:
    """Totals since the engine was made; its owner alone writes them."""

    requests: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    computed_tokens: int = 0  # rows of steps: prompt and generated tokens without those from the prefix cache
    kv_blocks_swapped_out: int = 0  # copied to host memory when they were evicted
    kv_blocks_swapped_in: int = 0  # and back when their text was asked for again
    steps: int = 0
    turns: int = 0  # times the owner looked for work; an idle engine takes none

    def count_end(self, status: str) -> None:
        """Count a request by how it ended: "finished", "cancelled" or "failed"."""
        setattr(self, status, getattr(self, status) + 1)

    def snapshot(self, **gauges: int) -> dict[str, int]:
        """These and further numbers as a plain dict."""
        return {**asdict(self), **gauges}
