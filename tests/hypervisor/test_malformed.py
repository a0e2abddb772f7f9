"""What is no proper request, of a guest's kernel or of QEMU: the daemon answers, or it ends, which
ends this guest and no other. It never stays when its user has gone, and nothing of the host comes
to harm."""

import contextlib
import os
import resource
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.hypervisor import virtiofsd
from tapwright.hypervisor.machine import Daemon
from tapwright.hypervisor.share import Share
from tests.hypervisor import vhost_user_fs as wire
from tests.hypervisor.shares import UID, fields, show
from tests.hypervisor.vhost_user_fs import (
    LOOKUP,
    READ,
    READDIR,
    ROOT,
    SETXATTR,
    WRITE,
    EndedError,
    Guest,
    SilentError,
    descriptor,
    text,
)

OPCODES = (*range(53), 4096, 0x7FFFFFFF, 0xFFFFFFFF)
NODES = (0, 2, 999, 1 << 63, (1 << 64) - 1)
CONTENTS = (
    b"",
    b"\0",
    b"\xff",
    bytes(200),
    b"\xff" * 200,
    b"/" * 300 + b"\0",
    struct.pack("=QQ", 1 << 63, 1) + b"x" * 100,
    bytes(range(255, 0, -3)),
    bytes(range(256)) * 16,
)
# After these it may serve nobody any more: they are of the whole connection. (4096 is CUSE_INIT.)
_ENDS = (wire.INIT, wire.DESTROY, wire.INTERRUPT, 4096)
GONE = EndedError, SilentError


class Attacked:
    """A daemon, and a new one when that has ended."""

    def __init__(self, daemon: Daemon, tree: Path) -> None:
        self._daemon = daemon
        self._tree = tree
        self.started = 0
        self._share: Share | None = None
        self.guest = self._start()

    @property
    def share(self) -> Share:
        assert self._share
        return self._share

    def has_ended(self) -> None:
        """It has hung up, or is silent: then it ends with its user. There is another one."""
        self.end()
        self.guest = self._start()

    def end(self) -> None:
        """Its user goes: then it ends, by itself."""
        self.guest.close()
        try:
            self.share.process.wait(60)
        finally:
            self.share.kill()
            os.close(self.share.stderr)

    def _start(self) -> Guest:
        self.started += 1
        self._share = share = Share.start(UID, self._daemon)
        guest = Guest(share.connection, share.process.pid)
        guest.frontend.features()
        share.seal()
        guest.begin()
        show(share, "one", tree=self._tree)
        self.node = guest.walk("one/tree").node
        self.file = guest.entry(self.node, "file").node
        return guest


@pytest.fixture
def secret(tree: Path) -> Iterator[Path]:
    """Beside what is shared, and what is shared comes to no harm either."""
    path = tree.parent / "secret"
    path.write_text("the host's")
    yield path
    assert path.read_text() == "the host's"
    assert sorted(os.listdir(tree.parent)) == ["secret", "tree"]


@pytest.fixture
def attacked(daemon: Daemon, tree: Path, secret: Path) -> Iterator[Attacked]:
    here = Attacked(daemon, tree)
    yield here
    here.end()


def still_serves(attacked: Attacked) -> None:
    file = attacked.guest.walk("one/tree/file").node
    assert attacked.guest.read(file, attacked.guest.open(file)) == b"shared"


# --- of a guest's kernel -----------------------------------------------------------------------


@pytest.mark.parametrize("content", CONTENTS, ids=range(len(CONTENTS)))
def test_requests_of_any_kind(attacked: Attacked, tree: Path, content: bytes) -> None:
    for opcode in (each for each in OPCODES if each not in _ENDS):
        for node in (*NODES, ROOT, attacked.node, attacked.file):
            try:
                with contextlib.suppress(OSError):
                    attacked.guest.call(opcode, node, content)
            except GONE:
                attacked.has_ended()
                break
    (tree / "file").write_text("shared")  # its own guest may have written to it
    still_serves(attacked)


@pytest.mark.parametrize("opcode", _ENDS)
def test_a_second_beginning_or_an_early_end(attacked: Attacked, opcode: int) -> None:
    for content in CONTENTS:
        with contextlib.suppress(OSError):
            try:
                attacked.guest.call(opcode, 0, content)
                attacked.guest.entry(ROOT, "one")
                attacked.guest.open(attacked.file)
            except GONE:
                attacked.has_ended()
    with contextlib.suppress(OSError, *GONE):
        attacked.guest.mount()
        still_serves(attacked)


