"""Control groups: those of this machine, and version 2 by its files."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tapwright.linux import cgroups
from tapwright.linux.cgroups import Hierarchy, Limits

GROUP = f"/twtest-{os.urandom(4).hex()}/a"


@pytest.fixture
def group() -> Iterator[str]:
    assert cgroups.make(GROUP) == []
    yield GROUP
    cgroups.remove(GROUP, evict=True)
    cgroups.remove_if_empty(os.path.dirname(GROUP))
    assert not list(Path("/sys/fs/cgroup").glob(f"*{os.path.dirname(GROUP)}"))


@pytest.fixture
def v2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of a hierarchy of version 2, with a group `a`."""
    for directory in (tmp_path, tmp_path / "a"):
        directory.mkdir(exist_ok=True)
        (directory / "cgroup.controllers").write_text("cpuset cpu io memory pids misc\n")
        for name in ("cgroup.subtree_control", "memory.max", "cpu.max", "cpu.weight", "pids.max"):
            (directory / name).write_text("")
    monkeypatch.setattr(cgroups, "hierarchies", lambda: [Hierarchy(str(tmp_path), frozenset())])
    return tmp_path


def test_a_process_leaves_only_the_group_that_it_is_in(group: str) -> None:
    pid = os.fork()
    if not pid:
        with suppress(BaseException):
            assert cgroups.join(group) == []
            assert cgroups.leave(os.path.dirname(group))
            assert cgroups.members(group) == {os.getpid()}
            assert cgroups.leave(group)
            assert cgroups.members(group) == set()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("", ""),
        ("/a/b", "/a/b"),
        ("a/b/", "/a/b"),
        ("//a/../../b", "/b"),
        ("system.slice:docker:1f", "/system.slice/docker-1f.scope"),
        (":cri-containerd:1f", "/system.slice/cri-containerd-1f.scope"),
        ("-.slice:crio:1f", "/crio-1f.scope"),
        (
            "kubepods-burstable-pod9_3.slice:crio:1f",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod9_3.slice/crio-1f.scope",
        ),
        ("machine.slice::own.slice", "/machine.slice/own.slice"),
    ],
)
def test_paths_as_platforms_write_them(written: str, path: str) -> None:
    assert cgroups.expanded(written) == path


@pytest.mark.parametrize(
    "written", ["a.slice:x:", "a-.slice:x:y", "a:x:y", "a.slice:x:../y", "a\n"]
)
def test_what_is_no_path(written: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        cgroups.expanded(written)


def test_a_process_and_its_children_are_in_all_hierarchies(group: str) -> None:
    child = os.fork()
    if not child:
        failures = cgroups.join(group)
        found = subprocess.run(["cat", "/proc/self/cgroup"], capture_output=True, text=True)
        lines = found.stdout.splitlines()
        os._exit(bool(failures) or not all(line.endswith(f":{group}") for line in lines))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_limits_hold(group: str) -> None:
    wanted = Limits(memory=64 << 20, cpu_quota=50_000, cpu_period=100_000, cpu_shares=512, pids=1)
    assert cgroups.limit(group, wanted) == []
    done = subprocess.run(
        ["sh", "-c", "true & wait $!"],
        preexec_fn=lambda: cgroups.join(group) and None,
        capture_output=True,
        text=True,
    )
    assert done.returncode
    assert "fork" in done.stderr
    assert cgroups.limit(group, Limits(pids=-1)) == []


def test_a_group_in_use_is_not_removed_but_left(group: str) -> None:
    sleeper = subprocess.Popen(["sleep", "100"])
    try:
        assert cgroups.join(group, sleeper.pid) == []
        assert cgroups.members(group) == {sleeper.pid}
        with pytest.raises(OSError, match=rf"in use by sleep \({sleeper.pid}\)"):
            cgroups.remove(group)
        cgroups.remove(group, evict=True)
        assert sleeper.poll() is None
        assert cgroups.members(group) == set()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_one_hierarchy_that_is_in_use_keeps_no_other(group: str) -> None:
    first = cgroups.hierarchies()[0]
    with subprocess.Popen(["sleep", "100"]) as sleeper:
        Path(first.directory(group), "cgroup.procs").write_text(str(sleeper.pid))
        with pytest.raises(OSError, match=first.directory(group)):
            cgroups.remove(group)
        there = [each for each in cgroups.hierarchies() if os.path.exists(each.directory(group))]
        sleeper.kill()
    assert [each.place for each in there] == [first.place]


def test_the_files_of_version_2(v2: Path) -> None:
    assert cgroups.make("/a/b") == []
    assert (v2 / "a" / "b").is_dir()
    for name in ("memory.max", "cpu.max", "cpu.weight", "pids.max"):
        (v2 / "a" / "b" / name).write_text("")
    wanted = Limits(memory=1 << 20, cpu_quota=5, cpu_period=10, cpu_shares=1024, pids=-1)
    assert cgroups.limit("/a/b", wanted) == []
    found = {path.name: path.read_text() for path in (v2 / "a" / "b").iterdir()}
    assert found == {
        "memory.max": "1048576",
        "cpu.max": "5 10",
        "cpu.weight": "39",
        "pids.max": "max",
    }
    assert (v2 / "a" / "cgroup.subtree_control").read_text()
    assert cgroups.has("memory", "/a")
    assert not cgroups.has("hugetlb", "/a")


def test_impossible_limits_are_named(v2: Path) -> None:
    (failure,) = cgroups.limit("/a", Limits(cpus="0"))
    assert failure == "cpuset.cpus: there is no controller 'cpuset' in /a"
    (failure,) = cgroups.join("/nowhere")
    assert failure == f"{v2}/nowhere: No such file or directory"
    assert cgroups.summed(["one", "two", "three"]) == "one (and 2 more)"
