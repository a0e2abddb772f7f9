"""Guests that were restored ahead: taken by one, then like any other, and never in the way."""

import asyncio
import dataclasses
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tapwright import AsyncSandbox, Sandbox
from tapwright import config as configurations
from tapwright.hypervisor.machine import Daemon, Machine
from tapwright.linux import cgroups, filelock, starving, unixsocket
from tapwright.sandbox import launching, planning, spares
from tapwright.state import supervisors
from tapwright.state.record import Spec, read_spec, written_spec
from tapwright.supervisor import spare
from tapwright.supervisor.guest import make_template
from tests.host import Host, answers_ping, eventually
from tests.moments import Moment, Watched
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime
from tests.sandbox.test_faults import has_qemu, held
from tests.sandboxes import Networks, Tapwright, child_of, ended, pids_of

__all__ = ["held"]

DRAWN = "cat /proc/sys/kernel/random/boot_id /etc/machine-id; od -An -tx1 -N16 /dev/urandom"

_READY_SECONDS = 150.0
"""For several spares, whose guests are restored at the lowest priority."""

Inspected = dict[str, Any]
Ready = Callable[..., list[spares.Spare]]


def priorities(pid: int) -> set[int]:
    """Those of all threads of a process: QEMU has some for a while only."""
    found = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        with suppress(ProcessLookupError):
            found.add(os.getpriority(os.PRIO_PROCESS, int(thread)))
    return found


@pytest.fixture(scope="module")
def config(tapwright: Tapwright) -> Path:
    return tapwright.configuration(template=tapwright.templates, spares=1)


@pytest.fixture(scope="module")
def spec(config: Path) -> Spec:
    """What its spares are restored for; there is a template."""
    found = planning.plan(configurations.load(str(config)), planning.Wish(), print)
    asyncio.run(make_template(found, print))
    return found


@pytest.fixture
def ready(tapwright: Tapwright, networks: Networks, spec: Spec, host: Host) -> Iterator[Ready]:
    """Have so many spares, and those alone: as long as one is left, no sandbox has another made.
    Nothing is left in the end."""
    before = host.snapshot()

    def so_many(count: int, of: Spec = spec) -> list[spares.Spare]:
        for _ in range(count):
            wanted = replace(of, spares=count)
            spares.begin(tapwright.root, wanted, at_once=True)
        assert eventually(
            lambda: sum(s.is_ready for s in spares.listing(tapwright.root)) == count, _READY_SECONDS
        ), spares.last_failure(tapwright.root)
        return spares.listing(tapwright.root)

    yield so_many
    tapwright.delete_all()
    tapwright.run("sandbox", "spares", "--drop")
    assert spares.last_failure(tapwright.root) == ""
    assert spares.listing(tapwright.root) == []
    host.assert_same(before)


def run(tapwright: Tapwright, config: Path, name: str, *words: str) -> Inspected:
    done = tapwright.run("sandbox", "run", name, *words, "--json", config=config)
    assert done.returncode == 0, done.stderr
    sandbox: Inspected = json.loads(done.stdout)
    return sandbox


def start_of(sandbox: Inspected) -> str:
    """How its guest came to be."""
    (found,) = {phase["name"] for phase in sandbox["phases"]} & {"spare", "restore", "boot"}
    return str(found)


def address_of(sandbox: Inspected) -> str:
    return str(sandbox["interfaces"][0]["addresses"][0].partition("/")[0])


