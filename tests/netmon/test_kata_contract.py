"""`tapwright-netmon` under Kata's flags, with a runtime that is not ours: a real namespace, and a
program that writes down how it is called."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright import __version__
from tapwright.netmon.__main__ import main
from tests.host import eventually

COMMAND = str(Path(sys.executable).with_name("tapwright-netmon"))

RUNTIME = """#!/bin/sh
# Refuses what the file "refuse" names.
file=$(cat "$4")
printf '%s\\t%s\\t%s\\n' "$1 $2" "$3" "$file" >>{directory}/calls
! grep -qs "$2" {directory}/refuse
"""

Call = tuple[str, Any]


class Watched:
    """A namespace with a monitor in it."""

    def __init__(self, netns: str, directory: Path) -> None:
        self.name = Path(netns).name
        self.directory = directory
        self.runtime = directory / "runtime"
        self.runtime.write_text(RUNTIME.format(directory=directory))
        self.runtime.chmod(0o755)
        self.log = directory / "log"

    def start(self, *flags: str) -> "subprocess.Popen[bytes]":
        words = [COMMAND, "-s", "box", "-r", str(self.runtime), "-log", "info", *flags]
        with self.log.open("w") as log:
            process = subprocess.Popen(["ip", "netns", "exec", self.name, *words], stderr=log)
        assert eventually(lambda: "watching" in self.log.read_text()), self.log.read_text()
        return process

    def ip(self, command: str) -> None:
        subprocess.run(["ip", "-n", self.name, *command.split()], check=True)

    def calls(self) -> list[Call]:
        """(verb, JSON) of each."""
        path = self.directory / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        found = []
        for line in lines:
            words, sandbox, content = line.split("\t")
            assert sandbox == "box"
            group, verb = words.split()
            assert group == "kata-network"
            found.append((verb, json.loads(content)))
        return found

    def has_called(self, *wanted: tuple[str, str]) -> None:
        """Insist on calls, each a verb and a text in its JSON, in that order."""

        def called() -> bool:
            rest = iter(self.calls())
            return all(
                any(verb == name and text in json.dumps(content) for name, content in rest)
                for verb, text in wanted
            )

        assert eventually(called), (self.calls(), self.log.read_text())


@pytest.fixture
def watched(scratch_netns: str, tmp_path: Path) -> Iterator[Watched]:
    space = Watched(scratch_netns, tmp_path)
    space.ip("link add there type veth peer name there-peer")
    space.ip("link set there-peer up")
    space.ip("link set there up")
    process = space.start()
    yield space
    process.kill()
    process.wait()


@pytest.mark.smoke
def test_calls_in_the_order_of_what_happens(watched: Watched) -> None:
    watched.ip("link add eth1 address 02:00:00:00:00:01 type veth peer name peer")
    watched.ip("address add 10.0.0.2/24 dev eth1")
    watched.ip("link set eth1 up")
    watched.ip("link set peer up")
    watched.has_called(("add-iface", "eth1"))
    plugged = [content for verb, content in watched.calls() if verb == "add-iface"]
    (added,) = [interface for interface in plugged if interface["name"] == "eth1"]
    assert added == {
        "device": "eth1",
        "name": "eth1",
        "IPAddresses": [{"family": 2, "address": "10.0.0.2", "mask": "24"}],
        "mtu": 1500,
        "hwAddr": "02:00:00:00:00:01",
        "linkType": "veth",
    }
    watched.ip("route add default via 10.0.0.1 dev eth1")
    watched.has_called(("update-routes", "default"))
    assert watched.calls()[-1] == (
        "update-routes",
        [{"dest": "default", "gateway": "10.0.0.1", "device": "eth1", "source": "", "scope": 0}],
    )
    watched.ip("address add fd00::2/64 dev eth1 nodad")
    # The contract has no change: out and in again, and the routes anew.
    watched.has_called(
        ("del-iface", "eth1"), ("add-iface", "fd00::2"), ("update-routes", "default")
    )
    watched.ip("link delete eth1")
    watched.has_called(("add-iface", "fd00::2"), ("del-iface", "eth1"))


def test_what_was_there_is_the_runtimes(watched: Watched) -> None:
    watched.ip("link add eth1 type veth peer name peer")
    watched.ip("link set peer up")
    watched.ip("link set eth1 up")
    watched.has_called(("add-iface", "eth1"))
    assert not any("there" in json.dumps(content) for _, content in watched.calls())
    watched.ip("link delete there")
    watched.has_called(("del-iface", "there"))


def test_devices_of_katas_are_passed_over(watched: Watched) -> None:
    watched.ip("link add eth1 type veth peer name tap1_kata")
    watched.ip("link set tap1_kata up")
    watched.ip("link set eth1 up")
    watched.has_called(("add-iface", "eth1"))
    assert not any("tap1_kata" in json.dumps(content) for _, content in watched.calls())


def test_goes_on_after_a_refusal(watched: Watched) -> None:
    refuse = watched.directory / "refuse"
    refuse.write_text("add-iface")
    watched.ip("link add eth1 type veth peer name peer")
    watched.ip("link set peer up")
    watched.ip("link set eth1 up")
    watched.has_called(("add-iface", "eth1"))
    assert eventually(lambda: "add-iface failed: exit status 1" in watched.log.read_text())
    # It is tried again by itself, and only then known to be there.
    refuse.unlink()
    before = len(watched.calls())
    assert eventually(lambda: len(watched.calls()) > before)
    watched.ip("link delete eth1")
    watched.has_called(("del-iface", "eth1"))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "the sandbox's id is missing (-s)"),
        (["-s", "x"], "the runtime's path is missing (-r)"),
        (["-s"], "-s needs a value"),
        (["-s", "x", "-r", "/y", "-log", "loud"], "-log 'loud' is none of debug, info, warn"),
        (["-s", "x", "-r", "/y", "-x"], "'-x' is not known"),
    ],
)
def test_wrong_flags(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err


@pytest.mark.unit
@pytest.mark.parametrize("flag", ["-v", "-version", "--version"])
def test_version(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert capsys.readouterr().out == f"tapwright-netmon version {__version__}\n"


@pytest.mark.unit
@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([flag]) == 0
    assert "-s ID" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [("-d",), ("--d=true",), ("-log=debug",)])
def test_flags_as_go_takes_them(flags: tuple[str, ...], scratch_netns: str, tmp_path: Path) -> None:
    space = Watched(scratch_netns, tmp_path)
    process = space.start(*flags)
    try:
        space.ip("link add eth1 type veth peer name peer")
        assert eventually(lambda: "something has changed" in space.log.read_text())
    finally:
        process.kill()
        process.wait()


def test_no_such_sandbox(tmp_path: Path) -> None:
    """Of our own runtime: the monitor ends and says why."""
    command = Path(sys.executable).with_name("tapwright")
    done = subprocess.run(
        [COMMAND, "-s", "nobody", "-r", str(command)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "TAPWRIGHT_ROOT": str(tmp_path)},
    )
    assert done.returncode == 1
    assert "there is no sandbox 'nobody'" in done.stderr


def test_no_such_runtime() -> None:
    done = subprocess.run(
        [COMMAND, "-s", "box", "-r", "/nonexistent"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "/nonexistent is missing or not executable (-r)" in done.stderr
