"""A virtual machine to start, and QEMU's command line for it."""

from pathlib import Path

from tapwright.dataclass import dataclass
from tapwright.errors import HypervisorError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.hypervisor.ports import Ports

_SECCOMP = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# A restored guest gets its NICs later, and the agent announces their addresses. So QEMU must not
# announce them; it would do that by broadcasts, which every guest of a bridge must read.
_RESTORED = ("-incoming", "defer", "-global", "migration.announce-rounds=0")
_TRANSLATED_MIB = 128
"""The memory for translated code of the guest. By default QEMU takes up to 1 GiB
(accel/tcg/region.c), for which no container's limit has room."""
_TRANSLATED_MIB_EACH = 2
"""What an emulated CPU takes of that from its start, so each has as much beside it; memory that no
code was written to costs nothing (tcg/region.c: tcg_n_regions)."""

_EMULATED = "max,erms=off,fsrm=off,la57=off"
"""The emulated processor: everything that QEMU can do, except for what only takes time. With *erms*
or *fsrm*, a kernel fills and copies memory byte by byte (arch/x86/lib/memset_64.S), which QEMU does
as it is told, one byte after the other; without, it does so by eight bytes. They go together: QEMU
10 has *fsrm*, too, and with that alone Debian 12's kernel hangs in memmove, which takes it for both
(arch/x86/lib/memmove_64.S). With *la57*, each walk of the page tables reads a fifth level."""

_GROWING = "swiotlb=noforce"
"""A guest that can get memory above 4 GiB reserves 64 MiB for devices that can't reach it
(arch/x86/kernel/pci-dma.c). This guest has no such device."""

_KERNEL_PARAMETERS = (
    "console=ttyS0 panic=-1 no_timer_check tsc=reliable cryptomgr.notests "
    "rcupdate.rcu_expedited=1 i8042.noaux=1 i8042.nopnp=1 i8042.dumbkbd=1 random.trust_cpu=on "
    "net.ifnames=0 vsyscall=xonly"
)
"""With *vsyscall*, programs with a C library before 2.15 run (CentOS 6), as they do on most hosts.
A kernel of Debian's has no such page of itself, and they die there (SIGSEGV)."""