def test_a_sandbox_of_a_spare(tapwright: Tapwright, config: Path, ready: Ready) -> None:
    """Nobody sees where it came from."""
    waiting = {one.pid for one in ready(2)}
    for pid in waiting:  # which answers on a busy host, too
        assert priorities(pid) == priorities(os.getpid())
        assert priorities(child_of(pid, "qemu")) == {19}
    taken = run(tapwright, config, "taken", "--network", "dual", "--network", "jumbo")
    assert start_of(taken) == "spare"
    supervisor, qemu = pids_of(taken)
    assert supervisor in waiting
    assert [one.pid for one in spares.listing(tapwright.root)] == list(waiting - {supervisor})
    restored = run(
        tapwright, tapwright.config, "restored", "--network", "dual", "--network", "jumbo"
    )
    assert start_of(restored) == "restore"
    for interface in taken["interfaces"]:
        assert answers_ping(interface["addresses"][0].partition("/")[0])
    looks = (
        "ls /sys/class/net /etc /tmp /run /root",
        # In which order a guest finds NICs is not said; those of containers are renumbered.
        "ip -o link | sed 's/^[0-9]*: //; s/ether .*//' | sort",
        "ip -o address | sed 's/^[0-9]*: //; s/inet6* [^ ]*//' | sort",
        "ip route | sed 's/src .*//'",
        "ip -6 route | grep -v fe80",
        "ip neigh | grep PERMANENT || true",
        "all=$(ps -o args); echo \"$all\" | grep -v '^\\['",
        "cat /etc/resolv.conf",
        "cd /proc/sys; cat vm/max_map_count fs/file-max fs/inotify/max_user_watches",
    )
    for look in looks:

        def shown(name: str, look: str = look) -> str:
            return tapwright.exec(name, "sh", "-c", look)

        # The kernel of a guest may still be at work on a NIC.
        assert eventually(lambda: shown("taken") == shown("restored")), look
    assert tapwright.exec("taken", "hostname") == "taken\n"
    shown_mac = tapwright.exec("taken", "cat", "/sys/class/net/eth0/address").strip()
    assert shown_mac == taken["interfaces"][0]["mac"]
    asked = time.time()
    clock = tapwright.exec("taken", "python3", "-I", "-c", "import time; print(time.time())")
    assert asked - 5 < float(clock) < time.time() + 5
    # Its processes are where those of others are, and run as they do.
    groups = {Path(f"/proc/{pid}/cgroup").read_text() for pid in (supervisor, qemu)}
    assert len(groups) == 1
    assert "/tapwright/taken-" in groups.pop()
    for pid in (supervisor, qemu):
        assert priorities(pid) == priorities(os.getpid())
        assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"
    tapwright.delete("taken")
    assert ended(supervisor)
    assert ended(qemu)


def test_in_a_namespace_that_is_given(
    tapwright: Tapwright, config: Path, ready: Ready, scratch_netns: str
) -> None:
    """The TAP moves there, and nothing of it stays."""
    ready(2)
    name = Path(scratch_netns).name

    def devices() -> set[str]:
        shown = subprocess.check_output(["ip", "-n", name, "-o", "link"], text=True)
        return {line.split()[1].partition("@")[0].rstrip(":") for line in shown.splitlines()}

    before = devices()
    words = "--network", "dual", "--netns", scratch_netns
    sandbox = run(tapwright, config, "guest", *words)
    assert start_of(sandbox) == "spare"
    assert any(device.endswith("_kata") for device in devices())
    assert answers_ping(address_of(sandbox))
    os.kill(pids_of(sandbox)[0], signal.SIGKILL)
    tapwright.delete("guest")
    assert eventually(lambda: devices() == before)


def test_one_without_a_network_has_no_nic(tapwright: Tapwright, config: Path, ready: Ready) -> None:
    ready(2)
    sandbox = run(tapwright, config, "alone")
    assert (start_of(sandbox), sandbox["interfaces"]) == ("spare", [])
    assert tapwright.exec("alone", "ls", "/sys/class/net") == "lo\n"
    path = Path(sandbox["netns"]).name
    shown = subprocess.check_output(["ip", "-n", path, "-o", "link"], text=True)
    assert [line.split()[1] for line in shown.splitlines()] == ["lo:"]


