"""Templates on disk: a directory each, named by a digest of all that its guest depends on.

    manifest.json   what it was made of, and the checksums of the rest
    state           the devices, as QEMU saved them
    memory          the pages of the guest that are not zero, one after the other
    extents         where they belong

A template comes into being by the renaming of a complete directory. Only root can read it. All of
it is checked whenever it is used: what is damaged is as good as not there, and is removed.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tapwright.errors import HypervisorError
from tapwright.hypervisor import template_pages
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.template_pages import EXTENTS, MEMORY, DamagedError
from tapwright.linux import access, memfd

MANIFEST, STATE = "manifest.json", "state"
_FORMAT = 2
"""Increase it when the way of making or restoring templates changes."""

_NAME = "template-"  # followed by the key
_NEW, _DROPPED, _FAILED = f".{_NAME}new-", f".{_NAME}dropped-", f".{_NAME}failed-"
RETRY_SECONDS = 600.0
"""How long a failed template is not tried again."""

_UNUSED_SECONDS = 7 * 24 * 3600.0
_NO_LIMIT = 1 << 63
_USUAL_MIB, _LEFT_MIB = 128, 128
"""The most that a template takes apart from what grows with its memory, and what must stay free in
addition."""
_PAGE = mmap.PAGESIZE

Content = dict[str, Any]


def describe(machine: Machine) -> Content:
    """Return everything on which a booted and saved guest depends. Raises HypervisorError."""
    qemu = shutil.which(machine.qemu) or machine.qemu
    # The machine's other fields are the host's side, which is not saved; so is the place of its
    # memory.
    saved = replace(machine, qemu=qemu, memory_directory="", hugepages=False)
    command = saved.command(-1, -1, -1)
    files: tuple[str | Path, ...] = (qemu, *machine.files)
    return {
        "format": _FORMAT,
        "command": command,
        "files": [_identity(path) for path in files],
        "cpu": _processor(),
        # KVM shows the guest features that kernel and processor have together.
        "host_kernel": os.uname().release if machine.accelerator == "kvm" else "",
    }


def key_of(description: Content) -> str:
    return hashlib.sha256(_canonical(description)).hexdigest()[:16]


@dataclass(frozen=True)
class Template:
    """A template that is sound as far as a quick check shows: its manifest and state are. `state`
    and `directory` are descriptors; close the template when done."""

    key: str
    state: int
    directory: int
    manifest: Content

    @property
    def memory_name(self) -> str:
        """The name of memory that belongs to this state, and to no other."""
        return f"tapwright-{self.key}-{self.manifest['checksum'][:16]}"

    @property
    def memory_size(self) -> int:
        return int(self.manifest["memory_size"])

    def close(self) -> None:
        os.close(self.state)
        os.close(self.directory)

    def stream(self) -> int:
        """Return a pipe with the whole state, whose other end is closed. Since version 11, QEMU
        takes no file in its place (migration/fd.c). Raises OSError."""
        content = os.pread(self.state, os.fstat(self.state).st_size, 0)
        reading, writing = os.pipe()
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, max(len(content), _PAGE))
            os.set_blocking(writing, False)
            if os.write(writing, content) < len(content):
                raise OSError(errno.ENOSPC, "the state of a template does not fit into a pipe")
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return reading

    def fill(self) -> int:
        """Make a memfd of the guest's memory, and seal it; return its descriptor.

        Raises DamagedError, OSError.
        """
        fd = memfd.create(self.memory_name, self.memory_size)
        try:
            self.copy_to(fd)
            memfd.seal(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def copy_to(self, fd: int) -> None:
        """Write the guest's memory to a file of `memory_size` that is all zero.

        Raises DamagedError, OSError.
        """
        import concurrent.futures  # slow to load, and most often not needed

        extents = _read(self.directory, EXTENTS)
        _check(self.manifest, EXTENTS, zlib.crc32(extents))
        with _mapped(self.directory, MEMORY) as content:
            # Both release the interpreter's lock, and they take about the same time.
            with concurrent.futures.ThreadPoolExecutor(1) as beside:
                checksum = beside.submit(zlib.crc32, content)
                template_pages.spread(content, extents, fd)
            _check(self.manifest, MEMORY, checksum.result())


class Store:
    """The templates in a directory, which may take so many MiB together; 0 for any size."""

    def __init__(self, path: Path, limit_mib: int = 0) -> None:
        self._path = path
        self._limit = limit_mib << 20 or _NO_LIMIT

    def check_room(self, memory_mib: int) -> None:
        """Raises HypervisorError if the disk has no room for the template of a guest with this much
        memory, or would be full with it."""
        disk = os.statvfs(self._path)
        free = disk.f_bavail * disk.f_frsize >> 20
        # Most of it is the guest's files; the guest's kernel keeps 64 bytes for each page.
        needed = _USUAL_MIB + memory_mib // 64 + _LEFT_MIB
        if free < needed:
            raise HypervisorError(
                f"{self._path} has {free} MiB free, and a template wants {needed}; make room, or "
                "set another template_path in [factory]"
            )

    def find_for(self, machine: Machine) -> Template | None:
        """Return the template of a machine, as `find` does. Raises HypervisorError, OSError."""
        return self.find(key_of(describe(machine)))

    def has(self, key: str) -> bool:
        """Whether there is a template with this key, sound or not."""
        return self._of(key).is_dir()

    def sizes(self) -> list[int]:
        """Return the bytes of disk that each template takes."""
        return [_size(path) for path in self._path.glob(f"{_NAME}*")]

    def find(self, key: str) -> Template | None:
        """Return the template with this key, if it exists and is sound; a damaged one is removed.
        Raises HypervisorError."""
        self._check_place()
        try:
            found = self._open(key)
        except FileNotFoundError:
            return None
        except DamagedError:
            self.drop(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(found.directory)  # it is in use
        return found

    def drop(self, key: str) -> None:
        """Remove a template. Guests that use it have what they need."""
        grave = self._path / f"{_DROPPED}{key}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            self._of(key).rename(grave)
        if grave.is_symlink() or grave.is_file():
            grave.unlink()
        shutil.rmtree(grave, ignore_errors=True)

    def lock(self) -> int:
        """Open the directory for flock(2), and make it if it is missing. The maker of a template
        holds the lock. Raises OSError, HypervisorError."""
        self._check_place()
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._check_place()  # another process may have made it at the same time
        return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """Yield an empty directory for a new template. It is removed after the block, unless it is
        published. Call this under the lock: it removes what other processes have left."""
        self._remove_wrecks()
        import tempfile  # slow to load, and most often not needed

        path = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._path))  # 0700
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def clear(self) -> list[str]:
        """Remove what a killed maker has left of a template; return the names of what is gone. A
        process that is making a template now removes its own files. Raises OSError."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            return []
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return self._remove_wrecks()
        except BlockingIOError:
            return []
        finally:
            os.close(fd)

    def _remove_wrecks(self) -> list[str]:
        wrecks = [*self._path.glob(f"{_NEW}*"), *self._path.glob(f"{_DROPPED}*")]
        for path in wrecks:
            shutil.rmtree(path, ignore_errors=True)
        return [path.name for path in wrecks if not path.exists()]

    def publish(self, draft: Path, description: Content, memory: int) -> None:
        """Complete a draft, which has the state, with the memory, and give it its name. Remove
        templates of a guest that no longer exists, and unused ones. Raises HypervisorError for a
        template larger than the limit of all."""
        size = os.fstat(memory).st_size
        manifest: Content = {"description": description, "memory_size": size}
        manifest[EXTENTS], manifest[MEMORY] = template_pages.gather(memory, draft, self._limit)
        manifest[STATE] = hashlib.sha256((draft / STATE).read_bytes()).hexdigest()
        manifest["checksum"] = hashlib.sha256(_canonical(manifest)).hexdigest()
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        key = key_of(description)
        self.drop(key)
        draft.rename(self._of(key))
        (self._path / f"{_FAILED}{key}").unlink(missing_ok=True)
        self._sweep()
        self._keep_within_limit(key)

    def note_failure(self, key: str, reason: str) -> None:
        """Note why this template can't be made, for `failure`."""
        with contextlib.suppress(OSError):
            (self._path / f"{_FAILED}{key}").write_text(reason)

    def failure(self, key: str, seconds: float) -> str | None:
        """Return why making this template failed, if that was less than so many seconds ago."""
        return _fresh(self._path / f"{_FAILED}{key}", seconds)

    def last_failure(self) -> str | None:
        """Return why making any template failed that is not tried again yet."""
        found = (_fresh(path, RETRY_SECONDS) for path in self._path.glob(f"{_FAILED}*"))
        return next(filter(None, found), None)

    def _check_place(self) -> None:
        """Raises HypervisorError if other users could put a template of theirs there."""
        if theirs := access.foothold(self._path):
            raise HypervisorError(
                f"template_path: {theirs} is not root's alone, so others could change the "
                f"templates in {self._path}: chown root and chmod go-w {theirs}, or set another "
                "template_path in [factory]"
            )

    def _of(self, key: str) -> Path:
        return self._path / f"{_NAME}{key}"

    def _open(self, key: str) -> Template:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            directory = os.open(self._of(key), flags)
        except NotADirectoryError:
            raise DamagedError("the template is damaged: it is no directory") from None
        state = -1
        try:
            _check_owner(directory)
            manifest = _manifest(directory, key)
            state = _open(directory, STATE)
            content = os.pread(state, os.fstat(state).st_size, 0)
            _check(manifest, STATE, hashlib.sha256(content).hexdigest())
        except BaseException:
            for fd in {directory, state} - {-1}:
                os.close(fd)
            raise
        return Template(key, state, directory, manifest)

    def _sweep(self) -> None:
        long_ago = time.time() - _UNUSED_SECONDS
        for path in self._path.glob(f"{_FAILED}*"):
            if path.stat().st_mtime < long_ago:
                path.unlink(missing_ok=True)
        for path in self._path.glob(f"{_NAME}*/{MANIFEST}"):
            try:
                description = json.loads(path.read_text())["description"]
                stale = (
                    description["format"] != _FORMAT
                    or path.parent.stat().st_mtime < long_ago
                    or any(_identity(known[0]) != known for known in description["files"])
                )
            except (OSError, ValueError, KeyError, TypeError, IndexError, HypervisorError):
                stale = True
            if stale:
                self.drop(path.parent.name.removeprefix(_NAME))

    def _keep_within_limit(self, newest: str) -> None:
        """Remove the templates unused for longest, so that all stay within the limit."""
        found = [(path.lstat().st_mtime_ns, path) for path in self._path.glob(f"{_NAME}*")]
        left = sum(_size(path) for _, path in found)
        for _, path in sorted(found):
            if left > self._limit and path != self._of(newest):
                left -= _size(path)
                self.drop(path.name.removeprefix(_NAME))