@pytest.mark.parametrize("length", [0, 1, 39, 41, 200, 1 << 20, 0xFFFFFFFF])
def test_lengths_that_are_not_true(attacked: Attacked, length: int) -> None:
    guest = attacked.guest
    for opcode in (LOOKUP, READ, WRITE, READDIR, SETXATTR, wire.RENAME):
        with contextlib.suppress(OSError):
            try:
                attacked.guest.raw(attacked.guest.request(opcode, ROOT, bytes(60), length=length))
            except GONE:
                attacked.has_ended()
    still_serves(attacked)
    assert guest is attacked.guest or attacked.started > 1


@pytest.mark.parametrize("size", [1, 8, 15, 39])
def test_requests_that_are_cut(attacked: Attacked, size: int) -> None:
    for opcode in (LOOKUP, READ, 0):
        try:
            attacked.guest.raw(attacked.guest.request(opcode, ROOT, bytes(60))[:size])
        except GONE:
            attacked.has_ended()
    still_serves(attacked)


@pytest.mark.parametrize("room", [0, 1, 15, 16, 17, 100])
def test_no_room_for_an_answer(attacked: Attacked, room: int) -> None:
    guest = attacked.guest
    for opcode, node, content in (
        (LOOKUP, ROOT, text("one")),
        (wire.GETATTR, ROOT, bytes(16)),
        (READ, attacked.file, struct.pack("=QQIIQII", 0, 0, 1 << 20, 0, 0, 0, 0)),
        (READDIR, ROOT, struct.pack("=QQIIQII", 0, 0, 1 << 20, 0, 0, 0, 0)),
        (wire.STATFS, ROOT, b""),
        (wire.READLINK, attacked.file, b""),
    ):
        try:
            attacked.guest.raw(attacked.guest.request(opcode, node, content), room)
        except GONE:
            attacked.has_ended()
    still_serves(attacked)
    assert guest is attacked.guest or attacked.started > 1


def test_handles_that_nobody_gave(attacked: Attacked, tree: Path) -> None:
    """Neither descriptors of the daemon, nor what another file is open by."""
    guest, file = attacked.guest, attacked.file
    for handle in (*range(40), 999, 1 << 32, (1 << 64) - 1):
        for opcode in (READ, READDIR, wire.READDIRPLUS):
            for node in (file, attacked.node):
                with contextlib.suppress(OSError):
                    said = guest.read(node, handle, opcode=opcode)
                    raise AssertionError(f"{opcode} of {handle}: {said!r}")
        with pytest.raises(OSError, match=r"^\[Errno "):
            guest.write(file, handle, b"written")
        for opcode in (wire.FLUSH, wire.RELEASE, wire.RELEASEDIR, wire.FSYNC, wire.LSEEK):
            with contextlib.suppress(OSError):
                guest.call(opcode, file, struct.pack("=QQQQ", handle, 0, 0, 0))
    still_serves(attacked)
    handle = guest.open(file)
    guest.release(file, handle)
    with pytest.raises(OSError, match=r"^\[Errno "):
        guest.read(file, handle)
    assert attacked.started == 1


def test_nodes_that_nobody_gave(attacked: Attacked) -> None:
    guest = attacked.guest
    for node in (0, *range(attacked.file + 1, attacked.file + 40), 1 << 40, (1 << 64) - 1):
        for attempt in (guest.names, guest.open, guest.readlink):
            with pytest.raises(OSError, match=r"^\[Errno "):
                attempt(node)
        with pytest.raises(OSError, match=r"^\[Errno "):
            guest.create(node, "new")
        guest.forget(node, 1 << 40)
    still_serves(attacked)
    assert attacked.started == 1


def test_more_is_forgotten_than_was_known(attacked: Attacked) -> None:
    for node in (attacked.file, attacked.node, 0):
        try:
            for _ in range(2):
                attacked.guest.forget(node, (1 << 64) - 1)
            still_serves(attacked)
        except GONE:
            attacked.has_ended()
    # Without its root it has nothing: one of the daemons takes the guest at its word.
    with contextlib.suppress(OSError, *GONE):
        attacked.guest.forget(ROOT, (1 << 64) - 1)
        still_serves(attacked)
    attacked.has_ended()
    many = struct.pack("=II", 0xFFFFFFFF, 0) + struct.pack("=QQ", ROOT, 1 << 60) * 3
    with contextlib.suppress(OSError):
        try:
            attacked.guest.call(wire.BATCH_FORGET, 0, many)
        except GONE:
            attacked.has_ended()
    still_serves(attacked)


