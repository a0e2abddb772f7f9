"""What a process may no longer do: system calls that are filtered, capabilities given up."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable

from tapwright.linux import capabilities
from tapwright.linux.seccomp import Check, Filter

MKNOD, GETPPID, SETRESUID = 133, 110, 117
CHARACTER_DEVICE, FIFO, FILE_TYPE = 0o20000, 0o10000, 0o170000

# Every call of x86-64 that the interpreter may make, but for those that the tests are about.
OTHERS = [number for number in range(470) if number not in (MKNOD, GETPPID, SETRESUID)]
NO_DEVICES = Check(1, (CHARACTER_DEVICE,), FILE_TYPE, is_in=False)
EFFECTIVE_USER_ONLY = Check(0, (0xFFFFFFFF,))


def outcome(confine: Callable[[], None], code: str) -> str:
    """What the code comes to in a confined process: the name of its errno, or `done`."""
    program = (
        "import os, errno, ctypes\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        f"failed = ({code}) == -1\n"
        "print(errno.errorcode[ctypes.get_errno()] if failed else 'done')\n"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", program],
        preexec_fn=confine,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_a_call_that_is_not_on_the_list_is_not_there() -> None:
    assert outcome(Filter(OTHERS, {}).install, f"libc.syscall({GETPPID})") == "ENOSYS"
    assert outcome(Filter([*OTHERS, GETPPID], {}).install, f"libc.syscall({GETPPID})") == "done"


def test_an_argument_decides(tmp_path: os.PathLike[str]) -> None:
    install = Filter(OTHERS, {MKNOD: NO_DEVICES, SETRESUID: EFFECTIVE_USER_ONLY}).install

    def mknod(kind: int) -> str:
        path = os.fsencode(os.path.join(tmp_path, str(kind)))
        return outcome(install, f"libc.syscall({MKNOD}, {path!r}, {kind | 0o600}, 0x103)")

    assert mknod(CHARACTER_DEVICE) == "EPERM"
    assert mknod(FIFO) == "done"
    assert outcome(install, f"libc.syscall({SETRESUID}, 1, 1, 1)") == "EPERM"
    assert outcome(install, f"libc.syscall({SETRESUID}, -1, 1, -1)") == "done"


def test_capabilities_that_are_kept() -> None:
    highest = capabilities.last()
    code = "print([line for line in open('/proc/self/status') if 'Cap' in line]) or 0"

    def confine() -> None:
        capabilities.keep((capabilities.CHOWN, capabilities.MKNOD, capabilities.SETPCAP), highest)

    kept = f"{1 << capabilities.CHOWN | 1 << capabilities.MKNOD | 1 << capabilities.SETPCAP:016x}"
    said = outcome(confine, code)
    for name in ("CapPrm", "CapEff", "CapBnd"):
        assert f"{name}:\\t{kept}" in said
    assert errno.errorcode[errno.EPERM] == outcome(confine, "libc.chroot(b'/')")
