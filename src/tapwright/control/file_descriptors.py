"""Keeps the share's daemon from running out of descriptors. The daemon has one for each file that
the guest knows, and the guest forgets files only when it needs the memory.

As root the daemon may have a million, which no guest of a usual size reaches. Without
CAP_SYS_RESOURCE it has as many as its supervisor. Runs in the supervisor.
"""

import asyncio
import logging
import os

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.errors import AgentError
from tapwright.hypervisor.share import Share

_ENOUGH = 200_000
_FILES_A_SECOND = 20_000
"""How many files a guest may open for the first time."""
_PAUSE_SECONDS, _FORGET_SECONDS = 2.0, 60.0

_log = logging.getLogger(__name__)


async def spare(share: Share, agent: AgentClient) -> None:
    """Make the guest forget files that no process has open whenever half of its descriptors are in
    use; return at once where there are enough of them."""
    process = share.process.pid
    try:
        most = _limit_of(process) - share.kept_files
        while most < _ENOUGH:
            await asyncio.sleep(most / 2 / _FILES_A_SECOND)
            if _in_use(process) > most // 2:
                await _forget(agent)
                if _in_use(process) > most // 2:
                    await asyncio.sleep(_PAUSE_SECONDS)  # they are in use there
    except OSError:
        return  # the daemon has ended


async def _forget(agent: AgentClient) -> None:
    try:
        await agent.call(requests.forget_unused_files(), _FORGET_SECONDS)
    except AgentError as error:
        _log.warning("the guest does not forget files: %s", error)


def _limit_of(process: int) -> int:
    """Raises OSError."""
    with open(f"/proc/{process}/limits") as file:
        line = next(line for line in file if line.startswith("Max open files"))
    return int(line.split()[3])


def _in_use(process: int) -> int:
    """Raises OSError."""
    directory = f"/proc/{process}/fd"
    # The size is their number since Linux 6.2 (fs/proc/fd.c).
    return os.stat(directory).st_size or len(os.listdir(directory))
