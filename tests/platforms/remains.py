"""What platforms leave on a host: seen beside what sandboxes leave, and swept away at the end."""

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from tests.host import Host, Snapshot, eventually

_CGROUPS = Path("/sys/fs/cgroup")
_NETNS = Path("/run/netns")
_NAMES = re.compile(r"cni-.*|netns-.*|tapwright-([0-9a-f]{64}|late)")
_PROGRAMS = "conmon", "containerd-shim", "virtiofsd", "qemu-system", "tapwright", "/cni/"
_DAEMONS = "containerd ", "dockerd ", "podman "
# Of whoever runs the tests, and of sandboxes of other tests, which see to them.
_OTHERS_CGROUPS = "process_api", "/tapwright", "/twtest"


class PlatformHost(Host):
    """The machine, with what a platform keeps for a container. `home` is the platform's own
    directory, of which the mounts are seen; `directories` hold state, and the processes are those
    of the session (`is_ours`). Control groups are all but those in which a process of another PID
    namespace (scripts/apart) has been seen. So what else runs on the machine is not seen."""

    def __init__(self, session: Path, home: Path, directories: Iterable[Path]) -> None:
        super().__init__(directories)
        self._session = session
        self._home = home
        self._others: set[Path] = set()

    def snapshot(self) -> Snapshot:
        seen = super().snapshot()
        return seen | {
            "namespaces": sorted(filter(_NAMES.fullmatch, os.listdir(_NETNS))),
            "processes": sorted(self._processes()),
            "mounts": sorted(str(mount) for mount in _mounts() if self._is_platforms(mount)),
            "cgroups": sorted(map(str, self._cgroups())),
        }

    def _cgroups(self) -> set[Path]:
        # The first part is a hierarchy, where there are several.
        below = {each: Path(*each.relative_to(_CGROUPS).parts[1:]) for each in cgroups()}
        for cgroup, path in below.items():
            with suppress(OSError):  # it may have gone
                # Version 2 shows a process that is outside of this PID namespace as 0.
                if "0" in (cgroup / "cgroup.procs").read_text().split():
                    self._others |= {path, *path.parents}
        return {cgroup for cgroup, path in below.items() if path not in self._others}

    def _processes(self) -> Iterator[str]:
        for pid, command in commands():
            known = any(program in command for program in _PROGRAMS)
            if known and not command.startswith(_DAEMONS) and is_ours(pid, self._session):
                yield command[:120]

    def _is_platforms(self, mount: Path) -> bool:
        named = mount.parent == _NETNS and _NAMES.fullmatch(mount.name)
        return bool(named) or mount.is_relative_to(self._home)


def is_ours(pid: int, session: Path) -> bool:
    """Whether a process has the session's directory in its command line, its environment, or that
    of its parent."""
    mark = str(session).encode()
    with suppress(OSError):
        process = Path("/proc", str(pid))
        parent = process.parent / (process / "stat").read_text().rpartition(")")[2].split()[1]
        places = process / "cmdline", process / "environ", parent / "environ"
        return any(mark in place.read_bytes() for place in places)
    return False


def sweep(home: Path, cgroups_before: set[Path]) -> None:
    """End what runs out of a platform's directory, and remove its mounts, cgroups and files. The
    fixture that started the daemons ends them."""
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
        if directory != str(_CGROUPS)
        and not any(others in f"{directory}/{name}" for others in _OTHERS_CGROUPS)
    }


def _mounts() -> Iterator[Path]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        yield Path(line.split(" ")[4])


def commands() -> Iterator[tuple[int, str]]:
    """(pid, command line) of all processes but this one."""
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            line = Path("/proc", pid, "cmdline").read_bytes().replace(b"\0", b" ")
            if int(pid) != os.getpid() and line:
                yield int(pid), line.decode(errors="replace")
