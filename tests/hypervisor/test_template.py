"""Templates: what they depend on, what of them is checked, and what guests have in common."""

import asyncio
import contextlib
import fcntl
import mmap
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.errors import HypervisorError
from tapwright.hypervisor import restoring, template, template_store, warming
from tapwright.hypervisor.machine import Daemon, Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.template_pages import EXTENTS, MEMORY, DamagedError
from tapwright.hypervisor.template_store import (
    MANIFEST,
    STATE,
    Store,
    Template,
    describe,
    key_of,
)
from tapwright.linux import memfd
from tests.guests import BOOT_SECONDS, Alone, restored, run
from tests.host import open_files
from tests.hypervisor.test_machines import available_hugepages, hugepages

__all__ = ["hugepages"]

FILES = (MANIFEST, STATE, MEMORY, EXTENTS)
SIZE = 64 << 20
RANDOM = random.SystemRandom()
BOOT_ID = "/proc/sys/kernel/random/boot_id"


@pytest.fixture
def plain(tmp_path: Path) -> Machine:
    """A machine of files that are only looked at."""
    for name in ("kernel", "initrd", "qemu"):
        (tmp_path / name).write_text(name)
    (tmp_path / "qemu").chmod(0o755)
    return Machine(tmp_path / "kernel", tmp_path / "initrd", "tcg", qemu=str(tmp_path / "qemu"))


