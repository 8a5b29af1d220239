"""An evaluation as a picture: divergence over memory, and the difference of right answers with its interval."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from dashinfer_lite.cli.svg import LogAxis, bar, document, dot, line, text, upright_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.cli.eval_result import Evaluation, Line

WIDTH: Final = 960
LEFT, TOP, BOTTOM, PLOT = 80, 60, 56, 440
ROW, BARS = 30, 200
POINT, INTERVAL, GRID = "#2a6fbb", "#c2571a", "#dddddd"
LEAST_KL: Final = 1e-7  # what rounding alone leaves


def evaluation_svg(evaluation: Evaluation) -> str:
    """Left: KL over the memory of the weights; further down and to the left is better. Right: right answers."""
    first, *lines = evaluation.lines
    height = max(420, TOP + BOTTOM + ROW * (len(lines) + 2))
    shapes = [text(LEFT, 28, evaluation.title, 16), text(LEFT, 46, evaluation.subtitle, 11, "#555555")]
    if lines:
        shapes += _scatter(lines, first, height)
    else:
        shapes.append(text(LEFT, TOP + 40, "there is nothing to compare", 13))
    if any(one.paired for one in lines):
        shapes += _intervals(lines)
    return document(WIDTH, height, shapes)


def _scatter(lines: Sequence[Line], first: Line, height: int) -> list[str]:
    bottom, right = height - BOTTOM, LEFT + PLOT
    most = max(one.weight_bytes for one in [first, *lines]) * 1.25
    ys = LogAxis([max(one.kl or 0.0, LEAST_KL) for one in lines], bottom, TOP)

    def x_of(nbytes: float) -> float:
        return LEFT + PLOT * nbytes / most

    shapes = []
    for value in ys.decades():
        shapes.append(line(LEFT, ys(value), right, ys(value), GRID))
        shapes.append(text(LEFT - 6, ys(value) + 4, f"{value:g}", 11, anchor="end"))
    for mebibytes in _ticks(most / 2**20):
        nbytes = mebibytes * 2**20
        shapes.append(line(x_of(nbytes), TOP, x_of(nbytes), bottom, GRID))
        shapes.append(text(x_of(nbytes), bottom + 16, f"{mebibytes:g}", 11, anchor="middle"))
    shapes.append(text(LEFT + PLOT / 2, bottom + 36, "MiB of weights", 12, anchor="middle"))
    shapes.append(upright_text(18, (TOP + bottom) / 2, f"KL from {first.name}, nats a token", 12))
    for i, one in enumerate(lines):
        x, y = x_of(one.weight_bytes), ys(max(one.kl or 0.0, LEAST_KL))
        shapes.append(dot(x, y, POINT))
        shapes.append(text(x + 8, y + (16 if i % 2 else -2), one.name, 11))  # neighbours stay legible
    return shapes


def _ticks(most: float) -> list[float]:
    """Round numbers from 0 to `most`: 1, 2 or 5 times a power of ten apart, five at the most."""
    step = 10.0 ** math.floor(math.log10(most / 5))
    step *= next(factor for factor in (1, 2, 5, 10) if most / (factor * step) <= 5)
    return [i * step for i in range(int(most / step) + 1)]


def _intervals(lines: Sequence[Line]) -> list[str]:
    left = LEFT + PLOT + 160
    shown = [(one.name, one.paired) for one in lines if one.paired]
    reach = max(max(abs(paired.low), abs(paired.high)) for _, paired in shown)
    middle, bottom = left + BARS / 2, TOP + ROW * (len(shown) + 1)
    shapes = [text(left, TOP + 10, "items right, percentage points, 95 %", 12)]
    shapes.append(line(middle, TOP + 20, middle, bottom, "#777777"))
    for i, (name, paired) in enumerate(shown):
        y = TOP + ROW * (i + 1) + 8
        low, high, at = (middle + BARS / 2 * value / reach for value in (paired.low, paired.high, paired.difference))
        shapes.append(text(left - 8, y + 4, name, 11, anchor="end"))
        shapes.append(bar(low, y - 2, high - low, 4, INTERVAL))
        shapes.append(dot(at, y, INTERVAL))
        shapes.append(text(left + BARS + 8, y + 4, f"{100 * paired.difference:+.1f}", 11))
    return shapes
