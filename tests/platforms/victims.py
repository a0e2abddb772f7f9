"""The processes that containers consist of on the host, to be killed."""

import os
import random
import re
import signal
import time
from contextlib import suppress
from pathlib import Path

from tests.host import eventually
from tests.platforms.remains import commands, is_ours
from tests.sandboxes import child_of, ended

KINDS = {
    "conmon": r"\S*/conmon ",
    "containerd-shim": r"\S*/containerd-shim-runc-v2 ",
    "create": r"\S+ \S+/tapwright .*\bcreate\b",
    "supervisor": r"\S+ .*tapwright\.supervisor\.main",
    "qemu": r"qemu-system\S* ",
}
"""How the command line of each begins."""


class Victims:
    """Those of this session alone."""

    def __init__(self, session: Path) -> None:
        self._session = session

    def pids(self, kind: str) -> set[int]:
        begun = re.compile(KINDS[kind], re.DOTALL)
        return {
            pid for pid, line in commands() if begun.match(line) and is_ours(pid, self._session)
        }

    def kill_as_it_comes(self, kind: str, known: set[int], moment: random.Random) -> None:
        """Kill the first of the kind that is not known, some time in its first half second."""
        assert eventually(lambda: bool(self.pids(kind) - known)), f"no {kind} came"
        # The moment itself is what is tested: no event belongs to it.
        time.sleep(moment.uniform(0, 0.5))
        for pid in self.pids(kind) - known:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)


def of_sandbox(root: Path, sandbox: str) -> dict[str, int]:
    """Supervisor and QEMU of a running sandbox."""
    supervisor = int((root / "sandboxes" / sandbox / "alive").read_text())
    return {"supervisor": supervisor, "qemu": child_of(supervisor, "qemu-system")}


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
