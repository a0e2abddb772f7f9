"""QEMU's process: its confinement, start and end.

QEMU gets nothing that it could misuse: it has a jail (`jail`), a user id of its own (`users`), no
privileges and no way to new ones, and filters of system calls. TAPs, monitor, agent port, console
and memory are file descriptors. QEMU dies with the supervisor (PR_SET_PDEATHSIG).

The module does not need asyncio, so QEMU starts while the supervisor loads asyncio.
"""

import contextlib
import os
import resource
import shutil
import socket
import subprocess
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.errors import HypervisorError
from tapwright.hypervisor import jail, qmp_wire, users
from tapwright.hypervisor.jail import Jail
from tapwright.hypervisor.machine import Machine, SavedMemory, check_hugepages
from tapwright.hypervisor.qmp_wire import Command
from tapwright.linux import capabilities, libc, memfd
from tapwright.linux.process import alone, die_with_other, set_limits
from tapwright.linux.seccomp import CLONE3, Check, Filter

if TYPE_CHECKING:
    from tapwright.hypervisor.share import Share

_FILES = 1 << 14  # TAPs and their vhost, with queues
_THREADS = 1 << 12  # of QEMU's user, which virtiofsd shares: processors, and workers of both

_PROCESSES = "proc"
_DEVICES, _KVM = ("dev/null", "dev/urandom"), "dev/kvm"
# The linker's cache, and the targets of links in /usr/bin on Debian.
_OF_ETC = ("etc/ld.so.cache", "etc/alternatives")
_BINARIES = ("bin", "sbin", "libexec")
_MOST_LINKS = 40  # path_resolution(7)

# System calls that no version of QEMU needs, in any distribution. QEMU adds its own filter, which
# also refuses what QEMU needs at its start only (new processes). The numbers are those of x86-64.
_UNIX_ONLY = ((Check(0, (1,)),),)  # AF_UNIX: vhost-user
_NO_NAMESPACES = ((Check(0, (0,), 0x7E020080),),)  # CLONE_NEW*, CLONE_NEWTIME
_CHECKED = {41: _UNIX_ONLY, 56: _NO_NAMESPACES}  # socket, clone
_UNKNOWN = 449  # system calls of Linux 5.16 and later fail as on an older kernel
_REFUSED = (
    # ptrace, process_vm_readv, process_vm_writev, kcmp
    *(101, 310, 311, 312),
    # pidfd_open, pidfd_send_signal, pidfd_getfd, process_madvise, process_mrelease
    *(434, 424, 438, 440, 448),
    # unshare, setns, chroot, pivot_root, mount, umount2
    *(272, 308, 161, 155, 165, 166),
    # open_tree, move_mount, fsopen, fsconfig, fsmount, fspick, mount_setattr
    *(428, 429, 430, 431, 432, 433, 442),
    # mknod, mknodat, name_to_handle_at, open_by_handle_at, fanotify_init, quotactl, quotactl_fd
    *(133, 259, 303, 304, 300, 179, 443),
    # acct, swapon, swapoff, reboot, sethostname, setdomainname, iopl, ioperm, vhangup, syslog
    *(163, 167, 168, 169, 170, 171, 172, 173, 153, 103),
    # init_module, delete_module, finit_module, kexec_load, kexec_file_load
    *(175, 176, 313, 246, 320),
    # settimeofday, adjtimex, clock_settime, clock_adjtime
    *(164, 159, 227, 305),
    # add_key, request_key, keyctl, bpf, perf_event_open, userfaultfd, modify_ldt
    *(248, 249, 250, 321, 298, 323, 154),
    # io_uring_setup, io_uring_enter, io_uring_register
    *(425, 426, 427),
    # shmget, shmat, shmctl, shmdt, semget, semop, semctl, semtimedop
    *(29, 30, 31, 67, 64, 65, 66, 220),
    # msgget, msgsnd, msgrcv, msgctl, mq_open, mq_unlink
    *(68, 69, 70, 71, 240, 241),
)


@dataclass
class Spawned:
    """A QEMU process, and this process's ends of its sockets. The owner reads console and stderr.
    `commands` are the names of the commands that are already written to QEMU, with the ids 1, 2, …;
    `share` is the share of the host's files, if the machine has one."""

    process: subprocess.Popen[bytes]
    uid: int
    jail: Jail
    share: "Share | None"
    commands: list[str]
    qmp: socket.socket
    agent: socket.socket
    console: int
    stderr: int

    def kill(self) -> None:
        """Kill QEMU, if it still runs, and wait for its end."""
        if self.process.returncode is not None:
            return
        self.process.kill()
        self.process.wait()
        self.jail.close()
        if self.share:
            self.share.kill()


