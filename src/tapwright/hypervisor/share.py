"""The files of the host that a guest sees: a mount namespace that has nothing else in it, and the
process that opens them for QEMU.

QEMU itself has no right to any file. It asks QEMU's helper (`virtfs-proxy-helper`, 9p's `proxy`
driver), which acts as root with seven capabilities under a seccomp filter, and which is in the
share's mount namespace: its root is an empty filesystem in memory that neither can write to, and
what is shared is mounted there as `DIRECTORY/NAME`. Nothing of that is seen, or has an effect,
outside.

The helper ends when QEMU has ended.
"""

import contextlib
import os
import select
import socket
import stat
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tapwright.errors import HypervisorError
from tapwright.linux import capabilities, libc, mounts
from tapwright.linux.seccomp import Check, Filter

_HELPERS = ("/usr/lib/qemu/virtfs-proxy-helper", "/usr/libexec/virtfs-proxy-helper")
_PROGRAMS = ("usr", "lib", "lib64")  # of the host, until the helper has been loaded
_LOADED = b"Started"
_LOAD_SECONDS = 10.0

# A device's node would be the host's device, to whoever opens it by the helper. Symbolic links are
# followed by the guest, which knows what it means by them.
_ATTRIBUTES = mounts.NO_SETUID | mounts.NO_DEVICES | mounts.NO_EXECUTION | mounts.NO_SYMLINKS

_CAPABILITIES = (
    *(capabilities.CHOWN, capabilities.DAC_OVERRIDE, capabilities.FOWNER, capabilities.FSETID),
    *(capabilities.SETGID, capabilities.SETUID, capabilities.MKNOD),
    *(capabilities.SETPCAP, capabilities.SYS_CHROOT),  # which it gives up itself
)

_S_IFMT, _S_IFCHR, _S_IFBLK = 0o170000, 0o020000, 0o060000
_REAL_USER_STAYS = Check(0, (0xFFFFFFFF,))
_CLONE_THREAD, _CLONE_NAMESPACES = 0x10000, 0x7E020080
_CHECKED = {
    56: Check(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NAMESPACES),  # clone
    117: _REAL_USER_STAYS,  # setresuid
    119: _REAL_USER_STAYS,  # setresgid
    133: Check(1, (_S_IFCHR, _S_IFBLK), _S_IFMT, is_in=False),  # mknod
    259: Check(2, (_S_IFCHR, _S_IFBLK), _S_IFMT, is_in=False),  # mknodat
}
_ALLOWED = (
    # read write open close stat fstat lstat lseek mmap mprotect munmap brk rt_sigaction
    *(0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13),
    # rt_sigprocmask rt_sigreturn pread64 writev access sched_yield mremap madvise sendmsg
    *(14, 15, 17, 20, 21, 24, 25, 28, 46),
    # execve exit uname fcntl truncate getcwd chdir rename mkdir rmdir link unlink symlink readlink
    *(59, 60, 63, 72, 76, 79, 80, 82, 83, 84, 86, 87, 88, 89),
    # chmod lchown umask getrlimit getuid getgid geteuid getegid capget capset sigaltstack
    *(90, 94, 95, 97, 102, 104, 107, 108, 125, 126, 131),
    # statfs fstatfs prctl arch_prctl chroot gettid lsetxattr lgetxattr llistxattr lremovexattr
    *(137, 138, 157, 158, 161, 186, 189, 192, 195, 198),
    # futex sched_getaffinity set_tid_address clock_nanosleep exit_group get_mempolicy openat
    *(202, 204, 218, 230, 231, 239, 257),
    # mkdirat fchownat newfstatat unlinkat renameat linkat symlinkat readlinkat fchmodat faccessat
    *(258, 260, 262, 263, 264, 265, 266, 267, 268, 269),
    # set_robust_list utimensat prlimit64 renameat2 getrandom statx rseq faccessat2
    *(273, 280, 302, 316, 318, 332, 334, 439),
)


def helper() -> str | None:
    """The path of QEMU's helper; None where it is not installed."""
    return next(filter(os.path.exists, _HELPERS), None)


