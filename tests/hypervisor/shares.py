"""A share of files without a QEMU: what is shown in it, and what its daemon is."""

import os
import subprocess
from contextlib import ExitStack
from pathlib import Path

from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.share import Share
from tapwright.linux import mounts

UID = 0x70000000 + os.getpid()
PROGRAMS = sorted({os.path.realpath(path) for path in virtiofsd.PATHS if os.access(path, os.X_OK)})
"""QEMU's own, in C, and the one in Rust: those that are here."""


def show(
    share: Share, directory: str, *, read_only: bool = False, **sources: Path
) -> dict[str, str]:
    with ExitStack() as done:
        fds = {name: mounts.clone(str(path), read_only=read_only) for name, path in sources.items()}
        for fd in fds.values():
            done.callback(os.close, fd)
        return share.attach(directory, fds)


def seen(share: Share) -> list[str]:
    """All that is in the share."""
    top = f"/proc/{share.process.pid}/root/"
    command = ["find", top, "-mindepth", "1", "-printf", "/%P\\n"]
    return sorted(subprocess.check_output(command, text=True).split())


def said(share: Share) -> str:
    """What its daemon has said since this was called last."""
    os.set_blocking(share.stderr, False)
    try:
        return os.read(share.stderr, 1 << 16).decode(errors="replace")
    except BlockingIOError:
        return ""


def fields(pid: int) -> dict[str, list[str]]:
    """Of /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def has_ended(pid: int) -> bool:
    try:
        return fields(pid)["State"][0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # which of them: whether it went while read
        return True
