"""One virtual machine: QEMU's command line and process.

QEMU gets nothing that it could misuse: a user id of its own, no privileges and no way to new
ones, a seccomp filter, the sandbox's network namespace, and TAPs, monitor, agent port and console
as file descriptors. It dies with the supervisor (PR_SET_PDEATHSIG), and the supervisor waits for
its end through a pidfd.
"""

import asyncio
import contextlib
import os
import select
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tapwright.agent.protocol import PORT_NAME, SHARE_TAG
from tapwright.errors import HypervisorError
from tapwright.hypervisor import nics
from tapwright.hypervisor.ports import RNG_ADDRESS, SERIAL_ADDRESS, Ports
from tapwright.hypervisor.qmp import Qmp
from tapwright.hypervisor.share import Share
from tapwright.linux import libc
from tapwright.linux.process import die_with, ended

# QEMU of sandbox N runs as user BASE + pid of N's supervisor: a number no account has (systemd's
# docs/UIDS-GIDS.md), and no two living sandboxes share, so one QEMU can't reach for another's.
_UID_BASE = 0x70000000

_STOP_SECONDS = 2.0
_TAIL_BYTES = 16 * 1024

_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
_KERNEL_PARAMETERS = (
    "console=ttyS0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests "
    "rcupdate.rcu_expedited=1 i8042.noaux=1 i8042.nopnp=1 i8042.dumbkbd=1 random.trust_cpu=on "
    "net.ifnames=0"
)


@dataclass(frozen=True)
class Machine:
    """What to start.

    `slots` is how many NICs there is room for. With a `memory_directory` the guest's memory is a
    file there that other processes can share; with `hugepages` it is of the host's huge pages, and
    can be shared too. Without `vhost` QEMU itself moves the frames of TAPs. With `debug` the
    guest's kernel tells its console what it does, also before there is one. With `share` it can be
    shown files of the host. `netns` is the namespace QEMU lives in, None for the caller's.
    """

    kernel: Path
    initrd: Path
    accelerator: str
    path: str = "qemu-system-x86_64"
    memory_mib: int = 256
    vcpus: int = 1
    machine_type: str = "q35"
    slots: int = 32
    memory_directory: str = ""
    hugepages: bool = False
    vhost: bool = True
    debug: bool = False
    share: bool = False
    kernel_parameters: str = ""
    netns: str | None = None

    @property
    def ports(self) -> Ports:
        """Raises HypervisorError."""
        return Ports(self.machine_type, self.slots)

    @property
    def has_private_memory(self) -> bool:
        """Whether no other process is to share it."""
        return not (self.memory_directory or self.hugepages)

    def command(
        self,
        qmp_fd: int,
        agent_fd: int,
        console_fd: int,
        share_fd: int = -1,
        *,
        saved: "SavedMemory | None" = None,
    ) -> list[str]:
        """QEMU's argument list (qemu-system-x86_64(1)). Raises HypervisorError."""
        tcg = self.accelerator == "tcg"
        memory = saved.backend(self.memory_mib) if saved else self._memory_backend()
        restored = saved is not None and saved.is_complete
        backend = ",memory-backend=memory" if memory else ""
        beside = ",multifunction=on" if self.share else ""
        return [
            self.path,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-sandbox", _SECCOMP),
            *(
                "-machine",
                f"{self.machine_type},accel={self.accelerator},smm=off,vmport=off{backend}",
            ),
            *memory,
            *("-cpu", "max" if tcg else "host"),
            *("-m", str(self.memory_mib), "-smp", str(self.vcpus)),
            *(("-incoming", "defer") if restored else self._guest()),
            *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
            *("-device", f"virtio-serial-pci,max_ports=2,addr={SERIAL_ADDRESS:#x}{beside}"),
            *("-chardev", f"socket,id=agent,fd={agent_fd}"),
            *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom"),
            *("-device", f"virtio-rng-pci,rng=rng,addr={RNG_ADDRESS:#x}"),
            *("-device", "vmgenid,guid=auto"),
            *(self._share(share_fd) if self.share else ()),
            *(word for device in self.ports.devices() for word in ("-device", device)),
        ]

    def _share(self, fd: int) -> list[str]:
        """It takes no place on the bus that a NIC could have."""
        options = f"fsdev=share,mount_tag={SHARE_TAG},addr={SERIAL_ADDRESS:#x}.1"
        return [
            *("-fsdev", f"proxy,id=share,sock_fd={fd}"),
            *("-device", f"virtio-9p-pci,{options}"),
        ]

    def _guest(self) -> list[str]:
        """What is started. A guest that is restored has it in its memory: QEMU need not read it."""
        return [
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            *("-append", self._parameters()),
        ]

    def _parameters(self) -> str:
        """The kernel's command line."""
        words = [_KERNEL_PARAMETERS, "earlyprintk=ttyS0" if self.debug else "quiet"]
        if self.accelerator == "tcg":
            # Emulated code does not speculate; the guest would only pay for it.
            words.append("mitigations=off")
        return " ".join([*words, self.kernel_parameters]).strip()

    def _memory_backend(self) -> list[str]:
        if self.hugepages:
            check_hugepages(self.memory_mib)
            # Not a file of hugetlbfs, where QEMU's user may not write.
            options = f"size={self.memory_mib}M,hugetlb=on,share=on"
            return ["-object", f"memory-backend-memfd,id=memory,{options}"]
        if self.memory_directory:
            options = f"size={self.memory_mib}M,mem-path={self.memory_directory},share=on"
            return ["-object", f"memory-backend-file,id=memory,{options}"]
        return []


