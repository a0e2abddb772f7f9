"""Draws a picture for a terminal: a box for each place, one below the other, from the guest to the
wire. Pure: the caller gives columns and colours."""

import textwrap
from collections.abc import Sequence

from tapwright.diagnosis import way, words
from tapwright.diagnosis.way import ERROR, WARNING, Complaint, Edge, Picture, Point, Way

LEAST_COLUMNS, MOST_COLUMNS = 40, 110

_COLOURS = {ERROR: "31", WARNING: "33", "good": "32", "faint": "2", "bold": "1"}
_PLAIN = str.maketrans("╭╮╰╯─│┬┴●○✗↓↑→", "++++-|++*ox<>>")
_MARKS = {ERROR: "✗", WARNING: "!", "": "●"}
_UNKNOWN = "○"
_KEPT = "\xa0"  # a no-break space


def drawing(picture: Picture, columns: int, colours: bool = False, unicode: bool = True) -> str:
    """Return lines of at most `columns` characters (40 or more), in ASCII if `unicode` is false."""
    width = min(max(columns, LEAST_COLUMNS), MOST_COLUMNS)
    found = _Drawing(width, colours)
    found.head(picture)
    for each in picture.ways:
        found.way(each, [one for one in picture.complaints if one.nic == each.nic])
    text = "\n".join(found.lines)
    return text if unicode else text.translate(_PLAIN)


class _Drawing:
    def __init__(self, width: int, colours: bool) -> None:
        self._width = width
        self._has_colours = colours
        self.lines: list[str] = []

    def head(self, picture: Picture) -> None:
        worst = way.worst(picture.complaints)
        self._line(words.title(picture), "bold")
        self._line(words.verdict(picture.complaints), worst or "good")
        for one in picture.complaints:
            if not one.nic or one.at < 0:
                self._complaint(one)

    def way(self, each: Way, complaints: Sequence[Complaint]) -> None:
        self._line("")
        self._line(words.of_way(each), "bold")
        boxes = _boxes(each.points)
        for number, (first, points) in enumerate(boxes):
            if number:
                self._edge("  ", each.edges[first - 1])
            self._border(
                "╭", "╮", words.place(points[0].place), above=number > 0, way_on="┴", first=True
            )
            for offset, point in enumerate(points):
                if offset:
                    self._edge("│ ", each.edges[first + offset - 1])
                at = first + offset
                self._point(point, each, [one for one in complaints if one.at == at])
            goes_on = number + 1 < len(boxes)
            self._border("╰", "╯", "", above=goes_on, way_on="┬", first=False)

    def _point(self, point: Point, each: Way, complaints: Sequence[Complaint]) -> None:
        worst = way.worst(complaints)
        mark, colour = _MARKS[worst], worst or "good"
        if point.state == way.UNKNOWN and not worst:
            mark, colour = _UNKNOWN, "faint"
        self._inside(f"{mark} ", words.head(point), colour)
        for line in words.lines(point, each):
            self._inside("  ", line)
        for one in complaints:
            self._inside("  ", words.complaint(one), one.severity)

    def _edge(self, before: str, edge: Edge) -> None:
        parts = words.edge(edge)
        colour = WARNING if words.is_lossy(edge) else "faint"
        inside = before.startswith("│")
        room = self._width - len(before) - len("│ ") - (2 if inside else 0)
        for line in _wrapped("  ".join(part.replace(" ", _KEPT) for part in parts), room) or [""]:
            text = self._coloured(line, colour)
            end = " " * (room - len(line)) + " │" if inside else ""
            self.lines.append(f"{before}│ {text}{end}".rstrip())

    def _inside(self, mark: str, text: str, colour: str = "") -> None:
        """Add lines of a box; the first one has the mark."""
        room = self._width - len("│ ") - len(mark) - len(" │")
        for number, line in enumerate(_wrapped(text, room)):
            before = self._coloured(mark, colour) if number == 0 else " " * len(mark)
            is_head = mark.strip() != ""
            shown = self._coloured(line, "bold" if is_head and number == 0 else colour)
            self.lines.append(f"│ {before}{shown}{' ' * (room - len(line))} │")

    def _border(
        self, left: str, right: str, text: str, above: bool, way_on: str, first: bool
    ) -> None:
        join = way_on if above else "─"
        label = f" {text} " if first else ""
        label = label[: self._width - 6]
        rest = "─" * (self._width - len(label) - 4)
        self.lines.append(f"{left}─{join}{label}{rest}{right}")

    def _complaint(self, one: Complaint) -> None:
        for number, line in enumerate(_wrapped(words.complaint(one), self._width - 2)):
            mark = f"{_MARKS[one.severity]} " if number == 0 else "  "
            self.lines.append(self._coloured(f"{mark}{line}", one.severity))

    def _line(self, text: str, colour: str = "") -> None:
        for line in _wrapped(text, self._width) or [""]:
            self.lines.append(self._coloured(line, colour))

    def _coloured(self, text: str, colour: str) -> str:
        code = _COLOURS.get(colour)
        return f"\x1b[{code}m{text}\x1b[0m" if self._has_colours and code and text else text


def _boxes(points: Sequence[Point]) -> list[tuple[int, list[Point]]]:
    """Group neighbouring points of one place, each group with the number of its first point."""
    found: list[tuple[int, list[Point]]] = []
    for number, point in enumerate(points):
        if found and found[-1][1][0].place == point.place:
            found[-1][1].append(point)
        else:
            found.append((number, [point]))
    return found


def _wrapped(text: str, room: int) -> list[str]:
    lines = textwrap.wrap(text, max(room, 8), break_long_words=True, break_on_hyphens=False)
    return [line.replace(_KEPT, " ") for line in lines]