@dataclass(frozen=True)
class Daemon:
    """The program that serves files of the host (`virtiofsd`): its path, empty for the first one
    that is installed; how much of the files the guest may cache (`auto`, `always`, `metadata`,
    `never`); and further arguments."""

    path: str = ""
    cache: str = "auto"
    extra: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """A machine to start.

    `slots` is the number of NICs that fit. With a `memory_directory`, the guest's memory is a file
    there, which other processes can share. With `hugepages`, it consists of the host's huge pages,
    and can be shared, too. QEMU gets such memory from the supervisor (`SavedMemory`). Without
    `vhost`, QEMU itself moves the frames of TAPs. With `debug`, the guest's kernel logs everything
    to its console, from the beginning. `share` is the daemon that shows the guest files of the
    host, None for no files. `disk` is the filesystem with modules and programs, None for none. The
    machine can grow (`growth`) to `most_memory_mib`, by at most `memory_slots` DIMMs, and to
    `most_vcpus`, of which it has `present_vcpus` from the start; 0 means no growth.
    """

    kernel: Path
    initrd: Path
    accelerator: str = "auto"
    qemu: str = "qemu-system-x86_64"
    memory_mib: int = 256
    vcpus: int = 1
    most_memory_mib: int = 0
    memory_slots: int = 0
    most_vcpus: int = 0
    machine_type: str = "q35"
    slots: int = 8
    memory_directory: str = ""
    hugepages: bool = False
    vhost: bool = True
    debug: bool = False
    share: Daemon | None = None
    disk: Path | None = None
    kernel_params: str = ""

    @property
    def ports(self) -> "Ports":
        """Raises HypervisorError."""
        from tapwright.hypervisor.ports import Ports  # reading a record does not need it

        return Ports(self.machine_type, self.slots, self.share is not None)

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.kernel, self.initrd, *([self.disk] if self.disk else []))

    @property
    def can_get_memory(self) -> bool:
        """Whether the machine can grow in memory."""
        return self.room_mib > 0

    @property
    def present_vcpus(self) -> int:
        """How many CPUs QEMU starts with. The kernel of an emulated guest may take a CPU that is
        absent at its boot for one that never comes, because it knows no hypervisor (6.12.118:
        arch/x86/kernel/acpi/boot.c, acpi_is_processor_usable). So all are present, and the kernel
        leaves those offline that it shall not use yet."""
        return max(self.vcpus, self.most_vcpus) if self.accelerator == "tcg" else self.vcpus

    @property
    def room_mib(self) -> int:
        """How much more memory the machine can get than it starts with."""
        return max(0, self.most_memory_mib - self.memory_mib) if self.memory_slots else 0

    @property
    def has_private_memory(self) -> bool:
        """Whether no other process may share the memory."""
        return not (self.memory_directory or self.hugepages or self.share)

    def command(
        self,
        qmp_fd: int,
        agent_fd: int,
        console_fd: int,
        *,
        saved: "SavedMemory | None" = None,
    ) -> list[str]:
        """Return QEMU's argument list (qemu-system-x86_64(1)). Raises HypervisorError."""
        from tapwright.agent.protocol import PORT_NAME
        from tapwright.hypervisor.ports import RNG_ADDRESS, SERIAL_ADDRESS

        tcg = self.accelerator == "tcg"
        memory = saved.backend(self.memory_mib) if saved else []
        restored = saved is not None and saved.is_complete
        backend = ",memory-backend=memory" if memory else ""
        beside = ",multifunction=on" if self.share else ""
        beside_rng = ",multifunction=on" if self.disk else ""
        return [
            self.qemu,
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-sandbox", _SECCOMP),
            *(
                "-machine",
                f"{self.machine_type},smm=off,vmport=off,dump-guest-core=off{backend}",
            ),
            *("-accel", f"tcg,tb-size={self._translated_mib()}" if tcg else self.accelerator),
            *memory,
            *("-cpu", _EMULATED if tcg else "host"),
            *("-m", self._memory_size(), "-smp", self._processors()),
            *(_RESTORED if restored else self._guest()),
            *("-chardev", f"socket,id=qmp,fd={qmp_fd}", "-mon", "chardev=qmp,mode=control"),
            *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
            *("-device", f"virtio-serial-pci,max_ports=2,addr={SERIAL_ADDRESS:#x}{beside}"),
            *("-chardev", f"socket,id=agent,fd={agent_fd}"),
            *("-device", f"virtserialport,chardev=agent,name={PORT_NAME}"),
            *("-object", "rng-random,id=rng,filename=/dev/urandom"),
            *("-device", f"virtio-rng-pci,rng=rng,addr={RNG_ADDRESS:#x}{beside_rng}"),
            *self._disk(),
            *("-device", "vmgenid,guid=auto"),
            *(word for device in self.ports.devices() for word in ("-device", device)),
        ]

    def _memory_size(self) -> str:
        if not self.can_get_memory:
            return str(self.memory_mib)
        return f"{self.memory_mib},slots={self.memory_slots},maxmem={self.most_memory_mib}M"

    def _processors(self) -> str:
        present = self.present_vcpus
        return str(present) + (f",maxcpus={self.most_vcpus}" if self.most_vcpus > present else "")

    def _translated_mib(self) -> int:
        return _TRANSLATED_MIB + _TRANSLATED_MIB_EACH * (self.present_vcpus - 1)

    def _guest(self) -> list[str]:
        """Return the arguments for kernel and initrd. A restored guest has these in its memory, so
        QEMU does not read them."""
        return [
            *("-kernel", str(self.kernel), "-initrd", str(self.initrd)),
            *("-append", self._parameters()),
        ]

    def _disk(self) -> list[str]:
        if not self.disk:
            return []
        from tapwright.hypervisor.ports import DISK_FUNCTION, RNG_ADDRESS

        # A comma in a path is written twice (qemu-system-x86_64(1)).
        path = str(self.disk).replace(",", ",,")
        return [
            "-blockdev",
            f"driver=raw,node-name=disk,read-only=on,file.driver=file,file.filename={path},"
            "file.locking=off",
            *("-device", f"virtio-blk-pci,drive=disk,addr={RNG_ADDRESS:#x}.{DISK_FUNCTION}"),
        ]

    def _parameters(self) -> str:
        """Return the kernel's command line."""
        words = [_KERNEL_PARAMETERS, "earlyprintk=ttyS0" if self.debug else "quiet"]
        if self.accelerator == "tcg":
            # Emulated code does not speculate; mitigations would only slow the guest down.
            words.append("mitigations=off")
        if self.can_get_memory:
            words.append(_GROWING)
        if self.present_vcpus > self.vcpus:
            words.append(f"maxcpus={self.vcpus}")
        return " ".join([*words, self.kernel_params]).strip()


@dataclass(frozen=True)
class SavedMemory:
    """A descriptor of a guest's memory. The caller closes it.

    Either a booting guest writes the memory, for example one to be saved; or the memory
    `is_complete`, and QEMU waits for the state of the devices. Complete memory is sealed, and the
    guest writes to copies of its pages, unless the memory `is_own`: then this guest writes to it,
    and other processes can share it.
    """

    fd: int
    is_complete: bool
    is_own: bool = False

    def backend(self, mib: int) -> list[str]:
        shared = "off" if self.is_complete and not self.is_own else "on"
        # Any user may open the memory by this path; QEMU opens it for writing in any case.
        options = f"size={mib}M,mem-path=/proc/self/fd/{self.fd},share={shared}"
        return ["-object", f"memory-backend-file,id=memory,{options}"]


def check_hugepages(mib: int) -> None:
    """Raises HypervisorError if the host has too few huge pages for this much memory."""
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
