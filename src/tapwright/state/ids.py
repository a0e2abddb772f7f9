"""The ids of sandboxes. The module imports little, because each call of the OCI runtime is a new
process."""

import re

from tapwright.errors import UsageError

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.\-]{0,63}")


def is_id(text: str) -> bool:
    return _ID.fullmatch(text) is not None


def check(sandbox_id: str) -> None:
    """Raises UsageError for an invalid id."""
    if not is_id(sandbox_id):
        raise UsageError(
            f"{sandbox_id!r} is not a sandbox id: 1 to 64 letters, digits, '_', '.', '-', "
            "the first a letter or digit"
        )
