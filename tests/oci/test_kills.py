"""Kills of any part at any moment; `delete --force`, which all platforms call, leaves nothing."""

import json
import os
import random
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import ContainerError
from tapwright.oci import life
from tapwright.oci.log import Log
from tapwright.sandbox.client import Supervisor
from tests.host import eventually
from tests.oci.bundles import configuration
from tests.oci.runtime import Container, Runtime
from tests.sandboxes import child_of, ended, pids_of

pytestmark = pytest.mark.usefixtures("nothing_left")


def sandbox_of(container: Container) -> Any:
    return container.runtime.tapwright.json("sandbox", "inspect", container.state["sandbox"])


@pytest.mark.parametrize("started", [False, True])
@pytest.mark.parametrize("part", ["shim", "supervisor", "qemu", "virtiofsd"])
def test_a_part_is_killed(runtime: Runtime, part: str, started: bool) -> None:
    with runtime.created(configuration("sleep", "1000")) as container:
        if started:
            container.start()
        supervisor, qemu = pids_of(sandbox_of(container))
        daemon = child_of(supervisor, "virtiofsd")
        pids = {"shim": container.pid, "supervisor": supervisor, "qemu": qemu, "virtiofsd": daemon}
        os.kill(pids[part], signal.SIGKILL)
        assert container.wait() == (-signal.SIGKILL if part == "shim" else 137)
        assert container.state["status"] == "stopped"
        assert runtime.refused("kill", container.id) == "container not running"
        runtime.succeed("delete", "--force", container.id)
        assert ended(supervisor)
        assert ended(qemu)


def test_the_guest_learns_of_a_killed_shim(runtime: Runtime) -> None:
    """Also in a sandbox that goes on."""
    with runtime.running("sleep", "1000") as sandbox:
        spaces = [{"type": "network", "path": f"/proc/{sandbox.pid}/ns/net"}, {"type": "pid"}]
        with runtime.running("sleep", "4711", linux={"namespaces": spaces}) as member:
            inspect = ("ps", "-o", "args")
            name = sandbox.state["sandbox"]
            assert eventually(lambda: "sleep 4711" in runtime.tapwright.exec(name, *inspect))
            os.kill(member.pid, signal.SIGKILL)
            assert eventually(lambda: "sleep 4711" not in runtime.tapwright.exec(name, *inspect))
            runtime.succeed("delete", "--force", member.id)
        assert sandbox.state["status"] == "running"


def test_everything_is_stopped_dead(runtime: Runtime) -> None:
    """Nothing answers any more."""
    with runtime.running("sleep", "1000") as container:
        supervisor, qemu = pids_of(sandbox_of(container))
        for pid in (container.pid, supervisor, qemu):
            os.kill(pid, signal.SIGSTOP)
        runtime.succeed("delete", "--force", container.id)
        for pid in (supervisor, qemu):
            assert ended(pid)
        assert container.wait() == -signal.SIGKILL


