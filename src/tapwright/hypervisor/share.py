"""The files of the host that a guest sees: a mount namespace with nothing else in it, and the
process that opens them for the guest (`virtiofsd`).

The namespace's root is an empty, read-only filesystem in memory; shared files are mounted there as
`DIRECTORY/NAME`. None of this is visible, or has an effect, outside. The guest has a virtio-fs
device, which QEMU connects to the daemon: the guest's requests never pass through QEMU, which may
open no file of the host.

The daemon ends when QEMU has ended.
"""

import contextlib
import errno
import os
import shutil
import socket
import subprocess
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

from tapwright.errors import HypervisorError
from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.jail import Jail, make_place, remove_place
from tapwright.hypervisor.machine import Daemon
from tapwright.linux import libc, mounts

# The directories from which the daemon is loaded, mounted until it is.
_HOST = ("usr", "lib", "lib64")
_PROGRAM, _PROCESSES, _PROC = "virtiofsd", "processes", "proc"
_LIMITS = ("file-max", "nr_open")  # of /proc/sys/fs

# Without NO_DEVICES, a guest could open the host's device through the daemon. The guest follows
# symbolic links itself, because it knows where they should lead.
_ATTRIBUTES = mounts.NO_SETUID | mounts.NO_DEVICES | mounts.NO_EXECUTION | mounts.NO_SYMLINKS


@dataclass
class _Shown:
    """A place in the share: its key, None if no other directory may use the place, and the
    directories that use it."""

    key: tuple[int, int] | None
    users: list[str]


