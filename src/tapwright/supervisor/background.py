"""The processes for work beside the sandboxes, which outlive their callers.

`launching.in_background` starts them, with the order on stdin: a JSON object with the `work` and
its parameters. They leave the sandbox's control group before they become this program, because
everything in that group ends with the sandbox.
"""

import json
import os
from collections.abc import Callable
from typing import Any

from tapwright.linux import process

_FILES = 1 << 12

Order = dict[str, Any]


def main() -> None:
    with open(0, "rb") as file:
        file.seek(0)
        order: Order = json.load(file)
    os.open(os.devnull, os.O_RDONLY)  # in the place of the order
    os.umask(0o022)
    work = _WORKS[order.pop("work")]
    work(order)


def _make_template(order: Order) -> None:
    process.set_limits(_FILES, _FILES)
    from tapwright.supervisor import making

    making.main(order)


def _wait_as_spare(order: Order) -> None:
    from tapwright.supervisor import spare

    spare.main(order)


_WORKS: dict[str, Callable[[Order], None]] = {
    "template": _make_template,
    "spare": _wait_as_spare,
}
