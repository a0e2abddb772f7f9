"""Part 3: all is killed over plugins that are slow, hang, or leave processes behind, and strangers
get the numbers of supervisor, QEMU and caller. These live on, and `delete` works."""

import contextlib
import functools
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.state import supervisors
from tests.host import Host, eventually
from tests.sandboxes import Networks, Tapwright, ended
from tests.torture.bound import Bound
from tests.torture.test_kills import processes

NAME, NETWORK = "victim", "odd"
# What it does at ADD is in the file beside it; its DEL finds what it has left.
ODD = """#!/bin/sh
cat >/dev/null
versions='{"cniVersion": "1.0.0", "supportedVersions": ["1.0.0"]}'
case $CNI_COMMAND in
VERSION) echo "$versions"; exit ;;
DEL) for pid in $(cat $0.left 2>/dev/null); do kill -9 $pid; done; rm -f $0.left $0.added; exit ;;
ADD) ;;
*) exit ;;
esac
echo >$0.added
echo $$ >$0.pid
case $(cat $0.does) in
slow) sleep 0.4 ;;
hung) sleep 1000 ;;
forking)
    for number in 1 2 3; do
        setsid sleep 1000 </dev/null >/dev/null 2>&1 &
        echo $! >>$0.left
    done ;;
forking-and-hung) setsid sleep 1000 & echo $! >>$0.left; sleep 1000 ;;
esac
echo '{"cniVersion": "1.0.0"}'
"""
_LAST_PID = Path("/proc/sys/kernel/ns_last_pid")
_NUMBERS_TRIED = 50


class Odd:
    def __init__(self, directory: Path) -> None:
        self.path = directory / "odd"
        self.path.write_text(ODD)
        self.path.chmod(0o755)

    def does(self, what: str) -> None:
        self._file("does").write_text(what)
        self._file("pid").unlink(missing_ok=True)

    def has_begun(self) -> bool:
        return self._file("pid").exists()

    def end(self) -> None:
        """As an administrator ends a plugin that hangs."""
        with contextlib.suppress(FileNotFoundError, ValueError, ProcessLookupError):
            os.killpg(int(self._file("pid").read_text()), signal.SIGKILL)

    def is_taken_back(self) -> bool:
        return not self._file("added").exists()

    def _file(self, ending: str) -> Path:
        return self.path.with_name(f"odd.{ending}")


@pytest.fixture
def odd(networks: Networks, tmp_path: Path) -> Iterator[Odd]:
    odd = Odd(tmp_path)
    networks.write(NETWORK, [{"type": "odd"}])
    yield odd
    odd.end()
    (networks.directory / f"{NETWORK}.conflist").unlink()


def is_dead(directory: Path) -> bool:
    return not supervisors.is_alive(directory)


def stranger(pid: int) -> subprocess.Popen[bytes] | None:
    """A process of that number, which is free; None where others were quicker."""
    for _ in range(_NUMBERS_TRIED):
        if Path(f"/proc/{pid}").exists():
            return None
        _LAST_PID.write_text(str(pid - 1))
        made = subprocess.Popen(["sleep", "1000"])
        if made.pid == pid:
            return made
        made.kill()
        made.wait()
    return None


def test_killed_over_plugins(
    bound: Bound, tapwright: Tapwright, host: Host, odd: Odd, tmp_path: Path
) -> None:
    config = tapwright.configuration(template=tapwright.templates, plugins=tmp_path)
    kinds = ["slow", "forking", "forking-and-hung", "hung"]
    done: Counter[str] = Counter()
    strangers = 0
    for number in bound.goes_on(short=2):
        kind = kinds[number % len(kinds)]
        odd.does(kind)
        before = host.snapshot()
        running = tapwright.start("sandbox", "run", NAME, "--network", NETWORK, config=config)
        assert eventually(odd.has_begun)
        # The moment itself is what is tested: no event belongs to it.
        time.sleep(bound.random.uniform(0, 0.5))
        there = {**processes(tapwright), "caller": running.pid}
        # The caller last: it would delete the sandbox when it hears of the supervisor's end.
        for pid in reversed(there.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.communicate()
        assert all(map(ended, there.values()))
        made = [one for pid in there.values() if (one := stranger(pid))]
        strangers += len(made)
        directory = tapwright.root / "sandboxes" / NAME
        # What it was starting at that moment has the lock until it is executed.
        assert eventually(functools.partial(is_dead, directory))
        if "hung" in kind:
            odd.end()
        try:
            tapwright.delete(NAME)
            assert odd.is_taken_back()
            assert all(one.poll() is None for one in made), f"{kind}: a stranger was killed"
        finally:
            for one in made:
                one.kill()
                one.wait()
        host.assert_same(before)
        done[kind] += 1
    bound.tell(
        3,
        "all of a sandbox killed while its plugin runs ({plugins}), numbers given to others",
        "{strangers} strangers with a dead process's number lived on; nothing left",
        counts={"plugins": done, "strangers": strangers},
    )
