"""Draws decode speed against context length as an SVG, without a library."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from html import escape

from core.benchmark.result import Benchmark, Spread

_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 64, 56
_COLOURS = ("#0b66c3", "#c2410c", "#15803d", "#7e22ce", "#a16207", "#be185d")
_STYLE = "font-family:system-ui,sans-serif;font-size:13px"


def decode_chart(result: Benchmark) -> str:
    """An SVG document: medians as lines, with bars from the slowest to the fastest run, and the device's limit.

    The horizontal axis is logarithmic, the vertical one starts at 0. The limit is left out if it is more than twice the
    highest measurement.
    """
    contexts = [length.context for length in result.lengths]
    sides: dict[str, list[Spread]] = {"core": [length.speed.decode for length in result.lengths]}
    for place, peer in enumerate(result.peers):
        sides[peer.name] = [length.peers[place].decode for length in result.lengths]
    limits = [length.decode_limit for length in result.lengths]
    highest = max(spread.max for spreads in sides.values() for spread in spreads)
    shows_limit = max(limits) <= 2 * highest
    scale = _Scale(contexts, max(highest, *limits) if shows_limit else highest)
    parts = [*_frame(result, scale, contexts)]
    if shows_limit:
        parts += _line([(scale.x(c), scale.y(v)) for c, v in zip(contexts, limits, strict=True)], "#888", dashed=True)
    for colour, spreads in zip(itertools.cycle(_COLOURS), sides.values(), strict=False):
        points = [(scale.x(c), scale.y(s.median)) for c, s in zip(contexts, spreads, strict=True)]
        parts += _line(points, colour)
        for (x, y), spread in zip(points, spreads, strict=True):
            parts.append(
                f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{scale.y(spread.min):.1f}" y2="{scale.y(spread.max):.1f}" '
                f'stroke="{colour}"/><circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>'
            )
    legend = [
        *zip(sides, itertools.cycle(_COLOURS), strict=False),
        *([("limit of the bandwidth", "#888")] if shows_limit else []),
    ]
    at = float(_LEFT)
    for name, colour in legend:
        parts.append(f'<rect x="{at}" y="42" width="10" height="10" fill="{colour}"/>' + _text(at + 15, 51, name))
        at += 40 + 7.2 * len(name)
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" style="{_STYLE}">\n<rect width="100%" height="100%" fill="white"/>\n{body}\n</svg>\n'
    )


class _Scale:
    """Converts tokens and speeds to points."""

    def __init__(self, contexts: Sequence[int], highest: float) -> None:
        self._low, self._high = math.log2(min(contexts)), math.log2(max(contexts))
        step = 10 ** math.floor(math.log10(highest / 4))
        self.step = next(step * factor for factor in (1, 2, 5, 10) if highest <= step * factor * 5)
        self.top = math.ceil(highest / self.step) * self.step

    def x(self, context: int) -> float:
        span = self._high - self._low
        share = (math.log2(context) - self._low) / span if span else 0.5
        return _LEFT + 16 + share * (_WIDTH - _LEFT - _RIGHT - 32)

    def y(self, speed: float) -> float:
        return _HEIGHT - _BOTTOM - speed / self.top * (_HEIGHT - _TOP - _BOTTOM)


def _frame(result: Benchmark, scale: _Scale, contexts: Sequence[int]) -> list[str]:
    subject, machine = result.subject, result.machine
    title = f"{subject.name}, {'random weights, ' if subject.random else ''}{machine.device}"
    parts = [_text(_LEFT, 26, title, size=15)]
    for number in range(round(scale.top / scale.step) + 1):
        value = number * scale.step
        y = scale.y(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 8, y + 4, f"{value:,g}", anchor="end"))
    below = _HEIGHT - _BOTTOM + 20
    parts += [_text(scale.x(context), below, f"{context:,}", anchor="middle") for context in contexts]
    parts.append(_text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 12, "tokens of context", anchor="middle"))
    middle = (_TOP + _HEIGHT - _BOTTOM) / 2
    turned = f'transform="rotate(-90 18 {middle})"'
    return [*parts, _text(18, middle, "decode, tokens a second", anchor="middle", more=turned)]


def _line(points: Sequence[tuple[float, float]], colour: str, *, dashed: bool = False) -> list[str]:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>']


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 13, more: str = "") -> str:
    shown = escape("".join(c for c in text if c.isprintable()))
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {more}>{shown}</text>'
