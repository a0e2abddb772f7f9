"""The files of the host that a guest sees: a mount namespace that has nothing else in it, and the
process that opens them for the guest (`virtiofsd`).

The namespace's root is an empty filesystem in memory that nobody in there can write to, and what is
shared is mounted in it as `DIRECTORY/NAME`. Nothing of that is seen, or has an effect, outside. The
guest has it as a device, of virtio-fs, that QEMU passes on to the daemon: what the guest asks for
never comes by QEMU, which has no right to any file.

The daemon ends when QEMU has ended.
"""

import contextlib
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from tapwright.errors import HypervisorError
from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.virtiofsd import Daemon
from tapwright.linux import libc, mounts

# What the daemon is loaded from, and finds itself by, until it has been.
_HOST = ("usr", "lib", "lib64")
_PROGRAM, _PROCESSES, _PROC = "virtiofsd", "processes", "proc"
_PROCESSES_ONLY = {"subset": "pid", "hidepid": "invisible"}
_LIMITS = ("file-max", "nr_open")  # of /proc/sys/fs

# A device's node would be the host's device, to whoever opens it by the daemon. Symbolic links are
# followed by the guest, which knows what it means by them.
_ATTRIBUTES = mounts.NO_SETUID | mounts.NO_DEVICES | mounts.NO_EXECUTION | mounts.NO_SYMLINKS


@dataclass
class Share:
    """What is shared with one guest. `connection` leads to the daemon: QEMU's end of it. `stderr` is
    what the daemon says, to be read, and closed, by who starts it."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    stderr: int
    _namespace: int
    _tree: int
    _loaded_from: list[str]

    @classmethod
    def start(cls, uid: int, daemon: Daemon) -> "Share":
        """Make an empty share; its daemon's real user is `uid`. Raises HypervisorError."""
        program = daemon.program()
        with contextlib.ExitStack() as undo:
            try:
                tree = libc.detached_mount("tmpfs", mode="0755", size="1m")
                undo.callback(os.close, tree)
                namespace, loaded_from = _namespace(tree, program)
                undo.callback(os.close, namespace)
                listening, connection = virtiofsd.connected_pair()
                undo.callback(connection.close)
                words = [f"/{_PROGRAM}", *virtiofsd.arguments(program, listening.fileno(), daemon)]
                with listening:
                    process, stderr = virtiofsd.spawn(words, listening, namespace, uid)
            except (OSError, subprocess.SubprocessError) as error:
                raise HypervisorError(
                    f"no files can be shared: {error}; it takes root, and Linux 5.14 or newer"
                ) from None
            undo.pop_all()
        return cls(process, connection, stderr, namespace, tree, loaded_from)

    def seal(self) -> None:
        """Take out of the share what the daemon was loaded from, and its /proc, of which it has what
        it needs: to be called when the daemon has answered QEMU, and before the guest can speak to
        it. Raises HypervisorError."""
        try:
            mounts.within(self._namespace, lambda: _detach_all(self._loaded_from))
            while self._loaded_from:
                _remove_place(self._tree, self._loaded_from.pop())
            shutil.rmtree(_PROC, dir_fd=self._tree)
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
        """End the daemon, and with it the share."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        os.close(self._namespace)
        os.close(self._tree)


def _namespace(tree: int, program: str) -> tuple[int, list[str]]:
    """The share's namespace, with what the daemon is loaded from in it; and the names of that. Raises
    OSError."""
    sources = {name: f"/{name}" for name in _HOST if os.path.isdir(f"/{name}")}
    sources[_PROGRAM] = program
    with contextlib.ExitStack() as done:

        def held(fd: int) -> int:
            done.callback(os.close, fd)
            return fd

        below = {name: held(mounts.clone(path, read_only=True)) for name, path in sources.items()}
        below[_PROCESSES] = held(libc.detached_mount("proc", **_PROCESSES_ONLY))
        mounts.restrict(below[_PROCESSES], mounts.READ_ONLY)
        for name, fd in below.items():
            _make_place(tree, name, mounts.is_directory(fd))
        _make_proc(tree)
        root = held(mounts.clone(tree, recursive=False, read_only=True))
        mounts.restrict(root, _ATTRIBUTES & ~mounts.NO_SYMLINKS)
        places = [(fd, f"/{name}") for name, fd in below.items()]
        return mounts.new_namespace(root, places), list(below)


def _make_proc(tree: int) -> None:
    """What the daemon looks for in /proc: a whole one would give it all of the host's, for it keeps
    a directory in there open."""
    for directory in (_PROC, f"{_PROC}/sys", f"{_PROC}/sys/fs"):
        os.mkdir(directory, 0o755, dir_fd=tree)
    os.symlink(f"/{_PROCESSES}/self", f"{_PROC}/self", dir_fd=tree)
    for limit in _LIMITS:
        place = f"{_PROC}/sys/fs/{limit}"
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=tree)
        with open(fd, "wb") as copy, open(f"/proc/sys/fs/{limit}", "rb") as original:
            copy.write(original.read())


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