def test_a_container_of_a_spare(
    tapwright: Tapwright, config: Path, ready: Ready, tmp_path: Path
) -> None:
    """With files of the host, in the control group that its platform wants."""
    wish = planning.Wish(share=True, first="box")
    spec = planning.plan(configurations.load(str(config)), wish, print)
    asyncio.run(make_template(spec, print))
    waiting = {one.pid for one in ready(2, spec)}
    runtime = Runtime(tapwright, tmp_path)
    runtime.config = config
    group = f"/twtest-spare-{os.urandom(4).hex()}"
    content = configuration("sleep", "1000", linux={"cgroupsPath": group})
    with runtime.created(content) as container:
        container.start()
        assert container.says("hostname") == "box\n"
        (sandbox,) = tapwright.json("sandbox", "list")
        assert start_of(sandbox) == "spare"
        assert sandbox["supervisor_pid"] in waiting
        _, qemu = pids_of(sandbox)
        daemon = child_of(sandbox["supervisor_pid"], "virtiofsd")
        for pid in (sandbox["supervisor_pid"], qemu, daemon):
            assert group in Path(f"/proc/{pid}/cgroup").read_text()
            assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "0\n"


def test_a_program_starts_no_supervisor_ahead_of_a_spare(
    tapwright: Tapwright, config: Path, ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(3)

    def launched(*_: object) -> None:
        raise AssertionError("a supervisor was started")

    monkeypatch.setattr(launching.Launch, "__init__", launched)
    wanted: dict[str, Any] = {"networks": ["small"], "config": config, "root": tapwright.root}
    made = [Sandbox.run("blocking", **wanted)]
    made += [Sandbox.find(asyncio.run(AsyncSandbox.run(**wanted)).id, root=tapwright.root)]
    for box in made:
        assert "spare" in {phase.name for phase in box.record.phases}
        assert answers_ping(str(box.addresses[0].ip))


def test_one_whose_taker_is_cancelled(
    tapwright: Tapwright, networks: Networks, ready: Ready, held: Path
) -> None:
    """All that it has made for the sandbox goes with it."""
    waiting = {one.pid for one in ready(2)}
    config = tapwright.configuration(template=tapwright.templates, spares=1, plugins=held)

    async def story() -> None:
        starting = asyncio.create_task(
            AsyncSandbox.run("cancelled", networks=["held"], config=config, root=tapwright.root)
        )
        assert await asyncio.to_thread(eventually, (held / "holding").exists)
        supervisor = supervisors.pid_of(tapwright.root / "sandboxes/cancelled")
        assert supervisor in waiting
        assert has_qemu(supervisor)
        starting.cancel()
        # The supervisor knows by then.
        assert await asyncio.to_thread(eventually, lambda: not has_qemu(supervisor))
        (held / "go").touch()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(story())
    assert tapwright.json("sandbox", "list") == []
    assert networks.leased("held") == []


def test_clones_are_not_the_same(tapwright: Tapwright, config: Path, ready: Ready) -> None:
    count = 3
    ready(count + 1)
    names = [f"clone{number}" for number in range(count)]
    assert {start_of(run(tapwright, config, name, "--network", "small")) for name in names} == {
        "spare"
    }
    for command in (
        DRAWN,
        "od -An -tx1 -N16 /dev/hwrng",
        "python3 -I -S -c \"import os; print(os.getrandom(16).hex(), hash('x'))\"",
    ):
        said = [tapwright.exec(name, "sh", "-c", command).split() for name in names]
        for drawn in zip(*said, strict=True):
            # A byte of a draw may be that of another by chance.
            if len(drawn[0]) > 2:
                assert len(set(drawn)) == count, command
        assert len(set(map(tuple, said))) == count, command


def test_a_dead_one_is_passed_over(tapwright: Tapwright, config: Path, ready: Ready) -> None:
    """So is one that has hung. The next sandbox removes what is left."""
    dead, stuck, *_ = sorted(ready(3), key=lambda one: one.name)
    os.kill(dead.pid, signal.SIGKILL)
    os.kill(stuck.pid, signal.SIGSTOP)
    assert ended(dead.pid)
    sandbox = run(tapwright, config, "third", "--network", "dual")
    assert start_of(sandbox) == "spare"
    assert not dead.directory.exists()
    os.kill(stuck.pid, signal.SIGCONT)
    assert [one.name for one in spares.listing(tapwright.root)] == [stuck.name]


def test_a_guest_that_dies_takes_its_spare_along(ready: Ready) -> None:
    (waiting,) = ready(1)
    os.kill(child_of(waiting.pid, "qemu-system"), signal.SIGKILL)
    assert ended(waiting.pid)
    assert not waiting.directory.exists()


def test_one_that_is_of_no_use_when_it_is_taken(
    tapwright: Tapwright, config: Path, ready: Ready
) -> None:
    """It costs the time of a restore."""
    for _ in range(5):
        for waiting in ready(2):
            opened = Path(f"/proc/{waiting.pid}/fd").iterdir()
            (namespace,) = [fd for fd in opened if os.readlink(fd).startswith("net:[")]
            subprocess.run(
                ["nsenter", f"--net={namespace}", "ip", "link", "delete", "warm"], check=True
            )
        words = "sandbox", "run", "late", "--network", "dual", "--json"
        done = tapwright.run(*words, config=config)
        assert (done.returncode, done.stderr) == (0, "")
        sandbox = json.loads(done.stdout)
        phases = {phase["name"] for phase in sandbox["phases"]}
        assert "restore" in phases
        assert answers_ping(address_of(sandbox))
        assert tapwright.exec("late", "ls", "/sys/class/net") == "eth0\nlo\n"
        if "spare" in phases:
            break
        # On a busy host a spare that does not answer in time is passed over.
        tapwright.delete("late")
        tapwright.run("sandbox", "spares", "--drop")
    assert "spare" in phases


def kinds_held(tapwright: Tapwright, name: str) -> list[str]:
    try:
        record = json.loads((tapwright.root / "sandboxes" / name / "record.json").read_text())
    except FileNotFoundError:
        return []
    return [entry["kind"] for entry in record["held"]]


@pytest.mark.parametrize("kind", ["netns", "attachment", "tcfilter"])
def test_one_that_is_killed_as_it_is_taken(
    tapwright: Tapwright, config: Path, networks: Networks, ready: Ready, kind: str
) -> None:
    """What it has made is taken back, and the sandbox starts from the template."""
    ready(2)
    words = "sandbox", "run", "victim", "--network", "dual", "--json"
    running = tapwright.start(*words, config=config)
    assert eventually(lambda: kind in kinds_held(tapwright, "victim"))
    os.kill(int((tapwright.root / "sandboxes" / "victim" / "alive").read_text()), signal.SIGKILL)
    output, errors = running.communicate(timeout=60)
    assert running.returncode == 0, errors
    assert start_of(json.loads(output)) in ("spare", "restore")
    assert len(networks.leased("dual")) == 2  # one of each family


@pytest.mark.parametrize("seed", range(4))
def test_taker_killed(
    tapwright: Tapwright, config: Path, networks: Networks, ready: Ready, seed: int
) -> None:
    """At any moment; with seeds that are even what it took as well."""
    ready(2)
    running = tapwright.start("sandbox", "run", "victim", "--network", "dual", config=config)
    with suppress(subprocess.TimeoutExpired):
        # The moment itself is what is tested: no event belongs to it.
        running.wait(random.Random(seed).uniform(0.05, 0.3))  # noqa: S311 - a moment, no secret
    running.kill()
    if seed % 2 == 0:
        with suppress(FileNotFoundError, ValueError, ProcessLookupError):
            alive = tapwright.root / "sandboxes" / "victim" / "alive"
            os.kill(int(alive.read_text()), signal.SIGKILL)
    running.communicate()
    tapwright.delete("victim")
    # A supervisor that had not begun takes back what it makes when it hears of the caller's end.
    assert eventually(lambda: tapwright.json("sandbox", "list") == [])
    assert eventually(lambda: networks.leased("dual") == [])


@pytest.mark.parametrize("seed", range(3))
def test_one_that_is_killed_as_it_is_made(
    tapwright: Tapwright, spec: Spec, ready: Ready, seed: int
) -> None:
    spares.begin(tapwright.root, spec, at_once=True)
    assert eventually(lambda: bool(spares.listing(tapwright.root)))
    (made,) = spares.listing(tapwright.root)
    time.sleep(random.Random(seed).uniform(0, 0.5))  # noqa: S311 - as above
    os.kill(made.pid, signal.SIGKILL)
    assert ended(made.pid)
    # What it was starting has its lock until the exec.
    assert eventually(lambda: spares.listing(tapwright.root) == [])
    assert not made.directory.exists()


BEGIN = """
import json, sys
from tapwright.sandbox import spares
from tapwright.state.record import read_spec
spares.begin(sys.argv[1], read_spec(json.loads(sys.argv[2])), at_once=True)
"""


def test_what_makes_one_is_killed_at_each_of_its_writes(tmp_path: Path) -> None:
    """Up to its end, which comes soon: there is no template for it. The next that is made finds
    nothing in its way, and removes what is left."""
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template=str(tmp_path / "none"), spares=1)
    root = tmp_path / "root"
    root.mkdir()
    argv = [sys.executable, "-c", BEGIN, str(root), json.dumps(written_spec(spec))]
    directory, at = spares.directory_of(root), 0
    while True:
        killed: list[int] = []
        seen: list[int] = []

        def decide(moment: Moment, at: int = at, killed: list[int] = killed) -> int:
            seen.append(moment.pid)  # noqa: B023 - of this round
            if moment.number == at:
                killed.append(moment.pid)
                os.kill(moment.pid, signal.SIGKILL)
            return 0

        with Watched(argv, root, decide) as begun:
            assert begun.wait() == (0, "")
            assert eventually(lambda: bool(seen))  # noqa: B023 - as above
            assert ended(seen[0])
        if not killed:
            break
        assert spares.listing(root) == []
        at += 1
    # The directory of all, its own, its lock, what it is, its name, and the same back.
    assert at >= 8
    assert spares.listing(root) == []
    assert [path.name for path in directory.iterdir() if path.name != ".failed"] == []