@pytest.mark.parametrize("version", [(0, 0), (6, 9), (7, 0), (7, 26), (7, 9999), (8, 0)])
def test_another_version(daemon: Daemon, tree: Path, version: tuple[int, int]) -> None:
    share = Share.start(UID, daemon)
    guest = Guest(share.connection)
    try:
        guest.frontend.features()
        share.seal()
        guest.plug()
        with contextlib.suppress(OSError, *GONE):
            guest.call(LOOKUP, ROOT, text("one"))  # before anything was agreed on
        with contextlib.suppress(OSError, *GONE):
            guest.call(wire.INIT, 0, struct.pack("=IIII", *version, 0, 0xFFFFFFFF) + bytes(48))
        with contextlib.suppress(OSError, *GONE):
            guest.mount()
            guest.mount()
        guest.frontend.close()
        share.process.wait(60)
    finally:
        guest.close()
        share.kill()
        os.close(share.stderr)


def test_sizes_that_are_not_true(attacked: Attacked, tree: Path) -> None:
    guest, file = attacked.guest, attacked.file
    handle = guest.open(file, os.O_RDWR)
    for size in (100, 1 << 20, 0x7FFFFFFF, 0xFFFFFFFF):
        head = struct.pack("=QQIIQII", handle, 0, size, 0, 0, 0, 0)
        for opcode, node, content in (
            (WRITE, file, head + b"sha"),
            (READ, file, head),
            (SETXATTR, file, struct.pack("=IIII", size, 0, 0, 0) + text("user.x") + b"x"),
            (wire.GETXATTR, file, struct.pack("=II", size, 0) + text("user.x")),
            (wire.LISTXATTR, file, struct.pack("=II", size, 0)),
            (READDIR, ROOT, head),
        ):
            with contextlib.suppress(OSError):
                try:
                    answer = attacked.guest.call(opcode, node, content)
                    # Nothing of the daemon's own memory comes along.
                    assert len(answer) <= 4096
                except GONE:
                    attacked.has_ended()
                    handle = attacked.guest.open(attacked.file, os.O_RDWR)
    assert (tree / "file").read_bytes().startswith(b"sha")
    assert len((tree / "file").read_bytes()) <= 6


# --- of the queue ------------------------------------------------------------------------------

_NEXT, _WRITE_ONLY, _INDIRECT = 1, 2, 4
_END = 16 << 20
CHAINS = {
    "nothing": [descriptor(0x10000, 0)],
    "nothing to read": [descriptor(0x10000, 4096, _WRITE_ONLY)],
    "too large": [descriptor(0x10000, 4 << 20), descriptor(0x10000, 4096, _WRITE_ONLY)],
    "above the memory": [descriptor(_END, 4096)],
    "past the memory's end": [descriptor(_END - 8, 4096)],
    "far away": [descriptor((1 << 64) - 8, 4096)],
    "QEMU's address": [descriptor(0x7F0000010000, 4096)],
    "of all the memory there could be": [descriptor(0x10000, 0xFFFFFFFF)],
    "a circle": [descriptor(0x10000, 40, _NEXT, 1), descriptor(0x10000, 40, _NEXT, 0)],
    "itself": [descriptor(0x10000, 40, _NEXT, 0)],
    "no such next": [descriptor(0x10000, 40, _NEXT, 64)],
    "no such next by far": [descriptor(0x10000, 40, _NEXT, 0xFFFF)],
    "written before read": [
        descriptor(0x20000, 4096, _WRITE_ONLY | _NEXT, 1),
        descriptor(0x10000, 40),
    ],
    "indirect, itself": [descriptor(0x4000, 64, _INDIRECT)],
    "indirect, of no size": [descriptor(0x10000, 7, _INDIRECT)],
    "indirect, outside": [descriptor(_END, 64, _INDIRECT)],
    "indirect, and more": [descriptor(0x10000, 16, _INDIRECT | _NEXT, 1), descriptor(0, 16)],
}


