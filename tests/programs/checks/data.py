"""What is in files: writing, reading, holes, sizes, and copies that the kernel makes."""

import array
import fcntl
import hashlib
import mmap
import os
import resource
import signal
import socket
import struct
import threading

from tests.programs.checks.frame import (
    USER,
    Outcome,
    check,
    error,
    in_child,
    read,
    system,
    value,
    write,
)

MIB = 1 << 20
_KEEP_SIZE, _PUNCH, _COLLAPSE, _ZERO, _INSERT, _UNSHARE = 1, 2, 8, 16, 32, 64


def _size(path: str) -> int:
    return os.stat(path).st_size


@check
def reading_and_writing() -> Outcome:
    fd = os.open("file", os.O_RDWR | os.O_CREAT)
    first, second = bytearray(3), bytearray(4)
    return {
        "nothing written": os.write(fd, b""),
        "at once": os.pwritev(fd, [b"abc", b"defg"], 10),
        "size": _size("file"),
        "back": [os.preadv(fd, [first, second], 10), (first + second).decode()],
        "hole": value(os.pread, fd, 11, 0),
        "over the end": value(os.pread, fd, 100, 15),
        "at the end": value(os.pread, fd, 100, 17),
        "far behind": value(os.pread, fd, 100, 1 << 40),
        "negative": error(os.pread, fd, 1, -1),
        "seek to before": error(os.lseek, fd, -1, os.SEEK_SET),
        "seek by": os.lseek(fd, -3, os.SEEK_END),
        "of a reader": error(os.write, os.open("file", os.O_RDONLY), b"x"),
        "of a writer": error(os.read, os.open("file", os.O_WRONLY), 1),
        "append flag": os.pwritev(fd, [b"end"], 0, os.RWF_APPEND),
        "appended": value(os.pread, fd, 100, 17),
        "durable": os.pwritev(fd, [b"S"], 0, os.RWF_SYNC | os.RWF_DSYNC),
        "truncating": [os.open("file", os.O_RDWR | os.O_TRUNC) >= 0, _size("file")],
    }


@check
def a_large_file() -> Outcome:
    """Eight MiB in pieces of odd sizes, read back in others."""
    digest = hashlib.sha256()
    with open("large", "wb", buffering=0) as file:
        written, number = 0, 0
        while written < 8 * MIB:
            piece = hashlib.sha256(str(number).encode()).digest() * (1 + number * 997 % 4001)
            piece = piece[: 8 * MIB - written]
            digest.update(piece)
            written += file.write(piece)
            number += 1
        os.fsync(file.fileno())
    found = hashlib.sha256()
    with open("large", "rb", buffering=0) as file:
        while chunk := file.read(123_457):
            found.update(chunk)
    return {"size": _size("large"), "same": found.digest() == digest.digest()}


@check
def appending() -> Outcome:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    one, two = os.open("two", flags), os.open("two", flags)
    for _ in range(10):
        os.write(one, b"aaaa")
        os.write(two, b"bbb")
    outcome: Outcome = {"two descriptors": read("two")}
    os.pwrite(one, b"cc", 0)
    outcome["pwrite appends too"] = read("two")[-4:]
    os.truncate("two", 1)
    os.write(two, b"d")
    outcome["after truncation"] = read("two")

    def lines() -> None:
        fd = os.open("many", flags)
        for _ in range(100):
            os.write(fd, b"0123456789abcde\n")

    pids = []
    for _ in range(3):
        if not (pid := os.fork()):
            lines()
            os._exit(0)
        pids.append(pid)
    for pid in pids:
        os.waitpid(pid, 0)
    whole = read("many")
    outcome["processes"] = [len(whole), set(whole.split()) == {"0123456789abcde"}]
    return outcome


@check
def truncating() -> Outcome:
    write("file", b"0123456789")
    os.mkdir("directory")
    fd = os.open("file", os.O_RDWR)
    return {
        "shorter": [error(os.truncate, "file", 4), read("file")],
        "longer": [error(os.ftruncate, fd, 8), read("file")],
        "negative": error(os.ftruncate, fd, -1),
        "too long": error(os.ftruncate, fd, (1 << 63) - 1),
        "of a reader": error(os.ftruncate, os.open("file", os.O_RDONLY), 1),
        "of a directory": error(os.truncate, "directory", 1),
        "of a fifo": [error(os.mkfifo, "fifo"), error(os.truncate, "fifo", 0)],
        "the same": [error(os.truncate, "file", 8), _size("file")],
        "nothing left": [error(os.truncate, "file", 0), os.stat("file").st_blocks],
        "stale pages": _tail_is_zero(),
    }


def _tail_is_zero() -> bool:
    write("tail", b"x" * 5000)
    with open("tail", "r+b") as file:
        file.truncate(100)
        file.truncate(5000)
        return file.read() == b"x" * 100 + bytes(4900)