@dataclass
class Share:
    """What is shared with one guest."""

    process: subprocess.Popen[bytes]
    _namespace: int
    _tree: int
    _stderr: int
    _programs: list[str]

    @classmethod
    def start(cls, uid: int, connection: socket.socket) -> "Share":
        """Make an empty share; its helper's real user is `uid`. It serves the other end of the
        connection, which remains the caller's. Raises HypervisorError."""
        program = helper()
        if program is None:
            raise HypervisorError(
                f"{_HELPERS[0]} is missing, by which QEMU shares files; install qemu-system-common"
            )
        programs = [name for name in _PROGRAMS if os.path.isdir(f"/{name}")]
        with contextlib.ExitStack() as undo:
            try:
                tree = libc.detached_mount("tmpfs", mode="0755", size="1m")
                undo.callback(os.close, tree)
                namespace = _namespace(tree, programs)
                undo.callback(os.close, namespace)
                process, stderr = _spawn(program, connection.fileno(), namespace, uid)
            except (OSError, subprocess.SubprocessError) as error:
                raise HypervisorError(
                    f"no files can be shared: {error}; it takes root, and Linux 5.14 or newer"
                ) from None
            undo.pop_all()
        return cls(process, namespace, tree, stderr, programs)

    def seal(self) -> None:
        """Take the host's programs out of the share, as soon as the helper has been loaded from
        them. Raises HypervisorError."""
        said = _read_until(self._stderr, _LOADED, _LOAD_SECONDS)
        if _LOADED not in said:
            words = said.decode(errors="replace").strip() or "it said nothing"
            raise HypervisorError(f"QEMU's helper for sharing files did not start: {words}")
        try:
            mounts.within(self._namespace, lambda: _detach_all(self._programs))
            while self._programs:
                os.rmdir(self._programs.pop(), dir_fd=self._tree)
        except OSError as error:
            raise HypervisorError(f"the share can't be sealed: {error}") from None

    def attach(self, directory: str, sources: Mapping[str, int]) -> None:
        """Show detached mounts as `directory/NAME`, beside what is there; all of them, or none.
        The descriptors stay the caller's, and are of no more use. Raises HypervisorError."""
        for name in (directory, *sources):
            _check_name(name)
        try:
            with contextlib.ExitStack() as undo:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o755, dir_fd=self._tree)
                    undo.callback(os.rmdir, directory, dir_fd=self._tree)
                places = {f"{directory}/{name}": fd for name, fd in sources.items()}
                for place, source in places.items():
                    mounts.restrict(source, _ATTRIBUTES)
                    _make_place(self._tree, place, mounts.is_directory(source))
                    undo.callback(_remove_place, self._tree, place)
                mounts.within(self._namespace, lambda: _attach_all(places))
                undo.pop_all()
        except OSError as error:
            raise HypervisorError(
                f"{directory} can't be shared: {error.strerror} ({error.filename})"
            ) from None

    def detach(self, directory: str) -> None:
        """Take all away that was attached under that name; nothing happens when there is none.
        What is open stays open. Raises HypervisorError."""
        _check_name(directory)
        try:
            places = [f"{directory}/{name}" for name in _names(self._tree, directory)]
            mounts.within(self._namespace, lambda: _detach_all(places))
            for place in (*places, directory):
                _remove_place(self._tree, place)
        except FileNotFoundError:
            return
        except OSError as error:
            raise HypervisorError(f"{directory} is still shared: {error.strerror}") from None

    def kill(self) -> None:
        """End the helper, and with it the share."""
        self.process.kill()
        self.process.wait()
        for fd in (self._namespace, self._tree, self._stderr):
            os.close(fd)


def _namespace(tree: int, programs: list[str]) -> int:
    """The share's namespace, with the host's programs in it. Raises OSError."""
    with contextlib.ExitStack() as done:

        def cloned(path: str | int) -> int:
            fd = mounts.clone(path, recursive=False, read_only=True)
            done.callback(os.close, fd)
            mounts.restrict(fd, _ATTRIBUTES)
            return fd

        for name in programs:
            os.mkdir(name, 0o755, dir_fd=tree)
        root = cloned(tree)
        below = [(mounts.clone(f"/{name}", read_only=True), f"/{name}") for name in programs]
        for fd, _ in below:
            done.callback(os.close, fd)
        return mounts.new_namespace(root, below)


def _spawn(
    program: str, connection: int, namespace: int, uid: int
) -> tuple[subprocess.Popen[bytes], int]:
    """Run the helper; return it with the descriptor of what it says."""
    said, stderr = os.pipe2(os.O_CLOEXEC)
    try:
        process = subprocess.Popen(
            [program, "-n", "-f", str(connection), "-p", "/"],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
            env={},
            pass_fds=[connection],
            preexec_fn=_confinement(namespace, uid),
        )
    except BaseException:
        os.close(said)
        raise
    finally:
        os.close(stderr)
    return process, said


def _confinement(namespace: int, uid: int) -> Callable[[], None]:
    """What the new process does to itself before it becomes the helper.

    Its real user is that of QEMU, so that it is found when it should be left (`qemu.end_orphans`),
    and the filter does not let it change that. It can't be set no new privileges, which would take
    the effective user from it (cap_bprm_creds_from_file: security/commoncap.c).
    """
    highest = capabilities.last()
    allowed = Filter(_ALLOWED, _CHECKED)

    def confine() -> None:
        libc.setns(namespace, libc.CLONE_NEWNS)
        os.setgroups([])
        os.setresgid(uid, 0, 0)
        os.setresuid(uid, 0, 0)
        allowed.install()
        capabilities.keep(_CAPABILITIES, highest)

    return confine


def _attach_all(places: Mapping[str, int]) -> None:
    """In the share's namespace. Raises OSError, and has mounted nothing then."""
    done: list[str] = []
    try:
        for place, fd in places.items():
            mounts.attach(fd, f"/{place}")
            done.append(place)
    except BaseException:
        _detach_all(done)
        raise


def _detach_all(places: list[str]) -> None:
    """In the share's namespace. Raises OSError."""
    for place in places:
        libc.unmount(f"/{place}")


def _make_place(tree: int, place: str, is_directory: bool) -> None:
    """Something to mount on."""
    if is_directory:
        os.mkdir(place, 0o755, dir_fd=tree)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(place, flags, 0o644, dir_fd=tree))


def _remove_place(tree: int, place: str) -> None:
    if stat.S_ISDIR(os.stat(place, dir_fd=tree).st_mode):
        os.rmdir(place, dir_fd=tree)
    else:
        os.unlink(place, dir_fd=tree)


def _names(tree: int, directory: str) -> list[str]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=tree)
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise HypervisorError(f"{name!r} can't be the name of what is shared")


def _read_until(fd: int, wanted: bytes, seconds: float) -> bytes:
    """What is said, as far as these words, its end, or for so long."""
    deadline = time.monotonic() + seconds
    said = b""
    while wanted not in said:
        ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready or not (data := os.read(fd, 4096)):
            break
        said += data
    return said