def test_they_go(tapwright: Tapwright, tmp_path: Path, spec: Spec, ready: Ready) -> None:
    """When nobody wants them, and when configuration or template is another one."""
    configuration, template = tmp_path / "configuration.toml", tmp_path / "template"
    configuration.touch()
    subprocess.run(["cp", "-a", spec.template, template], check=True)
    kinds = {
        "unwanted": replace(spec, spare_seconds=1),
        # Of another kind, from the same template.
        "configured": replace(
            spec,
            configuration=str(configuration),
            machine=replace(spec.machine, memory_directory="/dev/shm"),
        ),
        "template": replace(spec, template=str(template)),
    }
    # Which goes a second after it is ready, and may not be seen in that second.
    unwanted = spares.key_of(kinds["unwanted"])
    pids = {}
    for name, wanted in kinds.items():
        spares.begin(tapwright.root, wanted, at_once=True)
        key = spares.key_of(wanted)
        found: list[spares.Spare] = []

        def is_there(key: str = key, found: list[spares.Spare] = found) -> bool:
            found[:] = [
                one
                for one in spares.listing(tapwright.root)
                if one.name.startswith(key) and (one.is_ready or key == unwanted)
            ]
            return bool(found)

        assert eventually(is_there), (name, spares.last_failure(tapwright.root))
        pids[name] = found[0].pid
    assert ended(pids["unwanted"])
    assert not ended_already(pids["configured"])
    assert not ended_already(pids["template"])
    configuration.write_text("# changed\n")
    subprocess.run(["rm", "-r", template], check=True)
    assert ended(pids["configured"])
    assert ended(pids["template"])
    assert spares.listing(tapwright.root) == []


