"""Draws pictures as SVG: a column for each NIC, from the guest at the top to the wire at the
bottom. A point that several NICs share (a bridge, the host's NIC) is one box below all of them.
Pure."""

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field

from tapwright.diagnosis import way, words
from tapwright.diagnosis.way import ERROR, WARNING, Complaint, Picture, Point, Way
from tapwright.errors import shown

STYLE = """
svg { --paper: #ffffff; --ink: #1a1f26; --faint: #667080; --line: #b4bcc8; --box: #f5f7fa;
  --good: #1a7f45; --warning: #9a6200; --error: #c62828; background: var(--paper);
  font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (prefers-color-scheme: dark) { svg { --paper: #14181d; --ink: #e3e8ee; --faint: #94a0b0;
  --line: #4a5563; --box: #1d232b; --good: #4cc27c; --warning: #e5a93b; --error: #ff6b60; } }
text { fill: var(--ink); white-space: pre; }
.head { font-weight: 600; } .title { font-weight: 600; font-size: 15px; }
.faint { fill: var(--faint); } .warning { fill: var(--warning); } .error { fill: var(--error); }
.good { fill: var(--good); }
rect { fill: var(--box); stroke: var(--line); stroke-width: 1.2; }
rect.warning { stroke: var(--warning); fill: var(--box); stroke-width: 2; }
rect.error { stroke: var(--error); fill: var(--box); stroke-width: 2; }
path { stroke: var(--line); stroke-width: 2; fill: none; } path.warning { stroke: var(--warning); }
""".strip()

_CHARACTERS, _CHARACTER = 44, 7.25  # of a line in a box of one column; width of each
_LINE, _PADDING = 16, 9
_WIDTH = round(_CHARACTERS * _CHARACTER) + 2 * _PADDING
_GAP, _MARGIN, _HEADING = 32, 20, 24
_SHARED = (way.PARENT, way.BRIDGE, way.OVS, way.GATEWAY, way.HOST_NIC)
_ORDER = (
    *(way.GUEST_NIC, way.QEMU_NIC, way.TAP, way.FILTERS, way.INTERFACE, way.PEER, way.PARENT),
    *(way.BRIDGE, way.GATEWAY, way.HOST_NIC),
)
_SAME_ROW = {way.SOCKET: way.TAP, way.OVS: way.BRIDGE}
_STEP = 100

_Line = tuple[str, str]  # text and class
_Key = tuple[str, ...]


@dataclass
class _Box:
    """A point in the drawing: its columns, its row and its lines."""

    row: int
    first: int
    last: int
    point: Point
    way: Way
    complaints: list[Complaint]
    lines: list[_Line] = field(default_factory=list)
    x: float = 0
    y: float = 0
    width: float = 0
    height: float = 0


@dataclass
class _Column:
    picture: Picture
    way: Way
    rows: list[int]
    boxes: list[_Box] = field(default_factory=list)


def svg(pictures: Sequence[Picture], with_heads: bool = True) -> str:
    """Return a whole SVG file; without headings if the page shows them beside the drawing."""
    return _Drawing(pictures, with_heads).text()


