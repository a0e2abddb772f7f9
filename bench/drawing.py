"""Small SVG pictures of bars, marks and words, that can be read on a light and on a dark page.

Each has its colours in a style of its own, with others where the reader prefers a dark scheme
(Media Queries 5, prefers-color-scheme), and no background.
"""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

WIDTH = 720
FONT_SIZE = 12
_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #424a53 }
.faint { fill: #6e7781 }
.line { stroke: #8c959f; stroke-width: 1; fill: none }
.grid { stroke: #8c959f; stroke-opacity: 0.3; stroke-width: 1 }
.spread { stroke: #6e7781; stroke-width: 1.5 }
.c0 { fill: #3f83c9 } .c1 { fill: #d9822b } .c2 { fill: #3f9c75 } .c3 { fill: #9a6fc0 }
.s0 { stroke: #3f83c9 } .s1 { stroke: #d9822b } .series { stroke-width: 2; fill: none }
@media (prefers-color-scheme: dark) {
  text { fill: #c9d1d9 } .faint { fill: #8b949e } .spread { stroke: #c9d1d9 }
}
"""


class Drawing:
    """A picture of a certain height; coordinates in pixels, from the upper left corner."""

    def __init__(self, height: float, title: str) -> None:
        self._height = height
        self._title = title
        self._parts: list[str] = []

    def bar(self, x: float, y: float, width: float, height: float, colour: int = 0) -> None:
        """A rectangle in one of four colours; it can be seen, however short it is."""
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 1):.1f}" height="{height:.1f}" '
            f'rx="2" class="c{colour}"/>'
        )

    def dot(self, x: float, y: float, colour: int = 0) -> None:
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="c{colour}"/>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "line") -> None:
        """Of kind `line` (an axis), `grid`, or `spread`."""
        self._parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'
        )

    def path(self, points: Sequence[tuple[float, float]], colour: int = 0) -> None:
        words = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._parts.append(f'<polyline points="{words}" class="series s{colour}"/>')

    def text(
        self, x: float, y: float, words: str, anchor: str = "start", faint: bool = False
    ) -> None:
        """Words whose baseline is at `y`; `anchor` is start, middle or end."""
        kind = ' class="faint"' if faint else ""
        self._parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'
        )

    def svg(self) -> str:
        body = "\n".join(self._parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {self._height:.0f}" '
            f'role="img">\n<title>{escape(self._title)}</title>\n'
            f"<style>{_STYLE}</style>\n{body}\n</svg>\n"
        )


def ticks(most: float) -> list[float]:
    """Round numbers from 0 up to `most`, six or fewer of them. Raises ValueError: it is not
    above 0."""
    magnitude = 10.0 ** math.floor(math.log10(most / 5))
    step = next(m * magnitude for m in (1, 2, 5, 10) if m * magnitude >= most / 5)
    return [step * number for number in range(int(most / step) + 1)]