def ended_already(pid: int) -> bool:
    return not Path(f"/proc/{pid}/exe").exists()


def test_listed_and_dropped(tapwright: Tapwright, ready: Ready) -> None:
    waiting = ready(2)
    listed = tapwright.json("sandbox", "spares")["spares"]
    assert [one["name"] for one in listed] == [one.name for one in waiting]
    assert all(one["is_ready"] and one["held_mib"] > 20 for one in listed)
    done = tapwright.run("check", "--json")
    (finding,) = [one for one in json.loads(done.stdout)["host"] if one["name"] == "spares"]
    assert finding["found"].startswith("2 of ")
    assert "ready" in tapwright.run("sandbox", "spares").stdout
    dropped = tapwright.json("sandbox", "spares", "--drop")
    assert dropped == [one.name for one in waiting]
    assert all(ended(one.pid) for one in waiting)
    assert tapwright.json("sandbox", "spares") == {"spares": [], "last_failure": ""}


def test_the_next_is_made_when_one_is_taken(
    tapwright: Tapwright, config: Path, spec: Spec, ready: Ready
) -> None:
    """The sandbox that took one makes the next, in the background; once, and not in its control
    group."""
    (first,) = ready(1)
    sandbox = run(tapwright, config, "taker")
    assert start_of(sandbox) == "spare"
    assert eventually(lambda: bool(spares.listing(tapwright.root)))
    assert spares.enter(tapwright.root, spec) is None
    (second,) = spares.listing(tapwright.root)
    assert second.pid != first.pid
    assert "taker" not in Path(f"/proc/{second.pid}/cgroup").read_text()
    # It may wait for a processor that is idle, or has begun; when it has done, it only waits.
    assert priorities(second.pid) == {19} or eventually(
        lambda: [spare.is_ready for spare in spares.listing(tapwright.root)] == [True]
    )


