"""Line charts as SVG: small, sharp at any width, and without a script."""

import html
import math
from collections.abc import Mapping, Sequence

WIDTH, HEIGHT = 300, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 8, 24
COLORS = {"training": "#9a9a9a", "validation": "#1f5f8b"}


def chart(series: Mapping[str, Sequence[tuple[float, float]]], label: str) -> str:
    """Lines of (x, y) points, with ticks at round numbers; label: what it shows, for those who cannot see it."""
    xs, ys = zip(*(p for points in series.values() for p in points), strict=True)
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(ys), max(ys))
    low, high = min(x_ticks[0], min(xs)), max(xs)
    bottom, top = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low) / (high - low or 1)
        up = (y - bottom) / (top - bottom or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(label)}" font-size="11">']
    for y in y_ticks:
        _, height = place(low, y)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#e4e4e4"/>')
        parts.append(f'<text x="{LEFT - 5}" y="{height + 4:.1f}" text-anchor="end" fill="#5b5b5b">{number(y)}</text>')
    for x in x_ticks:
        if low <= x <= high:
            across, _ = place(x, bottom)
            parts.append(
                f'<text x="{across:.1f}" y="{HEIGHT - 6}" text-anchor="middle" fill="#5b5b5b">{number(x)}</text>'
            )
    for kind, points in series.items():
        placed = [place(*p) for p in points]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        color = COLORS.get(kind, "#444444")
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if kind == "validation" or len(points) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in placed]
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, number: int = 4) -> list[float]:
    """Round numbers over a range: 1, 2 or 5 times a power of ten apart."""
    if high <= low:
        high = low + (abs(low) or 1)
    rough = (high - low) / number
    power = 10 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick in few characters."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.0e}".replace("e+0", "e").replace("e-0", "e-")
    return f"{value:g}"
