"""`virtiofsd`, the process that opens the host's files for a guest: a vhost-user backend of
virtio-fs.

Two programs have this name: QEMU's own, in C, which went with QEMU 8.0, and its successor in Rust.
Both act as root, and both confine themselves before the guest can speak to them: to the root
directory where they start (`sandbox=chroot`), to a few capabilities, to a list of system calls.
`_confinement` removes beforehand what they do not need, so a daemon that a guest has taken over can
do no more than the rest.
"""

import contextlib
import mmap
import os
import resource
import socket
import subprocess
import tempfile
from collections.abc import Callable

from tapwright.errors import HypervisorError
from tapwright.hypervisor.machine import Daemon
from tapwright.linux import capabilities, libc, unixsocket
from tapwright.linux.process import alone
from tapwright.linux.seccomp import CLONE3, Check, Condition, Filter

# On Debian 12 and Ubuntu 22.04, the first path is QEMU's own program; the package virtiofsd, and
# Fedora, have the successor at the second one.
PATHS = ("/usr/lib/qemu/virtiofsd", "/usr/libexec/virtiofsd", "/usr/bin/virtiofsd")
# A part of the program's help text.
_ONLY_IN_C = b"posix_lock|no_posix_lock"
_UNANNOUNCED = "--no-announce-submounts"

# With QEMU's own `auto`, the guest drops its copy of a file whenever a program opens the file, so
# each start of a program reads all of it again. With `always`, the guest keeps its copy as long as
# size and time of the file are the same, which it checks after a second.
_CACHES_IN_C = {
    "auto": "always,timeout=1",
    "metadata": "auto",
    "never": "none",
}
_ON = ("--xattr", "--posix-acl")
# The guest's kernel does not support access control lists on an announced mount (fs/fuse/inode.c:
# fuse_fill_super_submount). Without announcements, all files appear to be on one device.
_ANNOUNCED = "--announce-submounts"

# By default it would open files without O_NOATIME, for which a right may be needed that it has.
_AS_OPENED = "--preserve-noatime"

# Since 1.14 it would open files by their handles, and end without the capability for that, which it
# does not get.
_NO_HANDLES = "--inode-file-handles=never"

_MOST_FILES = 1_000_000
"""Each file that the guest knows is a descriptor of the daemon, until the guest forgets it."""

_KEPT_FILES = 509 + 100 + 1
"""What the program in Rust (1.13) keeps for itself: for pieces of the guest's memory, for what
else it may open, and for its thread (src/main.rs: INTERNAL_FD_RESERVE)."""
# A part of what it says when the rest is used up.
_KEEPS_FILES = b"file descriptors available to the guest"

_CAPABILITIES = (
    *(capabilities.CHOWN, capabilities.DAC_OVERRIDE, capabilities.FOWNER, capabilities.FSETID),
    *(capabilities.SETGID, capabilities.SETUID, capabilities.MKNOD, capabilities.SETFCAP),
    *(capabilities.SETPCAP, capabilities.SYS_CHROOT),  # the daemon gives these up itself
)

# The daemon makes a file as the guest's user, but without the user's supplementary groups, which it
# does not know. The guest's kernel has checked that the user may make the file. So the daemon keeps
# the right to write anywhere meanwhile (prctl(2), capabilities(7)).
_PR_SET_SECUREBITS, _NO_SETUID_FIXUP = 28, 4

_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
# null, zero, full, random, urandom, tty, ptmx, which all users of a host may use; and the mark of a
# removed file in a layer of overlayfs.
_HARMLESS = (0x103, 0x105, 0x107, 0x108, 0x109, 0x500, 0x502, 0)
_REAL_USER_STAYS = ((Check(0, (0xFFFFFFFF,)),),)
_CLONE_THREAD, _CLONE_NAMESPACES, _CLONE_FS = 0x10000, 0x7E020080, 0x200


def _no_device(mode: int) -> tuple[Condition, Condition]:
    """`mode` is the number of mknod(2)'s argument with the mode; the device follows it."""
    return (
        (Check(mode, (_S_IFCHR, _S_IFBLK), _S_IFMT, is_in=False),),
        (Check(mode, (_S_IFCHR,), _S_IFMT), Check(mode + 1, _HARMLESS)),
    )


_CHECKED = {
    56: ((Check(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NAMESPACES),),),  # clone
    117: _REAL_USER_STAYS,  # setresuid
    119: _REAL_USER_STAYS,  # setresgid
    133: _no_device(1),  # mknod
    259: _no_device(2),  # mknodat
    272: ((Check(0, (_CLONE_FS,)),),),  # unshare: a working directory for each thread
}
_REFUSED = (
    # socket, connect, bind, listen, fork, vfork, kill, ptrace, syslog, personality
    *(41, 42, 49, 50, 57, 58, 62, 101, 103, 135),
    # setuid, setgid, setreuid, setregid
    *(105, 106, 113, 114),
    # shmget, shmat, shmctl, semget, semop, semctl, semtimedop, msgget, msgsnd, msgrcv, msgctl
    *(29, 30, 31, 64, 65, 66, 220, 68, 69, 70, 71),
    # mq_open, mq_unlink
    *(240, 241),
    # pivot_root, acct, mount, umount2, swapon, swapoff, reboot, sethostname, setdomainname
    *(155, 163, 165, 166, 167, 168, 169, 170, 171),
    # init_module, delete_module, tkill, settimeofday, kexec_load, add_key, request_key, keyctl
    *(175, 176, 200, 164, 246, 248, 249, 250),
    # perf_event_open, open_by_handle_at, clock_settime, setns, process_vm_readv, process_vm_writev
    *(298, 304, 227, 308, 310, 311),
    # finit_module, kexec_file_load, bpf, userfaultfd, io_uring_setup, pidfd_send_signal
    *(313, 320, 321, 323, 425, 424),
    # open_tree, move_mount, fsopen, fsmount, fspick, pidfd_open, pidfd_getfd, mount_setattr
    *(428, 429, 430, 432, 433, 434, 438, 442),
)


