"""The benchmark as a picture: the roofline with a dot for each workload, written as SVG by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from dashinfer_lite.cli.svg import LogAxis, bar, document, dot, line, text, upright_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dashinfer_lite.cli.bench_result import Line, Result

WIDTH, HEIGHT, LEFT, TOP, BOTTOM = 920, 460, 70, 60, 60
PLOT: Final = 460  # width of the roofline; the bars stand right of it
BARS: Final = 150
COLOURS: Final = {"read": "#2a6fbb", "matrix": "#c2571a", "": "#777777"}


def roofline_svg(result: Result) -> str:
    """Left: operations a second over operations a byte, under the two roofs. Right: the share of the roof."""
    lines = [one for one in result.lines if one.share is not None and one.operations and one.bytes_read]
    shapes = [text(LEFT, 28, result.title, 16), text(LEFT, 46, result.subtitle, 11, "#555555")]
    if lines:
        shapes += _roofline(lines) + _bars(lines)
    else:
        shapes.append(text(LEFT, TOP + 40, "no workload was measured against a roof", 13))
    return document(WIDTH, HEIGHT, shapes)


def _roofline(lines: Sequence[Line]) -> list[str]:
    read = max(one.roofs.read for one in lines)
    matrix = max(one.roofs.matrix for one in lines)
    points = [(one.operations / one.bytes_read, one.operations / one.seconds) for one in lines]
    ridge = matrix / read if read and matrix else None
    xs = LogAxis([x for x, _ in points] + ([ridge] if ridge else []), LEFT, LEFT + PLOT)
    ys = LogAxis([y for _, y in points] + ([matrix] if matrix else []), HEIGHT - BOTTOM, TOP)
    shapes = _frame(xs, ys)
    if read:
        top = matrix or ys.high
        begin = max(xs.low, ys.low / read)
        end = min(top / read, xs.high)
        shapes.append(line(xs(begin), ys(begin * read), xs(end), ys(end * read), COLOURS["read"], 2))
    if matrix:
        begin = min(max(ridge or xs.low, xs.low), xs.high)
        shapes.append(line(xs(begin), ys(matrix), xs(xs.high), ys(matrix), COLOURS["matrix"], 2))
    for i, (one, (x, y)) in enumerate(zip(lines, points, strict=True)):
        shapes.append(dot(xs(x), ys(y), COLOURS[one.roof]))
        shapes.append(text(xs(x) + 8, ys(y) + (16 if i % 2 else -2), one.name, 11))  # neighbours stay legible
    return shapes


def _bars(lines: Sequence[Line]) -> list[str]:
    left = LEFT + PLOT + 130
    shapes = [text(left, TOP + 10, "share of the roof", 12)]
    for i, one in enumerate(lines):
        y = TOP + 34 + 34 * i
        share = one.share or 0.0
        shapes.append(text(left - 8, y + 12, one.name, 11, anchor="end"))
        shapes.append(bar(left, y, BARS, 16, "#eeeeee"))
        shapes.append(bar(left, y, BARS * min(share, 1), 16, COLOURS[one.roof]))
        note = "" if one.is_valid else " (invalid)"
        shapes.append(text(left + BARS + 6, y + 12, f"{share:.0%}{note}", 11))
    return shapes


def _frame(xs: LogAxis, ys: LogAxis) -> list[str]:
    bottom = HEIGHT - BOTTOM
    shapes = []
    for x in xs.decades():
        shapes.append(line(xs(x), TOP, xs(x), bottom, "#dddddd", 1))
        shapes.append(text(xs(x), bottom + 16, f"{x:g}", 11, anchor="middle"))
    for y in ys.decades():
        shapes.append(line(LEFT, ys(y), LEFT + PLOT, ys(y), "#dddddd", 1))
        shapes.append(text(LEFT - 6, ys(y) + 4, f"{y / 1e9:g}", 11, anchor="end"))
    shapes.append(text(LEFT + PLOT / 2, bottom + 36, "operations a byte read", 12, anchor="middle"))
    shapes.append(upright_text(18, (TOP + bottom) / 2, "10⁹ operations a second", 12))
    return shapes
