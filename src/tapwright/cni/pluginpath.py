"""Where plugins are."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PATH = ("/opt/cni/bin", "/usr/lib/cni")


def find_plugin(kind: str, directories: "Sequence[str]") -> str | None:
    """The plugin's executable in the first directory that has it, or None."""
    for directory in directories:
        path = os.path.join(directory, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
