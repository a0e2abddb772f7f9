"""Part 4: the version before and this one, in the hands of each other: what one has made the other
shows, uses, and takes back."""

import copy
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import Host
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime
from tests.sandboxes import COMMAND, Networks, Tapwright, ended
from tests.torture.bound import SECONDS, Bound

PREVIOUS = "TORTURE_PREVIOUS"
"""The variable of the environment with the command of the version before, which scripts/torture
installs from a wheel; without it that is taken from git's history as it is."""
COMMIT = "d092420"
"""As long as no version has a tag: what a later one must get on with."""
NAME, MEMBER = "victim", "member"
_ROOT = Path(__file__).parents[2]


def _git(*words: str) -> bytes:
    done = subprocess.run(["git", "-C", str(_ROOT), *words], check=False, capture_output=True)
    return done.stdout if done.returncode == 0 else b""


def _from_history(directory: Path) -> str:
    """A command for the sources of the version before; empty where git has none."""
    tag = _git("describe", "--tags", "--abbrev=0", "HEAD^").decode().strip()
    archive = _git("archive", tag or COMMIT, "src")
    if not archive:
        return ""
    subprocess.run(["tar", "-x", "-C", str(directory)], input=archive, check=True)
    command = directory / "tapwright"
    script = "from tapwright.cli import run; run()"
    start = f"{sys.executable} -c {shlex.quote(script)}"
    command.write_text(f'#!/bin/sh\nPYTHONPATH={directory}/src exec {start} "$@"\n')
    command.chmod(0o755)
    return str(command)


@pytest.fixture(scope="module")
def previous(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Tapwright:
    """The same root, configuration and cache in the hands of the version before."""
    command = os.environ.get(PREVIOUS) or _from_history(tmp_path_factory.mktemp("previous"))
    if not command:
        pytest.skip("git has no version before this one; scripts/torture says how to have one")
    found = copy.copy(tapwright)
    found.program = command
    images = json.loads(found.run("image", "list", "--json").stdout)
    if not any(image["current"] for image in images):
        pytest.skip(f"there is no image of the version before: run {command} image build")
    return found


# The short form goes one way only, and leaves the verbs of a container to the whole one.
_IS_WHOLE = SECONDS in os.environ
_whole = pytest.mark.skipif(not _IS_WHOLE, reason="scripts/torture runs it")


@pytest.fixture(params=["upgrade", "rollback"] if _IS_WHOLE else ["upgrade"])
def pair(
    request: pytest.FixtureRequest, tapwright: Tapwright, previous: Tapwright
) -> Iterator[tuple[Tapwright, Tapwright]]:
    """(the version that makes it, the version that goes on with it)."""
    yield (previous, tapwright) if request.param == "upgrade" else (tapwright, previous)
    for name in (MEMBER, NAME):
        tapwright.run("delete", "--force", name)
        tapwright.run("sandbox", "delete", "--force", name)


@pytest.fixture
def unchanged(host: Host) -> Iterator[None]:
    before = host.snapshot()
    yield
    host.assert_same(before)


def test_a_sandbox(
    unchanged: None, pair: tuple[Tapwright, Tapwright], networks: Networks, bound: Bound
) -> None:
    maker, other = pair
    for _ in bound.goes_on(short=1):
        maker.json("sandbox", "run", NAME, "--network", "small")
        (listed,) = other.json("sandbox", "list")
        assert (listed["id"], listed["status"]) == (NAME, "running")
        assert other.json("sandbox", "inspect", NAME)["interfaces"][0]["name"] == "eth0"
        assert "eth0" in other.exec(NAME, "ip", "link")
        done = other.run("kata-network", "list-ifaces", NAME)
        assert (done.returncode, json.loads(done.stdout)[0]["name"]) == (0, "eth0")
        if bound.tries % 2:
            pid = int((other.root / "sandboxes" / NAME / "alive").read_text())
            os.kill(pid, signal.SIGKILL)
            assert ended(pid)
        other.delete(NAME)
        assert networks.leased("small") == []
    bound.tell(4, f"a sandbox {made_by(maker)}: listed, used, killed, deleted", "nothing left")


@_whole
def test_a_container(
    unchanged: None, pair: tuple[Tapwright, Tapwright], runtime: Runtime, bound: Bound
) -> None:
    maker, other = pair
    bundle = str(runtime.bundle(configuration("sleep", "1000")))
    must(maker, "create", "--bundle", bundle, NAME)
    assert state(other)["status"] == "created"
    must(other, "start", NAME)
    assert must(other, "exec", NAME, "echo", "there") == "there\n"
    must(other, "pause", NAME)
    assert state(maker)["status"] == "paused"
    must(other, "resume", NAME)
    must(other, "update", "--pids-limit", "50", NAME)
    assert "sleep" in must(other, "ps", NAME)
    must(other, "events", "--stats", NAME)
    must(other, "kill", NAME, "KILL")
    must(other, "delete", "--force", NAME)
    what = f"a container {made_by(maker)}: every verb after `create`"
    bound.tell(4, what, "all as by its own version", 10)


def test_a_member_joins(
    unchanged: None, pair: tuple[Tapwright, Tapwright], runtime: Runtime, bound: Bound
) -> None:
    maker, other = pair
    bundle = str(runtime.bundle(configuration("sleep", "1000")))
    must(maker, "create", "--bundle", bundle, NAME)
    must(maker, "start", NAME)
    space = {"type": "network", "path": f"/proc/{state(maker)['pid']}/ns/net"}
    joining = configuration("sleep", "1000", linux={"namespaces": [space, {"type": "pid"}]})
    must(other, "create", "--bundle", str(runtime.bundle(joining)), MEMBER)
    must(other, "start", MEMBER)
    assert must(other, "exec", MEMBER, "echo", "there") == "there\n"
    assert must(maker, "exec", MEMBER, "echo", "there") == "there\n"
    must(maker, "delete", "--force", MEMBER)
    assert state(other)["status"] == "running"
    must(other, "delete", "--force", NAME)
    what = f"a pod {made_by(maker)}, which a member of the other joins"
    bound.tell(4, what, "all as by its own version", 1)


def made_by(maker: Tapwright) -> str:
    return "of this version" if maker.program == COMMAND else "of the version before"


def state(tapwright: Tapwright) -> Any:
    return json.loads(must(tapwright, "state", NAME))


def must(tapwright: Tapwright, *words: str) -> str:
    """What it prints. A container keeps what `create` was given: nothing that is waited for."""
    output = subprocess.DEVNULL if words[0] == "create" else subprocess.PIPE
    done = tapwright.run(
        *words, stdin=subprocess.DEVNULL, capture_output=False, stdout=output, stderr=output
    )
    assert done.returncode == 0, f"{tapwright.program} {words}: {done.stderr}"
    return done.stdout or ""
