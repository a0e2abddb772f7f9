"""Part 7: what a guest's kernel that was taken over may send to the daemon of its share: FUSE's
requests, almost right. It answers or ends, ends with its user, and reaches nothing else."""

import contextlib
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.hypervisor.machine import Daemon
from tests.hypervisor.shares import PROGRAMS
from tests.hypervisor.test_malformed import GONE, OPCODES, Attacked
from tests.hypervisor.vhost_user_fs import ROOT
from tests.torture.bound import Bound

_AT_ONCE, _WHOLE = 1000, 100_000
_NODES = (*range(1, 12), *(0, 999, 1 << 31, 1 << 63, (1 << 64) - 1))
_NUMBERS = (*range(4), *(8, 24, 4096, 0o100644, 0o40755, 0o20666, 0o120777, 0o104755))
_LARGE = (1 << 12, 1 << 16, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
_NAMES = (
    *(
        b"file",
        b"tree",
        b"one",
        b"new",
        b"other",
        b".",
        b"..",
        b"",
        b"/",
        b"/etc/passwd",
        b"x" * 256,
    ),
    *(b"../secret", b"../../secret", b"tree/../../secret", b"x" * 5000, b"\xff\xfe", b"new/file"),
    *(b"user.x", b"trusted.overlay.opaque", b"security.capability", b"system.posix_acl_access"),
)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """A filesystem that is soon full."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path], check=True)
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def content(draw: random.Random) -> bytes:
    """Numbers of four and eight bytes, and names, as requests have them, and else."""
    parts = []
    for _ in range(draw.randrange(7)):
        number = draw.choice(draw.choice((_NUMBERS, _NUMBERS, _LARGE, _NODES)))
        parts.append(struct.pack("=Q", number) if draw.random() < 0.3 else _u32(number))
    for _ in range(draw.choice((0, 1, 1, 2))):
        parts.append(draw.choice(_NAMES) + b"\0" * (draw.random() < 0.95))
    if draw.random() < 0.1:
        parts.append(draw.randbytes(draw.randrange(400)))
    return b"".join(parts)


def _u32(number: int) -> bytes:
    return struct.pack("=I", number & 0xFFFFFFFF)


def renewed(tree: Path) -> None:
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir()
    (tree / "file").write_text("shared")
    (tree / "directory").mkdir()


@pytest.mark.parametrize("program", PROGRAMS)
def test_requests(bound: Bound, place: Path, program: str) -> None:
    if not bound.is_whole:
        pytest.skip("tests/hypervisor/test_malformed.py is its short form")
    tree, secret = place / "tree", place / "secret"
    secret.write_text("the host's")
    renewed(tree)
    attacked = Attacked(Daemon(program), tree)
    starts = 0
    try:
        for number in bound.goes_on(short=1, whole=_WHOLE // _AT_ONCE):
            drawn = f"{bound.seed} {number}"
            draw = random.Random(drawn)  # noqa: S311 - no secret
            for _ in range(_AT_ONCE):
                node = draw.choice((attacked.node, attacked.file, ROOT, draw.choice(_NODES)))
                opcode = draw.choice(OPCODES)
                try:
                    with contextlib.suppress(OSError):
                        attacked.guest.call(opcode, node, content(draw))
                except GONE:
                    attacked.has_ended()
            assert secret.read_text() == "the host's", drawn
            assert sorted(os.listdir(place)) == ["secret", "tree"], drawn
            attacked.end()
            renewed(tree)
            starts += attacked.started
            attacked = Attacked(Daemon(program), tree)
    finally:
        attacked.end()
    bound.tell(
        7,
        f"requests of a guest's kernel to the daemon of its share (`{program}`)",
        "answered, or it ended ({ended} times), with its user at the latest; no other file touched",
        tries=bound.tries * _AT_ONCE,
        counts={"ended": starts - bound.tries},
    )
