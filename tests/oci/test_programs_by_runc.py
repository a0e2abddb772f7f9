"""What becomes of a program that can't be executed, and of a process that can't be as it is asked
for, by runc and by Tapwright: the same status, and the same words."""

import os
import re
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.oci.conftest import Run
from tests.oci.runtime import Runtime

pytestmark = pytest.mark.usefixtures("nothing_left")

_BUSYBOX = Path("/bin/busybox")


class Row(NamedTuple):
    """`prepare` is done to the root filesystem, `process` is what the configuration has of it."""

    argv: tuple[str, ...]
    prepare: Callable[[Path], object] = lambda _: None
    process: dict[str, Any] = {}  # noqa: RUF012 - a tuple's default, which nobody changes


_WORKER = {"user": {"uid": 1000, "gid": 1000}}
_FEW = [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": 20} for soft in (20, 10)]


def _script(text: str) -> Callable[[Path], object]:
    def prepare(rootfs: Path) -> None:
        (rootfs / "script").write_text(text)
        (rootfs / "script").chmod(0o755)

    return prepare


def _of_root_alone(rootfs: Path) -> None:
    (rootfs / "private").mkdir(mode=0o700)
    (rootfs / "private/true").write_bytes(_BUSYBOX.read_bytes())
    (rootfs / "private/true").chmod(0o755)


def _not_for_others(rootfs: Path) -> None:
    _of_root_alone(rootfs)
    (rootfs / "private").chmod(0o755)
    (rootfs / "private/true").chmod(0o700)


def _of_another(rootfs: Path) -> None:
    _of_root_alone(rootfs)
    for path, mode in ((rootfs / "private/true", 0o700), (rootfs / "private", 0o700)):
        path.chmod(mode)
        os.chown(path, 1000, 1000)


_NONE: dict[str, list[str]] = {"bounding": [], "effective": [], "permitted": []}

ROWS = {
    "a script without an interpreter": Row(("/script",), _script("echo it ran\n")),
    "an interpreter that is not there": Row(("/script",), _script("#!/nowhere\n")),
    "a program of root's": Row(("/private/true",), _not_for_others, _WORKER),
    "a program of another, of a root without rights": Row(
        ("/private/true",), _of_another, {"capabilities": _NONE}
    ),
    "in a directory of another's, of a root with one right": Row(
        ("/private/true",),
        _of_another,
        {"capabilities": {key: ["CAP_DAC_READ_SEARCH"] for key in _NONE}},
    ),
    "in a directory of root's": Row(("/private/true",), _of_root_alone, _WORKER),
    "a path without such places": Row(
        ("true",), _not_for_others, {**_WORKER, "env": ["PATH=/private:/bin"]}
    ),
    "a path that leads to the current directory": Row(
        ("script",), _script("#!/bin/sh\n"), {"env": ["PATH=:/bin"]}
    ),
    "no path": Row(("true",), process={"env": []}),
    "a link to itself": Row(("/loop",), lambda rootfs: (rootfs / "loop").symlink_to("loop")),
    "below a file": Row(("/bin/busybox/x",)),
    "nowhere": Row(("/nowhere",)),
    "a variable without a value": Row(("env",), process={"env": ["PATH=/bin", "WORD"]}),
    "a variable without a name": Row(("env",), process={"env": ["PATH=/bin", "=x"]}),
    "a user of a large number": Row(("true",), process={"user": {"uid": 2**31, "gid": 0}}),
    "few open files": Row(("sh", "-c", "ulimit -n; ulimit -Hn"), process={"rlimits": _FEW}),
}


_NEWER = {
    r'invalid environment variable: ".*"': "invalid environment variable: missing '='",
    r"environment variable name can't be empty: .*": (
        "invalid environment variable: name cannot be empty"
    ),
    # Go looks before it executes.
    r'exec (/[^:"]*): permission denied': r'exec: "\1": permission denied',
    r"1 unable to setup user: uids and gids must be in range 0-2147483647\n": "0 ",
    r"255 exec /script: ": "1 exec /script: ",
    # It needs more itself.
    r"1 unable to setup user: .* clone root fd: .* too many open files\n": "0 10\n20\n",
}
"""What runc has said since Debian 13 for what it said before; the last three since 1.3."""


def _heard(said: str) -> str:
    """Without what the runtimes call themselves, and where runc was at the time."""
    found = re.sub(r'time=.* msg="(.*)"\n', lambda line: f"{line[1]}\n", said)
    found = found.replace('\\"', '"').replace("tapwright: ", "")
    found = found.replace("runc run failed: unable to start container process: ", "")
    found = found.replace("error during container init: ", "")
    for older, newer in _NEWER.items():
        found = re.sub(older, newer, found)
    return found


@pytest.mark.parametrize("name", ROWS)
def test_the_same_words(by_runc: Run, by_us: Run, name: str) -> None:
    row = ROWS[name]
    expected, found = (
        _heard(run(*row.argv, prepare=row.prepare, process=row.process)) for run in (by_runc, by_us)
    )
    assert found == expected


# time(0) at the address of arch/x86/include/uapi/asm/vsyscall.h; exit(0)
_TIME_OF_THE_KERNELS_PAGE = bytes.fromhex("31ff 48c7c0000460ff ffd0 b83c000000 31ff 0f05")


def _program(code: bytes) -> bytes:
    """A static program of x86-64 (elf(5)), whose machine code this is."""
    header, start = 64 + 56, 0x400000
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    size = header + len(code)
    return (
        ident
        + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, start + header, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        + struct.pack("<IIQQQQQQ", 1, 5, 0, start, start, size, size, 4096)
        + code
    )


def test_a_further_process(runtime: Runtime) -> None:
    """By `exec`, which says what can't be executed, or has the process say it."""
    bundle_script = "printf 'echo it ran\\n' >/script; chmod +x /script; exec sleep 1000"
    with runtime.running("sh", "-c", bundle_script) as container:
        assert (
            runtime.succeed("exec", container.id, "sh", "-c", "until [ -x /script ]; do :; done")
            == ""
        )
        done = container.exec("/script")
        assert (done.returncode, done.stderr) == (1, "exec /script: exec format error\n")
        done = runtime.call("exec", "--user", "1000", container.id, "/root/true")
        assert 'exec: "/root/true": stat /root/true: ' in done.stderr
        # A C library of before 2011 has the time from a page that the kernel shows each program.
        old = container.bundle / "rootfs/old"
        old.write_bytes(_program(_TIME_OF_THE_KERNELS_PAGE))
        old.chmod(0o755)
        # Without that page by a host's own kernel, the guest's has it all the same.
        assert subprocess.run([old], check=False).returncode in (0, -signal.SIGSEGV)
        assert container.exec("/old").returncode == 0
