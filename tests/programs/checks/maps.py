"""Files in memory, and programs that run from them."""

import ctypes
import mmap
import os
import shutil
import signal
import subprocess
import time

from tests.programs.checks.frame import Outcome, check, error, in_child, read, system, value, write

PAGE = 4096


def _file(pages: int, name: str = "file") -> int:
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o755)
    os.pwrite(fd, b"".join(bytes([65 + number % 26]) * PAGE for number in range(pages)), 0)
    return fd


@check
def shared_maps() -> Outcome:
    fd = _file(4)
    one = mmap.mmap(fd, 4 * PAGE)
    two = mmap.mmap(os.open("file", os.O_RDWR), 4 * PAGE)
    outcome: Outcome = {}
    one[0:4] = b"map1"
    outcome["read(2) sees it"] = value(os.pread, fd, 4, 0)
    outcome["another's read(2)"] = read("file")[:4]
    outcome["another map"] = two[0:4].decode()
    os.pwrite(fd, b"file", PAGE)
    outcome["write(2) is seen"] = [one[PAGE : PAGE + 4].decode(), two[PAGE : PAGE + 4].decode()]
    in_child(lambda: one.__setitem__(slice(10, 15), b"child"))
    outcome["a child's"] = one[10:15].decode()
    in_child(lambda: os.pwrite(os.open("file", os.O_WRONLY), b"other", 2 * PAGE))
    outcome["a child's write(2)"] = one[2 * PAGE : 2 * PAGE + 5].decode()
    outcome["flush"] = error(one.flush)
    os.close(fd)
    one[20:25] = b"close"
    outcome["after close"] = two[20:25].decode()
    os.unlink("file")
    one[30:35] = b"unlnk"
    outcome["after unlink"] = two[30:35].decode()
    one.close()
    two.close()
    return outcome


@check
def private_maps() -> Outcome:
    fd = _file(2)
    private = mmap.mmap(fd, 2 * PAGE, access=mmap.ACCESS_COPY)
    private[0:4] = b"mine"
    outcome: Outcome = {"not in the file": read("file")[:4], "in the map": private[:4].decode()}
    os.pwrite(fd, b"late", PAGE)
    outcome["what was not touched yet"] = private[PAGE : PAGE + 4].decode()
    reader = os.open("file", os.O_RDONLY)
    outcome["of a reader, private"] = error(
        mmap.mmap, reader, PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )
    outcome["of a reader, shared"] = error(mmap.mmap, reader, PAGE)
    outcome["of a writer"] = error(
        mmap.mmap, os.open("file", os.O_WRONLY), PAGE, prot=mmap.PROT_READ
    )
    outcome["of a directory"] = error(
        mmap.mmap, os.open(".", os.O_RDONLY), PAGE, prot=mmap.PROT_READ
    )
    outcome["executable"] = error(
        mmap.mmap, reader, PAGE, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC
    )
    return outcome


@check
def ends_of_maps() -> Outcome:
    fd = os.open("file", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"short")
    outcome: Outcome = {}

    def mapped(length: int = 3 * PAGE) -> mmap.mmap:
        # Python's own does not map more than there is.
        os.ftruncate(fd, length)
        whole = mmap.mmap(fd, length)
        os.ftruncate(fd, 5)
        return whole

    whole = mapped()
    outcome["behind the end"] = [whole[:5].decode(), whole[5:PAGE] == bytes(PAGE - 5)]
    outcome["a page behind"] = in_child(lambda: whole[PAGE])
    outcome["written there"] = in_child(lambda: whole.__setitem__(PAGE, 65))
    os.ftruncate(fd, 2 * PAGE)
    outcome["grown"] = in_child(lambda: whole[PAGE])
    whole[PAGE] = 66
    outcome["written"] = value(os.pread, fd, 1, PAGE)
    outcome["not behind that"] = in_child(lambda: whole[2 * PAGE])
    whole[100] = 90
    os.ftruncate(fd, 50)
    os.ftruncate(fd, PAGE)
    outcome["cut off is zero"] = [whole[100], os.pread(fd, 1, 100)[0]]
    with open("other", "w+b") as file:
        file.write(b"a" * 100)
        file.flush()
        larger = mmap.mmap(file.fileno(), 100)
        larger.resize(10_000)
        larger[9_000:9_001] = b"z"
        outcome["resized"] = [os.stat("other").st_size, value(os.pread, file.fileno(), 1, 9_000)]
        larger.close()
    return outcome


