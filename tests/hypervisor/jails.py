"""What a process in a jail is, seen from outside; and a QEMU that a guest has taken over: a program
that is started as QEMU is, and then does what it is told."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import links, netns
from tapwright.linux.netlink import Netlink
from tests.hypervisor.shares import fields

NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "cgroup")
_LIMITS = {
    "Max core file size": "core",
    "Max file size": "files' size",
    "Max open files": "open files",
    "Max processes": "threads",
}

_PROGRAM = """#!/usr/bin/python3 -ISB
import ctypes, errno, json, os, re, resource, select, signal, socket, struct, sys
b"x".decode("idna"), "x".encode("ascii")  # which are loaded when they are used first

libc = ctypes.CDLL(None, use_errno=True)

def call(number, *arguments):
    words = [each if isinstance(each, bytes) else ctypes.c_long(each) for each in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result

def connected(kind, address):
    with socket.socket(kind) as one:
        one.connect(address)

(fd,) = re.findall(r"id=qmp,fd=(\\d+)", " ".join(sys.argv))
qmp = socket.socket(fileno=int(fd))
qmp.sendall(b'{"QMP": {}}\\n')
for line in qmp.makefile("rb"):
    command = json.loads(line)
    said = ""
    try:
        if command["execute"] == "do":
            said = repr(eval(command["arguments"]["code"]))
    except OSError as error:
        said = errno.errorcode[error.errno]
    except Exception as error:
        said = repr(error)
    qmp.sendall(json.dumps({"return": said, "id": command["id"]}).encode() + b"\\n")
"""


class TakenOver:
    """It evaluates what it is told."""

    def __init__(self, qemu: Qemu, runner: asyncio.Runner) -> None:
        self.pid = qemu._process.pid
        self.uid = qemu.uid
        self._qemu = qemu
        self._runner = runner

    def does(self, code: str) -> str:
        """What comes of an expression: its `repr`, or the name of an errno. There are some modules,
        `call(NUMBER, ARGUMENT, …)` for system calls, and `connected(FAMILY, ADDRESS)`."""
        return str(self._runner.run(self._qemu.qmp.execute("do", code=code)))


@contextmanager
def taken_over(machine: Machine, directory: Path) -> Iterator[TakenOver]:
    """One that has been sealed in, its program being written in a directory of the host."""
    program = directory / "qemu"
    program.write_text(_PROGRAM)
    program.chmod(0o755)
    with asyncio.Runner() as runner:
        qemu = runner.run(Qemu.start(replace(machine, qemu=str(program))))
        try:
            yield TakenOver(qemu, runner)
        finally:
            runner.run(qemu.kill())


def audit(pid: int) -> dict[str, Any]:
    """What a process may, and has, by what the kernel shows of it."""
    status = fields(pid)
    here = Path(f"/proc/{pid}")
    return {
        "users": status["Uid"] + status["Gid"],
        "groups": status["Groups"],
        "capabilities": {name: int(status[name][0], 16) for name in status if name[:3] == "Cap"},
        "no new privileges": status["NoNewPrivs"] == ["1"],
        "filters": int(status["Seccomp_filters"][0]),
        "first of its pid namespace": status["NSpid"][1:] == ["1"],
        "leads a session": status["NSsid"][0] == str(pid),
        "namespaces of its own": [name for name in NAMESPACES if _differs(pid, name)],
        "network": _network(pid),
        "mounts": sorted(_mount(line) for line in (here / "mountinfo").read_text().splitlines()),
        "root": sorted(os.listdir(here / "root")),
        "limits": _limits(here / "limits"),
        "control groups": (here / "cgroup").read_text() == Path("/proc/self/cgroup").read_text(),
        "oom score": (here / "oom_score_adj").read_text()
        == Path("/proc/self/oom_score_adj").read_text(),
        "environment": sorted(
            word.partition(b"=")[0].decode()
            for word in (here / "environ").read_bytes().split(b"\0")
            if word
        ),
    }


def _differs(pid: int, name: str) -> bool:
    return os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}")


def _network(pid: int) -> list[tuple[str, bool]]:
    """(interface, whether it is up) of each in its namespace."""
    with netns.entered(f"/proc/{pid}/ns/net"), Netlink() as nl:
        return [(link.name, link.is_up) for link in links.listing(nl)]


def _mount(line: str) -> tuple[str, str, frozenset[str]]:
    """(place, filesystem, options) of a line of mountinfo (proc(5))."""
    words = line.split()
    options = frozenset(words[5].split(",")) & {"ro", "rw", "nosuid", "nodev", "noexec"}
    return words[4], words[words.index("-") + 1], options


def _limits(path: Path) -> dict[str, str]:
    found = {}
    for line in path.read_text().splitlines():
        for name, ours in _LIMITS.items():
            if line.startswith(name):
                soft, hard = line.removeprefix(name).split()[:2]
                found[ours] = soft if soft == hard else f"{soft} of {hard}"
    return found
