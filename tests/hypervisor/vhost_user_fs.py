"""What a QEMU and its guest's kernel are to virtiofsd, as small as can be, and as bad as is wanted:
a vhost-user frontend (QEMU's docs/interop/vhost-user.rst) with the memory and the queues of a
virtio-fs device (VIRTIO 1.2, 5.11), in which requests of FUSE are put (include/uapi/linux/fuse.h).
"""

import contextlib
import errno
import mmap
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from tapwright.linux import memfd

# --- vhost-user

GET_FEATURES, SET_FEATURES, SET_OWNER, SET_MEM_TABLE = 1, 2, 3, 5
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE = 8, 9, 10
SET_VRING_KICK, SET_VRING_CALL = 12, 13
GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES, GET_QUEUE_NUM = 15, 16, 17
SET_VRING_ENABLE, SET_SLAVE_REQ_FD, GET_CONFIG, ADD_MEM_REG = 18, 21, 24, 37

_HEADER = struct.Struct("=III")
_VERSION = 1
_F_VERSION_1, _F_PROTOCOL_FEATURES = 1 << 32, 1 << 30
_SECONDS = 10.0

# --- the device's memory: what QEMU calls its address is not where it is for the guest

_SIZE = 16 << 20
_QEMU_ADDRESS = 0x7F00_0000_0000
_ENTRIES = 64
_RING_SIZE = 0x4000  # of one queue: 64 descriptors, and both rings
_USED, _AVAIL = 0x2000, 0x1000
_DATA = 0x10000
_DESCRIPTOR = struct.Struct("=QIHH")
_NEXT, _WRITE_ONLY = 1, 2
HIGH_PRIORITY, REQUESTS = 0, 1

# --- FUSE

LOOKUP, FORGET, GETATTR, SETATTR, READLINK, SYMLINK = 1, 2, 3, 4, 5, 6
MKNOD, MKDIR, UNLINK, RMDIR, RENAME, LINK, OPEN, READ, WRITE = 8, 9, 10, 11, 12, 13, 14, 15, 16
STATFS, RELEASE, FSYNC, SETXATTR, GETXATTR, LISTXATTR, REMOVEXATTR = 17, 18, 20, 21, 22, 23, 24
FLUSH, INIT, OPENDIR, READDIR, RELEASEDIR, FSYNCDIR = 25, 26, 27, 28, 29, 30
GETLK, SETLK, SETLKW, ACCESS, CREATE, INTERRUPT, DESTROY, IOCTL = 31, 32, 33, 34, 35, 36, 38, 39
BATCH_FORGET, FALLOCATE, READDIRPLUS, RENAME2, LSEEK = 42, 43, 44, 45, 46
COPY_FILE_RANGE, SETUPMAPPING, REMOVEMAPPING, SYNCFS, TMPFILE = 47, 48, 49, 50, 51

ROOT = 1
_IN = struct.Struct("=IIQQIIIHH")
_OUT = struct.Struct("=IiQ")
_ENTRY = struct.Struct("=QQQQII 6Q 10I")
_MOST = 1 << 16
_VERSION_OF_FUSE = 7, 36
# What Linux 6.1 offers, but for the mounts that it can be told of (FUSE_SUBMOUNTS) and for those of
# the upper word: of the others POSIX_ACL, DONT_MASK and SETXATTR_EXT matter.
_OFFERED = 0x77FF_FFFF

T = TypeVar("T")


class EndedError(Exception):
    """The daemon has ended, or hung up."""


class SilentError(Exception):
    """The daemon lives, and does not answer: the one in Rust, once a request has made no sense."""


@dataclass(frozen=True)
class Entry:
    """What a name led to."""

    node: int
    inode: int
    size: int
    mode: int
    links: int
    uid: int
    device: int

    @classmethod
    def of(cls, answer: bytes) -> "Entry":
        fields = _ENTRY.unpack_from(answer)
        inode, size = fields[6:8]
        mode, links, uid, _, device = fields[15:20]
        return cls(fields[0], inode, size, mode, links, uid, device)


