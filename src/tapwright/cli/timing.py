"""Draws the phases of a sandbox's start, a bar each."""

from collections.abc import Sequence

from tapwright.state.record import Phase

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def picture(phases: Sequence[Phase], columns: int) -> str:
    """Lines with name, start, duration and bar, ordered by start, at most `columns` wide."""
    shown = sorted(phases, key=lambda phase: (phase.start_ms, -phase.duration_ms))
    names = max(len(phase.name) for phase in shown)
    end = max(phase.start_ms + phase.duration_ms for phase in shown)
    width = max(columns - names - len("  1234 +1234 ms  "), 10)
    scale = width / max(end, 1.0)
    return "\n".join(
        f"{phase.name:{names}}  {phase.start_ms:4.0f} {f'+{phase.duration_ms:.0f}':>5} ms  "
        f"{_bar(phase.start_ms * scale, phase.duration_ms * scale)}"
        for phase in shown
    )


def _bar(start: float, length: float) -> str:
    """A bar, exact to an eighth of a column at its end, and never empty."""
    first = int(start)
    full, rest = divmod(max(round((start + length - first) * 8), 1), 8)
    return (" " * first + "█" * full + _EIGHTHS[rest]).rstrip()