@pytest.fixture
def memory() -> Iterator[tuple[int, bytes]]:
    """Memory of a guest, mostly empty, and what is in it."""
    content = bytearray(SIZE)
    for page in (0, 1, 2, 77, 4096, 9999, SIZE // 4096 - 1):
        content[page * 4096 : (page + 1) * 4096] = os.urandom(4096)
    fd = memfd.create("twtest", SIZE)
    os.pwrite(fd, content, 0)
    yield fd, bytes(content)
    os.close(fd)


@pytest.fixture
def saved(tmp_path: Path, plain: Machine, memory: tuple[int, bytes]) -> tuple[Store, str, Path]:
    """A template that no QEMU has made: its store, key and directory."""
    store = Store(tmp_path / "store")
    os.close(store.lock())
    publish(store, plain, memory[0])
    key = key_of(describe(plain))
    return store, key, tmp_path / "store" / f"template-{key}"


def publish(store: Store, machine: Machine, memory: int) -> None:
    with store.draft() as draft:
        (draft / STATE).write_bytes(os.urandom(50_000))
        store.publish(draft, describe(machine), memory)


def content_of(found: Template) -> bytes:
    fd = found.fill()
    with open(fd, "rb") as file:
        return file.read()


def test_a_place_that_others_can_change(
    saved: tuple[Store, str, Path], tmp_path: Path, plain: Machine
) -> None:
    """Neither is a template taken from there, nor made."""
    store, key, directory = saved
    for path in (directory.parent, tmp_path):
        mode = path.stat().st_mode
        path.chmod(0o777)
        for attempt in (lambda: store.find(key), store.lock):
            with pytest.raises(HypervisorError, match=f"template_path: {path} is not root's alone"):
                attempt()
        path.chmod(mode)
    found = store.find(key)
    assert found
    found.close()


def is_noticed(store: Store, key: str) -> bool:
    """Whether a damaged template is as good as not there."""
    found = store.find(key)
    if found is None:
        return True
    with contextlib.closing(found), pytest.raises(DamagedError):
        os.close(found.fill())
    return True


# --- what it depends on ------------------------------------------------------------------------


@pytest.mark.unit
def test_all_that_a_guest_depends_on_is_in_the_key(plain: Machine) -> None:
    key = key_of(describe(plain))
    assert key_of(describe(plain)) == key
    others = (
        replace(plain, memory_mib=512),
        replace(plain, vcpus=2),
        replace(plain, slots=9),
        replace(plain, machine_type="pc"),
        replace(plain, accelerator="kvm"),
        replace(plain, kernel_params="mitigations=off"),
        replace(plain, debug=True),
        replace(plain, share=Daemon()),
    )
    keys = {key_of(describe(machine)) for machine in others}
    assert len(keys | {key}) == len(others) + 1
    for same in (
        replace(plain, vhost=False),
        replace(plain, memory_directory="/dev/shm"),
        replace(plain, hugepages=True),
    ):
        assert key_of(describe(same)) == key
    shares = (Daemon(), Daemon("/nowhere/virtiofsd", "never", ("--thread-pool-size=1",)))
    assert len({key_of(describe(replace(plain, share=share))) for share in shares}) == 1


@pytest.mark.unit
@pytest.mark.parametrize("name", ["kernel", "initrd", "qemu"])
def test_a_file_that_changes_changes_the_key(plain: Machine, name: str) -> None:
    key = key_of(describe(plain))
    path = Path(getattr(plain, name))
    status = path.stat()
    path.write_text(path.read_text()[::-1])  # of the same size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert key_of(describe(plain)) != key


@pytest.mark.unit
def test_processor_and_format_are_in_the_key(
    plain: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {key_of(describe(plain))}
    monkeypatch.setattr(template_store, "_processor", lambda: ["model name : another"])
    keys.add(key_of(describe(plain)))
    monkeypatch.setattr(template_store, "_FORMAT", 0)
    keys.add(key_of(describe(plain)))
    assert len(keys) == 3


# --- what is on disk ----------------------------------------------------------------------------


@pytest.mark.unit
def test_pages_come_back_where_they_were(
    saved: tuple[Store, str, Path], memory: tuple[int, bytes]
) -> None:
    store, key, directory = saved
    found = store.find(key)
    assert found is not None
    with contextlib.closing(found):
        assert content_of(found) == memory[1]
    assert (directory / MEMORY).stat().st_size == 7 * 4096
    assert directory.stat().st_mode & 0o077 == 0


@pytest.mark.unit
def test_damage_anywhere_is_noticed(saved: tuple[Store, str, Path], tmp_path: Path) -> None:
    store, key, directory = saved
    copy = tmp_path / "copy"
    shutil.copytree(directory, copy)
    for name in FILES:
        for _ in range(25):
            content = bytearray((copy / name).read_bytes())
            # White space between the words of the manifest says nothing.
            offset = RANDOM.choice(
                [n for n, byte in enumerate(content) if name != MANIFEST or byte not in b" \n"]
            )
            print(f"{name}, offset {offset}")
            content[offset] ^= RANDOM.randrange(1, 256)
            (directory / name).write_bytes(content)
            assert is_noticed(store, key)
            shutil.rmtree(directory, ignore_errors=True)
            shutil.copytree(copy, directory)
    found = store.find(key)
    assert found is not None
    found.close()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "what", ["empty", "cut", "longer", "gone", "directory", "link", "fifo", "foreign"]
)
def test_a_file_that_is_not_what_it_was(
    saved: tuple[Store, str, Path], tmp_path: Path, name: str, what: str
) -> None:
    store, key, directory = saved
    path = directory / name
    if what in ("empty", "cut"):
        os.truncate(path, 0 if what == "empty" else path.stat().st_size // 2)
    elif what == "longer":
        with path.open("ab") as file:
            file.write(b"{")
    elif what == "foreign":
        os.chown(directory, 1000, 1000)
    else:
        path.rename(tmp_path / "away")
        if what == "directory":
            path.mkdir()
        elif what == "link":
            path.symlink_to("/dev/zero")
        elif what == "fifo":
            os.mkfifo(path)
    assert is_noticed(store, key)


@pytest.mark.unit
@pytest.mark.parametrize("what", ["file", "link"])
def test_no_directory(saved: tuple[Store, str, Path], tmp_path: Path, what: str) -> None:
    store, key, directory = saved
    directory.rename(tmp_path / "away")
    if what == "file":
        directory.write_text("x")
    else:
        directory.symlink_to(tmp_path / "away")
    assert store.find(key) is None
    assert list((tmp_path / "store").iterdir()) == []
    assert (tmp_path / "away" / MEMORY).exists()


def test_memory_is_of_one_template_only(
    saved: tuple[Store, str, Path], plain: Machine, memory: tuple[int, bytes]
) -> None:
    """Also when the next one has the same key: its state belongs to other pages."""
    store, key, _ = saved
    holders = Alone()
    for count in (1, 2):
        found = store.find(key)
        assert found is not None
        with contextlib.closing(found):
            for _ in range(2):
                restoring.memory_of(plain, found, holders)
        assert len({os.fstat(fd).st_ino for fd in holders.fds}) == count
        publish(store, plain, memory[0])
    for fd in holders.fds:
        os.close(fd)


@pytest.mark.parametrize("what", ["unsealed", "name", "size", "owner", "pipe"])
def test_memory_of_others_is_not_believed(
    saved: tuple[Store, str, Path], plain: Machine, what: str
) -> None:
    store, key, _ = saved
    found = store.find(key)
    assert found is not None
    read = -1
    size = found.memory_size - (what == "size")
    fd = memfd.create("tapwright-other" if what == "name" else found.memory_name, size)
    if what == "owner":
        os.fchown(fd, 1000, 1000)
    if what != "unsealed":
        memfd.seal(fd)
    if what == "pipe":
        os.close(fd)
        read, fd = os.pipe()
    holders = Alone()
    holders.fds.append(fd)
    with contextlib.closing(found):
        taken = restoring.memory_of(plain, found, holders).fd
    assert os.fstat(taken).st_ino != os.fstat(fd).st_ino
    for number in {fd, taken, read} - {-1}:
        os.close(number)


@pytest.fixture(params=["directory", "huge pages", "files"])
def sharing(request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a machine has whose memory other processes can share."""
    if request.param == "directory":
        return {"memory_directory": "/dev/shm"}
    if request.param == "files":
        return {"share": Daemon()}
    request.getfixturevalue("hugepages")
    return {"hugepages": True}


def test_memory_that_can_be_shared_is_a_copy(
    saved: tuple[Store, str, Path],
    plain: Machine,
    memory: tuple[int, bytes],
    sharing: dict[str, Any],
) -> None:
    store, key, directory = saved
    found = store.find(key)
    assert found is not None
    holders = Alone()
    machine = replace(plain, **sharing)
    with contextlib.closing(found):
        copies = [restoring.memory_of(machine, found, holders) for _ in range(2)]
        assert all(copy.is_own for copy in copies)
        assert holders.fds == []
        one, other = (mmap.mmap(copy.fd, 0) for copy in copies)
        with one, other:
            assert one[:] == memory[1]
            one[5000] ^= 1
            assert other[:] == memory[1]
        for copy in copies:
            os.close(copy.fd)
        flip_a_byte(directory / MEMORY)
        opened = open_files()
        with pytest.raises(DamagedError):
            restoring.memory_of(machine, found, holders)
        assert open_files() == opened


def flip_a_byte(path: Path) -> None:
    with path.open("r+b") as file:
        byte = file.read(1)
        file.seek(0)
        file.write(bytes([byte[0] ^ 1]))


def test_no_room_for_a_copy(saved: tuple[Store, str, Path], plain: Machine, tmp_path: Path) -> None:
    """That is an error, and not the end of the process."""
    store, key, _ = saved
    found = store.find(key)
    assert found is not None
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", place], check=True)
    try:
        with contextlib.closing(found), pytest.raises(OSError, match="No space left"):
            restoring.memory_of(replace(plain, memory_directory=str(place)), found, Alone())
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.unit
def test_what_is_stale_goes_when_another_is_made(
    saved: tuple[Store, str, Path], plain: Machine, memory: tuple[int, bytes], tmp_path: Path
) -> None:
    store, key, directory = saved
    strange = tmp_path / "store" / "strange"
    strange.mkdir()
    (strange / MANIFEST).write_text("{}")
    publish(store, replace(plain, memory_mib=512), memory[0])
    assert directory.exists()
    week = 8 * 24 * 3600
    os.utime(directory, (time.time() - week,) * 2)
    other = replace(plain, memory_mib=1024)
    publish(store, other, memory[0])
    assert not directory.exists()
    plain.initrd.write_text("another one")
    publish(store, other, memory[0])
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert left == {f"template-{key_of(describe(other))}", "strange"}
    assert store.find(key) is None


@pytest.mark.unit
def test_the_least_recently_used_go(
    plain: Machine, memory: tuple[int, bytes], tmp_path: Path
) -> None:
    """And never the one that was made last, which somebody is about to use."""
    content = os.urandom(512 * 1024)
    os.pwrite(memory[0], content, 0)
    store = Store(tmp_path / "store", limit_mib=2)
    os.close(store.lock())
    machines = [replace(plain, memory_mib=mib) for mib in (256, 512, 1024, 2048)]
    keys = [key_of(describe(machine)) for machine in machines]
    for age, machine in zip((400, 300, 200), machines, strict=False):
        publish(store, machine, memory[0])
        path = tmp_path / "store" / f"template-{key_of(describe(machine))}"
        os.utime(path, (time.time() - age,) * 2)
    for key in (keys[0], keys[2]):  # the second is now the one that was not used for longest
        found = store.find(key)
        assert found is not None
        found.close()
    publish(store, machines[3], memory[0])
    left = {path.name for path in (tmp_path / "store").iterdir()}
    assert left == {f"template-{key}" for key in (keys[0], keys[2], keys[3])}
    os.pwrite(memory[0], os.urandom(1800 * 1024), 0)
    publish(store, machines[1], memory[0])
    (last,) = (tmp_path / "store").iterdir()
    assert last.name == f"template-{keys[1]}"


@pytest.mark.unit
def test_the_state_comes_whole_by_a_pipe(
    plain: Machine, memory: tuple[int, bytes], tmp_path: Path
) -> None:
    """Of 64 KiB at first; nobody reads while it is filled."""
    content = os.urandom(700_000)
    store = Store(tmp_path / "store")
    os.close(store.lock())
    with store.draft() as draft:
        (draft / STATE).write_bytes(content)
        store.publish(draft, describe(plain), memory[0])
    found = store.find(key_of(describe(plain)))
    assert found is not None
    with contextlib.closing(found), open(found.stream(), "rb") as pipe:
        assert pipe.read() == content


@pytest.mark.unit
def test_wrecks_are_cleared_unless_somebody_is_at_work(
    saved: tuple[Store, str, Path], tmp_path: Path
) -> None:
    store, _, directory = saved
    with store.draft() as wreck:
        maker = store.lock()
        fcntl.flock(maker, fcntl.LOCK_EX)
        store.clear()
        assert wreck.exists()
        os.close(maker)
        store.clear()
        assert list(directory.parent.iterdir()) == [directory]
    Store(tmp_path / "none").clear()
    assert not (tmp_path / "none").exists()


@pytest.mark.unit
def test_one_that_would_take_more_than_all_may(
    saved: tuple[Store, str, Path], plain: Machine, memory: tuple[int, bytes]
) -> None:
    _, _, directory = saved
    os.pwrite(memory[0], os.urandom(1 << 20), 0)
    with pytest.raises(HypervisorError, match=r"more than template_limit = 1 \(MiB\)"):
        publish(Store(directory.parent, limit_mib=1), replace(plain, vcpus=2), memory[0])
    assert list(directory.parent.iterdir()) == [directory]


def test_a_disk_that_is_nearly_full(plain: Machine, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=257m", "tmpfs", place], check=True)
    try:
        Store(place).check_room(64)
        for mib in (128, 4096):  # the larger a memory, the more the guest's kernel keeps of it
            with pytest.raises(HypervisorError, match=f"wants {256 + mib // 64}; make room"):
                Store(place).check_room(mib)
    finally:
        subprocess.run(["umount", place], check=True)


def test_what_failed_is_not_tried_again_at_once(
    plain: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    machine = replace(plain, qemu="/bin/false")

    def make() -> Any:
        return asyncio.run(template.find_or_make(machine, tmp_path / "store", 0, 5, said.append))

    with pytest.raises(HypervisorError, match="QEMU did not start"):
        make()
    with pytest.raises(HypervisorError, match="a short time ago: QEMU did not start"):
        make()
    assert len(said) == 1
    monkeypatch.setattr(template, "RETRY_SECONDS", 0.0)
    with pytest.raises(HypervisorError, match=r"^QEMU did not start"):
        make()
    assert len(said) == 2


@pytest.mark.unit
def test_only_what_is_to_blame_is_given_up(saved: tuple[Store, str, Path]) -> None:
    store, key, directory = saved
    found = store.find(key)
    assert found is not None
    with contextlib.closing(found):
        for innocent in (HypervisorError("no memory for QEMU"), OSError(12, "no memory")):
            template.give_up(directory.parent, found, innocent)
            assert directory.exists()
        template.give_up(directory.parent, found, DamagedError("torn"))
        assert list(directory.parent.iterdir()) == []
        template.give_up(directory.parent, found, template.RefusedError("no such device"))
        assert store.failure(key, 60) == "no such device"


# --- guests -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("template")


def pages_of(machine: Machine, qemu: Qemu) -> mmap.mmap:
    """A guest's memory, as others can share it with QEMU."""
    size = machine.memory_mib << 20
    for link in Path(f"/proc/{qemu._process.pid}/fd").iterdir():
        if link.stat().st_size == size:
            with link.open("rb") as file:
                return mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    raise AssertionError("QEMU has no such file")


def test_guests_whose_memory_is_shared(
    machine: Machine, templates: Path, sharing: dict[str, Any]
) -> None:
    """What they write is in a file, for others to see; but no guest has another one's."""
    small = replace(machine, memory_mib=160)
    machine = replace(small, **sharing)
    asyncio.run(made(machine, templates))
    holders = Alone()

    async def story() -> None:
        async with (
            restored(machine, templates, holders) as (qemu, agent),
            restored(machine, templates, holders) as (other, other_agent),
        ):
            mark = os.urandom(2000).hex()
            await run(agent, "sh", "-c", f"echo {mark} >/tmp/mark")
            assert await run(agent, "cat", "/tmp/mark") == ({"status": 0}, f"{mark}\n".encode())
            with pages_of(machine, qemu) as own, pages_of(machine, other) as others:
                assert own.find(mark.encode()) >= 0
                assert others.find(mark.encode()) < 0
            assert await run(other_agent, "ls", "/tmp") == ({"status": 0}, b"")

    # Without the fixture they are another test's.
    before = available_hugepages() if machine.hugepages else 0
    content = {path: path.read_bytes() for path in templates.glob("template-*/*")}
    asyncio.run(story())
    assert {path: path.read_bytes() for path in templates.glob("template-*/*")} == content
    if machine.hugepages:
        assert available_hugepages() == before
    assert holders.fds == []


class WithoutGeneration(Machine):
    """A machine without the device by which a guest learns that it is another one (vmgenid)."""

    def command(self, *fds: int, **options: Any) -> list[str]:
        command = super().command(*fds, **options)
        place = command.index("vmgenid,guid=auto")
        return command[: place - 1] + command[place + 1 :]


@contextlib.contextmanager
def no_entropy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    hello = protocol.hello
    with monkeypatch.context() as patch:
        patch.setattr(protocol, "hello", lambda session, _, *rest: hello(session, {}, *rest))
        yield


def draws(machine: Machine, templates: Path) -> list[tuple[bytes, bool]]:
    """The first random numbers of some guests, and whether each says that it has a new seed."""
    holders = Alone()

    async def of_one() -> tuple[bytes, bool]:
        async with restored(machine, templates, holders) as (_, agent):
            reply, drawn = await run(agent, "cat", BOOT_ID)
            assert reply == {"status": 0}
            return drawn, agent.facts["reseeded"]

    async def of_all() -> list[tuple[bytes, bool]]:
        return [await of_one() for _ in range(4)]

    return asyncio.run(of_all())


def test_random_numbers(machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They would be the same, but for the entropy that comes with the greeting.

    A kernel whose seed is some seconds old draws another one by itself. So this guest is saved as
    soon as it has been given one.
    """
    monkeypatch.setattr(warming, "_use", unused)
    monkeypatch.setattr(warming, "_SLIM", "")
    alike = WithoutGeneration(machine.kernel, machine.initrd, machine.accelerator)
    asyncio.run(made(alike, tmp_path))
    with no_entropy(monkeypatch):
        found = draws(alike, tmp_path)
    assert len({drawn for drawn, _ in found}) < len(found)
    assert not any(seeded for _, seeded in found)
    found = draws(alike, tmp_path)
    assert len({drawn for drawn, _ in found}) == len(found)
    assert all(seeded for _, seeded in found)


async def unused(*_: object) -> None:
    """In place of `warming._use`."""


def test_generation_device(machine: Machine, session_templates: Path) -> None:
    """The kernel sees that it is another guest, also if the agent should not."""

    async def story() -> None:
        async with restored(machine, session_templates, Alone()) as (_, agent):
            async with asyncio.timeout(60):
                while b"virtual machine fork" not in (await run(agent, "dmesg"))[1]:
                    await asyncio.sleep(0.05)

    asyncio.run(story())


async def made(machine: Machine, templates: Path) -> None:
    (await template.find_or_make(machine, templates, 0, BOOT_SECONDS, print)).close()


def test_guests_of_the_other_machine_type(machine: Machine, templates: Path) -> None:
    """And of another size, with more than one CPU."""
    other = replace(machine, machine_type="pc", slots=30, memory_mib=192, vcpus=2)

    async def story() -> None:
        async with restored(other, templates, Alone()) as (_, agent):
            reply, output = await run(agent, "nproc")
            assert (reply, output) == ({"status": 0}, b"2\n")

    asyncio.run(story())
