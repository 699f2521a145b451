"""The report's plots, as SVG text that a page can hold: no drawing library, no fonts, the same bytes for the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

_WIDTH = 860
_LEFT = 270
_ROW = 16
_STYLE = 'font-family="sans-serif" font-size="11"'
GREEN, RED, GREY, BLUE = "#2b8a3e", "#c92a2a", "#868e96", "#1864ab"


def _frame(height: int, parts: Sequence[str], title: str) -> str:
    body = "".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" {_STYLE} role="img" '
        f'aria-label="{escape(title)}"><rect width="{_WIDTH}" height="{height}" fill="white"/>{body}</svg>'
    )


def delays(rows: Sequence[tuple[str, Sequence[int | None]]], *, title: str, most: int = 60) -> str:
    """One line per case, one dot per seed at the delay of its first alarm; a cross at the right end for a run that was missed."""
    scale = (_WIDTH - _LEFT - 60) / (most + 10)

    def x(delay: float) -> float:
        return round(_LEFT + 20 + (min(max(delay, -10), most) + 10) * scale, 1)

    height = 34 + _ROW * len(rows) + 22
    parts = [f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>']
    for tick in range(-10, most + 1, 10):
        parts.append(f'<line x1="{x(tick)}" x2="{x(tick)}" y1="26" y2="{height - 22}" stroke="{"#adb5bd" if tick == 0 else "#e9ecef"}"/>')
        word = f"≤{tick}" if tick == -10 else f"≥{tick}" if tick == most else str(tick)
        parts.append(f'<text x="{x(tick)}" y="{height - 8}" text-anchor="middle" fill="{GREY}">{word}</text>')
    for index, (name, values) in enumerate(rows):
        y = 34 + _ROW * index + _ROW // 2
        parts.append(f'<text x="{_LEFT}" y="{y + 4}" text-anchor="end">{escape(name)}</text>')
        for place, delay in enumerate(values):
            if delay is None:
                parts.append(f'<text x="{_WIDTH - 34 + 5 * place}" y="{y + 4}" fill="{RED}" font-weight="bold">×</text>')
            else:
                parts.append(f'<circle cx="{x(delay)}" cy="{y + 2 * (place % 3) - 2}" r="3.2" fill="{GREEN}" fill-opacity="0.65"/>')
    return _frame(height, parts, title)


def bars(rows: Sequence[tuple[str, float, float, float]], *, title: str, goal: float | None = None) -> str:
    """Horizontal bars from 0 to 1 with intervals: name, value, low, high; a dashed line at the goal."""
    room = _WIDTH - _LEFT - 110
    height = 30 + 22 * len(rows) + 8
    parts = [f'<text x="8" y="16" font-weight="bold">{escape(title)}</text>']
    for index, (name, value, low, high) in enumerate(rows):
        y = 30 + 22 * index
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LEFT}" y="{y + 2}" width="{room * value:.1f}" height="12" fill="{BLUE}" fill-opacity="0.75"/>')
        parts.append(f'<line x1="{_LEFT + room * low:.1f}" x2="{_LEFT + room * high:.1f}" y1="{y + 8}" y2="{y + 8}" stroke="black"/>')
        parts.append(f'<text x="{_LEFT + room + 12}" y="{y + 12}">{value:.0%}</text>')
    if goal is not None:
        x = _LEFT + room * goal
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="26" y2="{height - 6}" stroke="{RED}" stroke-dasharray="4 3"/>')
    return _frame(height, parts, title)