COUNT, TAKERS = 200, 8


def _takes(root: str, spec: Spec, number: int) -> list[str]:
    """A process that takes what it can get, and says so to each."""
    taken: list[str] = []
    misses = 0
    while misses < 3:
        found = spares.take(root, spec)
        if found is None:
            misses += 1
            continue
        with found:
            name = f"{number}-{len(taken)}"
            os.environ["TAKER"] = name
            alive = os.open(os.devnull, os.O_RDONLY)
            found.tell(Path(root) / name, alive)
            os.close(alive)
            assert found.socket.recv(1) == b"{"  # it has heard
            taken.append(name)
    return taken


async def _wait_all(root: str, spec: Spec, asked: Any) -> list[str]:
    """So many stubs of spares, without guests; which sandbox each belongs to."""
    found = []
    for _ in range(COUNT):
        entered = spares.enter(root, spec)
        assert entered
        found.append(entered)

    async def one(directory: Path, alive: int) -> str:
        prepared: Any = SimpleNamespace(
            machine=None,
            qemu=SimpleNamespace(has_ended=False, wait=asyncio.Event().wait),
            agent=SimpleNamespace(has_broken_rules=asyncio.Event()),
        )
        taker = await _Stub(spec, directory, prepared).taker()
        assert taker
        spares.leave(directory, alive)
        caller, order = taker
        # Plugins have the environment of the process that wants the sandbox.
        assert os.environ["TAKER"] == order.directory.name
        os.close(order.alive_fd)
        caller.running()
        return order.directory.name

    waiting = [asyncio.ensure_future(one(*entered)) for entered in found]
    while sum((directory / spares.SOCKET).exists() for directory, _ in found) < COUNT:
        await asyncio.sleep(0)
    asked.set()
    return await asyncio.gather(*waiting)


class _Stub(spare._Waiting):
    def _is_sound(self) -> bool:
        return True

    def _key(self) -> str:
        return ""


@pytest.mark.unit
def test_each_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """200 takes by 8 processes at once, of spares that have no guests."""
    for name in os.environ:
        monkeypatch.setenv(name, os.environ[name])  # so that all is as it was
    monkeypatch.delenv("TAKER", raising=False)
    # This process is at the top of no group, and is to stay where it is.
    monkeypatch.setattr(cgroups, "prepare_moves", lambda: None)
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template="/nowhere", spares=COUNT)
    root = str(tmp_path)
    context = multiprocessing.get_context("forkserver")
    with context.Manager() as manager, ProcessPoolExecutor(TAKERS, context) as workers:
        asked = manager.Event()
        takers = [
            workers.submit(_after, asked, _takes, root, spec, number) for number in range(TAKERS)
        ]
        owners = asyncio.run(_wait_all(root, spec, asked))
        taken = [name for taker in takers for name in taker.result(60)]
    assert len(owners) == COUNT
    assert sorted(taken) == sorted(set(owners)) == sorted(owners)
    assert list(spares.directory_of(root).iterdir()) == []


