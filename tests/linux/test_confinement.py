"""What a process may no longer do: system calls that are filtered, capabilities given up."""

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable

from tapwright.linux import capabilities
from tapwright.linux.seccomp import Check, Filter

MKNOD, GETPPID, GETPGRP, SETRESUID = 133, 110, 111, 117
X32, X86_64, I386 = 0x40000000, 0xC000003E, 0x40000003
ALLOWED, FAILS, KILLS = 0x7FFF0000, 0x00050000, 0x80000000
FILE_TYPE, FIFO, CHARACTER_DEVICE, BLOCK_DEVICE = 0o170000, 0o010000, 0o020000, 0o060000
NULL, DISK = 0x103, 0x800
DEVICES = (CHARACTER_DEVICE, BLOCK_DEVICE)

NO_DEVICE = [Check(1, DEVICES, FILE_TYPE, is_in=False)]
HARMLESS_DEVICE = [Check(1, (CHARACTER_DEVICE,), FILE_TYPE), Check(2, (NULL, 0))]
EFFECTIVE_USER_ONLY = [Check(0, (0xFFFFFFFF,)), Check(2, (0xFFFFFFFF,))]


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


def test_calls_that_are_refused_and_those_that_are_lacking() -> None:
    install = Filter(refused=[GETPPID], lacking=[GETPGRP]).install
    assert outcome(install, f"libc.syscall({GETPPID})") == "EPERM"
    assert outcome(install, f"libc.syscall({GETPGRP})") == "ENOSYS"
    assert outcome(Filter().install, f"libc.syscall({GETPPID})") == "done"
    assert outcome(Filter().install, f"libc.syscall({GETPGRP})") == "done"


def answer(installed: Filter, number: int, arch: int = X86_64) -> int:
    """The filter's verdict on a call, by its own instructions: for calls that must not be made
    here, or that this kernel lacks."""
    code = list(struct.iter_unpack("=HBBI", installed._code.raw[:-1]))
    call = struct.pack("=IIQ6Q", number, arch, 0, *range(6))
    accumulator = place = 0
    while True:
        kind, if_so, otherwise, value = code[place]
        place += 1
        if kind == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("=I", call, value)
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x05:
            place += value
        elif kind == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value}[kind]
            place += if_so if holds else otherwise


def test_no_call_by_its_other_number() -> None:
    for installed in (Filter(), Filter([GETPPID], {MKNOD: [NO_DEVICE]}, [GETPGRP])):
        for number in (X32, X32 | GETPPID, X32 | MKNOD, X32 | 512, 0xFFFFFFFF):
            assert answer(installed, number) == FAILS | errno.ENOSYS
            assert answer(installed, number, I386) == KILLS
        assert answer(installed, MKNOD, I386) == answer(installed, 0, X32) == KILLS
        assert answer(installed, X32 - 1) == answer(installed, 0) == ALLOWED
    assert answer(Filter([GETPPID]), GETPPID) == FAILS | errno.EPERM


def test_no_call_that_is_newer() -> None:
    old = Filter([GETPPID], {MKNOD: [NO_DEVICE]}, unknown=449)
    for number in (449, 460, X32 | GETPPID, 0xFFFFFFFF):
        assert answer(old, number) == FAILS | errno.ENOSYS
    assert answer(old, 448) == ALLOWED
    assert answer(old, 449, I386) == KILLS


def test_all_checks_of_one_of_the_conditions(tmp_path: os.PathLike[str]) -> None:
    install = Filter(checked={MKNOD: (NO_DEVICE, HARMLESS_DEVICE)}).install
    count = 0

    def mknod(kind: int, device: int) -> str:
        nonlocal count
        count += 1
        path = os.fsencode(os.path.join(tmp_path, str(count)))
        return outcome(install, f"libc.syscall({MKNOD}, {path!r}, {kind | 0o600}, {device})")

    assert mknod(FIFO, 0) == mknod(FIFO, DISK) == "done"
    assert mknod(CHARACTER_DEVICE, NULL) == mknod(CHARACTER_DEVICE, 0) == "done"
    assert mknod(CHARACTER_DEVICE, DISK) == "EPERM"
    assert mknod(BLOCK_DEVICE, NULL) == mknod(BLOCK_DEVICE, 0) == "EPERM"
    # No condition at all, and one with no check in it.
    assert outcome(Filter(checked={GETPPID: ()}).install, f"libc.syscall({GETPPID})") == "EPERM"
    assert outcome(Filter(checked={GETPPID: ((),)}).install, f"libc.syscall({GETPPID})") == "done"


def test_what_is_checked_is_what_the_kernel_sees() -> None:
    """Of a register, that is the lower half: one that is -1 there can be anything above."""
    install = Filter(refused=[GETPPID], checked={SETRESUID: [EFFECTIVE_USER_ONLY]}).install

    def setresuid(*users: int) -> str:
        words = ", ".join(f"ctypes.c_ulong({user & 0xFFFFFFFFFFFFFFFF})" for user in users)
        return outcome(install, f"libc.syscall({SETRESUID}, {words})")

    assert setresuid(-1, 1, -1) == setresuid(0xFFFFFFFF, 1, 0xFFFFFFFF) == "done"
    assert setresuid(0x1234_FFFFFFFF, 1, -1) == "done"
    for users in ((1, 1, 1), (-1, 1, 1), (1, 1, -1), (0xFFFFFFFF << 32, 1, -1)):
        assert setresuid(*users) == "EPERM"
    # The calls behind one that is checked are filtered all the same.
    assert outcome(install, f"libc.syscall({GETPPID})") == "EPERM"


def test_filters_add_up() -> None:
    """As the daemon's own does: none takes back what another one refuses."""

    def confine() -> None:
        Filter(refused=[GETPPID]).install()
        Filter(refused=[GETPGRP]).install()

    for number in (GETPPID, GETPGRP):
        assert outcome(confine, f"libc.syscall({number})") == "EPERM"


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
