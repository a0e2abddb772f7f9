"""Finds the executable of a plugin."""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_PATH = ("/opt/cni/bin", "/usr/lib/cni", "/usr/libexec/cni")
"""Where installers, Debian and Fedora put plugins."""


def find_plugin(kind: str, directories: "Sequence[str]") -> str | None:
    """The plugin's executable in the first directory that contains it; None if none does."""
    for directory in directories:
        path = os.path.join(directory, kind)
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None
