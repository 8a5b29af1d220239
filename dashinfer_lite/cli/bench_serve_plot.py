"""A load test as a picture: a row for each request over time, and under them the pieces a second."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dashinfer_lite.cli.svg import bar, document, line, text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dashinfer_lite.cli.bench_serve_load import Outcome
    from dashinfer_lite.cli.bench_serve_result import Result

WIDTH, LEFT, RIGHT, TOP = 920, 70, 20, 86
ROWS: Final = 320  # height of all requests together
RATE: Final = 110  # height of the throughput
BINS: Final = 80
WAITING, WRITING, FAILED, GRID = "#f0c9a4", "#2a6fbb", "#b3261e", "#dddddd"


def timeline_svg(result: Result) -> str:
    """Above: requests as they began, one below the other, pale until the first token. Below: pieces a second."""
    outcomes = sorted(result.outcomes, key=lambda outcome: outcome.begin)
    start = outcomes[0].begin
    span = max(result.duration, 1e-9)

    def x(seconds: float) -> float:
        return LEFT + (seconds - start) / span * (WIDTH - LEFT - RIGHT)

    floor = TOP + ROWS + 36 + RATE
    figures = result.as_json()
    spread = "".join(
        f", {name.upper()} {figures[f'median_{name}_ms']:.1f} ms (p99 {figures[f'p99_{name}_ms']:.1f})"
        for name in ("ttft", "tpot")
        if figures[f"median_{name}_ms"] is not None
    )
    told = f"{figures['completed']} answered, {figures['output_throughput']:.1f} tokens/s{spread}"
    shapes = [text(LEFT, 28, result.title, 16), text(LEFT, 46, told, 11, "#555555"), *_legend()]
    for seconds in _ticks(span):
        shapes.append(line(x(start + seconds), TOP, x(start + seconds), floor, GRID))
        shapes.append(text(x(start + seconds), floor + 16, f"{seconds:g} s", 11, anchor="middle"))
    high = ROWS / len(outcomes)
    for i, outcome in enumerate(outcomes):
        shapes += _row(outcome, TOP + i * high, max(high * 0.8, 0.4), x)
    shapes += _rates(outcomes, start, span, floor)
    return document(WIDTH, floor + 28, shapes)


def _legend() -> list[str]:
    shapes = []
    for i, (words, colour) in enumerate((("to the first token", WAITING), ("writing", WRITING), ("failed", FAILED))):
        shapes.append(bar(LEFT + 150 * i, 58, 12, 12, colour))
        shapes.append(text(LEFT + 150 * i + 18, 68, words, 11))
    return shapes


def _row(outcome: Outcome, y: float, high: float, x: Callable[[float], float]) -> list[str]:
    begin, end = outcome.begin, outcome.begin + outcome.end
    if outcome.error is not None:
        return [bar(x(begin), y, max(x(end) - x(begin), 1), high, FAILED)]
    first = begin + (outcome.ttft if outcome.ttft is not None else outcome.end)
    waiting = bar(x(begin), y, x(first) - x(begin), high, WAITING)
    return [waiting, bar(x(first), y, x(end) - x(first), high, WRITING)]


def _rates(outcomes: Sequence[Outcome], start: float, span: float, floor: float) -> list[str]:
    """Bars over equal parts of the time, each as high as its share of the highest."""
    counts = [0] * BINS
    for outcome in outcomes:
        for piece in outcome.pieces:
            counts[min(int((outcome.begin + piece - start) / span * BINS), BINS - 1)] += 1
    top = max(counts)
    if not top:
        return [text(LEFT, floor - RATE / 2, "the answers were not streamed", 11, "#555555")]
    wide = (WIDTH - LEFT - RIGHT) / BINS
    shapes = [
        bar(LEFT + i * wide, floor - RATE * count / top, wide * 0.85, RATE * count / top, WRITING)
        for i, count in enumerate(counts)
    ]
    label = f"{top * BINS / span:.0f} /s"
    return [
        *shapes,
        text(LEFT + 4, floor - RATE - 10, "pieces of all streams", 11),
        line(LEFT, floor, WIDTH - RIGHT, floor, "black"),
        text(LEFT - 6, floor - RATE + 8, label, 11, anchor="end"),
    ]


def _ticks(span: float) -> list[float]:
    """Round seconds, at most ten of them."""
    step = 10.0 ** math.floor(math.log10(span))
    step *= next(factor for factor in (0.1, 0.2, 0.5, 1) if span / (step * factor) <= 10)
    return [round(step * i, 9) for i in range(int(span / step) + 1)]
