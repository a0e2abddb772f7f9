"""Kills at any moment: `list` is true, and `delete` takes everything back."""

import json
import os
import random
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import netns
from tests.host import answers_ping, eventually
from tests.moments import Moment, Watched
from tests.sandboxes import Networks, Tapwright, ended, pids_of

pytestmark = pytest.mark.usefixtures("nothing_left")

RUN = "sandbox", "run", "victim", "--network", "dual", "--publish", "8099:99"


@pytest.fixture
def victim(tapwright: Tapwright) -> Any:
    return tapwright.json(*RUN)


def only_listed(tapwright: Tapwright) -> Any:
    (sandbox,) = tapwright.json("sandbox", "list")
    return sandbox


def test_supervisor_killed(tapwright: Tapwright, networks: Networks, victim: Any) -> None:
    supervisor, qemu = pids_of(victim)
    os.kill(supervisor, signal.SIGKILL)
    assert ended(supervisor)
    assert ended(qemu), "QEMU outlived its supervisor"
    # What it was starting at that moment has its lock until it is executed.
    assert eventually(lambda: only_listed(tapwright)["status"] == "dead")
    assert only_listed(tapwright)["problem"] == "its supervisor was killed"
    refused = tapwright.run("sandbox", "exec", "victim", "--", "true")
    assert (refused.returncode, "is dead" in refused.stderr) == (1, True)
    tapwright.delete("victim")
    assert networks.leased("dual") == []


def test_hypervisor_killed(tapwright: Tapwright, victim: Any) -> None:
    supervisor, qemu = pids_of(victim)
    os.kill(qemu, signal.SIGKILL)
    assert ended(supervisor), "the supervisor outlived its QEMU"
    assert eventually(lambda: only_listed(tapwright)["status"] == "dead")
    assert only_listed(tapwright)["problem"].startswith("QEMU ended")
    tapwright.delete("victim")


def test_guest_that_powers_off(tapwright: Tapwright, victim: Any) -> None:
    supervisor, qemu = pids_of(victim)
    tapwright.run("sandbox", "exec", "victim", "--", "poweroff", "-f")
    assert ended(qemu)
    assert ended(supervisor)
    assert eventually(lambda: only_listed(tapwright)["status"] == "dead")
    tapwright.delete("victim")


def test_both_stopped_dead(tapwright: Tapwright, victim: Any) -> None:
    """A supervisor that does not react is killed."""
    supervisor, qemu = pids_of(victim)
    os.kill(supervisor, signal.SIGSTOP)
    os.kill(qemu, signal.SIGSTOP)
    tapwright.delete("victim")
    assert ended(supervisor)
    assert ended(qemu)


def test_delete_twice_and_at_once(tapwright: Tapwright, victim: Any) -> None:
    deleting = [tapwright.start("sandbox", "delete", "victim") for _ in range(3)]
    for process in deleting:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    assert tapwright.run("sandbox", "delete", "victim").returncode == 0


def test_namespace_gone(tapwright: Tapwright, networks: Networks, victim: Any) -> None:
    subprocess.run(["ip", "netns", "delete", Path(victim["netns"]).name], check=True)
    tapwright.delete("victim")
    assert networks.leased("dual") == []


def test_plugins_interface_gone(tapwright: Tapwright, victim: Any) -> None:
    name = Path(victim["netns"]).name
    subprocess.run(["ip", "-n", name, "link", "delete", "eth0"], check=True)
    tapwright.delete("victim")


def test_namespace_of_somebody_else_is_as_before(tapwright: Tapwright, scratch_netns: str) -> None:
    def seen() -> list[Any]:
        return [
            json.loads(
                subprocess.run(
                    ["ip", "netns", "exec", Path(scratch_netns).name, *command],
                    capture_output=True,
                    check=True,
                ).stdout
                or "[]"
            )
            for command in (
                ["ip", "-details", "-json", "address"],
                ["tc", "-json", "qdisc", "show"],
                ["ip", "-json", "route"],
            )
        ]

    before = seen()
    tapwright.json(*RUN, "--netns", scratch_netns)
    assert seen() != before
    tapwright.delete("victim")
    assert netns.exists(scratch_netns)
    assert eventually(lambda: seen() == before), seen()


