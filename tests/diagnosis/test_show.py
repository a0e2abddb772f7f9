"""`sandbox show` of a sandbox that runs."""

import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tapwright.diagnosis import checking, collecting, way
from tapwright.state import registry
from tests.diagnosis import browser
from tests.host import eventually
from tests.namespaces import Namespace
from tests.sandboxes import Tapwright

NAME = "shown"


class Shown:
    """The sandbox, and its picture."""

    def __init__(self, tapwright: Tapwright) -> None:
        self.tapwright = tapwright
        self.netns = str(tapwright.json("sandbox", "inspect", NAME)["netns"])

    def picture(self) -> Any:
        """As the command prints it."""
        found = collecting.picture(registry.find(self.tapwright.root, NAME))
        return dataclasses.asdict(checking.check(found))

    def way(self, nic: str) -> Any:
        (found,) = [each for each in self.picture()["ways"] if each["nic"] == nic]
        return found

    def point(self, nic: str, kind: str) -> Any:
        return next(point for point in self.way(nic)["points"] if point["kind"] == kind)

    def complaints(self) -> list[tuple[str, str]]:
        """(NIC, kind of the point) of each."""
        picture = self.picture()
        points = {each["nic"]: each["points"] for each in picture["ways"]}
        return [
            (one["nic"], points[one["nic"]][one["at"]]["kind"] if one["at"] >= 0 else "")
            for one in picture["complaints"]
        ]

    def inside(self, command: str) -> None:
        subprocess.run(["nsenter", f"--net={self.netns}", *command.split()], check=True)


def on_host(command: str) -> None:
    subprocess.run(command.split(), check=True)


@pytest.fixture(scope="module")
def shown(tapwright: Tapwright) -> Iterator[Shown]:
    words = "--network", "dual", "--network", "small", "--publish", "8080:80"
    done = tapwright.run("sandbox", "run", NAME, *words)
    assert done.returncode == 0, done.stderr
    yield Shown(tapwright)
    tapwright.delete(NAME)


@contextmanager
def changed(shown: Shown, command: str, back: str, inside: bool = False) -> Iterator[None]:
    run = shown.inside if inside else on_host
    run(command)
    try:
        yield
    finally:
        run(back)


@pytest.mark.smoke
def test_the_whole_way_is_found(shown: Shown) -> None:
    found = shown.way("eth0")
    kinds = [point["kind"] for point in found["points"]]
    assert kinds == [
        *(way.GUEST_NIC, way.QEMU_NIC, way.TAP, way.FILTERS, way.INTERFACE),
        *(way.PEER, way.BRIDGE, way.GATEWAY),
    ]
    guest, qemu, tap, filters, interface, peer, bridge, gateway = found["points"]
    assert guest["mac"] == qemu["mac"] == interface["mac"]
    assert guest["addresses"][0].startswith("10.91.0.")
    assert {point["state"] for point in found["points"]} == {way.UP}
    assert {(one["what"], one["source"]) for one in filters["filters"]} == {
        ("redirect", tap["name"]),
        ("mirror", "eth0"),
        ("redirect", "eth0"),
    }
    assert (tap["made_by"], interface["made_by"], peer["made_by"]) == (
        *("tapwright", "bridge", "bridge"),
    )
    assert (bridge["name"], bridge["made_by"]) == ("br-dual", "bridge")
    assert (gateway["name"], gateway["made_by"]) == ("10.91.0.1 fd91::1", "host-local")
    assert found["plugins"] == ["bridge", "portmap"]


def test_packets_are_counted_on_each_edge(shown: Shown) -> None:
    def outward() -> list[int]:
        return [
            edge["outward"]["packets"] for edge in shown.way("eth0")["edges"] if edge["outward"]
        ]

    before = outward()
    shown.tapwright.exec(NAME, "ping", "-c", "5", "-i", "0.2", "10.91.0.1")
    assert len(before) == 6
    assert all(later >= first + 5 for first, later in zip(before, outward(), strict=True))


def test_a_healthy_one_is_not_complained_of(shown: Shown) -> None:
    assert shown.complaints() == []


@pytest.mark.parametrize(
    ("command", "back", "inside", "complaint"),
    [
        ("ip link set {peer} mtu 1300", "ip link set {peer} mtu 1500", False, way.PEER),
        ("ip link set {peer} down", "ip link set {peer} up", False, way.PEER),
        ("ip link set {peer} nomaster", "ip link set {peer} master br-dual", False, way.PEER),
        ("ip link set br-dual down", "ip link set br-dual up", False, way.BRIDGE),
        ("ip link set {tap} mtu 1300", "ip link set {tap} mtu 1500", True, way.TAP),
        ("ip link set {tap} down", "ip link set {tap} up", True, way.TAP),
    ],
)
def test_faults(shown: Shown, command: str, back: str, inside: bool, complaint: str) -> None:
    names = {"peer": shown.point("eth0", way.PEER)["name"], "tap": ""}
    names["tap"] = shown.point("eth0", way.TAP)["name"]
    with changed(shown, command.format(**names), back.format(**names), inside):
        assert eventually(lambda: ("eth0", complaint) in shown.complaints())
    assert eventually(lambda: shown.complaints() == []), shown.picture()["complaints"]


def test_a_filter_that_somebody_removed(shown: Shown) -> None:
    tap = shown.point("eth1", way.TAP)["name"]
    shown.inside(f"tc filter delete dev {tap} parent ffff: pref 2")
    try:
        assert shown.complaints() == [("eth1", way.FILTERS)]
    finally:
        shown.inside(
            f"tc filter add dev {tap} parent ffff: pref 2 protocol all u32 match u8 0 0 "
            "action mirred egress redirect dev eth1"
        )
    assert shown.complaints() == []