@pytest.mark.parametrize("chain", CHAINS)
def test_chains_of_descriptors(attacked: Attacked, chain: str) -> None:
    """It may be left without an answer whose queue is broken; but not its user's end."""
    guest = attacked.guest
    guest.memory[0x10000:0x10028] = guest.request(LOOKUP, ROOT)
    with contextlib.suppress(*GONE):
        guest.chain(CHAINS[chain], seconds=0.3)


@pytest.mark.parametrize("first", [64, 1000, 0xFFFF])
def test_a_chain_that_begins_nowhere(attacked: Attacked, first: int) -> None:
    with contextlib.suppress(*GONE):
        attacked.guest.chain(CHAINS["nothing"], first, seconds=0.3)


@pytest.mark.parametrize("more", [2, 64, 65, 1000, 0x8000])
def test_more_requests_than_there_can_be(attacked: Attacked, more: int) -> None:
    attacked.guest.queues[1].sent += more
    with contextlib.suppress(*GONE, OSError):
        attacked.guest.chain(CHAINS["nothing to read"], seconds=0.3)


# --- of QEMU -----------------------------------------------------------------------------------

_ONE = struct.pack("=Q", 1)
_FAR = [1 << 40] * 4
MESSAGES = {
    "no such request": (999, b"", 0),
    "request 0": (0, b"", 0),
    "memory, no descriptor": (wire.SET_MEM_TABLE, struct.pack("=II4Q", 1, 0, 0, _END, 0, 0), 0),
    "memory, too many": (wire.SET_MEM_TABLE, struct.pack("=II", 200, 0) + bytes(240), 1),
    "memory, none": (wire.SET_MEM_TABLE, struct.pack("=II", 0, 0), 0),
    "memory, more than there is": (
        wire.SET_MEM_TABLE,
        struct.pack("=II4Q", 1, 0, 0, 1 << 40, 0, 0),
        1,
    ),
    "memory, from behind its end": (
        wire.SET_MEM_TABLE,
        struct.pack("=II4Q", 1, 0, 0, 4096, 0, 1 << 50),
        1,
    ),
    "memory, of no size": (wire.SET_MEM_TABLE, struct.pack("=II4Q", 1, 0, 0, 0, 0, 0), 1),
    "memory, around the end of numbers": (
        wire.SET_MEM_TABLE,
        struct.pack("=II4Q", 1, 0, (1 << 64) - 4096, 1 << 20, (1 << 64) - 4096, 4096),
        1,
    ),
    "memory, cut": (wire.SET_MEM_TABLE, struct.pack("=II", 1, 0), 1),
    "a queue too many": (wire.SET_VRING_NUM, struct.pack("=II", 999, 64), 0),
    "a queue of no size": (wire.SET_VRING_NUM, struct.pack("=II", 1, 0), 0),
    "a queue too large": (wire.SET_VRING_NUM, struct.pack("=II", 1, 1 << 20), 0),
    "a queue nowhere": (wire.SET_VRING_ADDR, struct.pack("=II4Q", 1, 0, 1, 2, 3, 4), 0),
    "a queue of another number": (
        wire.SET_VRING_ADDR,
        struct.pack("=II4Q", 77, 0, *[1 << 40] * 4),
        0,
    ),
    "a second queue": (wire.SET_VRING_KICK, struct.pack("=Q", 2), 1),
    "a kick of nothing": (wire.SET_VRING_KICK, struct.pack("=Q", 1 | 0x100), 0),
    "a kick without": (wire.SET_VRING_KICK, _ONE, 0),
    "a kick by a file": (wire.SET_VRING_KICK, _ONE, 1),
    "a call by a file": (wire.SET_VRING_CALL, _ONE, 1),
    "a log": (6, struct.pack("=QQ", 1 << 40, 0), 1),
    "its configuration": (wire.GET_CONFIG, bytes(12) + bytes(256), 0),
    "memory, beside": (wire.ADD_MEM_REG, bytes(40), 1),
    "features that it has not": (wire.SET_FEATURES, b"\xff" * 8, 0),
    "another way back": (wire.SET_SLAVE_REQ_FD, b"", 1),
    "files beside": (wire.GET_FEATURES, b"", 60),
    "large": (wire.SET_FEATURES, bytes(1 << 16), 0),
}


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_that_make_no_sense(attacked: Attacked, tree: Path, message: str) -> None:
    kind, content, files = MESSAGES[message]
    given = [os.open(tree / "file", os.O_RDWR) for _ in range(files)]
    try:
        with contextlib.suppress(*GONE):
            attacked.guest.frontend.tell(kind, content, given)
            with contextlib.suppress(struct.error):  # it is another message's answer
                attacked.guest.frontend.features()
            attacked.guest.submit(attacked.guest.request(LOOKUP, ROOT, text("one")))
            attacked.guest.wait(seconds=0.3)
    finally:
        for fd in given:
            os.close(fd)