def test_the_guest_of_a_member_hangs(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """The member goes without it, and what the host had shared."""
    monkeypatch.setattr(life, "_GUEST_SECONDS", 0.2)
    monkeypatch.setattr(life, "_SHIM_SECONDS", 0.2)
    root = str(runtime.root)
    with runtime.running("sleep", "1000") as sandbox:
        supervisor, qemu = pids_of(sandbox_of(sandbox))
        spaces = [{"type": "network", "path": f"/proc/{sandbox.pid}/ns/net"}, {"type": "pid"}]
        with runtime.running("sleep", "1000", linux={"namespaces": spaces}) as member:
            helper = child_of(supervisor, "virtiofsd")
            shared = Path(f"/proc/{helper}/mountinfo")
            assert member.id in shared.read_text()
            with runtime.tapwright.start("exec", member.id, "sleep", "1000") as executing:
                assert eventually(
                    lambda: len(json.loads(runtime.succeed("ps", "-f", "json", member.id))) == 2
                )
                os.kill(qemu, signal.SIGSTOP)
                life.delete(root, member.id, force=True, log=Log("", "text"))
                assert executing.wait(60) == 137
            assert member.wait() == -signal.SIGKILL
            os.kill(qemu, signal.SIGCONT)
            assert eventually(lambda: member.id not in shared.read_text())
        assert sandbox.state["status"] == "running"


def test_a_guest_that_refuses_keeps_no_member() -> None:
    """`delete` tries all, and reports what the guest refused."""
    asked = []

    class Refusing(Supervisor):
        def call(self, op: str, descriptors: Sequence[int] = (), **arguments: Any) -> Any:
            asked.append(op)
            raise ContainerError("no")

    assert life._leave(Refusing("/s"), "c") == ["no", "no"]
    assert asked == ["delete_container", "unshare"]


def test_the_bundle_is_gone(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        (container.bundle / "config.json").unlink()
        runtime.succeed("delete", "--force", container.id)


def test_the_state_is_damaged(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        path = runtime.root / "containers" / container.id / "state.json"
        path.write_text("{")
        assert "is damaged" in runtime.refused("state", container.id)
        runtime.succeed("delete", "--force", container.id)
        assert container.wait() == 137


def test_deleted_at_once_by_several(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        words = runtime.tapwright.command("delete", "--force", container.id)
        deleting = [subprocess.Popen(words) for _ in range(3)]
        assert [process.wait(60) for process in deleting] == [0, 0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_create_is_killed_at_a_random_moment(runtime: Runtime, seed: int) -> None:
    moment = random.Random(seed).uniform(0.05, 0.9)  # noqa: S311 - a moment, no secret
    name = runtime.fresh_id()
    bundle = runtime.bundle(configuration("sleep", "1000"))
    creating = subprocess.Popen(runtime.tapwright.command("create", "-b", str(bundle), name))
    with suppress(subprocess.TimeoutExpired):
        # The moment itself is what is tested: no event belongs to it.
        creating.wait(moment)
    creating.kill()
    creating.wait()
    runtime.succeed("delete", "--force", name)
    assert json.loads(runtime.succeed("list", "--format=json")) == []
    assert runtime.tapwright.names() == set()


def test_the_caller_of_create_is_killed(runtime: Runtime, tmp_path: Path) -> None:
    """Nobody deletes the container, which nobody knows of."""
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    script = f"touch {begun}; while ! [ -e {go_on} ]; do sleep 0.01; done"
    hooks = {"prestart": [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]}
    bundle = runtime.bundle(configuration("sleep", "1000", hooks=hooks))
    words = runtime.tapwright.command("create", "-b", str(bundle), runtime.fresh_id())
    caller = subprocess.Popen(["sh", "-c", '"$@"; true', "sh", *words])
    assert eventually(begun.exists)
    caller.kill()
    caller.wait()
    go_on.touch()
    assert eventually(lambda: json.loads(runtime.succeed("list", "--format=json")) == [])
    assert eventually(lambda: runtime.tapwright.names() == set())


@pytest.mark.parametrize("hook", ["prestart", "createContainer"])
def test_create_is_killed_in_a_hook(runtime: Runtime, tmp_path: Path, hook: str) -> None:
    """At a moment when it has a shim, and no caller knows of the shim."""
    begun = tmp_path / "begun"
    script = f"echo $$ > {begun}.new; mv {begun}.new {begun}; exec sleep 1000"
    hooks = {hook: [{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/bin"]}]}
    name = runtime.fresh_id()
    bundle = runtime.bundle(configuration("sleep", "1000", hooks=hooks))
    creating = subprocess.Popen(runtime.tapwright.command("create", "-b", str(bundle), name))
    try:
        assert eventually(begun.exists)
        assert json.loads(runtime.succeed("state", name))["status"] == "created"
        creating.kill()
        creating.wait()
        runtime.succeed("delete", "--force", name)
    finally:
        os.kill(int(begun.read_text()), signal.SIGKILL)
