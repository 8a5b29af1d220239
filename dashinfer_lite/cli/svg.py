"""Shapes of SVG, written by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape


def document(width: int, height: int, shapes: Sequence[str]) -> str:
    """A picture on white ground."""
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">\n'
        f'<rect width="{width}" height="{height}" fill="white"/>\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str, width: int = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def dot(x: float, y: float, colour: str) -> str:
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" fill="{colour}"/>'


def bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'


def text(x: float, y: float, words: str, size: int, colour: str = "black", anchor: str = "start") -> str:
    style = f'font-size="{size}" fill="{colour}" text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


def upright_text(x: float, y: float, words: str, size: int) -> str:
    """Words that run upwards, in the middle of y."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="middle" '
        f'transform="rotate(-90 {x} {y})">{escape(words)}</text>'
    )


class LogAxis:
    """A logarithmic axis over whole decades."""

    def __init__(self, values: Sequence[float], begin: float, end: float) -> None:
        self.low = 10.0 ** math.floor(math.log10(min(values)))
        self.high = max(10.0 ** math.ceil(math.log10(max(values) * 1.05)), self.low * 10)
        self._begin, self._end = begin, end

    def __call__(self, value: float) -> float:
        share = math.log10(value / self.low) / math.log10(self.high / self.low)
        return self._begin + share * (self._end - self._begin)

    def decades(self) -> list[float]:
        """Where its lines stand."""
        count = round(math.log10(self.high / self.low))
        return [self.low * 10.0**i for i in range(count + 1)]