class Frontend:
    """QEMU's end of the connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        connection.settimeout(_SECONDS)

    def tell(self, kind: int, content: bytes = b"", fds: Sequence[int] = ()) -> None:
        """Raises EndedError."""
        self.send(_HEADER.pack(kind, _VERSION, len(content)) + content, fds)

    def send(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Whatever it is. Raises EndedError."""
        try:
            socket.send_fds(self._connection, [message], fds)
        except (BrokenPipeError, ConnectionResetError):
            raise EndedError from None

    def ask(self, kind: int, content: bytes = b"") -> bytes:
        """Raises EndedError, SilentError."""
        self.tell(kind, content)
        return self.receive()

    def receive(self) -> bytes:
        """The content of an answer. Raises EndedError, SilentError."""
        try:
            header = self._connection.recv(_HEADER.size, socket.MSG_WAITALL)
            if len(header) < _HEADER.size:
                raise EndedError
            size = _HEADER.unpack(header)[2]
            return self._connection.recv(size, socket.MSG_WAITALL) if size else b""
        except TimeoutError:
            raise SilentError from None
        except ConnectionResetError:
            raise EndedError from None

    def features(self) -> int:
        """What the daemon can; when it answers it has confined itself."""
        return int(struct.unpack("=Q", self.ask(GET_FEATURES))[0])

    def begin(self) -> None:
        """Agree with it on what both can."""
        features = self.features() & (_F_VERSION_1 | _F_PROTOCOL_FEATURES)
        if features & _F_PROTOCOL_FEATURES:
            self.ask(GET_PROTOCOL_FEATURES)
            self.tell(SET_PROTOCOL_FEATURES, struct.pack("=Q", 0))
        self.tell(SET_OWNER)
        self.tell(SET_FEATURES, struct.pack("=Q", features))

    def has_hung_up(self) -> bool:
        """Whether the daemon has, within a while."""
        poll = select.poll()
        poll.register(self._connection, select.POLLRDHUP | select.POLLIN)
        return bool(poll.poll(_SECONDS * 1000))

    def close(self) -> None:
        self._connection.close()


class _Queue:
    """A split virtqueue, in which one request is on its way at a time."""

    def __init__(self, memory: mmap.mmap, index: int) -> None:
        self._memory = memory
        self.index = index
        self.base = index * _RING_SIZE
        self.kick = os.eventfd(0, os.EFD_CLOEXEC)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.sent = self.seen = 0

    def put(self, descriptors: Sequence[bytes], first: int = 0) -> None:
        """Have the daemon take a chain of descriptors, whatever they are."""
        for place, descriptor in enumerate(descriptors):
            offset = self.base + place * _DESCRIPTOR.size
            self._memory[offset : offset + len(descriptor)] = descriptor
        ring = self.base + _AVAIL
        struct.pack_into("=H", self._memory, ring + 4 + 2 * (self.sent % _ENTRIES), first)
        self.sent += 1
        struct.pack_into("=H", self._memory, ring + 2, self.sent & 0xFFFF)
        os.eventfd_write(self.kick, 1)

    def is_done(self) -> bool:
        """Whether the daemon is done with what it was given last."""
        (used,) = struct.unpack_from("=H", self._memory, self.base + _USED + 2)
        return bool(used == self.sent & 0xFFFF)

    def close(self) -> None:
        os.close(self.kick)
        os.close(self.call)