class _Drawing:
    def __init__(self, pictures: Sequence[Picture], with_heads: bool) -> None:
        self._pictures = pictures
        self._has_heads = with_heads
        self._columns = sorted(
            (
                _Column(picture, each, _rows(each.points))
                for picture in pictures
                for each in picture.ways
            ),
            key=_place_of,
        )
        self._boxes: list[_Box] = []
        self._parts: list[str] = []

    def text(self) -> str:
        self._find_boxes()
        heads = self._heads()
        top = _MARGIN + _LINE * len(heads) + 8 + _HEADING
        height = self._place_boxes(top)
        for number, (line, kind) in enumerate(heads):
            self._text(_MARGIN, _MARGIN + _LINE * (number + 1) - 4, line, kind)
        for number, column in enumerate(self._columns):
            self._heading(number, column, top)
        self._edges()
        for box in self._boxes:
            self._box(box)
        count = max(len(self._columns), 1)
        longest = max((len(line) for line, _ in heads), default=0)
        width = max(
            2 * _MARGIN + count * _WIDTH + (count - 1) * _GAP,
            round(2 * _MARGIN + longest * _CHARACTER * 1.3),
        )
        size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        title = html.escape("; ".join(words.title(picture) for picture in self._pictures))
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n'
            f"<title>{title}</title>\n<style>{STYLE}</style>\n"
            f'<rect x="0" y="0" width="{width}" height="{height}" '
            'style="fill: var(--paper); stroke: none"/>\n' + "\n".join(self._parts) + "\n</svg>\n"
        )

    def _heads(self) -> list[_Line]:
        found: list[_Line] = []
        for picture in self._pictures if self._has_heads else ():
            verdict = words.verdict(picture.complaints)
            found.append((f"{words.title(picture)}  {verdict}", "title"))
            for one in picture.complaints:
                if not one.nic or one.at < 0:
                    found.append((_cut(words.complaint(one)), one.severity))
        return found

    def _heading(self, number: int, column: _Column, top: float) -> None:
        of = f"{column.picture.id} " if len(self._pictures) > 1 else ""
        text = textwrap.shorten(of + words.of_way(column.way), _CHARACTERS, placeholder=" …")
        self._text(self._x(number), top - 8, text, "head")

    def _find_boxes(self) -> None:
        """Make the boxes. Neighbouring columns share a box of the same point in the same row."""
        for number, column in enumerate(self._columns):
            before = self._columns[number - 1].boxes if number else []
            for at, (row, point) in enumerate(zip(column.rows, column.way.points, strict=True)):
                complaints = [
                    one
                    for one in column.picture.complaints
                    if (one.nic, one.at) == (column.way.nic, at)
                ]
                key = _key(column.way, at)
                same = next(
                    (
                        box
                        for box in before
                        if key and box.row == row and key == _key(box.way, _at(box))
                    ),
                    None,
                )
                if same is None:
                    same = _Box(row, number, number, point, column.way, [])
                    self._boxes.append(same)
                same.last = number
                known = {one.what for one in same.complaints}
                same.complaints += [one for one in complaints if one.what not in known]
                column.boxes.append(same)

    def _place_boxes(self, top: float) -> int:
        """Place the boxes; return the height of the drawing."""
        below = _edge_room(self._columns)
        y = top
        for row in sorted({box.row for box in self._boxes}):
            found = [box for box in self._boxes if box.row == row]
            for box in found:
                box.x = self._x(box.first)
                box.width = self._x(box.last) + _WIDTH - box.x
                room = round((box.width - 2 * _PADDING) / _CHARACTER)
                box.lines = _lines(box, room)
                box.y = y
                box.height = 2 * _PADDING + _LINE * len(box.lines) - 4
            y += max(box.height for box in found) + below
        return round(y - below + _MARGIN) if self._boxes else round(top + _MARGIN)

    def _x(self, column: int) -> float:
        return _MARGIN + column * (_WIDTH + _GAP)

    def _edges(self) -> None:
        drawn: set[tuple[int, int]] = set()
        for number, column in enumerate(self._columns):
            x = self._x(number) + 22
            for edge, above, below in zip(
                column.way.edges, column.boxes, column.boxes[1:], strict=False
            ):
                if (id(above), id(below)) in drawn:
                    continue
                drawn.add((id(above), id(below)))
                kind = "warning" if words.is_lossy(edge) else "faint"
                start, end = above.y + above.height, below.y
                self._parts.append(f'<path class="{kind}" d="M{x:g} {start:g}V{end:g}"/>')
                for place, line in enumerate(words.edge(edge)):
                    of_line = kind if place else "faint"
                    self._text(x + 10, start + 15 + 14 * place, line, of_line, 11)

    def _box(self, box: _Box) -> None:
        kind = way.worst(box.complaints)
        self._parts.append(
            f'<rect class="{kind}" x="{box.x:g}" y="{box.y:g}" width="{box.width:g}" '
            f'height="{box.height:g}" rx="6"/>'
        )
        for number, (line, of_line) in enumerate(box.lines):
            self._text(box.x + _PADDING, box.y + _PADDING + 8 + _LINE * number, line, of_line)

    def _text(self, x: float, y: float, text: str, kind: str, size: int = 0) -> None:
        small = f' font-size="{size}"' if size else ""
        of = f' class="{kind}"' if kind else ""
        self._parts.append(
            f'<text x="{x:g}" y="{y:g}"{of}{small}>{html.escape(text, quote=False)}</text>'
        )


def _place_of(column: _Column) -> tuple[list[_Key], str]:
    """Return the key that puts columns beside each other which share points, compared from the
    wire inwards."""
    keys = [_key(column.way, at) for at in range(len(column.way.points))]
    return [key for key in reversed(keys) if key], column.picture.id


def _key(each: Way, at: int) -> _Key:
    """Return what identifies a point that two ways can share; empty for a point that none share."""
    point = each.points[at]
    if point.kind not in _SHARED:
        return ()
    # Gateways of two networks may have the same address.
    of = each.points[at - 1].name if point.kind == way.GATEWAY else ""
    return point.kind, point.place, point.name, of


def _at(box: _Box) -> int:
    return next(n for n, point in enumerate(box.way.points) if point is box.point)


def _rows(points: Sequence[Point]) -> list[int]:
    """Return the rows of a way's points, from the top."""
    found: list[int] = []
    for point in points:
        row = _ORDER.index(_SAME_ROW.get(point.kind, point.kind)) * _STEP
        if found and row <= found[-1]:
            row = found[-1] + 1
        found.append(row)
    return found


def _edge_room(columns: Sequence[_Column]) -> int:
    most = max((len(words.edge(e)) for column in columns for e in column.way.edges), default=0)
    return 22 + 14 * most


def _lines(box: _Box, room: int) -> list[_Line]:
    point = box.point
    worst = way.worst(box.complaints)
    mark = {ERROR: "✗", WARNING: "!"}.get(worst, "○" if point.state == way.UNKNOWN else "●")
    of_head = worst or ("faint" if point.state == way.UNKNOWN else "good")
    found: list[_Line] = [(shown(words.place(point.place)), "faint")]
    found += [(line, f"head {of_head}") for line in _wrapped(f"{mark} {words.name(point)}", room)]
    for text in filter(None, (words.about(point), *words.lines(point, box.way))):
        found += [(line, "") for line in _wrapped(text, room)]
    for one in box.complaints:
        found += [(line, one.severity) for line in _wrapped(words.complaint(one), room)]
    return found


def _wrapped(text: str, room: int) -> list[str]:
    return textwrap.wrap(text, room, break_long_words=True, break_on_hyphens=False)


def _cut(text: str) -> str:
    return textwrap.shorten(text, 160, placeholder=" …")