@check
def holes_in_maps() -> Outcome:
    fd = os.open("file", os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, 64 * PAGE)
    with mmap.mmap(fd, 64 * PAGE) as mapped:
        outcome: Outcome = {"zero": mapped[:PAGE] == bytes(PAGE), "blocks": os.fstat(fd).st_blocks}
        for number in range(0, 64, 8):
            mapped[number * PAGE] = number + 1
        mapped.flush()
        os.fsync(fd)
        outcome["read"] = [os.pread(fd, 1, number * PAGE)[0] for number in range(0, 64, 4)]
        system("fallocate", fd, 3, 8 * PAGE, 8 * PAGE)
        outcome["punched"] = mapped[8 * PAGE]
        outcome["beside"] = mapped[16 * PAGE]
        outcome["dropped"] = [error(mapped.madvise, mmap.MADV_DONTNEED), mapped[0]]
        outcome["populated"] = error(mapped.madvise, mmap.MADV_WILLNEED)
    return outcome


@check
def maps_between_processes() -> Outcome:
    """Two processes count in turns in a page that they have mapped each by itself."""
    fd = _file(1)
    os.pwrite(fd, bytes(8), 0)

    def count(mine: int) -> int:
        with mmap.mmap(os.open("file", os.O_RDWR), PAGE) as page:
            seen = 0
            deadline = time.monotonic() + 20
            while seen < 50 and time.monotonic() < deadline:
                if page[0] % 2 == mine:
                    page[0] = page[0] + 1
                    seen += 1
                else:
                    os.sched_yield()
            return seen

    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writer, str(count(1)).encode())
        os._exit(0)
    ours = count(0)
    theirs = int(os.read(reader, 10))
    os.waitpid(pid, 0)
    return {"ours": ours, "theirs": theirs, "in the end": os.pread(fd, 1, 0)[0]}


def _running(*command: str) -> subprocess.Popen[bytes]:
    """One that has begun: it has said so."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.read(1)
    return process


@check
def programs_that_run() -> Outcome:
    shutil.copy("/bin/dash", "program")
    os.mkfifo("fifo")
    outcome: Outcome = {}
    with _running("./program", "-c", "echo begun; read line <fifo") as process:
        outcome["write"] = error(os.open, "program", os.O_RDWR)
        outcome["truncate"] = error(os.truncate, "program", 0)
        outcome["append"] = error(os.open, "program", os.O_WRONLY | os.O_APPEND)
        outcome["rename"] = error(os.rename, "program", "renamed")
        outcome["replace"] = shutil.copy("/bin/cat", "program")
        outcome["unlink"] = error(os.unlink, "renamed")
        outcome["link in /proc"] = os.readlink(f"/proc/{process.pid}/exe").endswith(
            "/renamed (deleted)"
        )
        outcome["by /proc"] = _status(f"/proc/{process.pid}/exe", "-c", "exit 9")
        process.send_signal(signal.SIGKILL)
        outcome["end"] = process.wait()
    write("script", b"#!/bin/sh\nexit 7\n", 0o755)
    outcome["script"] = _status("./script")
    writer = os.open("script", os.O_WRONLY | os.O_APPEND)
    outcome["open to write"] = _status("./script")
    os.close(writer)
    shutil.copy("/bin/true", "busy")
    writer = os.open("busy", os.O_WRONLY)
    outcome["program open to write"] = _status("./busy")
    os.close(writer)
    outcome["then"] = _status("./busy")
    write("text", b"exit 3\n", 0o755)
    outcome["not a program"] = _status("./text")
    write("mode", b"#!/bin/sh\n", 0o644)
    outcome["not executable"] = _status("./mode")
    write("nobody", b"#!/no/interpreter\n", 0o755)
    outcome["no interpreter"] = _status("./nobody")
    fd = os.open("busy", os.O_RDONLY)
    os.unlink("busy")
    outcome["by descriptor"] = in_child(lambda: _status(f"/proc/self/fd/{fd}", keep=fd))
    return outcome


def _status(*command: str, keep: int = -1) -> object:
    if keep >= 0:
        os.set_inheritable(keep, True)
    pid = os.fork()
    if pid == 0:
        said = error(os.execv, command[0], list(command))
        os._exit(100 + {"EACCES": 1, "ETXTBSY": 2, "ENOEXEC": 3, "ENOENT": 4}.get(said, 5))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    names = {101: "EACCES", 102: "ETXTBSY", 103: "ENOEXEC", 104: "ENOENT"}
    return names.get(code, code)


@check
def libraries_that_are_replaced() -> Outcome:
    """As a package manager does under programs that have them loaded."""
    source = "/lib/x86_64-linux-gnu/libz.so.1"
    shutil.copy(source, "library.so")
    ctypes.CDLL("./library.so", mode=os.RTLD_NOW)
    shutil.copy(source, "new.so")
    os.rename("new.so", "library.so")
    with open("/proc/self/maps") as file:
        maps = [line.split()[5:] for line in file if "library.so" in line]
    outcome: Outcome = {"old one": ["(deleted)" in words for words in maps[:1]]}
    return outcome
