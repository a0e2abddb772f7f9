"""Drawings as they were when somebody looked at them and found them good.

`TAPWRIGHT_GOLDEN=write` writes those of now; look at them before they are committed.
"""

import os
from pathlib import Path

_DIRECTORY = Path(__file__).parent / "golden"


def assert_as_before(name: str, text: str) -> None:
    path = _DIRECTORY / name
    if os.environ.get("TAPWRIGHT_GOLDEN") == "write":
        _DIRECTORY.mkdir(exist_ok=True)
        path.write_text(text)
    assert text == path.read_text()