@dataclass
class Share:
    """The share of one guest. `connection` is QEMU's end of the daemon's socket. `stderr` is the
    daemon's; the starter of the daemon reads and closes it. The daemon gives the guest all of its
    descriptors but for `kept_files`."""

    process: subprocess.Popen[bytes]
    connection: socket.socket
    stderr: int
    kept_files: int
    _jail: Jail
    _shown: dict[str, _Shown] = field(default_factory=dict)  # by place
    _owned: dict[str, str] = field(default_factory=dict)  # the present name of each directory
    _uses: dict[str, int] = field(default_factory=dict)

    @classmethod
    def start(cls, uid: int, daemon: Daemon) -> "Share":
        """Make an empty share; its daemon's real user is `uid`. Raises HypervisorError."""
        program = virtiofsd.program_of(daemon)
        with contextlib.ExitStack() as undo:
            try:
                jail = _jail(program)
                undo.callback(jail.close)
                listening, connection = virtiofsd.connected_pair()
                undo.callback(connection.close)
                words = [f"/{_PROGRAM}", *virtiofsd.arguments(program, listening.fileno(), daemon)]
                kept = virtiofsd.kept_files(program)
                with listening:
                    process, stderr = virtiofsd.spawn(words, listening, jail.enter, uid)
            except (OSError, subprocess.SubprocessError) as error:
                raise HypervisorError(
                    f"no files can be shared: {error}; it takes root, and Linux 5.14 or newer"
                ) from None
            undo.pop_all()
        return cls(process, connection, stderr, kept, jail)

    @property
    def root(self) -> str:
        """Where the host has what the guest sees."""
        return f"/proc/{self.process.pid}/root"

    def seal(self) -> None:
        """Unmount the directories from which the daemon was loaded, and its /proc, which it has
        read. Call this when the daemon has answered QEMU, and before the guest can speak to the
        daemon. Raises HypervisorError."""
        try:
            self._jail.seal(without_processes=True)
            shutil.rmtree(_PROC, dir_fd=self._jail.tree)
        except OSError as error:
            raise HypervisorError(f"the share can't be sealed: {error}") from None

    def attach(
        self, directory: str, sources: Mapping[str, int], apart: Collection[str] = ()
    ) -> dict[str, str]:
        """Show detached mounts as `directory/NAME`, beside those already shown; all of them, or
        none. Return the place of each: a directory that existed before gets another name, and a
        file or directory that is already shown keeps its one place for all its users, unless it
        must be `apart`.

        The caller closes the descriptors, but can't attach them again. Raises HypervisorError.
        """
        for name in (directory, *sources):
            _check_name(name)
        places = {}
        try:
            with contextlib.ExitStack() as undo:
                for name, source in sources.items():
                    key = None if name in apart else _key(source)
                    place = self._place_of(key) or self._new_place(directory, name)
                    if place not in self._shown:
                        self._show(place, key, source)
                        undo.callback(self._hide, place)
                    elif not mounts.is_read_only(source):
                        mounts.within(
                            self._jail.namespace, partial(mounts.allow_writing, f"/{place}")
                        )
                    users = self._shown[place].users
                    if directory not in users:
                        users.append(directory)
                        undo.callback(users.remove, directory)
                    places[name] = place
                undo.pop_all()
        except OSError as error:
            raise HypervisorError(
                f"{directory} can't be shared: {error.strerror} ({error.filename})"
            ) from None
        return places

    def detach(self, directory: str) -> list[str]:
        """Remove everything that was attached under that name, but for what others use, too; return
        the places that are gone. Open files stay open. Raises HypervisorError."""
        _check_name(directory)
        self._owned.pop(directory, None)
        gone = []
        try:
            for place, shown in list(self._shown.items()):
                if directory in shown.users:
                    if shown.users == [directory]:
                        self._hide(place)
                        gone.append(place)
                    shown.users.remove(directory)
        except OSError as error:
            raise HypervisorError(f"{directory} is still shared: {error.strerror}") from None
        return gone

    def restrict(self) -> None:
        """Restrict mounts that came into the share by themselves (see `following` of
        `mounts.clone`). Raises OSError."""
        # Each change of a mount, even one without effect, is a change of the table. A program that
        # waits for changes of the table (poll(2)) would wake itself for ever.
        if mounts.are_restricted(self.process.pid, _ATTRIBUTES):
            return
        mounts.within(self._jail.namespace, lambda: mounts.restrict("/", _ATTRIBUTES))

    def kill(self) -> None:
        """Kill the daemon; the share ends with it."""
        self.process.kill()
        self.process.wait()
        self.connection.close()
        self._jail.close()

    def _place_of(self, key: tuple[int, int] | None) -> str | None:
        return next(
            (place for place, shown in self._shown.items() if key and shown.key == key), None
        )

    def _new_place(self, directory: str, name: str) -> str:
        """Raises FileExistsError.

        A guest remembers a place for a while after it has gone, so no place is used again.
        """
        if directory not in self._owned:
            self._uses[directory] = uses = self._uses.get(directory, 0) + 1
            self._owned[directory] = directory if uses == 1 else f"{directory}-{uses}"
        place = f"{self._owned[directory]}/{name}"
        if place in self._shown:
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), place)
        return place

    def _show(self, place: str, key: tuple[int, int] | None, source: int) -> None:
        directory = place.partition("/")[0]
        with contextlib.suppress(FileExistsError):
            os.mkdir(directory, 0o755, dir_fd=self._jail.tree)
        with contextlib.ExitStack() as undo:
            undo.callback(self._remove_if_empty, directory)
            mounts.restrict(source, _ATTRIBUTES)
            make_place(self._jail.tree, place, mounts.is_directory(source))
            undo.callback(remove_place, self._jail.tree, place)
            mounts.within(self._jail.namespace, lambda: mounts.attach(source, f"/{place}"))
            self._shown[place] = _Shown(key, [])
            undo.pop_all()

    def _hide(self, place: str) -> None:
        mounts.within(self._jail.namespace, lambda: libc.unmount(f"/{place}"))
        remove_place(self._jail.tree, place)
        del self._shown[place]
        self._remove_if_empty(place.partition("/")[0])

    def _remove_if_empty(self, directory: str) -> None:
        if not any(place.startswith(f"{directory}/") for place in self._shown):
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(directory, dir_fd=self._jail.tree)


def _jail(program: str) -> Jail:
    """Make a jail with the directories from which the daemon is loaded, and its part of /proc.
    Raises OSError."""
    sources = {name: f"/{name}" for name in _HOST if os.path.isdir(f"/{name}")}
    jail = Jail.make({**sources, _PROGRAM: program}, _PROCESSES)
    try:
        _make_proc(jail.tree)
    except BaseException:
        jail.close()
        raise
    return jail


def _make_proc(tree: int) -> None:
    """Make the daemon's part of /proc. The daemon keeps a directory there open, and a whole /proc
    would show it all of the host's processes."""
    for directory in (_PROC, f"{_PROC}/sys", f"{_PROC}/sys/fs"):
        os.mkdir(directory, 0o755, dir_fd=tree)
    os.symlink(f"/{_PROCESSES}/self", f"{_PROC}/self", dir_fd=tree)
    for limit in _LIMITS:
        place = f"{_PROC}/sys/fs/{limit}"
        fd = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644, dir_fd=tree)
        with open(fd, "wb") as copy, open(f"/proc/sys/fs/{limit}", "rb") as original:
            copy.write(original.read())


def _key(source: int) -> tuple[int, int]:
    """Return what identifies a file or directory, as long as it is open."""
    status = os.fstat(source)
    return status.st_dev, status.st_ino


def _check_name(name: str) -> None:
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise HypervisorError(f"{name!r} can't be the name of what is shared")
