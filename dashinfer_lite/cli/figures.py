"""The one line of figures under an answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dashinfer_lite.cli.terminal import seconds, size

if TYPE_CHECKING:
    from dashinfer_lite.cli.options import Loaded
    from dashinfer_lite.outputs import RequestOutput


def figures(loaded: Loaded, output: RequestOutput) -> str:
    """Load time, time to the first token, tokens a second after it, tier, threads and the process's memory."""
    from dashinfer_lite import _native

    info = loaded.llm.device_info
    parts = [f"load {seconds(loaded.load_s)}"]
    if output.timings.ttft_s is not None:
        parts.append(f"first token {seconds(output.timings.ttft_s)}")
    rate = tokens_per_second(output)
    count = output.usage.completion_tokens
    tokens = f"{count} {'token' if count == 1 else 'tokens'}"
    parts.append(tokens if rate is None else f"{rate:.1f} tok/s ({tokens})")
    if output.usage.cached_tokens:
        parts.append(f"{output.usage.cached_tokens} of {output.usage.prompt_tokens} prompt tokens cached")
    parts.append(f"{info.name} {info.tier}")
    parts.append(f"{info.threads} {'thread' if info.threads == 1 else 'threads'}")
    parts.append(f"memory {size(_native.memory()[0])}")
    return "[" + " | ".join(parts) + "]"


def tokens_per_second(output: RequestOutput) -> float | None:
    """The rate after the first token; None where an answer is too short to have one."""
    first, total, count = output.timings.ttft_s, output.timings.total_s, output.usage.completion_tokens
    if first is None or total is None or count < 2 or total <= first:
        return None
    return (count - 1) / (total - first)