@dataclass(frozen=True)
class SavedMemory:
    """A descriptor that is a guest's memory, and stays the caller's.

    Either it is written by a guest that is to be saved; or it `is_complete`, and QEMU waits for the
    state of the devices. Then nobody can write to it, and what the guest writes is in pages beside
    it; or it `is_own`: this guest writes to it, and other processes can share it.
    """

    fd: int
    is_complete: bool
    is_own: bool = False

    def backend(self, mib: int) -> list[str]:
        shared = "off" if self.is_complete and not self.is_own else "on"
        # By this path any user may open it; QEMU opens it for writing in any case.
        options = f"size={mib}M,mem-path=/proc/self/fd/{self.fd},share={shared}"
        return ["-object", f"memory-backend-file,id=memory,{options}"]


def check_hugepages(mib: int) -> None:
    """Raises HypervisorError when so much memory can't be had of them."""
    with open("/proc/meminfo") as file:
        fields = {line.split(":")[0]: int(line.split()[1]) for line in file}
    size = fields["Hugepagesize"]  # KiB
    wanted, rest = divmod(mib * 1024, size)
    if rest:
        raise HypervisorError(
            f"a guest of {mib} MiB can't be of huge pages of {size} KiB; change default_memory"
        )
    free = fields["HugePages_Free"] - fields["HugePages_Rsvd"]
    if free < wanted:
        total = fields["HugePages_Total"] - free + wanted
        raise HypervisorError(
            f"a guest of {mib} MiB takes {wanted} huge pages of {size} KiB, and {free} are free; "
            f"reserve more (sysctl vm.nr_hugepages={total}) or set enable_hugepages = false"
        )