@check
def limits_of_size() -> Outcome:
    def beyond(limit: int) -> list[object]:
        signal.signal(signal.SIGXFSZ, lambda number, frame: None)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        fd = os.open("limited", os.O_RDWR | os.O_CREAT)
        return [
            value(os.write, fd, b"x" * 900),
            value(os.write, fd, b"x" * 900),
            value(os.write, fd, b"x"),
            error(os.ftruncate, fd, limit + 1),
            error(os.posix_fallocate, fd, 0, limit + 1),
            os.fstat(fd).st_size,
        ]

    def killed() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        write("killed", b"0123456789")
        fd = os.open("killed", os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"x")

    return {"of 1,000": in_child(lambda: beyond(1000)), "signal": in_child(killed)}


@check
def a_sparse_tebibyte() -> Outcome:
    """1 TiB, of which next to nothing is there."""
    size = 1 << 40
    fd = os.open("sparse", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, size)
    outcome: Outcome = {"size": os.fstat(fd).st_size, "blocks": os.fstat(fd).st_blocks}
    outcome["at its end"] = os.pwrite(fd, b"end", size - 3)
    outcome["in the middle"] = os.pwrite(fd, b"middle", size // 2)
    outcome["read"] = [
        os.pread(fd, 6, size // 2).decode(),
        os.pread(fd, 10, size - 3).decode(),
        os.pread(fd, 4096, size // 4) == bytes(4096),
    ]
    outcome["little is allocated"] = os.fstat(fd).st_blocks < 1000
    outcome["data"] = os.lseek(fd, 0, os.SEEK_DATA) == size // 2
    outcome["hole"] = os.lseek(fd, size // 2, os.SEEK_HOLE) - size // 2
    outcome["next data"] = (
        os.lseek(fd, size // 2 + 4096, os.SEEK_DATA) // 4096 == (size - 3) // 4096
    )
    outcome["beyond"] = error(os.lseek, fd, size, os.SEEK_DATA)
    mapped = mmap.mmap(fd, 8192, offset=size // 2)
    outcome["mapped"] = mapped[:6].decode()
    mapped[4096:4100] = b"more"
    mapped.flush()
    outcome["by map"] = value(os.pread, fd, 4, size // 2 + 4096)
    outcome["16 TiB"] = error(os.ftruncate, fd, (1 << 44) - 4096)
    return outcome


@check
def holes() -> Outcome:
    write("file", b"x" * 65536 + bytes(65536) + b"y" * 65536)
    fd = os.open("file", os.O_RDWR)
    outcome: Outcome = {"hole of what was written": os.lseek(fd, 0, os.SEEK_HOLE)}
    punch = _PUNCH | _KEEP_SIZE
    outcome["punch"] = error(system, "fallocate", fd, punch, 4096, 8192)
    outcome["hole"] = os.lseek(fd, 0, os.SEEK_HOLE)
    outcome["data"] = value(os.lseek, fd, 4096, os.SEEK_DATA)
    outcome["is zero"] = os.pread(fd, 8192, 4096) == bytes(8192)
    outcome["beside it"] = [value(os.pread, fd, 1, 4095), value(os.pread, fd, 1, 12288)]
    outcome["odd punch"] = error(system, "fallocate", fd, punch, 20000, 100)
    outcome["odd"] = [os.pread(fd, 102, 19999) == b"x" + bytes(100) + b"x"]
    outcome["end"] = os.lseek(fd, 65536 * 2, os.SEEK_HOLE)
    outcome["size"] = _size("file")
    outcome["negative"] = error(os.lseek, fd, -1, os.SEEK_DATA)
    return outcome


@check
def allocating() -> Outcome:
    outcome: Outcome = {}
    modes = {
        "plain": 0,
        "keep size": _KEEP_SIZE,
        "punch": _PUNCH | _KEEP_SIZE,
        "punch alone": _PUNCH,
        "zero": _ZERO,
        "zero, keep size": _ZERO | _KEEP_SIZE,
        "collapse": _COLLAPSE,
        "insert": _INSERT,
        "unknown": 1 << 20,
    }
    for name, how in modes.items():
        write(name, b"z" * 16384)
        fd = os.open(name, os.O_RDWR)
        outcome[name] = [
            error(system, "fallocate", fd, how, 4096, 4096),
            os.fstat(fd).st_size,
            os.pread(fd, 3, 4096).decode("latin-1"),
            error(system, "fallocate", fd, how, 12288, 20480),
            os.fstat(fd).st_size,
            os.fstat(fd).st_blocks * 512 >= 32768,
        ]
    fd = os.open("plain", os.O_RDWR)
    outcome["length 0"] = error(system, "fallocate", fd, 0, 0, 0)
    outcome["negative"] = error(system, "fallocate", fd, 0, -1, 5)
    outcome["too far"] = error(system, "fallocate", fd, 0, (1 << 63) - 2, 5)
    outcome["of a reader"] = error(system, "fallocate", os.open("plain", os.O_RDONLY), 0, 0, 5)
    outcome["of a directory"] = error(system, "fallocate", os.open(".", os.O_RDONLY), 0, 0, 5)
    os.mkfifo("fifo")
    outcome["of a fifo"] = error(system, "fallocate", os.open("fifo", os.O_RDWR), 0, 0, 5)
    outcome["advice"] = [error(os.posix_fadvise, fd, 0, 0, advice) for advice in range(7)]
    outcome["readahead"] = error(system, "readahead", fd, 0, 4096)
    return outcome


@check
def past_the_cache() -> Outcome:
    """O_DIRECT and O_SYNC."""
    outcome: Outcome = {}
    fd = value(os.open, "direct", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    if isinstance(fd, str):
        return {"open": fd}
    page = mmap.mmap(-1, 8192)
    page[:] = b"d" * 8192
    view = memoryview(page)
    outcome["write"] = value(os.pwrite, fd, view, 0)
    outcome["read"] = [value(os.preadv, fd, [view], 0), page[:2].decode()]
    outcome["seen by others"] = len(read("direct"))
    with open("direct", "r+b", buffering=0) as file:
        file.write(b"buffered")
    outcome["sees others"] = [os.preadv(fd, [view], 0), page[:8].decode()]
    outcome["at the end"] = value(os.preadv, fd, [view], 8192)
    outcome["beyond the end"] = value(os.pwrite, fd, view[:4096], 16384)
    outcome["size"] = _size("direct")
    outcome["set later"] = error(
        fcntl.fcntl, os.open("direct", os.O_RDWR), fcntl.F_SETFL, os.O_DIRECT
    )
    for flag in ("O_SYNC", "O_DSYNC", "O_NOATIME"):
        fd = os.open(flag, os.O_RDWR | os.O_CREAT | getattr(os, flag))
        outcome[flag] = value(os.write, fd, b"durable")
    outcome["noatime of another's"] = in_child(
        lambda: os.open("O_SYNC", os.O_RDONLY | os.O_NOATIME), USER
    )
    outcome["unaligned"] = _unaligned()
    return outcome


def _unaligned() -> list[str]:
    fd = os.open("direct", os.O_RDWR | os.O_DIRECT)
    view = memoryview(mmap.mmap(-1, 8192))
    return [
        error(os.pwrite, fd, view[:100], 0),
        error(os.pwrite, fd, view[:4096], 100),
        error(os.preadv, fd, [view[1:4097]], 0),
    ]


@check
def syncing() -> Outcome:
    write("file")
    fd = os.open("file", os.O_RDWR)
    return {
        "fsync": error(os.fsync, fd),
        "fdatasync": error(os.fdatasync, fd),
        "of a reader": error(os.fsync, os.open("file", os.O_RDONLY)),
        "syncfs": error(system, "syncfs", fd),
        "range": error(system, "sync_file_range", fd, 0, 4, 7),
        "sync": error(os.sync),
        "of a fifo": [error(os.mkfifo, "fifo"), error(os.fsync, os.open("fifo", os.O_RDWR))],
        "msync": _msync(fd),
    }


def _msync(fd: int) -> str:
    os.ftruncate(fd, 4096)
    with mmap.mmap(fd, 4096) as mapped:
        mapped[0:1] = b"M"
        return error(mapped.flush)


@check
def copies_in_the_kernel() -> Outcome:
    content = bytes(range(256)) * 800
    write("source", content)
    os.mkdir("d")
    source = os.open("source", os.O_RDWR)
    target = os.open("d/target", os.O_RDWR | os.O_CREAT)
    outcome: Outcome = {}
    copied = 0
    while copied < len(content) and (got := os.copy_file_range(source, target, 70_000)):
        copied += got
    outcome["copied"] = [copied, read("d/target") == content.decode("latin-1")]
    outcome["at the end"] = os.copy_file_range(source, target, 10)
    outcome["into itself, overlapping"] = error(os.copy_file_range, source, source, 100, 0, 50)
    outcome["into itself"] = value(os.copy_file_range, source, source, 100, 0, 150_000)
    outcome["from there"] = os.pread(source, 100, 150_000) == content[:100]
    outcome["beyond its end"] = [
        value(os.copy_file_range, source, target, 10, 0, 1_000_000),
        _size("d/target"),
    ]
    outcome["to a reader"] = error(
        os.copy_file_range, source, os.open("source", os.O_RDONLY), 1, 0, 0
    )
    outcome["to an appender"] = error(
        os.copy_file_range, source, os.open("d/target", os.O_WRONLY | os.O_APPEND), 1
    )
    outcome["from a directory"] = error(os.copy_file_range, os.open(".", os.O_RDONLY), target, 1)
    shared_memory = os.memfd_create("other")
    outcome["to another file system"] = value(os.copy_file_range, source, shared_memory, 10, 0)
    outcome["clone"] = error(fcntl.ioctl, target, 0x40049409, source)
    return outcome


@check
def sendfile_and_splice() -> Outcome:
    content = bytes(range(256)) * 2000
    write("source", content)
    source = os.open("source", os.O_RDONLY)
    left, right = socket.socketpair()
    received = bytearray()

    def receive() -> None:
        while chunk := right.recv(65536):
            received.extend(chunk)

    thread = threading.Thread(target=receive)
    thread.start()
    offset = 0
    while offset < len(content):
        offset += os.sendfile(left.fileno(), source, offset, len(content) - offset)
    left.close()
    thread.join()
    outcome: Outcome = {"to a socket": bytes(received) == content}
    target = os.open("target", os.O_RDWR | os.O_CREAT)
    outcome["to a file"] = [os.sendfile(target, source, 0, 300_000), _size("target")]
    reader, writer = os.pipe()
    outcome["splice out"] = os.splice(source, writer, 5000, offset_src=256)
    outcome["splice in"] = os.splice(reader, target, 5000, offset_dst=1_000_000)
    outcome["spliced"] = os.pread(target, 5000, 1_000_000) == content[256:5256]
    return outcome


@check
def seen_by_others_at_once() -> Outcome:
    """Each write is seen by every other descriptor and process."""
    fd = os.open("file", os.O_RDWR | os.O_CREAT)
    other = os.open("file", os.O_RDONLY)
    outcome: Outcome = {}
    rounds = []
    for number in range(20):
        os.pwrite(fd, f"{number:04}".encode(), number * 3)
        rounds.append(
            os.pread(other, 4, number * 3) == f"{number:04}".encode()
            and os.fstat(other).st_size == number * 3 + 4
            and os.stat("file").st_size == number * 3 + 4
        )
    outcome["descriptors"] = all(rounds)
    outcome["child sees"] = in_child(lambda: os.pread(other, 4, 57))
    in_child(lambda: os.pwrite(fd, b"child", 1000))
    outcome["child wrote"] = [_size("file"), value(os.pread, other, 5, 1000)]
    in_child(lambda: os.truncate("file", 5))
    outcome["child truncated"] = [os.fstat(fd).st_size, value(os.pread, fd, 10, 0)]
    return outcome


@check
def controls() -> Outcome:
    """ioctl(2) and fcntl(2)."""
    write("file", b"0123456789")
    fd = os.open("file", os.O_RDWR)
    os.read(fd, 4)
    unread = array.array("i", [0])
    outcome: Outcome = {"unread": [error(fcntl.ioctl, fd, 0x541B, unread), unread[0]]}
    outcome["unknown"] = error(fcntl.ioctl, fd, 0x1234567)
    outcome["terminal"] = error(os.tcgetpgrp, fd)
    outcome["is a terminal"] = os.isatty(fd)
    flags = array.array("L", [0])
    outcome["flags"] = [error(fcntl.ioctl, fd, 0x80086601, flags), flags[0] & 0x30]
    outcome["immutable"] = error(fcntl.ioctl, fd, 0x40086602, array.array("L", [0x10]))
    outcome["written then"] = error(os.open, "file", os.O_WRONLY)
    fcntl_error = error(fcntl.ioctl, fd, 0x40086602, array.array("L", [0]))
    outcome["mutable"] = fcntl_error
    outcome["version"] = error(fcntl.ioctl, fd, 0x80087601, array.array("L", [0]))
    outcome["signal on data"] = error(fcntl.fcntl, fd, fcntl.F_SETOWN, os.getpid())
    outcome["access"] = fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE
    outcome["map of blocks"] = error(fcntl.ioctl, fd, 1, struct.pack("i", 0))
    return outcome


@check
def statistics() -> Outcome:
    found = os.statvfs(".")
    return {
        "there is room": found.f_bavail > 0 and found.f_blocks > found.f_bavail,
        "names": found.f_namemax,
        "fragments": found.f_frsize,
        "files": found.f_ffree > 0,
        "read-only": bool(found.f_flag & os.ST_RDONLY),
        "path": value(os.pathconf, ".", "PC_NAME_MAX"),
        "room is taken": _room_is_taken(),
    }


def _room_is_taken() -> bool:
    before = os.statvfs(".").f_bfree
    fd = os.open("allocated", os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(fd, 0, 32 * MIB)
    # Others write there, too: so more than half of it is enough.
    return os.statvfs(".").f_bfree < before - 16 * MIB // os.statvfs(".").f_frsize
