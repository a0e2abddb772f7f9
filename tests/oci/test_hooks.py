from pathlib import Path

import pytest

from tapwright.errors import ContainerStateError
from tapwright.oci import hooks
from tapwright.oci.log import Log

STATE = {"id": "c1", "pid": 5, "status": "creating"}


def shell(script: str, **more: object) -> dict[str, object]:
    return {"path": "/bin/sh", "args": ["hook", "-c", script], **more}


@pytest.mark.unit
def test_they_get_the_state_and_nothing_but_their_environment(tmp_path: Path) -> None:
    script = f"cat > {tmp_path}/state; echo $A-$HOME-$0 > {tmp_path}/said"
    hooks.run("prestart", [shell(script, env=["A=b=c"])], STATE)
    assert (tmp_path / "state").read_text() == '{"id": "c1", "pid": 5, "status": "creating"}'
    assert (tmp_path / "said").read_text() == "b=c--hook\n"


@pytest.mark.unit
def test_without_an_environment_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have the caller's, or what the container's process has; an empty one is empty."""
    monkeypatch.setenv("TWTEST", "caller")
    said = tmp_path / "said"
    script = f"echo ${{TWTEST-none}} >> {said}"
    hooks.run("prestart", [shell(script), shell(script, env=[])], STATE)
    own = shell(script, env=["TWTEST=own"])
    hooks.run("createContainer", [shell(script), own], STATE, environment=["TWTEST=process"])
    assert said.read_text().split() == ["caller", "none", "process", "own"]


@pytest.mark.unit
def test_the_first_failure_ends_it(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(
        ContainerStateError, match=r"prestart hook 0 \(/bin/sh\).*status 3.*no good"
    ):
        hooks.run("prestart", [shell("echo no good >&2; exit 3"), shell(f"touch {made}")], STATE)
    assert not made.exists()


@pytest.mark.unit
def test_time_is_limited() -> None:
    with pytest.raises(ContainerStateError, match="did not end within 1 s"):
        hooks.run("prestart", [shell("exec sleep 1000", timeout=1)], STATE)


@pytest.mark.unit
def test_nobody_waits_for_what_a_hook_leaves_running(tmp_path: Path) -> None:
    hooks.run("prestart", [shell(f"sleep 1000 & echo $! > {tmp_path}/pid")], STATE)
    Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/status").read_text()
    hooks.run("prestart", [shell(f"kill $(cat {tmp_path}/pid)")], STATE)


@pytest.mark.unit
def test_a_missing_program() -> None:
    with pytest.raises(ContainerStateError, match="No such file"):
        hooks.run("createRuntime", [{"path": "/nowhere"}], STATE)


@pytest.mark.unit
def test_a_null_character() -> None:
    for hook in (shell("true", env=["A=\0"]), shell("\0")):
        with pytest.raises(ContainerStateError, match="can't be run: embedded null byte"):
            hooks.run("prestart", [hook], STATE)


@pytest.mark.unit
def test_those_of_poststop_only_warn(tmp_path: Path) -> None:
    log, made = Log(str(tmp_path / "log"), "text"), tmp_path / "made"
    hooks.run_poststop([shell("exit 1"), shell(f"touch {made}")], STATE, log)
    log.succeeded()
    assert made.exists()
    assert "poststop hook 0" in (tmp_path / "log").read_text()


def test_in_a_network_namespace(tmp_path: Path, scratch_netns: str) -> None:
    script = f"readlink /proc/self/ns/net > {tmp_path}/net"
    hooks.run("createContainer", [shell(script)], STATE, scratch_netns)
    inode = Path(scratch_netns).stat().st_ino
    assert (tmp_path / "net").read_text() == f"net:[{inode}]\n"
