"""What is memory on the host is memory in the guest."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import BundleError
from tapwright.oci import bundle, memory, mounts
from tapwright.oci.log import Log
from tests.oci.bundles import configuration, write
from tests.oci.runtime import Runtime
from tests.oci.test_files import bound
from tests.oci.test_pod import member, pod

MIB = 1 << 20


class Tmpfses:
    """Filesystems in memory, as platforms mount them, below a directory."""

    def __init__(self, directory: Path) -> None:
        self._pod = directory / "pods/1"
        self._directory = directory
        self._mounted: list[Path] = []

    def tmpfs(self, name: str, *options: str) -> Path:
        return self._mount(self._directory / name, "-t", "tmpfs", "-o", ",".join(options), "shm")

    def volume(self, name: str, *options: str) -> Path:
        """An emptyDir of `medium: Memory`."""
        volumes = self._pod / "volumes/kubernetes.io~empty-dir"
        return self.tmpfs(str(volumes / name), "mode=777", *options)

    def subpath(self, volume: Path, path: str, container: str) -> Path:
        """As the kubelet prepares it."""
        (volume / path).mkdir(parents=True, exist_ok=True)
        place = self._pod / "volume-subpaths" / volume.name / container / "0"
        return self._mount(place, "--bind", str(volume / path))

    def unmount(self, path: Path) -> None:
        subprocess.run(["umount", str(path)], check=True)
        self._mounted.remove(path)

    def close(self) -> None:
        for path in reversed(self._mounted[:]):
            self.unmount(path)

    def _mount(self, path: Path, *words: str) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", *words, str(path)], check=True)
        self._mounted.append(path)
        return path


@pytest.fixture
def tmpfses(tmp_path: Path) -> Iterator[Tmpfses]:
    made = Tmpfses(tmp_path / "host")
    yield made
    made.close()


def wanted(source: Path, destination: str = "/dev/shm") -> Any:
    mount: dict[str, Any] = {"destination": destination, "options": ["rbind"]}
    serves = memory.serves(mount, str(source))
    assert serves == mount.get("memory", {}).get("make", False)
    return mount.get("memory")


def test_shared_memory_is_as_the_hosts(tmpfses: Tmpfses) -> None:
    shm = tmpfses.tmpfs("shm", "size=8m", "mode=1770", "uid=5", "gid=6", "noexec", "nodev")
    found = wanted(shm, "/dev/./shm/")
    assert found["bytes"] == 8 * MIB
    assert found["directories"] == [{"name": "", "mode": 0o1770, "uid": 5, "gid": 6}]
    assert (found["make"], found["lasting"]) == (True, False)
    assert wanted(shm, "/other") is None


@pytest.mark.parametrize(
    ("given", "more"), [(["rbind", "rw"], ["nodev", "noexec"]), (["bind", "nosuid"], [])]
)
def test_attributes_of_the_hosts_mount(tmpfses: Tmpfses, given: list[str], more: list[str]) -> None:
    shm = tmpfses.tmpfs("shm", "noexec", "nodev")
    mount: dict[str, Any] = {"destination": "/dev/shm", "options": given}
    assert memory.serves(mount, str(shm))
    assert mount["options"] == given + more


@pytest.mark.parametrize("options", [(), ("size=0",), ("size=90%",)])
def test_a_size_that_is_no_bound(tmpfses: Tmpfses, options: tuple[str, ...]) -> None:
    """The guest has another amount of memory."""
    assert wanted(tmpfses.tmpfs("shm", *options))["bytes"] == 0


def test_what_is_no_memory_of_the_host(tmpfses: Tmpfses, tmp_path: Path) -> None:
    assert wanted(tmpfses.tmpfs("shm", "ro")) is None
    (tmp_path / "file").touch()
    on_disk = Path("/usr")
    assert wanted(on_disk) is None
    (tmpfses.tmpfs("other") / "file").touch()
    assert wanted(tmp_path / "host/other/file") is None
    plain = tmp_path / "host/kubernetes.io~empty-dir/plain"
    plain.mkdir(parents=True)
    assert wanted(plain, "/x") is None


def test_what_has_files_is_not_made(tmpfses: Tmpfses) -> None:
    shm = tmpfses.tmpfs("shm")
    (shm / "directory").mkdir()
    assert not wanted(shm)["make"]
    volume = tmpfses.volume("cache")
    # The kubelet makes these for subPaths.
    (volume / "a/b").mkdir(parents=True)
    assert wanted(volume, "/cache")["make"]
    (volume / "a/b/file").touch()
    assert not wanted(volume, "/cache")["make"]


def test_a_name_for_each(tmpfses: Tmpfses) -> None:
    """Also for one that gets the numbers of one that has gone."""
    names = set()
    for _ in range(8):
        shm = tmpfses.tmpfs("shm")
        names.add(wanted(shm)["name"])
        assert wanted(shm)["name"] in names
        tmpfses.unmount(shm)
    assert len(names) == 8


def test_a_directory_of_a_volume(tmpfses: Tmpfses) -> None:
    volume = tmpfses.volume("cache", "size=4m")
    part = tmpfses.subpath(volume, "a/b", "web")
    (volume / "a").chmod(0o750)
    whole, below = wanted(volume, "/cache"), wanted(part, "/part")
    assert below["name"] == whole["name"]
    assert [entry["name"] for entry in below["directories"]] == ["", "a", "b"]
    assert below["directories"][1]["mode"] == 0o750
    assert below["lasting"]
    assert wanted(volume / "a", "/x") is None


@pytest.mark.unit
def test_what_has_gone(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"/dev/shm: its source .*: No such file or directory"):
        wanted(tmp_path / "nothing")


def test_what_is_shared_beside(tmpfses: Tmpfses, tmp_path: Path) -> None:
    empty, full = tmpfses.tmpfs("empty"), tmpfses.volume("full")
    (full / "file").touch()
    content = configuration(mounts=[bound(empty, "/dev/shm"), bound(full, "/cache", "ro")])
    loaded = bundle.load(str(write(tmp_path / "bundle", content)))
    shared, of_guest = mounts.plan(loaded, "c1", Log("", "text"))
    assert [(entry.name, entry.source) for entry in shared[1:]] == [("mount-5", str(full))]
    made, taken = of_guest[-2:]
    assert (made["memory"]["make"], taken["memory"]["make"]) == (True, False)
    assert taken["source"] == "/run/tapwright/share/c1/mount-5"
    assert taken["options"] == ["rbind", "ro"]


def test_what_is_asked_for(tmpfses: Tmpfses, tmp_path: Path) -> None:
    shm, volume = tmpfses.tmpfs("shm", "size=3m"), tmpfses.volume("cache", "size=2m")
    part = tmpfses.subpath(volume, "part", "web")
    binds = [bound(shm, "/dev/shm"), bound(volume, "/cache"), bound(part, "/part")]
    assert asked_for(tmp_path, *binds, bound(tmpfses.volume("all"), "/all")) == 5 * MIB


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "size"),
    [([], 0), (["size=9", "size=64K"], 65536), (["size=2g"], 2048 * MIB), (["size=50%"], 0)],
)
def test_what_the_platform_asks_the_runtime_for(
    tmp_path: Path, options: list[str], size: int
) -> None:
    """Docker does, for a container whose memory nobody may join."""
    shm = {"destination": "/dev/shm/", "type": "tmpfs", "options": options}
    other = {"destination": "/other", "type": "tmpfs", "options": ["size=1m"]}
    assert asked_for(tmp_path, shm, other) == size


def asked_for(tmp_path: Path, *wanted: dict[str, Any]) -> int:
    content = configuration(mounts=list(wanted))
    loaded = bundle.load(str(write(tmp_path / "bundle", content)))
    return memory.asked_for(mounts.plan(loaded, "c1", Log("", "text"))[1])


@pytest.mark.usefixtures("nothing_left")
def test_files_at_the_place_of_memory(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    script = "cat /dev/shm/old && echo new > /dev/shm/new"
    assert runtime.run("sh", "-c", script, mounts=[bound(tmp_path, "/dev/shm")]) == (0, "old")
    assert (tmp_path / "new").read_text() == "new\n"


SIZE = "set -- $(stat -f -c '%S %b' /dev/shm); echo $(($1 * $2)); stat -c '%a %u %g' /dev/shm"


@pytest.mark.usefixtures("nothing_left")
def test_size_and_owner(runtime: Runtime, tmpfses: Tmpfses) -> None:
    shm = tmpfses.tmpfs("shm", "size=3m", "mode=1770", "uid=5", "gid=6", "noexec")
    script = f"grep -c '^shm /dev/shm tmpfs ' /proc/mounts; {SIZE}; "
    script += "cp /bin/busybox /dev/shm/true && /dev/shm/true 2>&1; echo $?"
    status, output = runtime.run("sh", "-c", script, mounts=[bound(shm, "/dev/shm")])
    assert status == 0, output
    lines = output.splitlines()
    assert lines[:3] == ["1", str(3 * MIB), "1770 5 6"]
    assert lines[-1] == "126"
    assert list(shm.iterdir()) == []


@pytest.mark.usefixtures("nothing_left")
def test_all_of_it_can_be_used(runtime: Runtime, tmpfses: Tmpfses) -> None:
    """A guest that is as large as it is by default ends when it is full."""
    shm = tmpfses.tmpfs("shm", "size=300m")
    script = "dd if=/dev/zero of=/dev/shm/x bs=1M; stat -c %s /dev/shm/x; free -m"
    with runtime.booting():  # no other test has such guests
        status, output = runtime.run("sh", "-c", script, mounts=[bound(shm, "/dev/shm")])
    assert status == 0, output
    assert "No space left on device" in output
    assert str(300 * MIB) in output.splitlines()


@pytest.mark.usefixtures("nothing_left")
def test_more_than_the_guest_has(runtime: Runtime, tmpfses: Tmpfses) -> None:
    """Of a volume: nobody knows of it when the pod begins."""
    volume = tmpfses.volume("cache", "size=1g")
    with pod(runtime) as sandbox:
        content = member(sandbox, "sh", "-c", "dd if=/dev/zero of=/cache/x bs=1M 2>&1")
        content["mounts"].append(bound(volume, "/cache"))
        with runtime.created(content) as container:
            container.start()
            assert container.wait() == 1
            assert container.prints("No space left on device")
        assert sandbox.state["status"] == "running"


@pytest.mark.usefixtures("nothing_left")
def test_a_pods_memory(runtime: Runtime, tmpfses: Tmpfses) -> None:
    """The pod's own from beginning to end; a member's until the last container that uses it is
    gone; a volume's as long as the pod, because its containers come and go."""
    podwide, own, volume = (
        tmpfses.tmpfs("pod"),
        tmpfses.tmpfs("own"),
        tmpfses.volume("cache", "size=2m"),
    )

    def using(*sources: tuple[Path, str]) -> dict[str, Any]:
        content = member(sandbox, "sleep", "1000")
        content["mounts"] += [bound(source, destination) for source, destination in sources]
        return content

    with pod(runtime, mounts=[bound(podwide, "/dev/shm")]) as sandbox, ExitStack() as members:

        def started(*sources: tuple[Path, str]) -> Any:
            container = members.enter_context(runtime.created(using(*sources)))
            container.start()
            return container

        def mounted() -> int:
            listed = runtime.tapwright.exec(sandbox.id, "cat", "/proc/mounts")
            return sum(" /run/tapwright/memory" in line for line in listed.splitlines())

        sandbox.says("sh", "-c", "echo pod > /dev/shm/x")
        one = started((podwide, "/dev/shm"), (own, "/own"), (volume, "/cache"))
        assert one.says("cat", "/dev/shm/x") == "pod\n"
        one.says("sh", "-c", "echo volume > /cache/x; mkdir /cache/part; echo 1 > /cache/part/y")
        runtime.succeed("delete", "--force", one.id)
        part = tmpfses.subpath(volume, "part", "two")
        two = started((own, "/dev/shm"), (volume, "/cache"), (part, "/part"))
        assert two.says("cat", "/cache/x", "/part/y") == "volume\n1\n"
        assert two.exec("cat", "/dev/shm/x").returncode == 1
        two.says("sh", "-c", "echo own > /dev/shm/x; ln -s / /cache/link; rm /cache/part/y")
        # It is the guest's already, whatever becomes of the host's.
        (own / "file").write_text("host")
        three = started((own, "/dev/shm"))
        assert three.says("cat", "/dev/shm/x") == "own\n"
        assert mounted() == 4
        runtime.succeed("delete", "--force", two.id)
        assert three.says("cat", "/dev/shm/x") == "own\n"
        runtime.succeed("delete", "--force", three.id)
        assert mounted() == 2
        assert os.listdir(own) == ["file"]
        link = tmpfses.subpath(volume, "link", "four")
        refused = runtime.refused(
            "create", "--bundle", str(runtime.bundle(using((link, "/link")))), "four"
        )
        assert "'link' in a volume in memory is a link" in refused
        assert started((own, "/dev/shm")).says("cat", "/dev/shm/file") == "host"
