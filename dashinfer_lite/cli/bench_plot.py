"""The benchmark as a picture: the roofline with a dot for each workload, written as SVG by hand."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.cli.bench_result import Line, Result

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 920, 460, 70, 60, 60
PLOT: Final = 460  # width of the roofline; the bars stand right of it
BARS: Final = 150
COLOURS: Final = {"read": "#2a6fbb", "matrix": "#c2571a", "": "#777777"}


def roofline_svg(result: Result) -> str:
    """Left: operations a second over operations a byte, under the two roofs. Right: the share of the roof."""
    lines = [line for line in result.lines if line.share is not None and line.operations and line.bytes_read]
    shapes = [_text(LEFT, 28, result.title, 16), _text(LEFT, 46, result.subtitle, 11, "#555555")]
    if lines:
        shapes += _roofline(lines) + _bars(lines)
    else:
        shapes.append(_text(LEFT, TOP + 40, "no workload was measured against a roof", 13))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">\n'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _roofline(lines: Sequence[Line]) -> list[str]:
    read = max(line.roofs.read for line in lines)
    matrix = max(line.roofs.matrix for line in lines)
    points = [(line.operations / line.bytes_read, line.operations / line.seconds) for line in lines]
    ridge = matrix / read if read and matrix else None
    xs = _Axis([x for x, _ in points] + ([ridge] if ridge else []), LEFT, LEFT + PLOT)
    ys = _Axis([y for _, y in points] + ([matrix] if matrix else []), HEIGHT - BOTTOM, TOP)
    shapes = _frame(xs, ys)
    if read:
        top = matrix or ys.high
        begin = max(xs.low, ys.low / read)
        end = min(top / read, xs.high)
        shapes.append(_line(xs(begin), ys(begin * read), xs(end), ys(end * read), COLOURS["read"], 2))
    if matrix:
        begin = min(max(ridge or xs.low, xs.low), xs.high)
        shapes.append(_line(xs(begin), ys(matrix), xs(xs.high), ys(matrix), COLOURS["matrix"], 2))
    for i, (line, (x, y)) in enumerate(zip(lines, points, strict=True)):
        shapes.append(f'<circle cx="{xs(x):.1f}" cy="{ys(y):.1f}" r="5" fill="{COLOURS[line.roof]}"/>')
        shapes.append(_text(xs(x) + 8, ys(y) + (16 if i % 2 else -2), line.name, 11))  # neighbours stay legible
    return shapes


def _bars(lines: Sequence[Line]) -> list[str]:
    left = LEFT + PLOT + 130
    shapes = [_text(left, TOP + 10, "share of the roof", 12)]
    for i, line in enumerate(lines):
        y = TOP + 34 + 34 * i
        share = line.share or 0.0
        shapes.append(_text(left - 8, y + 12, line.name, 11, anchor="end"))
        shapes.append(f'<rect x="{left}" y="{y}" width="{BARS}" height="16" fill="#eeeeee"/>')
        shapes.append(
            f'<rect x="{left}" y="{y}" width="{BARS * min(share, 1):.1f}" height="16" fill="{COLOURS[line.roof]}"/>'
        )
        note = "" if line.is_valid else " (invalid)"
        shapes.append(_text(left + BARS + 6, y + 12, f"{share:.0%}{note}", 11))
    return shapes


class _Axis:
    """A logarithmic axis over whole decades."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = 10.0 ** math.floor(math.log10(min(values)))
        self.high = max(10.0 ** math.ceil(math.log10(max(values) * 1.05)), self.low * 10)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self._begin + share * (self._end - self._begin)

    def decades(self) -> list[float]:
        count = round(math.log10(self.high / self.low))
        return [self.low * 10.0**i for i in range(count + 1)]


def _frame(xs: _Axis, ys: _Axis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    shapes = []
    for x in xs.decades():
        shapes.append(_line(xs(x), TOP, xs(x), bottom, "#dddddd", 1))
        shapes.append(_text(xs(x), bottom + 16, f"{x:g}", 11, anchor="middle"))
    for y in ys.decades():
        shapes.append(_line(LEFT, ys(y), LEFT + PLOT, ys(y), "#dddddd", 1))
        shapes.append(_text(LEFT - 6, ys(y) + 4, f"{y / 1e9:g}", 11, anchor="end"))
    shapes.append(_text(LEFT + PLOT / 2, bottom + 36, "operations a byte read", 12, anchor="middle"))
    shapes.append(
        f'<text x="18" y="{(TOP + bottom) / 2}" font-size="12" text-anchor="middle" '
        f'transform="rotate(-90 18 {(TOP + bottom) / 2})">10⁹ operations a second</text>'
    )
    return shapes


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, size: int, colour: str = "black", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'
    )