@pytest.mark.parametrize(
    "words",
    [
        (wire.GET_FEATURES, 0, 0),  # no version
        (wire.GET_FEATURES, 2, 0),
        (wire.GET_FEATURES, 1, 0xFFFFFFFF),
        (wire.SET_MEM_TABLE, 1, 1 << 20),
        (0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF),
    ],
)
@pytest.mark.parametrize("rest", [b"", bytes(100)])
def test_heads_that_make_no_sense(
    attacked: Attacked, words: tuple[int, int, int], rest: bytes
) -> None:
    with contextlib.suppress(*GONE):
        attacked.guest.frontend.send(struct.pack("=III", *words) + rest)


@pytest.mark.parametrize("size", [1, 11, 12, 15])
def test_messages_that_are_cut(daemon: Daemon, size: int) -> None:
    share = Share.start(UID, daemon)
    guest = Guest(share.connection)
    try:
        guest.frontend.features()
        guest.frontend.send((struct.pack("=III", wire.SET_FEATURES, 1, 8) + bytes(8))[:size])
        guest.frontend.close()
        share.process.wait(60)
    finally:
        guest.close()
        share.kill()
        os.close(share.stderr)


# --- too much ----------------------------------------------------------------------------------


def test_very_many_lookups(attacked: Attacked, tree: Path) -> None:
    """Of what is there, what is not, and one thing by many names: none of it makes it grow."""
    for number in range(50):
        (tree / f"hard-{number}").hardlink_to(tree / "file")
    guest = attacked.guest

    def look(count: int) -> None:
        for number in range(count):
            guest.entry(attacked.node, f"hard-{number % 50}")
            with pytest.raises(FileNotFoundError):
                guest.entry(attacked.node, f"none-{number}")

    look(200)
    pid = attacked.share.process.pid
    before, opened = memory_of(pid), len(os.listdir(f"/proc/{pid}/fd"))
    look(5000)
    assert memory_of(pid) - before < 1024
    assert len(os.listdir(f"/proc/{pid}/fd")) == opened


def memory_of(pid: int) -> int:
    """In KiB."""
    return int(fields(pid)["RssAnon"][0])


def look_up_all(guest: Guest, directory: int, found: list[int]) -> None:
    """What is in there by the names 0, 1, …"""
    while True:
        found.append(guest.entry(directory, str(len(found))).node)


@pytest.fixture
def scarce(monkeypatch: pytest.MonkeyPatch) -> int:
    """So many descriptors has a daemon."""
    most = 1024  # the one in Rust does not start with less than 610
    monkeypatch.setattr(
        virtiofsd,
        "_allow_files",
        lambda wanted: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)),
    )
    return most


def test_out_of_descriptors(scarce: int, daemon: Daemon, tree: Path, secret: Path) -> None:
    """The guest that asks gets an error; after it forgets files, all goes on."""
    (tree / "many").mkdir()
    for number in range(2 * scarce):
        (tree / "many" / str(number)).touch()
    attacked = Attacked(daemon, tree)
    try:
        guest = attacked.guest
        many = guest.entry(attacked.node, "many").node
        for _ in range(3):
            known: list[int] = []
            with pytest.raises(OSError, match=r"Too many open files"):
                look_up_all(guest, many, known)
            assert scarce // 3 < len(known) < scarce
            for attempt in (guest.open, guest.names):
                with pytest.raises(OSError, match=r"Too many open files"):
                    attempt(attacked.node if attempt == guest.names else attacked.file)
            with pytest.raises(OSError, match=r"Too many open files"):
                guest.create(many, "new")
            for node in known:
                guest.forget(node)
        still_serves(attacked)
        guest.create(many, "newer")
    finally:
        attacked.end()
    assert stat.S_ISREG((tree / "many" / "newer").stat().st_mode)
