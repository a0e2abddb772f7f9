"""QEMU's process: confined, started, and ended when nobody else does.

QEMU gets nothing that it could misuse: a user id of its own, no privileges and no way to new
ones, a seccomp filter, the sandbox's network namespace, and TAPs, monitor, agent port and console
as file descriptors. It dies with the supervisor (PR_SET_PDEATHSIG).

Nothing here needs asyncio, so that QEMU can start while the supervisor loads it.
"""

import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.errors import HypervisorError
from tapwright.hypervisor import qmp_wire
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.qmp_wire import Command
from tapwright.linux import libc
from tapwright.linux.process import die_with

if TYPE_CHECKING:
    from tapwright.hypervisor.share import Share

# QEMU of sandbox N runs as user BASE + pid of N's supervisor: a number no account has (systemd's
# docs/UIDS-GIDS.md), and no two living sandboxes share, so one QEMU can't reach for another's.
_UID_BASE = 0x70000000

_ORPHAN_SECONDS = 2.0


@dataclass
class Spawned:
    """A QEMU process, and our ends of what it was given; console and stderr are to be read.
    `commands` are the names of those that are written to it already, with the ids 1, 2, …; `share`
    is what the guest can be shown of the host's files, where the machine has that."""

    process: subprocess.Popen[bytes]
    uid: int
    share: "Share | None"
    commands: list[str]
    qmp: socket.socket
    agent: socket.socket
    console: int
    stderr: int

    def kill(self) -> None:
        """End it, unless somebody has, and wait for its end."""
        if self.process.returncode is not None:
            return
        self.process.kill()
        self.process.wait()
        if self.share:
            self.share.kill()


def spawn(
    machine: Machine, saved: SavedMemory | None = None, commands: Sequence[Command] = ()
) -> Spawned:
    """Run QEMU as a user of its own, and write to it what it shall do as soon as it can.

    Raises HypervisorError.
    """
    for path in (machine.kernel, machine.initrd):
        if not path.exists():
            raise HypervisorError(f"{path} is missing; build an image or name another one")
    commands = [Command("qmp_capabilities"), *commands]
    spawned = _spawn(machine, saved, commands)
    if machine.share:
        try:
            # While QEMU starts, which has no use for it before.
            from tapwright.hypervisor.share import Share

            spawned.share = Share.start(spawned.uid, machine.share)
        except BaseException:
            spawned.kill()
            raise
    return spawned


def _spawn(machine: Machine, saved: SavedMemory | None, commands: Sequence[Command]) -> Spawned:
    uid = _UID_BASE + os.getpid()
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, agent, console = (pair[0] for pair in pairs)
    theirs = [pair[1].fileno() for pair in pairs]
    stderr_read, stderr_write = os.pipe()
    netns_fd = os.open(machine.netns, os.O_RDONLY | os.O_CLOEXEC) if machine.netns else None
    try:
        if saved and saved.is_own:
            os.fchown(saved.fd, uid, uid)
        qmp_wire.write(qmp, commands)
        process = subprocess.Popen(
            machine.command(*theirs, saved=saved),
            stdin=subprocess.DEVNULL,
            stdout=stderr_write,
            stderr=stderr_write,
            env={"PATH": os.environ.get("PATH", os.defpath)},
            cwd="/",
            pass_fds=[*theirs, saved.fd] if saved else theirs,
            preexec_fn=_confinement(uid, netns_fd),
        )
    except OSError as error:
        os.close(stderr_read)
        for ours in (qmp, agent, console):
            ours.close()
        raise HypervisorError(
            f"QEMU ({machine.path}) can't be started: {error.strerror}; install "
            "qemu-system-x86 or set path in [hypervisor.qemu]"
        ) from None
    finally:
        os.close(stderr_write)
        if netns_fd is not None:
            os.close(netns_fd)
        for _, their_end in pairs:
            their_end.close()
    names = [command.name for command in commands]
    return Spawned(process, uid, None, names, qmp, agent, console.detach(), stderr_read)


def _confinement(uid: int, netns_fd: int | None) -> Callable[[], None]:
    """What the new process does to itself before it becomes QEMU.

    In Python between fork and exec, because only there is no moment at which QEMU lives and the
    supervisor's death would pass it by.
    """
    parent = os.getpid()
    groups = _groups()

    def confine() -> None:
        if netns_fd is not None:
            libc.setns(netns_fd, libc.CLONE_NEWNET)
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        # After the change of user, which clears it (prctl(2)).
        die_with(parent)

    return confine


def qemu_may_open_kvm() -> bool:
    """Whether /dev/kvm is there, and open to everybody or to a group other than root's."""
    try:
        return os.stat("/dev/kvm").st_mode & 0o006 == 0o006 or bool(_groups())
    except OSError:
        return False


def _groups() -> list[int]:
    """The group that may use /dev/kvm, where there is one."""
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return []
    return [status.st_gid] if status.st_gid and status.st_mode & 0o060 == 0o060 else []


def end_orphans(supervisor: int) -> None:
    """Kill what QEMU is left of a supervisor that has ended, and wait for its end.

    It dies with the supervisor anyway; this makes sure, also of a QEMU that a guest has taken
    over. A new process may bear the supervisor's pid: that one's own QEMU is left alone.
    """
    for pid in _processes_of(_UID_BASE + supervisor, parent_not=supervisor):
        with contextlib.suppress(ProcessLookupError):
            pidfd = os.pidfd_open(pid)
            try:
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                select.select([pidfd], [], [], _ORPHAN_SECONDS)
            finally:
                os.close(pidfd)


def _processes_of(uid: int, parent_not: int) -> list[int]:
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            status = Path("/proc", name, "status").read_text()
        except OSError:
            continue  # ended in the meantime
        fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
        if int(fields["Uid"].split()[0]) == uid and int(fields["PPid"]) != parent_not:
            found.append(int(name))
    return found
