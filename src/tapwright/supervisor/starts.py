"""How many sandboxes of the host start at once: the others wait for their turn.

A guest that starts takes a processor for itself. If many start side by side, all are late, and
their callers, which wait for so long and no longer, begin anew. One after the other they take as
long together, but most of them are in time.

The module does not need asyncio before a sandbox has to wait (`prelude`).
"""

from pathlib import Path

from tapwright.progress import Progress
from tapwright.state.record import Journal
from tapwright.supervisor import turns
from tapwright.supervisor.turns import Turn

_FILE = Path("/run/tapwright/starts")  # of the whole host: all roots have the same processors
_PAUSE = 0.05
_MOST_SECONDS = 30.0
"""A start that takes longer waits for something else than a processor, as for a plugin: the others
do not wait for that."""
_PATIENCE_SECONDS = 180.0
"""A start begins after that in any case: a process that stands still keeps its turn."""


def wanted(limit: int) -> Turn | None:
    """Want a turn from now on; None where nothing limits the starts, or the host has no room for
    that file."""
    if not limit:
        return None
    try:
        _FILE.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        return Turn(_FILE, limit)
    except OSError:  # only time is lost
        return None


def are_on_their_way() -> bool:
    """Whether any sandbox of the host starts, or waits for its turn."""
    try:
        return turns.are_wanted(_FILE)
    except OSError:
        return False


async def come(turn: Turn | None, journal: Journal, progress: Progress) -> None:
    """Wait until the turn has come. It ends by itself, for whoever does not end it before."""
    if turn is None:
        return
    import asyncio

    loop = asyncio.get_running_loop()
    if not turn.has_come():
        progress("wait until other sandboxes have started")
        with journal.phase("turn"):
            deadline = loop.time() + _PATIENCE_SECONDS
            while not turn.has_come() and loop.time() < deadline:
                await asyncio.sleep(_PAUSE)
    loop.call_later(_MOST_SECONDS, turn.end)
