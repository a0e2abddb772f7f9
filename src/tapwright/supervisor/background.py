"""The processes for work beside the sandboxes, which outlive their callers.

`launching.in_background` starts them, with the order on stdin: a JSON object with the `work`, the
specification `spec`, and parameters. They leave the sandbox's control group before they become this
program, because everything in that group ends with the sandbox.
"""

import json
import os
from typing import Any

from tapwright.linux import process
from tapwright.state.record import Spec, read_spec

_FILES = 1 << 12


def main() -> None:
    with open(0, "rb") as file:
        file.seek(0)
        order = json.load(file)
    os.open(os.devnull, os.O_RDONLY)  # in the place of the order
    os.umask(0o022)
    work, spec = _WORKS[order.pop("work")], read_spec(order.pop("spec"))
    work(spec, **order)


def _make_template(spec: Spec, **more: Any) -> None:
    process.set_limits(_FILES, _FILES)
    from tapwright.supervisor import template_making

    template_making.main(spec, **more)


def _wait_as_spare(spec: Spec, **more: Any) -> None:
    from tapwright.supervisor import spare

    spare.main(spec, **more)


_WORKS = {"template": _make_template, "spare": _wait_as_spare}
