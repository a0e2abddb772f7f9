"""Notifies the sandbox's own supervisor, over its control socket; the supervisor then looks at the
namespace itself."""

from pathlib import Path

from tapwright.sandbox import client
from tapwright.state import registry


class Own:
    """The supervisor of the sandbox with this id under this root.

    Raises SandboxNotFoundError.
    """

    def __init__(self, root: str | Path, sandbox_id: str) -> None:
        self._root = root
        self._id = registry.find(root, sandbox_id).id

    def begin(self) -> None:
        """Do nothing: the supervisor knows the initial state."""

    def sync(self) -> float | None:
        """Make the guest follow; return the seconds after which to do it again, or None to wait for
        the next change. Raises TapwrightError."""
        # Looked up each time: in the beginning the sandbox is only being made.
        pause: float | None = client.of(registry.find(self._root, self._id)).call("sync")
        return pause
