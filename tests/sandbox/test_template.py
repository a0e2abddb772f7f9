"""Sandboxes that start from a template: made once, shared, and never in the way."""

import hashlib
import json
import os
import random
import shutil
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tapwright.hypervisor import template_store
from tapwright.hypervisor.template_pages import EXTENTS, MEMORY
from tapwright.hypervisor.template_store import MANIFEST, STATE
from tapwright.oci.state import parent_of
from tests.host import Host, answers_ping, eventually
from tests.sandboxes import Networks, Tapwright, ended, pids_of
from tests.templates import Templates

MAKING = "make the template that guests start from"
RANDOM = random.SystemRandom()
KERNEL = range(16 << 20, 24 << 20)  # the code of it
HALT = b"\xf4"
BOOT_ID = "/proc/sys/kernel/random/boot_id"

Sandbox = dict[str, Any]
Run = Callable[..., Sandbox]


@pytest.fixture(scope="module")
def templates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("factory") / "template"


@pytest.fixture(scope="module")
def config(tapwright: Tapwright, templates: Path) -> Path:
    return tapwright.configuration(template=templates)


class First(NamedTuple):
    """What the first sandboxes said on stderr and showed, and the inodes of their memory."""

    errors: list[str]
    sandboxes: list[Sandbox]
    inodes: list[int]


@pytest.fixture(scope="module")
def first_four(tapwright: Tapwright, templates: Path, templates_of_session: Templates) -> First:
    """They begin at once, when there is no template yet, and no word of whether there is to be."""
    config = unsaid(tapwright.configuration(template=templates))
    names = [f"four{number}" for number in range(4)]
    started = [tapwright.start("sandbox", "run", name, "--json", config=config) for name in names]
    said = [process.communicate(timeout=120) for process in started]
    assert [process.returncode for process in started] == [0] * 4, said
    inodes = [memory_of(tapwright, name).st_ino for name in names]
    for name in names:
        tapwright.delete(name)
    templates_of_session.add(templates)
    return First([errors for _, errors in said], [json.loads(one) for one, _ in said], inodes)


@pytest.fixture(scope="module")
def template(templates: Path, first_four: First) -> Path:
    (found,) = templates.iterdir()
    return found


@pytest.fixture
def host(tapwright: Tapwright, networks: Networks, templates: Path, template: Path) -> Host:
    return Host([tapwright.root, tapwright.cache, networks.leases, templates])


@pytest.fixture
def run(tapwright: Tapwright, config: Path, nothing_left: None) -> Iterator[Run]:
    """Run a sandbox, which is deleted in the end."""
    names = []

    def one(name: str, *words: str, config: Path = config) -> Sandbox:
        names.append(name)
        done = tapwright.run("sandbox", "run", name, *words, "--json", config=config)
        assert done.returncode == 0, done.stderr
        sandbox: Sandbox = json.loads(done.stdout)
        return sandbox

    yield one
    for name in names:
        tapwright.delete(name)


def phases(sandbox: Sandbox) -> set[str]:
    return {phase["name"] for phase in sandbox["phases"]}


def is_restored(sandbox: Sandbox) -> bool:
    found = phases(sandbox)
    assert found & {"restore", "boot"}
    return "boot" not in found


def log(tapwright: Tapwright, sandbox: Sandbox) -> str:
    return Path(tapwright.root, "sandboxes", sandbox["id"], "log").read_text()


def memory_of(tapwright: Tapwright, name: str) -> os.stat_result:
    return os.stat(tapwright.root / "sandboxes" / name / "memory")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    offset = RANDOM.randrange(len(content))
    print(f"{path.name}, offset {offset}")
    content[offset] ^= 1 << RANDOM.randrange(8)
    path.write_bytes(content)


def unsaid(config: Path) -> Path:
    """The configuration, without a word of whether there are to be templates."""
    content = config.read_text()
    assert content.count("enable_template = true\n") == 1
    config.write_text(content.replace("enable_template = true\n", ""))
    return config


def test_four_at_once_make_it_once(first_four: First, template: Path) -> None:
    """Without being asked to."""
    assert sum(MAKING in errors for errors in first_four.errors) == 1
    assert all(map(is_restored, first_four.sandboxes))
    assert len(set(first_four.inodes)) == 1
    assert {path.name for path in template.iterdir()} == {MANIFEST, STATE, MEMORY, EXTENTS}