def _fresh(path: Path, seconds: float) -> str | None:
    """Return the content of a file that was written less than so many seconds ago."""
    with contextlib.suppress(OSError):
        if 0 <= time.time() - path.stat().st_mtime < seconds:
            return path.read_text(errors="replace")
    return None


def _size(directory: Path) -> int:
    """Return the bytes of disk that the files in a directory take."""
    return sum(path.lstat().st_blocks * 512 for path in directory.glob("*"))


def _check_owner(directory: int) -> None:
    status = os.fstat(directory)
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise DamagedError("the template is damaged: others than root can write to it")


def _manifest(directory: int, key: str) -> Content:
    try:
        manifest: Content = json.loads(_read(directory, MANIFEST))
        checksum = manifest.pop("checksum")
        found = hashlib.sha256(_canonical(manifest)).hexdigest()
        if checksum != found or key_of(manifest["description"]) != key:
            raise ValueError
    except (ValueError, KeyError, TypeError, AttributeError):
        raise DamagedError("the template's manifest is damaged") from None
    return {**manifest, "checksum": checksum}


def _check(manifest: Content, name: str, found: object) -> None:
    if manifest.get(name) != found:
        raise DamagedError(f"the template's {name} is damaged")


def _open(directory: int, name: str) -> int:
    """Raises DamagedError."""
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(name, flags, dir_fd=directory)
    except OSError as error:
        raise DamagedError(f"the template's {name} is damaged: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise DamagedError(f"the template's {name} is damaged: it is no file")
    return fd


def _read(directory: int, name: str) -> bytes:
    with open(_open(directory, name), "rb") as file:
        return file.read()


@contextlib.contextmanager
def _mapped(directory: int, name: str) -> Iterator[mmap.mmap]:
    fd = _open(directory, name)
    try:
        content = mmap.mmap(fd, 0, mmap.MAP_SHARED | mmap.MAP_POPULATE, mmap.PROT_READ)
    except ValueError:
        raise DamagedError(f"the template's {name} is damaged: it is empty") from None
    finally:
        os.close(fd)
    with content:
        yield content


def _identity(path: str | Path) -> list[Any]:
    """Return what changes when a file changes. Raises HypervisorError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise HypervisorError(f"{path}: {error.strerror}") from None
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ino]


def _processor() -> list[str]:
    """Return the model and features of the host's first processor."""
    lines = []
    with open("/proc/cpuinfo") as file:
        for line in file:
            if not line.strip():
                break
            if line.startswith(("model name", "flags", "vendor_id", "stepping")):
                lines.append(" ".join(line.split()))
    return lines


def _canonical(content: Content) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