class Guest:
    """A frontend and a guest's kernel: `call` as a sane one, `raw` and `chain` as it likes.

    Errors of the daemon are OSError; EndedError and SilentError say that there was no answer.
    """

    def __init__(self, connection: socket.socket, pid: int | None = None) -> None:
        self.frontend = Frontend(connection)
        self._threads = f"/proc/{pid}/task" if pid else ""
        self._serving = 0
        self.memory_fd = memfd.create("twtest-guest", _SIZE)
        self.memory = mmap.mmap(self.memory_fd, _SIZE)
        self.queues = [_Queue(self.memory, index) for index in (HIGH_PRIORITY, REQUESTS)]
        self._unique = 0

    def begin(self) -> None:
        """Be a device, and mount."""
        self.plug()
        self.mount()

    def plug(self) -> None:
        """What QEMU does when the driver says that it is there."""
        tell = self.frontend.tell
        self.frontend.begin()
        region = struct.pack("=QQQQ", 0, _SIZE, _QEMU_ADDRESS, 0)
        tell(SET_MEM_TABLE, struct.pack("=II", 1, 0) + region, [self.memory_fd])
        for queue in self.queues:
            tell(SET_VRING_NUM, struct.pack("=II", queue.index, _ENTRIES))
            tell(SET_VRING_BASE, struct.pack("=II", queue.index, 0))
            base = _QEMU_ADDRESS + queue.base
            places = base, base + _USED, base + _AVAIL, 0
            tell(SET_VRING_ADDR, struct.pack("=II4Q", queue.index, 0, *places))
            tell(SET_VRING_CALL, struct.pack("=Q", queue.index), [queue.call])
            tell(SET_VRING_KICK, struct.pack("=Q", queue.index), [queue.kick])
            tell(SET_VRING_ENABLE, struct.pack("=II", queue.index, 1))
        # It has done all that when it answers: a kick may be lost before.
        self.frontend.features()
        self._serving = self._count()

    def mount(self) -> bytes:
        words = struct.pack("=IIII", *_VERSION_OF_FUSE, 1 << 17, _OFFERED)
        return self.call(INIT, 0, words + bytes(48))

    # --- requests

    def call(
        self, opcode: int, node: int, content: bytes = b"", uid: int = 0, room: int = _MOST
    ) -> bytes:
        """The answer's content. Raises OSError, EndedError, SilentError."""
        answer = self.raw(self.request(opcode, node, content, uid), room)
        length, error, unique = _OUT.unpack_from(answer)
        if not length or unique != self._unique:
            raise OSError(errno.EIO, "no answer, or that of another request")
        assert length <= len(answer)
        if error:
            raise OSError(-error, os.strerror(-error))
        return answer[_OUT.size : length]

    def request(
        self, opcode: int, node: int, content: bytes = b"", uid: int = 0, length: int | None = None
    ) -> bytes:
        self._unique += 1
        if length is None:
            length = _IN.size + len(content)
        return _IN.pack(length, opcode, self._unique, node, uid, uid, 0, 0, 0) + content

    def raw(self, request: bytes, room: int = _MOST, queue: int = REQUESTS) -> bytes:
        """What comes of a request, in so much room, which is nothing where there is no answer.
        Raises EndedError, SilentError."""
        self.submit(request, room, queue)
        self.wait(queue)
        return self.memory[_DATA + _MOST : _DATA + _MOST + room]

    def submit(self, request: bytes, room: int = _MOST, queue: int = REQUESTS) -> None:
        """Send it, and don't wait."""
        answer = _DATA + _MOST
        self.memory[_DATA : _DATA + len(request)] = request
        self.memory[answer : answer + room] = bytes(room)
        # A header by itself, as Linux has it, and what belongs to it behind.
        parts = [(_DATA, _IN.size, 0), (_DATA + _IN.size, len(request) - _IN.size, 0)]
        parts += [(answer, min(room, _OUT.size), _WRITE_ONLY)]
        parts += [(answer + _OUT.size, room - _OUT.size, _WRITE_ONLY)]
        self.queues[queue].put(_chain([part for part in parts if part[1] > 0]))

    def chain(
        self, descriptors: Sequence[bytes], first: int = 0, seconds: float = _SECONDS
    ) -> None:
        """Give it a chain of descriptors as they are. Raises EndedError, SilentError."""
        self.queues[REQUESTS].put(descriptors, first)
        self.wait(REQUESTS, seconds)

    def wait(self, queue: int = REQUESTS, seconds: float = _SECONDS) -> None:
        """Until the daemon is done with the last request. Raises EndedError, SilentError."""
        waited_for = self.queues[queue]
        poll = select.poll()
        poll.register(waited_for.call, select.POLLIN)
        poll.register(self.frontend._connection, select.POLLRDHUP)
        deadline = time.monotonic() + seconds
        while not waited_for.is_done():
            events = dict(poll.poll(50))
            if waited_for.call in events:
                os.eventfd_read(waited_for.call)
            elif events:
                raise EndedError
            elif time.monotonic() > deadline or self._count() < self._serving:
                raise SilentError

    def _count(self) -> int:
        """The daemon's threads: one that has served a queue may have ended by itself."""
        with contextlib.suppress(FileNotFoundError):
            return len(os.listdir(self._threads)) if self._threads else 0
        return 0

    # --- what a filesystem asks

    def entry(self, parent: int, name: str | bytes) -> Entry:
        return Entry.of(self.call(LOOKUP, parent, text(name)))

    def walk(self, path: str) -> Entry:
        """By the names of a path, from the root."""
        found = Entry(ROOT, 0, 0, 0, 0, 0, 0)
        for name in path.split("/"):
            found = self.entry(found.node, name)
        return found

    def open(self, node: int, flags: int = os.O_RDONLY, opcode: int = OPEN) -> int:
        """A handle."""
        return _handle(self.call(opcode, node, struct.pack("=II", flags, 0)))

    def release(self, node: int, handle: int, opcode: int = RELEASE) -> None:
        self.call(opcode, node, struct.pack("=QIIQ", handle, 0, 0, 0))

    def read(self, node: int, handle: int, size: int = 4096, opcode: int = READ) -> bytes:
        return self.call(opcode, node, struct.pack("=QQIIQII", handle, 0, size, 0, 0, 0, 0))

    def write(self, node: int, handle: int, content: bytes) -> int:
        head = struct.pack("=QQIIQII", handle, 0, len(content), 0, 0, 0, 0)
        return int(struct.unpack_from("=I", self.call(WRITE, node, head + content))[0])

    def names(self, node: int) -> list[str]:
        handle = self.open(node, opcode=OPENDIR)
        listed, found = self.read(node, handle, opcode=READDIR), []
        while listed:
            length = struct.unpack_from("=I", listed, 16)[0]
            found.append(listed[24 : 24 + length].decode())
            listed = listed[24 + (length + 7) // 8 * 8 :]
        self.release(node, handle, RELEASEDIR)
        return sorted(set(found) - {".", ".."})

    def create(self, parent: int, name: str | bytes, uid: int = 0) -> tuple[Entry, int]:
        """An entry and a handle."""
        head = struct.pack("=IIII", os.O_RDWR | os.O_CREAT, 0o644, 0, 0)
        answer = self.call(CREATE, parent, head + text(name), uid)
        return Entry.of(answer), _handle(answer[_ENTRY.size :])

    def mkdir(self, parent: int, name: str | bytes, uid: int = 0) -> Entry:
        return Entry.of(self.call(MKDIR, parent, struct.pack("=II", 0o755, 0) + text(name), uid))

    def mknod(
        self, parent: int, name: str | bytes, mode: int, device: int = 0, uid: int = 0
    ) -> Entry:
        head = struct.pack("=IIII", mode, device, 0, 0)
        return Entry.of(self.call(MKNOD, parent, head + text(name), uid))

    def symlink(self, parent: int, name: str | bytes, target: str) -> Entry:
        return Entry.of(self.call(SYMLINK, parent, text(name) + text(target)))

    def readlink(self, node: int) -> str:
        return self.call(READLINK, node).decode()

    def link(self, node: int, parent: int, name: str | bytes) -> Entry:
        return Entry.of(self.call(LINK, parent, struct.pack("=Q", node) + text(name)))

    def rename(self, parent: int, name: str | bytes, to: int, new_name: str | bytes) -> None:
        self.call(RENAME, parent, struct.pack("=Q", to) + text(name) + text(new_name))

    def remove(self, parent: int, name: str | bytes, opcode: int = UNLINK) -> None:
        self.call(opcode, parent, text(name))

    def set_attribute(self, node: int, name: str, value: bytes) -> None:
        head = struct.pack("=IIII", len(value), 0, 0, 0)
        self.call(SETXATTR, node, head + text(name) + value)

    def get_attribute(self, node: int, name: str) -> bytes:
        return self.call(GETXATTR, node, struct.pack("=II", 1024, 0) + text(name))

    def forget(self, node: int, times: int = 1) -> None:
        """There is no answer."""
        self.raw(self.request(FORGET, node, struct.pack("=Q", times)), 0, HIGH_PRIORITY)

    def close(self) -> None:
        self.frontend.close()
        with contextlib.suppress(BufferError):
            self.memory.close()
        for queue in self.queues:
            queue.close()
        os.close(self.memory_fd)


def text(value: str | bytes) -> bytes:
    return (value if isinstance(value, bytes) else value.encode()) + b"\0"


def descriptor(address: int, length: int, flags: int = 0, following: int = 0) -> bytes:
    return _DESCRIPTOR.pack(address, length, flags, following)


def _chain(parts: Sequence[tuple[int, int, int]]) -> list[bytes]:
    """Descriptors of these (address, length, flags), one behind the other."""
    last = len(parts) - 1
    return [
        descriptor(address, length, flags | (_NEXT if place < last else 0), place + 1)
        for place, (address, length, flags) in enumerate(parts)
    ]


def _handle(answer: bytes) -> int:
    return int(struct.unpack_from("=Q", answer)[0])
