"""The sandbox's own supervisor, over its control socket: after a notification, the supervisor looks
at the namespace itself."""

from pathlib import Path

from tapwright.sandbox import client
from tapwright.state import registry


class Own:
    """The supervisor of the sandbox of that id under that root.

    Raises SandboxNotFoundError.
    """

    def __init__(self, root: str | Path, sandbox_id: str) -> None:
        self._root = root
        self._id = registry.find(root, sandbox_id).id

    def begin(self) -> None:
        """Nothing to be known beforehand."""

    def sync(self) -> float | None:
        """Make the guest follow; return the seconds after which to do it again, None to wait for
        the next change. Raises TapwrightError."""
        # Found anew each time: in the beginning it is only being made.
        pause: float | None = client.of(registry.find(self._root, self._id)).call("sync")
        return pause
