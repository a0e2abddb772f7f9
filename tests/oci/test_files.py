"""Files of the host in a container."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime

pytestmark = pytest.mark.usefixtures("nothing_left")


def bound(source: Path, destination: str, *options: str) -> dict[str, object]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": ["rbind", *options],
    }


def test_root_filesystem(runtime: Runtime) -> None:
    """What the container writes is there for the platform, and the other way round."""
    script = "echo out > /data/out; chown 5:6 /data/out; chmod 600 /data/out; ln -s out /data/link"
    with runtime.created(configuration("sh", "-c", script)) as container:
        container.start()
        assert (container.wait(), container.output()) == (0, "")
        data = container.bundle / "rootfs/data"
        assert (data / "out").read_text() == "out\n"
        assert os.readlink(data / "link") == "out"
        status = os.stat(data / "out")
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (5, 6, 0o600)


def test_read_only_root_filesystem(runtime: Runtime) -> None:
    tmpfs = {"destination": "/tmp", "type": "tmpfs", "options": ["size=1m"]}
    script = "touch /x 2>&1; touch /tmp/y && ls /tmp"
    status, output = runtime.run("sh", "-c", script, root={"readonly": True}, mounts=[tmpfs])
    assert status == 0
    assert "Read-only file system" in output
    assert output.endswith("y\n")


def test_bind_mounts(runtime: Runtime, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("1.2.3.4 somewhere\n")
    for name in ("rw", "ro"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text(name)
    mounts = [
        bound(hosts, "/etc/hosts"),
        bound(tmp_path / "rw", "/rw"),
        bound(tmp_path / "ro", "/new/ro", "ro"),
    ]
    with runtime.running("sleep", "1000", mounts=mounts) as container:
        assert container.says("cat", "/etc/hosts", "/rw/old", "/new/ro/old").endswith("rwro")
        container.says("sh", "-c", "echo new > /rw/new; echo more >> /etc/hosts")
        assert (tmp_path / "rw/new").read_text() == "new\n"
        assert hosts.read_text() == "1.2.3.4 somewhere\nmore\n"
        refused = container.exec("touch", "/new/ro/x")
        assert "Read-only file system" in refused.stderr
        (tmp_path / "rw/late").write_text("late")
        assert container.says("cat", "/rw/late") == "late"


def test_the_host_keeps_what_is_read_only(runtime: Runtime, tmp_path: Path) -> None:
    """Whatever the guest does: it can't write there even from outside of the container."""
    (tmp_path / "ro").mkdir()
    (tmp_path / "ro/file").write_text("safe")
    mounts = [bound(tmp_path / "ro", "/ro", "ro")]
    with runtime.running("sleep", "1000", mounts=mounts) as container:
        share = f"/run/tapwright/share/{container.id}"
        script = f"for i in {share}/mount-*; do echo bad > $i/file; done"
        runtime.tapwright.exec_with_status(container.state["sandbox"], "sh", "-c", script)
        assert (tmp_path / "ro/file").read_text() == "safe"


def test_mounts_below_a_bind_mount(runtime: Runtime, tmp_path: Path) -> None:
    (tmp_path / "outer/inner").mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path / "outer/inner")], check=True)
    try:
        (tmp_path / "outer/inner/file").write_text("deep")
        status, output = runtime.run(
            *("cat", "/outer/inner/file"), mounts=[bound(tmp_path / "outer", "/outer")]
        )
        assert (status, output) == (0, "deep")
        alone = bound(tmp_path / "outer", "/outer") | {"options": ["bind"]}
        assert runtime.run("ls", "/outer/inner", mounts=[alone]) == (0, "")
    finally:
        subprocess.run(["umount", str(tmp_path / "outer/inner")], check=True)


def test_kernel_filesystems(runtime: Runtime) -> None:
    mounts = [
        {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue"},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
    ]
    status, output = runtime.run("cat", "/proc/mounts", mounts=mounts)
    assert status == 0, output
    found = {line.split()[1]: line.split()[2] for line in output.splitlines()}
    assert found["/dev/mqueue"] == "mqueue"
    assert found["/sys/fs/cgroup"] == "cgroup2"
    assert (found["/proc"], found["/dev/pts"], found["/"]) == ("proc", "devpts", "virtiofs")


def test_no_mounts_at_all(runtime: Runtime) -> None:
    """Devices there are all the same, and none of them in the root filesystem of the host."""
    content = configuration("sh", "-c", "echo lost > /dev/null; test -c /dev/null")
    content["mounts"] = []
    with runtime.created(content) as container:
        container.start()
        assert (container.wait(), container.output()) == (0, "")
        assert list((container.bundle / "rootfs/dev").iterdir()) == []


def test_the_mount_table_of_the_host(runtime: Runtime, tmp_path: Path) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with runtime.running("sleep", "1000", mounts=[bound(tmp_path, "/x")]):
        now = Path("/proc/self/mountinfo").read_text()
        ours = {line for line in now.splitlines() if "/run/netns" not in line}
        assert ours <= set(before.splitlines())