def test_what_the_guest_changed(shown: Shown) -> None:
    shown.tapwright.exec(NAME, "ip", "link", "set", "eth1", "mtu", "1280")
    try:
        assert ("eth1", way.TAP) in shown.complaints()
    finally:
        shown.tapwright.exec(NAME, "ip", "link", "set", "eth1", "mtu", "1400")


def in_a_browser(shown: Shown, directory: Path) -> str:
    """The page in the browser after its script has run."""
    file = directory / "page.html"
    done = shown.tapwright.run("sandbox", "show", NAME, "--html", str(file))
    assert done.returncode == 0, done.stderr
    return browser.document(file.as_uri(), directory / "profile")


def test_the_picture_changes_when_a_nic_is_plugged(shown: Shown, tmp_path: Path) -> None:
    browser.program()
    assert "eth1" in (before := in_a_browser(shown, tmp_path))
    assert "shown0" not in before
    on_host("ip link add shown-host type veth peer name shown0")
    try:
        on_host(f"ip link set shown0 netns {shown.netns}")
        shown.inside("ip address add 10.99.0.2/24 dev shown0")
        shown.inside("ip link set shown0 up")
        on_host("ip link set shown-host up")
        assert "shown0" not in {each["nic"] for each in shown.picture()["ways"]}
        mac = Namespace(shown.netns.rpartition("/")[2]).mac("shown0")
        request = {"device": "shown0", "name": "shown0", "hwAddr": mac, "IPAddresses": []}
        words = "kata-network", "add-iface", NAME, "-"
        done = shown.tapwright.run(*words, input=json.dumps(request))
        assert done.returncode == 0, done.stderr
        kinds = [point["kind"] for point in shown.way("shown0")["points"]]
        assert kinds[:6] == [
            *(way.GUEST_NIC, way.QEMU_NIC, way.TAP, way.FILTERS, way.INTERFACE, way.PEER),
        ]
        assert shown.point("shown0", way.PEER)["name"] == "shown-host"
        after = in_a_browser(shown, tmp_path)
        assert "NIC shown0" in after
        assert "veth peer shown-host" in after
    finally:
        words = "kata-network", "del-iface", NAME, "-"
        shown.tapwright.run(*words, input=json.dumps({"name": "shown0"}))
        on_host("ip link delete shown-host")


def test_json_is_the_picture(shown: Shown) -> None:
    printed = shown.tapwright.json("sandbox", "show", NAME)
    assert {each["nic"] for each in printed["ways"]} == {"eth0", "eth1"}
    assert printed.keys() == shown.picture().keys()


def test_the_drawing(shown: Shown) -> None:
    done = shown.tapwright.run("sandbox", "show", NAME, env={**os.environ, "NO_COLOR": "1"})
    assert done.returncode == 0, done.stderr
    for words in (f"{NAME}  running", "TAP tap2_kata", "bridge br-dual", "by host-local"):
        assert words in done.stdout


def test_all_of_the_host(shown: Shown, tmp_path: Path) -> None:
    file = tmp_path / "host.svg"
    done = shown.tapwright.run("sandbox", "show", "--all", "--svg", str(file))
    assert done.returncode == 0, done.stderr
    assert "bridge br-dual" in file.read_text()
    assert NAME in {each["id"] for each in shown.tapwright.json("sandbox", "show", "--all")}


def test_a_page_that_refreshes_itself(shown: Shown, tmp_path: Path) -> None:
    browser.program()
    file = tmp_path / "page.html"
    words = "sandbox", "show", NAME, "--html", str(file), "--watch"
    with shown.tapwright.start(*words) as watching:
        assert watching.stdout
        address = watching.stdout.readline().strip()
        try:
            seen = browser.document(address, tmp_path / "profile", milliseconds=5000)
            assert 'data-refreshed="' in seen
            assert f'href="{address}"' in file.read_text()
        finally:
            watching.send_signal(signal.SIGINT)
        assert watching.wait(60) == 0


def test_a_tap_of_the_host(tapwright: Tapwright) -> None:
    tap = "shown-tap,bridge=br-small,ip=10.92.0.77/24"
    done = tapwright.run("sandbox", "run", "tapped", "--tap", tap)
    assert done.returncode == 0, done.stderr
    try:
        # The kernel opens a bridge's port when it next looks who has a carrier, once a second.
        assert eventually(lambda: not tapwright.json("sandbox", "show", "tapped")["complaints"])
        picture = tapwright.json("sandbox", "show", "tapped")
    finally:
        tapwright.delete("tapped")
    points = [(one["kind"], one["name"], one["place"]) for one in picture["ways"][0]["points"]]
    assert points[2:4] == [(way.TAP, "shown-tap", "host"), (way.BRIDGE, "br-small", "host")]


def test_a_supervisor_that_stands_still(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """What can be seen from outside is shown all the same."""
    monkeypatch.setattr(collecting, "_LOOK_SECONDS", 0.5)
    pid = shown.tapwright.json("sandbox", "inspect", NAME)["supervisor_pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        picture = shown.picture()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "did not answer" in picture["guest_failure"]
    kinds = [point["kind"] for point in picture["ways"][0]["points"]]
    assert {way.TAP, way.FILTERS, way.INTERFACE, way.PEER, way.BRIDGE} <= set(kinds)


def test_one_that_is_not_there(tapwright: Tapwright) -> None:
    done = tapwright.run("sandbox", "show", "nobody")
    assert (done.returncode, done.stdout) == (1, "")
    assert "there is no sandbox 'nobody'" in done.stderr