def test_memory_passes_from_one_to_the_next(tapwright: Tapwright, run: Run, template: Path) -> None:
    """Also when the one that filled it is gone, by whatever end."""
    supervisor, _ = pids_of(run("older"))
    run("middle")
    inode = memory_of(tapwright, "older").st_ino
    os.kill(supervisor, signal.SIGKILL)
    assert ended(supervisor)
    assert is_restored(run("younger"))
    assert memory_of(tapwright, "middle").st_ino == memory_of(tapwright, "younger").st_ino == inode


def test_does_what_a_booted_one_does(tapwright: Tapwright, run: Run, template: Path) -> None:
    sandbox = run("clone", "--network", "dual", "--network", "jumbo")
    assert is_restored(sandbox)
    for interface in sandbox["interfaces"]:
        for address in interface["addresses"]:
            assert answers_ping(address.partition("/")[0])
    assert tapwright.exec("clone", "hostname").strip() == "clone"
    assert tapwright.exec("clone", "cat", "/etc/resolv.conf").startswith("nameserver 10.93.0.1")
    assert tapwright.exec("clone", "sh", "-c", "cat | wc -c", input="x" * 100_000) == "100000\n"
    request = {
        "device": "twtpl0",
        "type": "tap",
        "name": "lan0",
        "hwAddr": "02:42:20:6f:a3:69",
        "IPAddresses": [{"address": "10.66.0.2", "mask": "24"}],
        "mtu": 1500,
    }
    subprocess.run(["ip", "tuntap", "add", "dev", "twtpl0", "mode", "tap"], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.66.0.1/24", "dev", "twtpl0"], check=True)
        words = "kata-network", "add-iface", "clone", "-"
        added = tapwright.run(*words, input=json.dumps(request))
        assert added.returncode == 0, added.stderr
        assert tapwright.reaches("clone", "10.66.0.1")
        removed = tapwright.run("kata-network", "del-iface", "clone", "-", input=added.stdout)
        assert removed.returncode == 0, removed.stderr
    finally:
        subprocess.run(["ip", "link", "delete", "twtpl0"], check=True)


def test_no_trace_of_the_warming(tapwright: Tapwright, run: Run, template: Path) -> None:
    """What a guest can see is what it sees when it was booted."""
    run("warm", "--network", "small")
    run("cold", "--network", "small", config=tapwright.configuration())

    def shown(name: str) -> list[str]:
        looks = (
            "ls /sys/class/net /etc /tmp /run /root",
            "ip route | sed 's/src .*//'",
            "ip neigh | grep PERMANENT || true",
            # Not in a pipe, where it may or may not see who reads it.
            "all=$(ps -o args); echo \"$all\" | grep -v '^\\['",
            "cat /proc/sys/net/ipv4/conf/all/promote_secondaries",
        )
        return [tapwright.exec(name, "sh", "-c", look) for look in looks]

    assert shown("warm") == shown("cold")


def test_clones_are_not_the_same(tapwright: Tapwright, run: Run, template: Path) -> None:
    sandboxes = [run(name, "--network", "small") for name in ("hinz", "kunz")]
    assert all(map(is_restored, sandboxes))

    def differ(*argv: str) -> None:
        shown = [tapwright.exec(sandbox["id"], *argv) for sandbox in sandboxes]
        assert len(set(shown)) == 2, (argv, shown)

    differ("od", "-An", "-tx1", "-N16", "/dev/hwrng")
    differ("cat", BOOT_ID)
    differ("hostname")
    differ("cat", "/sys/class/net/eth0/address")
    differ("od", "-An", "-tx1", "-N16", "/dev/urandom")
    draws = "import os; print(os.urandom(16).hex(), os.getrandom(16).hex(), hash('x'))"
    for _ in range(2):
        differ("python3", "-I", "-S", "-c", draws)


def test_clocks(tapwright: Tapwright, run: Run, template: Path) -> None:
    started = time.time()
    run("clock")
    shown = float(
        tapwright.exec("clock", "python3", "-I", "-S", "-c", "import time; print(time.time())")
    )
    # It is told the host's on its start, and a busy machine takes its time for that.
    assert started < shown < time.time() + 1
    look = "import time\nfor _ in range(50): print(time.monotonic(), time.time())"
    lines = tapwright.exec("clock", "python3", "-I", "-S", "-c", look).splitlines()
    for clock in zip(*(map(float, line.split()) for line in lines), strict=True):
        assert list(clock) == sorted(clock)
    up = float(tapwright.exec("clock", "cat", "/proc/uptime").split()[0])
    later = float(tapwright.exec("clock", "cat", "/proc/uptime").split()[0])
    assert 0 < up <= later < up + 60


def test_hypervisor_has_no_way_to_the_template(
    tapwright: Tapwright, run: Run, template: Path
) -> None:
    before = {path: path.read_bytes() for path in template.iterdir()}
    _, qemu = pids_of(run("prisoner"))
    uid = os.stat(f"/proc/{qemu}").st_uid
    opened = {os.readlink(link) for link in Path(f"/proc/{qemu}/fd").iterdir()}
    assert not any("template" in name and not name.startswith("/memfd:") for name in opened)
    tries = (
        "import os, sys\n"
        f"os.setresuid({uid}, {uid}, {uid})\n"
        "for path in sys.argv[1:]:\n"
        "    for flags in (os.O_RDONLY, os.O_RDWR):\n"
        "        try: os.open(path, flags); print('opened', path)\n"
        "        except PermissionError: pass\n"
    )
    command = ["python3", "-c", tries, *map(str, [template, *template.iterdir()])]
    assert subprocess.run(command, capture_output=True, check=True).stdout == b""
    # The guest writes to much of its memory.
    tapwright.exec("prisoner", "dd", "if=/dev/urandom", "of=/tmp/x", "bs=1M", "count=40")
    links = list(Path(f"/proc/{qemu}/fd").iterdir())
    memory = [link for link in links if os.readlink(link).startswith("/memfd:tapwright-")]
    assert memory
    fd = os.open(memory[0], os.O_RDWR)
    for attempt in (lambda: os.pwrite(fd, b"x", 0), lambda: os.ftruncate(fd, 0)):
        with pytest.raises(PermissionError):
            attempt()
    os.close(fd)
    assert {path: path.read_bytes() for path in template.iterdir()} == before


@pytest.mark.parametrize("name", [MANIFEST, MEMORY])
def test_damaged(
    tapwright: Tapwright, tmp_path: Path, template: Path, host: Host, name: str
) -> None:
    """The sandbox starts all the same, and what is damaged is gone: noticed when the template is
    looked for, as of manifest and state, and it is made anew; or when the guest's memory is filled,
    as of memory and extents, and the guest is booted. That damage of any kind, to any of the files,
    is noticed: tests/hypervisor/test_template.py."""
    templates = tmp_path / "template"
    shutil.copytree(template, templates / template.name, copy_function=shutil.copy2)
    victim = templates / template.name / name
    if name == MANIFEST:
        victim.unlink()
    else:
        flip_a_bit(victim)
    config = tapwright.configuration(template=templates)
    done = tapwright.run("sandbox", "run", "hurt", "--json", config=config)
    assert done.returncode == 0, done.stderr
    sandbox = json.loads(done.stdout)
    assert is_restored(sandbox) == (name == MANIFEST)
    if name == MEMORY:
        assert "is damaged" in log(tapwright, sandbox)
        assert list(templates.iterdir()) == []
    else:
        assert MAKING in done.stderr
    assert tapwright.exec("hurt", "echo", "alive") == "alive\n"
    tapwright.delete("hurt")


def forge_checksums(directory: Path) -> None:
    """Have a template's manifest agree with its state and memory."""
    manifest = json.loads((directory / MANIFEST).read_text())
    del manifest["checksum"]
    manifest[STATE] = hashlib.sha256((directory / STATE).read_bytes()).hexdigest()
    manifest[MEMORY] = zlib.crc32((directory / MEMORY).read_bytes())
    content = template_store._canonical(manifest)
    manifest["checksum"] = hashlib.sha256(content).hexdigest()
    (directory / MANIFEST).write_text(json.dumps(manifest))


def test_one_that_does_not_start(tapwright: Tapwright, tmp_path: Path, template: Path) -> None:
    """Nothing is damaged, and yet QEMU makes nothing of it: booted, and not made anew at once."""
    templates = tmp_path / "template"
    forged = templates / template.name
    shutil.copytree(template, forged)
    os.truncate(forged / STATE, (forged / STATE).stat().st_size // 2)
    forge_checksums(forged)
    config = tapwright.configuration(template=templates)
    for reason in ("the template is of no use: QEMU ended", "a short time ago"):
        done = tapwright.run("sandbox", "run", "stuck", "--json", config=config)
        assert done.returncode == 0, done.stderr
        assert MAKING not in done.stderr
        sandbox = json.loads(done.stdout)
        assert not is_restored(sandbox)
        assert reason in log(tapwright, sandbox)
        tapwright.delete("stuck")


def test_one_whose_guest_is_dead(
    tapwright: Tapwright, networks: Networks, tmp_path: Path, template: Path, nothing_left: None
) -> None:
    """QEMU runs it, NICs are plugged in, and nobody answers: booted, on its network."""
    templates = tmp_path / "template"
    forged = templates / template.name
    shutil.copytree(template, forged)
    content = bytearray((forged / MEMORY).read_bytes())
    position = 0
    for start, length in struct.iter_unpack("<QQ", (forged / EXTENTS).read_bytes()):
        pages = range(max(start, KERNEL.start), min(start + length, KERNEL.stop))
        where = position + pages.start - start
        content[where : where + len(pages)] = HALT * len(pages)
        position += length
    (forged / MEMORY).write_bytes(content)
    forge_checksums(forged)
    config = tapwright.configuration(template=templates)
    done = tapwright.run("sandbox", "run", "dead", "--network", "dual", "--json", config=config)
    assert done.returncode == 0, done.stderr
    sandbox = json.loads(done.stdout)
    assert not is_restored(sandbox)
    assert "the template is of no use: the guest did not come up" in log(tapwright, sandbox)
    (interface,) = sandbox["interfaces"]
    assert answers_ping(interface["addresses"][0].split("/")[0])
    tapwright.delete("dead")


def test_image_build_makes_it(tapwright: Tapwright, tmp_path: Path) -> None:
    """One for guests whose memory is shared, and for those whose memory is not."""
    templates = tmp_path / "template"
    shared = tapwright.configuration(template=templates, file_mem_backend="/dev/shm")
    own = tapwright.configuration(template=templates)
    for config, makes in ((shared, True), (own, False)):
        done = tapwright.run("image", "build", config=config)
        assert (done.returncode, MAKING in done.stderr) == (0, makes), done.stderr
    for config in (shared, own):
        done = tapwright.run("sandbox", "run", "built", "--json", config=config)
        assert (done.returncode, MAKING in done.stderr) == (0, False), done.stderr
        assert is_restored(json.loads(done.stdout))
        tapwright.delete("built")


def test_image_build_makes_none_unasked(tapwright: Tapwright, tmp_path: Path) -> None:
    """Who builds an image need not be able to run it."""
    config = unsaid(tapwright.configuration(template=tmp_path / "template", path="/nowhere/qemu"))
    done = tapwright.run("image", "build", config=config)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "template").exists()


def test_image_build_says_why_not(tapwright: Tapwright, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tapwright.configuration(template=tmp_path / "file" / "template")
    done = tapwright.run("image", "build", config=config)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"no template can be made in {tmp_path}" in done.stderr


def test_one_that_can_not_be_made(tapwright: Tapwright, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = tapwright.configuration(template=tmp_path / "file" / "template")
    done = tapwright.run("sandbox", "run", "placeless", "--json", config=config)
    assert done.returncode == 0, done.stderr
    sandbox = json.loads(done.stdout)
    assert not is_restored(sandbox)
    assert "there is no template" in log(tapwright, sandbox)
    (warning,) = done.stderr.splitlines()
    assert warning.startswith("tapwright: booted, because there is no template: ")
    assert f"Not a directory: '{tmp_path}/file/template'" in warning
    tapwright.delete("placeless")


@pytest.mark.parametrize("where", ["disk", "limit"])
def test_no_room_for_it(tapwright: Tapwright, tmp_path: Path, where: str) -> None:
    """The sandbox runs all the same, and nothing of it stays on the disk."""
    templates = tmp_path / "template"
    templates.mkdir()
    config = tapwright.configuration(template=templates)
    if where == "limit":
        config.write_text(config.read_text().replace("[factory]", "[factory]\ntemplate_limit = 8"))
        reason, made = "it takes more than template_limit = 8 (MiB)", 1
    else:
        subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", templates], check=True
        )
        reason, made = f"{templates} has 16 MiB free, and a template wants 260", 0
    try:
        done = tapwright.run("sandbox", "run", "roomless", "--json", config=config)
        assert done.returncode == 0, done.stderr
        assert not is_restored(json.loads(done.stdout))
        *said, warning = done.stderr.splitlines()
        assert (len(said), reason in warning) == (made, True), done.stderr
        # Nothing but the note that it failed.
        assert [path for path in templates.iterdir() if path.is_dir()] == []
        tapwright.delete("roomless")
    finally:
        if where == "disk":
            subprocess.run(["umount", templates], check=True)


def maker_of(templates: Path) -> int:
    """The process that makes a template in a directory, which it has open for the lock."""

    def holds(process: Path) -> bool:
        try:
            command = (process / "cmdline").read_text()
            return "supervisor.background" in command and os.readlink(process / "fd/3") == str(
                templates
            )
        except OSError:
            return False

    found = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal() and holds(p)]
    # One that it is just starting looks like it until its exec.
    (maker,) = [pid for pid in found if parent_of(pid) not in found]
    return maker


def sound(templates: Path) -> list[Path]:
    return list(templates.glob("template-*"))


@pytest.mark.parametrize("moment", ["booting", "saving"])
def test_maker_killed(
    tapwright: Tapwright, tmp_path: Path, nothing_left: None, moment: str
) -> None:
    """Its wreck goes, and it stops nobody: the guest is booted."""
    templates = tmp_path / "template"
    config = tapwright.configuration(template=templates)
    making = tapwright.start("sandbox", "run", "maker", "--json", config=config)
    pattern = "*/state" if moment == "saving" else "*"
    assert eventually(lambda: templates.exists() and any(templates.glob(pattern)))
    os.kill(maker_of(templates), signal.SIGKILL)
    output, errors = making.communicate(timeout=150)
    assert making.returncode == 0, errors
    assert not is_restored(json.loads(output))
    assert "the process that made the template was killed" in errors
    assert list(templates.iterdir()) == []
    tapwright.delete("maker")
    if moment == "saving":  # of which more was left
        done = tapwright.run("sandbox", "run", "heir", "--json", config=config)
        assert done.returncode == 0, done.stderr
        assert is_restored(json.loads(done.stdout))
        tapwright.delete("heir")
        assert [path.name.startswith(".") for path in templates.iterdir()] == [False]


@pytest.mark.parametrize("how", ["killed", "deleted"])
def test_it_is_made_whoever_has_gone(
    tapwright: Tapwright, tmp_path: Path, host: Host, how: str
) -> None:
    """Once: the next try finds it."""
    before = host.snapshot()
    templates = tmp_path / "template"
    config = tapwright.configuration(template=templates)
    making = tapwright.start("sandbox", "run", "first", config=config)
    assert eventually(lambda: templates.exists() and any(templates.iterdir()))
    if how == "killed":
        making.kill()
        os.kill(int((tapwright.root / "sandboxes" / "first" / "alive").read_text()), signal.SIGKILL)
    tapwright.delete("first")
    making.communicate(timeout=150)
    assert making.returncode == (1 if how == "deleted" else -signal.SIGKILL)
    done = tapwright.run("sandbox", "run", "second", "--json", config=config)
    assert (done.returncode, MAKING in done.stderr) == (0, False), done.stderr
    assert is_restored(json.loads(done.stdout))
    tapwright.delete("second")
    assert [path.name for path in sound(templates)] == [p.name for p in templates.iterdir()]
    host.assert_same(before)


def test_memory_that_can_be_shared(
    tapwright: Tapwright, run: Run, template: Path, templates: Path
) -> None:
    """Of the same template; and nobody takes it for the template's."""
    config = tapwright.configuration(template=templates, file_mem_backend="/dev/shm")
    sandboxes = [run(name, "--network", "small", config=config) for name in ("one", "two")]
    assert all(map(is_restored, sandboxes))
    assert tapwright.reaches("one", "10.92.0.1")
    files = set()
    for sandbox in sandboxes:
        assert not (tapwright.root / "sandboxes" / sandbox["id"] / "memory").exists()
        _, qemu = pids_of(sandbox)
        links = [str(link) for link in Path(f"/proc/{qemu}/fd").iterdir()]
        (file,) = {os.stat(link) for link in links if os.readlink(link).startswith("/dev/shm/")}
        assert (file.st_mode & 0o777, file.st_uid) == (0o600, os.stat(f"/proc/{qemu}").st_uid)
        files.add(file.st_ino)
    assert len(files) == 2
    assert list(templates.iterdir()) == [template]
