"""A bar chart as SVG, written by hand: no drawing package, and the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

COLORS = {"ours": "#2563eb", "given": "#94a3b8", "peer": "#cbd5e1"}
INK, PALE = "#0f172a", "#64748b"
WIDTH, LEFT, RIGHT, TOP, ROW, BAR = 860, 210, 90, 54, 30, 20


class Bar(NamedTuple):
    """One bar: a value, the range of its rounds, and a kind that gives the color."""

    label: str
    value: float
    least: float
    most: float
    kind: str


def bars(title: str, rows: Sequence[Bar], note: str) -> str:
    """Return horizontal bars with their values and ranges, a title above and a note below."""
    height = TOP + ROW * len(rows) + 40
    scale = (WIDTH - LEFT - RIGHT) / max((row.most for row in rows), default=1)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="system-ui, sans-serif" font-size="14">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="28" font-size="16" font-weight="600" fill="{INK}">{escape(title)}</text>',
        *(_bar(row, TOP + ROW * i, scale) for i, row in enumerate(rows)),
        f'<text x="16" y="{height - 14}" font-size="10" fill="{PALE}">{escape(note)}</text>',
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _bar(row: Bar, top: float, scale: float) -> str:
    end, middle = LEFT + row.value * scale, top + BAR / 2
    low, high = LEFT + row.least * scale, LEFT + row.most * scale
    return "\n".join(
        (
            f'<text x="{LEFT - 10}" y="{middle + 5:g}" text-anchor="end" fill="{INK}">{escape(row.label)}</text>',
            f'<rect x="{LEFT}" y="{top:g}" width="{end - LEFT:.1f}" height="{BAR}" fill="{COLORS[row.kind]}"/>',
            f'<path d="M{low:.1f} {middle:g}H{high:.1f}" stroke="{INK}" stroke-width="1.5"/>',
            f'<text x="{high + 8:.1f}" y="{middle + 5:g}" fill="{INK}">{row.value:,.0f}</text>',
        )
    )
