"""The pictures of docs/performance.md."""

from collections.abc import Sequence

from bench import tables
from bench.crowd import Crowd
from bench.drawing import WIDTH, Drawing, ticks
from bench.endpoints import Model
from bench.samples import Samples, Summary, median, summary
from bench.starts import Starts

_LEFT, _RIGHT, _ROW, _BAR = 285.0, 60.0, 26.0, 16.0
_SPAN = WIDTH - _LEFT - _RIGHT
_COLOUR = {
    "floor": 2,
    "spare_library": 1,
    "spare": 0,
    "ready": 1,
    "library": 1,
    "command": 0,
    "alone": 0,
    "cold": 3,
}


def starts(data: Starts) -> str:
    """A bar for each way to start: the median, with quartiles."""
    rows = [
        (label.replace("`", ""), summary(found["pinged"]), _COLOUR[kind])
        for kind, label in tables.VARIANTS.items()
        if (found := data["variants"].get(kind))
    ]
    return _bars("From nothing to the first ping, ms", rows)


def models(data: Sequence[Model]) -> str:
    """Throughput to the guest of each model, without the row that has no guest."""
    rows = [(found["name"].replace("`", ""), summary(found["to_guest"]), 0) for found in data[:-1]]
    return _bars("TCP to the guest, Mbit/s", rows)


def _bars(title: str, rows: Sequence[tuple[str, Summary, int]]) -> str:
    drawing = Drawing(height=46 + _ROW * len(rows), title=title)
    most = max(row.high for _, row, _ in rows)
    scale = _SPAN / most
    bottom = 26 + _ROW * len(rows)
    drawing.text(0, 14, title)
    _axis(drawing, most, scale, 22, bottom)
    for number, (label, found, colour) in enumerate(rows):
        y = 26 + _ROW * number
        drawing.text(_LEFT - 8, y + 12, label, anchor="end")
        drawing.bar(_LEFT, y, found.median * scale, _BAR, colour)
        middle = y + _BAR / 2
        drawing.line(
            _LEFT + found.low * scale, middle, _LEFT + found.high * scale, middle, "spread"
        )
        drawing.text(
            _LEFT + max(found.median, found.high) * scale + 6, y + 12, f"{found.median:.0f}"
        )
    return drawing.svg()


def steps(data: Starts, kinds: Sequence[str]) -> str:
    """What runs when in some ways to start: a bar for each step, one below the other."""
    known = {kind: tables.steps_from_fork(data, kind) for kind in kinds}
    title = "Where the time of a start goes, ms"
    height = 40 + sum(28 + 18 * len(found) for found in known.values())
    drawing = Drawing(height=height, title=title)
    drawing.text(0, 14, title)
    most = max(median(data["variants"][kind]["pinged"]) for kind in kinds)
    scale = _SPAN / most
    _axis(drawing, most, scale, 22, height - 20)
    y = 26.0
    for kind, found in known.items():
        drawing.text(0, y + 12, tables.VARIANTS[kind].replace("`", ""))
        y += 22
        for name, begun, length in found:
            drawing.text(_LEFT - 8, y + 11, name, anchor="end", faint=True)
            drawing.bar(_LEFT + begun * scale, y, length * scale, 13, _COLOUR[kind])
            drawing.text(_LEFT + (begun + length) * scale + 5, y + 11, f"{length:.0f}", faint=True)
            y += 18
        y += 6
    return drawing.svg()


def crowd(data: Crowd) -> str:
    """Time to the first ping over the number of sandboxes that are there already."""
    title = "First ping of one more sandbox, ms, over the number that is there"
    drawing = Drawing(height=260, title=title)
    drawing.text(0, 14, title)
    top, bottom, left = 34.0, 222.0, 50.0
    most_present = max(level["present"] for level in data["levels"])
    most = max(
        summary(level[kind]).high
        for level in data["levels"]
        for kind in ("command", "spare", "library")
    )
    across, up = (WIDTH - left - 40) / max(most_present, 1), (bottom - top) / (most * 1.05)
    for value in ticks(most * 1.05):
        drawing.line(left, bottom - value * up, WIDTH - 40, bottom - value * up, "grid")
        drawing.text(left - 6, bottom - value * up + 4, f"{value:g}", anchor="end", faint=True)
    for level in data["levels"]:
        drawing.text(
            left + level["present"] * across, bottom + 18, str(level["present"]), "middle", True
        )
    for colour, (label, series) in enumerate(
        (
            ("sandbox run", [(level["present"], level["command"]) for level in data["levels"]]),
            ("library", [(level["present"], level["library"]) for level in data["levels"]]),
            ("with a spare", [(level["present"], level["spare"]) for level in data["levels"]]),
        )
    ):
        _series(drawing, series, (left, bottom, across, up), colour)
        drawing.bar(left + 110 * colour, 244, 12, 12, colour)
        drawing.text(left + 110 * colour + 18, 254, label)
    return drawing.svg()


def _series(
    drawing: Drawing,
    series: Sequence[tuple[int, Samples]],
    frame: tuple[float, float, float, float],
    colour: int,
) -> None:
    """`frame` is the origin, and how many pixels one is, across and up."""
    left, bottom, across, up = frame
    points = []
    for present, values in series:
        found, x = summary(values), left + present * across
        drawing.line(x, bottom - found.low * up, x, bottom - found.high * up, "spread")
        points.append((x, bottom - found.median * up))
    drawing.path(points, colour)
    for x, y in points:
        drawing.dot(x, y, colour)


def _axis(drawing: Drawing, most: float, scale: float, top: float, bottom: float) -> None:
    for value in ticks(most):
        x = _LEFT + value * scale
        drawing.line(x, top, x, bottom, "grid")
        drawing.text(x, bottom + 14, f"{value:g}", anchor="middle", faint=True)