def spawn(
    machine: Machine, saved: SavedMemory | None = None, commands: Sequence[Command] = ()
) -> Spawned:
    """Run QEMU as its own user, and write to it the commands that it should do first.

    Raises HypervisorError.
    """
    for path in machine.files:
        if not path.exists():
            raise HypervisorError(f"{path} is missing; build an image or name another one")
    commands = [Command("qmp_capabilities"), *commands]
    memory = saved or _own_memory(machine)
    try:
        spawned = _spawn(_resolved(machine), memory, commands)
    finally:
        if memory and not saved:
            os.close(memory.fd)
    if machine.share:
        try:
            # Loaded while QEMU starts, which does not need it before.
            from tapwright.hypervisor.share import Share

            spawned.share = Share.start(spawned.uid, machine.share)
        except BaseException:
            spawned.kill()
            raise
    return spawned


def own_memory(machine: Machine, size: int) -> int:
    """Return a descriptor of `size` bytes of memory, all zero, that other processes can share, of
    the kind that the machine wants. Raises OSError."""
    if machine.memory_directory and not machine.hugepages:
        return memfd.create_in(machine.memory_directory, size)
    return memfd.create("tapwright-own", size, huge_pages=machine.hugepages)


def _own_memory(machine: Machine) -> SavedMemory | None:
    """Return the machine's own memory; None if QEMU makes it. Raises HypervisorError."""
    if machine.has_private_memory:
        return None
    if machine.hugepages:
        check_hugepages(machine.memory_mib)
    try:
        fd = own_memory(machine, machine.memory_mib << 20)
    except OSError as error:
        where = machine.memory_directory or "a memfd"
        raise HypervisorError(
            f"there is no room for the guest's {machine.memory_mib} MiB in {where}: "
            f"{error.strerror}; give it less (default_memory), or make room"
        ) from None
    return SavedMemory(fd, is_complete=False, is_own=True)


def _resolved(machine: Machine) -> Machine:
    """Return the machine with paths that contain no links."""
    return replace(
        machine,
        kernel=machine.kernel.resolve(),
        initrd=machine.initrd.resolve(),
        disk=machine.disk.resolve() if machine.disk else None,
    )


def _spawn(machine: Machine, saved: SavedMemory | None, commands: Sequence[Command]) -> Spawned:
    uid = users.of(os.getpid())
    program = os.path.abspath(shutil.which(machine.qemu) or machine.qemu)
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, agent, console = (pair[0] for pair in pairs)
    theirs = [pair[1].fileno() for pair in pairs]
    stderr_read, stderr_write = os.pipe()
    with contextlib.ExitStack() as undo:
        for ours in (qmp, agent, console):
            undo.callback(ours.close)
        undo.callback(os.close, stderr_read)
        try:
            kvm = (_KVM,) if machine.accelerator == "kvm" else ()
            made = _jail(program, machine.files, (*_DEVICES, *kvm))
            undo.callback(made.close)
            if saved and saved.is_own:
                os.fchown(saved.fd, uid, uid)
            qmp_wire.write(qmp, commands)
            process = _started(
                program,
                machine.command(*theirs, saved=saved),
                made,
                stdout=stderr_write,
                stderr=stderr_write,
                passed=[*theirs, saved.fd] if saved else theirs,
                file_bytes=machine.room_mib << 20,
            )
        finally:
            os.close(stderr_write)
            for _, their_end in pairs:
                their_end.close()
        undo.pop_all()
    names = [command.name for command in commands]
    return Spawned(process, uid, made, None, names, qmp, agent, console.detach(), stderr_read)


