"""A picture of how a sandbox came up: a bar for each phase, side by side as they ran."""

from collections.abc import Sequence

from tapwright.state.record import Phase

_EIGHTHS = " ▏▎▍▌▋▊▉█"


def picture(phases: Sequence[Phase], columns: int) -> str:
    """Lines of name, start, duration and bar, in the order of their starts, `columns` wide."""
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
    """To an eighth of a column at its end; never nothing."""
    first = int(start)
    full, rest = divmod(max(round((start + length - first) * 8), 1), 8)
    return (" " * first + "█" * full + _EIGHTHS[rest]).rstrip()