def program_of(daemon: Daemon) -> str:
    """Return the path of the daemon's program. Raises HypervisorError if there is none."""
    found = find(daemon.path)
    if found is None:
        where = " and ".join((daemon.path, *PATHS) if daemon.path else PATHS)
        raise HypervisorError(
            f"there is no virtiofsd, which opens a container's files, at {where}; install the "
            "package virtiofsd (Debian 12: qemu-system-common), or set virtio_fs_daemon in "
            "[hypervisor.qemu]"
        )
    return found


def find(path: str = "") -> str | None:
    """Return the program to use: the file at a path, if it exists, or else the first of PATHS that
    can be executed. None if there is none. A path may be that of Kata's configuration, which often
    names Kata's own program."""
    candidates = [path] if path and os.path.exists(path) else PATHS
    executable = (each for each in candidates if os.path.isfile(each) and os.access(each, os.X_OK))
    return next(executable, None)


def is_in_c(program: str) -> bool:
    """Whether a program is QEMU's own, and not its successor. Raises OSError."""
    return _mentions(program, _ONLY_IN_C)


def kept_files(program: str) -> int:
    """Return how many of its descriptors the program keeps for itself: it refuses a guest's files
    (ENFILE) that would take these. Raises OSError."""
    return _KEPT_FILES if _mentions(program, _KEEPS_FILES) else 0


def arguments(program: str, listening: int, daemon: Daemon) -> list[str]:
    """Return the program's arguments. The program serves its root directory to the process that
    connects. Arguments of the daemon's configuration that Tapwright sets itself are left out.
    Raises OSError."""
    if is_in_c(program):
        cache = _CACHES_IN_C.get(daemon.cache, daemon.cache)
        options = f"sandbox=chroot,source=/,cache={cache},xattr,posix_acl"
        words = ["-f", "-o", f"{options},log_level=warn"]
    else:
        cache = "never" if daemon.cache == "none" else daemon.cache
        words = ["--sandbox=chroot", "--shared-dir=/", f"--cache={cache}", "--log-level=warn", *_ON]
        if _mentions(program, _UNANNOUNCED[2:].encode()):  # it announces by default then
            words.append(_UNANNOUNCED)
        for word in (_NO_HANDLES, _AS_OPENED):
            if _mentions(program, _option(word)[2:].encode()):
                words.append(word)
    words += [f"--fd={listening}", "--rlimit-nofile=0"]
    ours = {_ANNOUNCED, _UNANNOUNCED, *_ON, *map(_option, words)} - {"-o"}
    return [*words, *(word for word in daemon.extra if _option(word) not in ours)]


def connected_pair() -> tuple[socket.socket, socket.socket]:
    """Return (a listening socket, a socket that is connected to it). No other process can have
    connected, because only this one could reach the path, which is gone. Raises OSError."""
    with (
        tempfile.TemporaryDirectory(prefix="tapwright-") as directory,
        unixsocket.address(f"{directory}/socket") as address,
        contextlib.ExitStack() as undo,
    ):
        listening = undo.enter_context(socket.socket(socket.AF_UNIX))
        ours = undo.enter_context(socket.socket(socket.AF_UNIX))
        listening.bind(address)
        listening.listen(1)
        ours.connect(address)
        undo.pop_all()
    return listening, ours


def spawn(
    words: list[str], listening: socket.socket, enter: Callable[[], None], uid: int
) -> tuple[subprocess.Popen[bytes], int]:
    """Run the program where `enter` leads, with the real user `uid`; return it with the descriptor
    of its output. Raises OSError, subprocess.SubprocessError."""
    said, stderr = os.pipe2(os.O_CLOEXEC)
    try:
        # The program's effective user is root; alone in a pid namespace, it can't signal or inspect
        # root's other processes.
        with alone():
            process = subprocess.Popen(
                words,
                stdin=subprocess.DEVNULL,
                stdout=stderr,
                stderr=stderr,
                env={},
                cwd="/",
                pass_fds=[listening.fileno()],
                preexec_fn=_confinement(enter, uid),
            )
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(stderr)
    return process, said


def _option(word: str) -> str:
    return word.partition("=")[0]


def _mentions(program: str, text: bytes) -> bool:
    """Raises OSError."""
    with open(program, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            return False
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(text) >= 0


def _confinement(enter: Callable[[], None], uid: int) -> Callable[[], None]:
    """Return what the new process does to itself before it becomes the daemon.

    Its real user is QEMU's, so that `orphans` finds it if it is left behind, and the filter keeps
    it from changing that. The process can't have no_new_privs, which would take the effective user
    from it (cap_bprm_creds_from_file: security/commoncap.c).
    """
    highest = capabilities.last()
    confined = Filter(_REFUSED, _CHECKED, (CLONE3,))
    with open("/proc/sys/fs/nr_open") as file:
        most_files = min(_MOST_FILES, int(file.read()))

    def confine() -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump would have a guest's memory in it
        _allow_files(most_files)
        enter()
        os.setgroups([])
        os.setresgid(uid, 0, 0)
        os.setresuid(uid, 0, 0)
        libc.prctl(_PR_SET_SECUREBITS, _NO_SETUID_FIXUP)
        confined.install()
        capabilities.keep(_CAPABILITIES, highest)

    return confine


def _allow_files(wanted: int) -> None:
    """Allow so many descriptors, or the most that this process may have (without
    CAP_SYS_RESOURCE)."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(hard, wanted),) * 2)
    except (OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
