"""A container that uses up the guest's memory: the agent goes on, and with it all others."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from tests.host import eventually
from tests.oci.bundles import Json
from tests.oci.runtime import Container, Runtime
from tests.oci.test_pod import member, pod

BOMB = "while :; do dd if=/dev/zero bs=2M 2>/dev/null | sleep 1000 & done"
"""Each `dd` waits for one who never reads, with a full buffer. So hundreds of processes use up the
memory, instead of thousands, which take an emulated processor minutes."""


@contextmanager
def started(runtime: Runtime, content: Json) -> Iterator[Container]:
    with runtime.created(content) as container:
        container.start()
        yield container


class Guest:
    def __init__(self, runtime: Runtime, sandbox: str) -> None:
        self._tapwright = runtime.tapwright
        self._sandbox = sandbox

    def says(self, *argv: str) -> str:
        return self._tapwright.exec(self._sandbox, *argv)

    def hears(self, *argv: str) -> str:
        """What it says, if it comes to its end."""
        return str(self._tapwright.exec_with_status(self._sandbox, *argv).stdout)

    def agent(self) -> str:
        """The process that the guest's first one has started; it forks what it starts itself."""
        processes = self.says("ps", "-o", "pid,ppid,args")
        (found,) = re.findall(r"(?m)^ *(\d+) +1 .*/tapwright/agent$", processes)
        return str(found)


def test_whom_the_kernel_may_kill(runtime: Runtime) -> None:
    """Not the agent, and whatever it starts."""
    score = "/proc/self/oom_score_adj"
    with runtime.running("sleep", "1000") as container:
        guest = Guest(runtime, container.id)
        agent = guest.agent()
        assert guest.says("cat", f"/proc/{agent}/oom_score_adj") == "-1000\n"
        assert guest.says("cat", "/sys/fs/cgroup/tapwright-agent/memory.min") == f"{32 << 20}\n"
        assert agent in guest.says("cat", "/sys/fs/cgroup/tapwright-agent/cgroup.procs").split()
        assert guest.says("cat", score) == "0\n"
        assert container.says("cat", score) == "0\n"
        assert container.says("cat", "/proc/1/oom_score_adj") == "0\n"
        assert "tapwright-agent" not in container.says("cat", "/proc/self/cgroup")


def test_a_fork_bomb(runtime: Runtime) -> None:
    """The agent is larger than any of its processes."""
    with pod(runtime) as sandbox, started(runtime, member(sandbox, "sleep", "1000")) as other:
        guest = Guest(runtime, sandbox.id)
        agent = guest.agent()
        with started(runtime, member(sandbox, "sh", "-c", BOMB)):
            # What looks may be killed, too.
            assert eventually(lambda: "Out of memory" in guest.hears("dmesg"), 120)
        assert guest.agent() == agent
        assert other.says("echo", "there") == "there\n"
