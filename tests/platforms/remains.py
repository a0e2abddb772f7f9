"""What platforms leave on a host: seen beside what sandboxes leave, and swept away at the end."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.host import Host, Snapshot, eventually

_CGROUPS = Path("/sys/fs/cgroup")
_NETNS = Path("/run/netns")
_PREFIXES = "cni-", "netns-", "tapwright-"
_PROGRAMS = "conmon", "containerd-shim", "virtfs-proxy-helper"
_OTHERS_CGROUP = "process_api"


class PlatformHost(Host):
    """The machine, with what a platform keeps for a container. `home` is the platform's own
    directory, of which the mounts are seen; `directories` hold state."""

    def __init__(self, home: Path, directories: Iterable[Path]) -> None:
        super().__init__(directories)
        self._home = home

    def snapshot(self) -> Snapshot:
        seen = super().snapshot()
        seen |= {
            "namespaces": sorted(name for name in os.listdir(_NETNS) if name.startswith(_PREFIXES)),
            "platform processes": sorted(_processes()),
            "platform mounts": sorted(
                str(mount) for mount in _mounts() if mount.is_relative_to(self._home)
            ),
            "cgroups": sorted(map(str, cgroups())),
        }
        return seen


def sweep(home: Path, cgroups_before: set[Path]) -> None:
    """End what runs out of a platform's directory, and remove its mounts, cgroups and files. The
    daemons themselves are ended by who started them."""
    ending = [pid for pid, command in commands() if str(home) in command]
    for pid in ending:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: not any(str(home) in command for _, command in commands()))
    for mount in reversed([mount for mount in _mounts() if mount.is_relative_to(home)]):
        subprocess.run(["umount", "--lazy", mount], check=False)
    for cgroup in sorted(cgroups() - cgroups_before, reverse=True):
        # One that is in use belongs to somebody else.
        with suppress(OSError):
            cgroup.rmdir()
    shutil.rmtree(home, ignore_errors=True)


def cgroups() -> set[Path]:
    """The directories of all hierarchies, but those of whoever runs the tests."""
    return {
        Path(directory, name)
        for directory, names, _ in os.walk(_CGROUPS)
        for name in names
        if directory != str(_CGROUPS) and _OTHERS_CGROUP not in f"{directory}/{name}"
    }


def _mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield Path(line.split(" ")[4])


def _processes() -> Iterator[str]:
    """Those in the session's network namespace, which no other tests share."""
    here = os.stat("/proc/self/ns/net").st_ino
    for pid, command in commands():
        with suppress(OSError):
            if os.stat(f"/proc/{pid}/ns/net").st_ino != here:
                continue
            if any(program in command for program in _PROGRAMS):
                yield command.partition(" ")[0]


def commands() -> Iterator[tuple[int, str]]:
    """(pid, command line) of all processes but this one."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            line = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
            if int(pid) != os.getpid() and line:
                yield int(pid), line.decode(errors="replace")
