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
import hashlib
import json
import mmap
import os
import shutil
import stat
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tapwright.errors import HypervisorError
from tapwright.hypervisor.machine import Machine
from tapwright.linux import memfd

MANIFEST, STATE, MEMORY, EXTENTS = "manifest.json", "state", "memory", "extents"
_FORMAT = 2
"""To be counted up when templates are made, or restored, in another way."""

_NAME = "template-"  # and the key
_NEW, _DROPPED, _FAILED = f".{_NAME}new-", f".{_NAME}dropped-", f".{_NAME}failed-"
_UNUSED_SECONDS = 7 * 24 * 3600.0
_PAGE = mmap.PAGESIZE
_EXTENT = struct.Struct("<QQ")

Content = dict[str, Any]


class DamagedError(HypervisorError):
    """A template whose files are not what they were when it was made."""


def describe(machine: Machine) -> Content:
    """All that a guest, booted and saved, depends on. Raises HypervisorError."""
    qemu = shutil.which(machine.path) or machine.path
    # The rest of a machine is its host's side, which is not saved; so is where its memory is.
    saved = replace(machine, path=qemu, memory_directory="", hugepages=False)
    command = saved.command(-1, -1, -1)
    return {
        "format": _FORMAT,
        "command": command,
        "files": [_identity(path) for path in (qemu, machine.kernel, machine.initrd)],
        "cpu": _processor(),
        # KVM shows the guest what kernel and processor have together.
        "host_kernel": os.uname().release if machine.accelerator == "kvm" else "",
    }


def key_of(description: Content) -> str:
    return hashlib.sha256(_canonical(description)).hexdigest()[:16]


@dataclass(frozen=True)
class Template:
    """A sound template, as far as that is cheap to know: its manifest and state are. `state` is a
    descriptor, `directory` another one; close it when done."""

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
            # Both let go of the interpreter's lock, and each takes as long as the other.
            with concurrent.futures.ThreadPoolExecutor(1) as beside:
                checksum = beside.submit(zlib.crc32, content)
                _spread(content, extents, fd)
            _check(self.manifest, MEMORY, checksum.result())


class Store:
    """The templates in a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def find_for(self, machine: Machine) -> Template | None:
        """The template of a machine, as `find` does. Raises HypervisorError."""
        return self.find(key_of(describe(machine)))

    def find(self, key: str) -> Template | None:
        """The template of that key, if it is there and sound; a damaged one is removed."""
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
        """Remove a template; those who are using it have what they need."""
        grave = self._path / f"{_DROPPED}{key}-{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            self._of(key).rename(grave)
        if grave.is_symlink() or grave.is_file():
            grave.unlink()
        shutil.rmtree(grave, ignore_errors=True)

    def lock(self) -> int:
        """Open the directory, made where there is none, for flock(2): who makes a template holds
        it. Raises OSError."""
        self._path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(self._path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    @contextlib.contextmanager
    def draft(self) -> Iterator[Path]:
        """An empty directory for a new template, which does not outlast the block unless it is
        published. To be used under the lock: what others have left is removed."""
        for path in [*self._path.glob(f"{_NEW}*"), *self._path.glob(f"{_DROPPED}*")]:
            shutil.rmtree(path, ignore_errors=True)
        import tempfile  # slow to load, and most often not needed

        path = Path(tempfile.mkdtemp(prefix=_NEW, dir=self._path))  # 0700
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def publish(self, draft: Path, description: Content, memory: int) -> None:
        """Complete a draft, which has the state, with the memory, and give it its name. Templates
        of a guest that is no more, or that nobody wants any more, are removed."""
        size = os.fstat(memory).st_size
        manifest: Content = {"description": description, "memory_size": size}
        manifest[EXTENTS], manifest[MEMORY] = _gather(memory, draft)
        manifest[STATE] = hashlib.sha256((draft / STATE).read_bytes()).hexdigest()
        manifest["checksum"] = hashlib.sha256(_canonical(manifest)).hexdigest()
        (draft / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        key = key_of(description)
        self.drop(key)
        draft.rename(self._of(key))
        (self._path / f"{_FAILED}{key}").unlink(missing_ok=True)
        self._sweep()

    def note_failure(self, key: str, reason: str) -> None:
        """Have `failure` tell from now on why this template can't be made."""
        with contextlib.suppress(OSError):
            (self._path / f"{_FAILED}{key}").write_text(reason)

    def failure(self, key: str, seconds: float) -> str | None:
        """Why making this template failed, if that was less than so many seconds ago."""
        path = self._path / f"{_FAILED}{key}"
        with contextlib.suppress(OSError):
            if 0 <= time.time() - path.stat().st_mtime < seconds:
                return path.read_text(errors="replace")
        return None

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


def _gather(memory: int, draft: Path) -> tuple[int, int]:
    """Write MEMORY and EXTENTS; return the checksums of extents and memory."""
    extents = bytearray()
    checksum = 0
    with (
        mmap.mmap(memory, 0, mmap.MAP_SHARED, mmap.PROT_READ) as content,
        (draft / MEMORY).open("wb") as file,
    ):
        for start, end in _used(memory, content):
            extents += _EXTENT.pack(start, end - start)
            piece = content[start:end]
            checksum = zlib.crc32(piece, checksum)
            file.write(piece)
    (draft / EXTENTS).write_bytes(extents)
    return zlib.crc32(extents), checksum


def _used(memory: int, content: mmap.mmap) -> Iterator[tuple[int, int]]:
    """Where there are pages that are not zero, as (start, end)."""
    zero = bytes(_PAGE)
    first = -1
    for start, end in _data(memory):
        for page in range(start, end, _PAGE):
            is_used = content[page : page + _PAGE] != zero
            if is_used and first < 0:
                first = page
            elif not is_used and first >= 0:
                yield first, page
                first = -1
        if first >= 0:
            yield first, end
            first = -1


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has been written, as (start, end)."""
    end = 0
    while True:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return  # there is no more
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, end


def _spread(content: mmap.mmap, extents: bytes, fd: int) -> None:
    """Write the pages where they belong. Raises DamagedError, OSError."""
    position = 0
    with memoryview(content) as view, _writable(fd) as write:
        for start, length in _EXTENT.iter_unpack(extents):
            # Released at once, or else `content` could not be closed after a failure.
            with view[position : position + length] as piece:
                if len(piece) != length:
                    raise DamagedError(f"the template's {MEMORY} is damaged: it is too short")
                write(piece, start)
            position += length


@contextlib.contextmanager
def _writable(fd: int) -> Iterator[Callable[[memoryview, int], None]]:
    """What writes to a file (a piece, and where); only huge pages are mapped for it, which are
    reserved by that, whereas any other file may turn out to have no room for a page: SIGBUS."""

    def write(piece: memoryview, start: int) -> None:
        done = 0
        while done < len(piece):
            with piece[done:] as rest:
                done += os.pwrite(fd, rest, start + done)

    try:
        os.pwrite(fd, b"", 0)
    except OSError as error:
        if error.errno != errno.EINVAL:  # hugetlbfs has no write(2) (fs/hugetlbfs/inode.c)
            raise
    else:
        yield write
        return
    with mmap.mmap(fd, 0, mmap.MAP_SHARED) as content, memoryview(content) as pages:

        def place(piece: memoryview, start: int) -> None:
            pages[start : start + len(piece)] = piece

        yield place


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
    """What changes when a file does. Raises HypervisorError."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise HypervisorError(f"{path}: {error.strerror}") from None
    return [str(path), status.st_size, status.st_mtime_ns, status.st_ino]


def _processor() -> list[str]:
    """The model and features of the host's first processor."""
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