@dataclass
class Qemu:
    """A started QEMU. `agent` is the host's end of the agent's port; `share` what the guest can be
    shown of the host's files, where the machine has that."""

    qmp: Qmp
    nics: nics.Nics
    agent: socket.socket
    uid: int
    share: Share | None
    _process: subprocess.Popen[bytes]
    _console: "Tail"
    _stderr: "Tail"
    _exited: asyncio.Future[None]
    _share_is_lost: bool = False

    @classmethod
    async def start(cls, machine: Machine, saved: SavedMemory | None = None) -> "Qemu":
        """Start QEMU and wait until it takes commands. Raises HypervisorError."""
        for path in (machine.kernel, machine.initrd):
            if not path.exists():
                raise HypervisorError(f"{path} is missing; build an image or name another one")
        ports = machine.ports
        uid = _UID_BASE + os.getpid()
        shared = Share.start(uid) if machine.share else None
        try:
            started = _spawn(machine, uid, saved, shared)
        except HypervisorError:
            if shared:
                shared.kill()
            raise
        qmp = Qmp(started.qmp)
        qemu = cls(
            qmp,
            nics.Nics(qmp, ports, kvm=machine.accelerator == "kvm", vhost=machine.vhost),
            started.agent,
            uid,
            shared,
            started.process,
            Tail(started.console),
            Tail(started.stderr),
            ended(started.process),
        )
        try:
            await qmp.connect()
            if shared:
                shared.seal()
                qemu._watch_share(shared)
        except HypervisorError as error:
            await qemu.kill()
            raise HypervisorError(
                f"QEMU did not start: {error}. Its last words: {qemu.last_words()}"
            ) from None
        except asyncio.CancelledError:
            await qemu.kill()
            raise
        return qemu

    async def wait(self) -> int:
        """Wait for QEMU's end; return its exit status, negative for a signal."""
        await asyncio.shield(self._exited)
        return self._process.wait()

    async def stop(self) -> None:
        """End the machine at once; a QEMU that does not quit is killed."""
        with contextlib.suppress(HypervisorError, TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                with contextlib.suppress(HypervisorError):
                    await self.qmp.execute("quit")
                await self.wait()
        await self.kill()

    async def kill(self) -> None:
        """End QEMU's process, wait for its end, and close what we hold of it."""
        if not self._exited.done():
            self._process.send_signal(signal.SIGKILL)
        await self.wait()
        await self.qmp.close()
        self.agent.close()
        self._console.close()
        self._stderr.close()
        if self.share:
            self.share.kill()

    def _watch_share(self, shared: Share) -> None:
        """End QEMU when the helper has ended, which it does by itself when QEMU ends."""
        loop = asyncio.get_running_loop()

        def end() -> None:
            if not self._exited.done():
                self._share_is_lost = True
                self._process.send_signal(signal.SIGKILL)

        def look(_: asyncio.Future[None]) -> None:
            loop.call_later(_STOP_SECONDS if shared.process.returncode == 0 else 0, end)

        ended(shared.process).add_done_callback(look)

    def last_words(self) -> str:
        """What QEMU, or else the guest's console, said last: for error messages."""
        if self._share_is_lost:
            return "it was ended, for its helper that opens the host's files had ended"
        for tail in (self._stderr, self._console):
            tail.read()
            if lines := tail.lines():
                return " / ".join(lines[-3:])
        return "it said nothing"


class _Started(NamedTuple):
    """A QEMU process, and our ends of what it was given; console and stderr are to be read."""

    process: subprocess.Popen[bytes]
    qmp: socket.socket
    agent: socket.socket
    console: int
    stderr: int


def _spawn(machine: Machine, uid: int, saved: SavedMemory | None, shared: Share | None) -> _Started:
    """Run QEMU as a user of its own. Raises HypervisorError."""
    pairs = [socket.socketpair() for _ in range(3)]
    qmp, agent, console = (pair[0] for pair in pairs)
    theirs = [pair[1].fileno() for pair in pairs]
    if shared:
        theirs.append(shared.socket.fileno())
    stderr_read, stderr_write = os.pipe()
    netns_fd = os.open(machine.netns, os.O_RDONLY | os.O_CLOEXEC) if machine.netns else None
    try:
        if saved and saved.is_own:
            os.fchown(saved.fd, uid, uid)
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
        if shared:
            shared.socket.close()
    return _Started(process, qmp, agent, console.detach(), stderr_read)


class Tail:
    """Reads a descriptor so that its writer never blocks, and keeps only the last of it: the
    guest decides how much it writes to its console."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._kept = bytearray()
        asyncio.get_running_loop().add_reader(fd, self.read)

    def read(self) -> None:
        try:
            while self._fd >= 0 and (data := os.read(self._fd, 4096)):
                self._kept += data
                del self._kept[:-_TAIL_BYTES]
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def lines(self) -> list[str]:
        text = self._kept.decode(errors="replace")
        printable = "".join(c for c in text if c.isprintable() or c == "\n")
        return [line.strip() for line in printable.splitlines() if line.strip()]

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1


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
                select.select([pidfd], [], [], _STOP_SECONDS)
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