def output_of(path: str, *arguments: str, seconds: float) -> subprocess.CompletedProcess[str]:
    """Run a QEMU that prints something and ends, confined like one with a guest. Raises
    HypervisorError, subprocess.TimeoutExpired."""
    made = _jail(path, [], _DEVICES)
    try:
        process = _started(
            path, [path, *arguments], made, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        with process:
            try:
                said = [
                    each.decode(errors="replace") for each in process.communicate(None, seconds)
                ]
            except BaseException:
                process.kill()
                raise
    finally:
        made.close()
    return subprocess.CompletedProcess(process.args, process.returncode, *said)


def _started(
    program: str,
    command: list[str],
    made: Jail,
    *,
    stdout: int,
    stderr: int,
    passed: Collection[int] = (),
    file_bytes: int = 0,
) -> subprocess.Popen[bytes]:
    """Start QEMU. It can make no file, and no memory file, larger than `file_bytes`. Its first
    memory has its size already; memory by which it grows is such a file. Raises HypervisorError."""
    uid = users.of(os.getpid())
    parent = os.pidfd_open(os.getpid())
    try:
        with alone():
            return subprocess.Popen(
                command,
                executable=program,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                env={"PATH": os.environ.get("PATH", os.defpath)},
                cwd="/",
                pass_fds=passed,
                preexec_fn=_confinement(made, uid, parent, file_bytes),
            )
    except subprocess.SubprocessError:
        raise HypervisorError(
            "QEMU can't be confined; it takes root with all capabilities, and Linux 5.14 or newer"
        ) from None
    except OSError as error:
        raise HypervisorError(
            f"QEMU ({command[0]}) can't be started: {error.strerror}; install "
            "qemu-system-x86 or set path in [hypervisor.qemu]"
        ) from None
    finally:
        os.close(parent)


def _jail(program: str, files: Collection[Path], devices: Collection[str]) -> Jail:
    """Make a jail with the directories from which QEMU is loaded, and the files that it opens when
    it starts. Raises HypervisorError."""
    places = [*jail.system(), *(place for place in _OF_ETC if os.path.exists(f"/{place}"))]
    devices = [place for place in devices if os.path.exists(f"/{place}")]
    for path in (*_homes(program), *map(str, files)):
        place = path.strip("/")
        if os.path.exists(path) and not any(_is_within(place, other) for other in places):
            places = [other for other in places if not _is_within(other, place)]
            places.append(place)
    try:
        return Jail.make({place: f"/{place}" for place in (*places, *devices)}, _PROCESSES, devices)
    except OSError as error:
        raise HypervisorError(
            f"QEMU can't be confined: {error}; it takes root, and Linux 5.14 or newer"
        ) from None


def _homes(program: str) -> Iterator[str]:
    """Yield the directories of a program outside of the usual system directories: its own
    directory, or the parent of its `bin`; the same for each link on the path to it."""
    for _ in range(_MOST_LINKS):
        directory = os.path.dirname(program)
        if os.path.basename(directory) in _BINARIES:
            directory = os.path.dirname(directory)
        yield program if directory == "/" else directory
        if not os.path.islink(program):
            break
        program = os.path.join(os.path.dirname(program), os.readlink(program))
    real = os.path.realpath(program)
    if real != program:
        yield from _homes(real)


def _is_within(place: str, other: str) -> bool:
    return place == other or place.startswith(f"{other}/")


def _confinement(made: Jail, uid: int, parent: int, file_bytes: int) -> Callable[[], None]:
    """Return what the new process does to itself before it becomes QEMU.

    It runs in Python between fork and exec, because only then is there no moment at which QEMU
    lives and would survive the supervisor's death.
    """
    groups = _groups()
    highest = capabilities.last()
    confined = Filter(_REFUSED, _CHECKED, (CLONE3,), _UNKNOWN)
    limits = {resource.RLIMIT_FSIZE: file_bytes, resource.RLIMIT_NPROC: _THREADS}

    def confine() -> None:
        made.enter()
        set_limits(_FILES, _FILES, limits)
        os.setgroups(groups)
        os.setresgid(uid, uid, uid)
        capabilities.bound((), highest)
        os.setresuid(uid, uid, uid)
        capabilities.keep_none()
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
        confined.install()
        # After the change of user, which clears the setting (prctl(2)).
        die_with_other(parent)

    return confine


def user() -> tuple[int, list[int]]:
    """Return the user and the supplementary groups with which this process would start QEMU. The
    user has no account."""
    return users.of(os.getpid()), _groups()


def qemu_may_open_kvm() -> bool:
    """Whether /dev/kvm exists, and is open to all users or to a group other than root's."""
    try:
        return os.stat("/dev/kvm").st_mode & 0o006 == 0o006 or bool(_groups())
    except OSError:
        return False


def _groups() -> list[int]:
    """Return the group that may use /dev/kvm, if there is one."""
    try:
        status = os.stat("/dev/kvm")
    except OSError:
        return []
    return [status.st_gid] if status.st_gid and status.st_mode & 0o060 == 0o060 else []