def test_interface_that_was_there_is_joined_and_given_back(
    tapwright: Tapwright, scratch_netns: str
) -> None:
    """A veth made by hand, with no CNI network at all."""
    name = Path(scratch_netns).name
    for command in (
        f"link add twtest0 type veth peer name lan0 netns {name}",
        "address add 10.99.0.1/24 dev twtest0",
        "link set twtest0 up",
        f"-n {name} address add 10.99.0.2/24 dev lan0",
        f"-n {name} link set lan0 up",
    ):
        subprocess.run(["ip", *command.split()], check=True)
    sandbox = tapwright.json("sandbox", "run", "byhand", "--netns", scratch_netns)
    assert [interface["name"] for interface in sandbox["interfaces"]] == ["lan0"]
    assert answers_ping("10.99.0.2")
    tapwright.delete("byhand")
    assert answers_ping("10.99.0.2")
    subprocess.run(["ip", "link", "delete", "twtest0"], check=True)


def test_namespace_of_another_sandbox(
    tapwright: Tapwright, networks: Networks, victim: Any
) -> None:
    words = "sandbox", "run", "second", "--network", "dual", "--netns", victim["netns"]
    done = tapwright.run(*words)
    assert (done.returncode, "is in use by sandbox 'victim'" in done.stderr) == (1, True)
    assert "eth0" in tapwright.exec("victim", "ip", "link")
    shown = subprocess.check_output(
        ["ip", "-n", Path(victim["netns"]).name, "link", "show", "eth0"], text=True
    )
    assert "eth0" in shown
    assert len(networks.leased("dual")) == 2  # one of each family
    tapwright.delete("victim")


def test_bridges_in_a_namespace_are_left_alone(tapwright: Tapwright, scratch_netns: str) -> None:
    name = Path(scratch_netns).name
    for command in (
        "link add br0 type bridge",
        "tuntap add dev tap9 mode tap",
        "link set tap9 master br0 up",
        "link set br0 up",
    ):
        subprocess.run(["ip", "-n", name, *command.split()], check=True)
    assert tapwright.json("sandbox", "run", "alone", "--netns", scratch_netns)["interfaces"] == []
    tapwright.delete("alone")


def held(tapwright: Tapwright) -> list[str]:
    """What the journal of the victim holds, by kind."""
    try:
        record = json.loads((tapwright.root / "sandboxes" / "victim" / "record.json").read_text())
    except FileNotFoundError:
        return []
    return [entry["kind"] for entry in record["held"]]


def kill_supervisor(tapwright: Tapwright) -> None:
    pid = (tapwright.root / "sandboxes" / "victim" / "alive").read_text()
    os.kill(int(pid), signal.SIGKILL)


@pytest.mark.parametrize("kind", ["netns", "attachment", "tcfilter"])
def test_supervisor_killed_as_it_makes(tapwright: Tapwright, networks: Networks, kind: str) -> None:
    """At the first write when that is in the journal: there it stands still."""
    killed: list[str] = []

    def decide(moment: Moment) -> int:
        if not killed and kind in held(tapwright):
            killed.append(moment.path)
            kill_supervisor(tapwright)
        return 0

    with Watched(tapwright.command(*RUN), tapwright.root, decide) as running:
        status, said = running.wait()
    assert killed
    assert (status, "supervisor died" in said) == (1, True), said
    assert tapwright.json("sandbox", "list") == []
    assert networks.leased("dual") == []


@pytest.mark.parametrize("seed", range(6))
def test_all_killed_at_a_random_moment(tapwright: Tapwright, networks: Networks, seed: int) -> None:
    """Both the caller and the supervisor, so that nobody is there to take anything back."""
    moment = random.Random(seed).uniform(0.05, 0.5)  # noqa: S311 - a moment, no secret
    running = tapwright.start(*RUN)
    with suppress(subprocess.TimeoutExpired):
        # The moment itself is what is tested: no event belongs to it.
        running.wait(moment)
    running.kill()
    # The supervisor may not have begun.
    with suppress(FileNotFoundError, ValueError, ProcessLookupError):
        kill_supervisor(tapwright)
    running.communicate()
    tapwright.delete("victim")
    # A supervisor that had not begun takes back what it makes when it hears of the caller's end.
    assert eventually(lambda: tapwright.json("sandbox", "list") == [])
    assert eventually(lambda: networks.leased("dual") == [])