def _after(asked: Any, work: Callable[..., list[str]], *arguments: Any) -> list[str]:
    asked.wait()
    return work(*arguments)


def _changed(whole: Any, name: str) -> Any:
    """The dataclass with another value of one field."""
    value = getattr(whole, name)
    others: dict[type, Any] = {bool: not value, int: 7, float: 0.5, str: "/x", list: ["x"]}
    others |= {
        Daemon: None,
        tuple: ("x",),
        type(Path()): Path("/x"),
        Machine: Machine(Path(), Path()),
    }
    return replace(whole, **{name: others.get(type(value), {"x": 1})})


@pytest.mark.unit
@pytest.mark.parametrize("field", dataclasses.fields(Spec), ids=lambda field: field.name)
def test_a_spare_is_known_by_its_machine_and_template(field: Any) -> None:
    """Whatever else a sandbox has is set when it takes one."""
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template="/nowhere")
    differs = field.name in ("machine", "template")
    assert (spares.key_of(spec) != spares.key_of(_changed(spec, field.name))) is differs


@pytest.mark.unit
@pytest.mark.parametrize("kind", [Machine, Daemon])
def test_a_spare_is_known_by_all_of_its_machine(kind: Any) -> None:
    """A record has all of it, too."""
    machine = Machine(Path("kernel"), Path("initrd"), share=Daemon(), disk=Path("disk"))
    spec = Spec(machine, template="/nowhere")
    for field in dataclasses.fields(kind):
        other = (
            _changed(machine, field.name)
            if kind is Machine
            else replace(machine, share=_changed(Daemon(), field.name))
        )
        changed = replace(spec, machine=other)
        assert spares.key_of(spec) != spares.key_of(changed), field.name
        assert read_spec(json.loads(json.dumps(written_spec(changed)))) == changed


@pytest.mark.unit
def test_what_was_killed_is_removed(tmp_path: Path) -> None:
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template="/nowhere", spares=1)
    entered = spares.enter(tmp_path, spec)
    assert entered
    directory, alive = entered
    assert spares.enter(tmp_path, spec) is None
    assert filelock.is_held(directory / spares.ALIVE)
    os.close(alive)
    assert spares.take(tmp_path, spec) is None
    assert not directory.exists()
    again = spares.enter(tmp_path, spec)
    assert again
    spares.leave(*again)


@pytest.mark.unit
@pytest.mark.parametrize("starves", [True, False])
def test_one_that_has_no_processor_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, starves: bool
) -> None:
    """It greets when it has been looked at for the fourth time, by when it is late."""
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template="/nowhere", spares=1)
    entered = spares.enter(tmp_path, spec)
    assert entered
    looks: list[int] = []
    with socket.socket(socket.AF_UNIX) as listener, ExitStack() as accepted:

        def waited(pid: int) -> dict[int, float]:
            looks.append(pid)
            if len(looks) == 4:
                connection, _ = listener.accept()
                accepted.enter_context(connection).sendall(spares.YOURS)
            return {pid: time.monotonic() if starves else 0.0}

        monkeypatch.setattr(spares, "_ANSWER_SECONDS", 0.3)
        monkeypatch.setattr(starving, "waited", waited)
        with unixsocket.address(entered[0] / spares.SOCKET) as path:
            listener.bind(path)
        listener.listen()
        taken = spares.take(tmp_path, spec)
        assert (taken is not None, len(looks)) == ((True, 4) if starves else (False, 3))
        if taken:
            taken.socket.close()
    assert set(looks) == {os.getpid()}
    spares.leave(*entered)


@pytest.mark.unit
def test_one_that_has_inherited_something_else_is_not_had() -> None:
    """As a supervisor would that is started now."""
    spec = Spec(Machine(Path("kernel"), Path("initrd")), template="/nowhere", spares=1)
    own = os.sched_getaffinity(0)
    before = spares.key_of(spec)
    assert spares.key_of(spec) == before
    if len(own) == 1:
        pytest.skip("there is one processor alone")
    try:
        os.sched_setaffinity(0, {max(own)})
        assert spares.key_of(spec) != before
    finally:
        os.sched_setaffinity(0, own)
