"""The control group of a sandbox's own."""

import os
import signal
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tapwright.linux import cgroups
from tapwright.sandbox import launching
from tests.host import eventually
from tests.oci.test_cgroups import limit_of, memory_of
from tests.sandboxes import Tapwright, ended, pids_of

# With `machine` the host knows already whether KVM boots a guest, so commands do not say that they
# try.
pytestmark = pytest.mark.usefixtures("machine", "nothing_left")


def test_it_bounds_the_sandbox_and_goes_with_it(tapwright: Tapwright) -> None:
    above = f"/twtest-own-{os.urandom(4).hex()}"
    own = {"sandbox_cgroup": above, "cpu_max": 150, "memory_max": 900, "pids_max": 200}
    done = tapwright.run("sandbox", "run", "own", config=tapwright.configuration(own))
    try:
        assert done.returncode == 0
        assert done.stderr == ""
        sandbox = tapwright.json("sandbox", "inspect", "own")
        lines = Path(f"/proc/{pids_of(sandbox)[1]}/cgroup").read_text().splitlines()
        (path,) = {line.split(":", 2)[2] for line in lines}
        assert path.startswith(f"{above}/own-")
        assert set(pids_of(sandbox)) <= cgroups.members(path)
        assert memory_of(path) == str(900 << 20)
        assert limit_of(path, "pids", "pids.max", "pids.max") == "200"
        supervisor = pids_of(sandbox)[0]
        os.kill(supervisor, signal.SIGKILL)
        assert eventually(lambda: ended(supervisor))
    finally:
        tapwright.delete("own")
    assert cgroups.members(path) == set()
    assert not any(os.path.exists(each.directory(above)) for each in cgroups.hierarchies())


def test_what_works_in_the_background_has_left_it_from_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the place of the interpreter there is a program that says where it is, and stays."""
    said, program = tmp_path / "said", tmp_path / "program"
    program.write_text(
        f"#!/bin/sh\n(echo $$; cat /proc/self/cgroup) >{said}.new\n"
        f"mv {said}.new {said}\nexec sleep 1000\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    group = f"/twtest-background-{os.urandom(4).hex()}"
    assert cgroups.make(group) == []
    try:
        caller = os.fork()
        if not caller:
            with suppress(BaseException):
                assert cgroups.join(group) == []
                launching.in_background("spare")
                assert cgroups.members(group) == {os.getpid()}
                os._exit(0)
            os._exit(1)
        assert os.waitpid(caller, 0)[1] == 0
        os.rmdir(cgroups.hierarchies()[-1].directory(group))  # at once, though that one is there
        assert eventually(said.exists)
        pid, *lines = said.read_text().splitlines()
        os.kill(int(pid), signal.SIGKILL)
        assert {line.split(":", 2)[2] for line in lines} == {"/"}
    finally:
        cgroups.remove(group, evict=True)
