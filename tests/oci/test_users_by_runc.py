"""Containers with a user namespace: what they see of users, files and the network, by runc and by
Tapwright."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.oci.bundles import CAPABILITIES, NAMESPACES
from tests.oci.conftest import Run
from tests.oci.runtime import Runtime
from tests.oci.test_pod import member, pod

pytestmark = pytest.mark.usefixtures("nothing_left", "passable")

FIRST = 100_000
MAPPING = [{"containerID": 0, "hostID": FIRST, "size": 65536}]
MAPPED = {"uidMappings": MAPPING, "gidMappings": MAPPING}
LINUX = {"namespaces": [{"type": kind} for kind in (*NAMESPACES, "user")], **MAPPED}
DEVICE = {"path": "/dev/net/tun", "type": "c", "major": 10, "minor": 200, "fileMode": 0o666}


@pytest.fixture(scope="module")
def passable(runtime: Runtime) -> Iterator[None]:
    """The bundles are in directories that users may pass, as a platform has them. runc looks for
    the root filesystem as the container's root."""
    changed = list[tuple[Path, int]]()
    for path in runtime.directory.parents:
        mode = path.stat().st_mode
        if not mode & 0o001:
            changed.append((path, mode))
            path.chmod(mode | 0o001)
    runtime.directory.chmod(0o711)
    yield
    for path, mode in changed:
        path.chmod(mode)


def _files(rootfs: Path) -> None:
    """Those of the container's root, of a user of it, and of the host's root, as a platform leaves
    them."""
    for path in (rootfs, *rootfs.rglob("*")):
        if path.name != "busybox":  # which all bundles have in common
            os.chown(path, FIRST, FIRST, follow_symlinks=False)
    for name, owner in (("theirs", FIRST + 1000), ("hosts", 0)):
        (rootfs / name).mkdir(mode=0o700)
        (rootfs / name / "program").write_text("#!/bin/sh\necho it ran; exec id\n")
        for path in (rootfs / name / "program", rootfs / name):
            path.chmod(0o700)
            os.chown(path, owner, owner)


# /proc and /sys have as many entries as the kernel has.
_LOOK = """
cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups /proc/self/oom_score_adj
cat /proc/sys/net/ipv4/ping_group_range
id
ls -ln / | grep -v dev | awk '{ print $1, $3, $4, $9 }'
stat -c '%n %u %g %a' /dev /dev/null /dev/pts /dev/net/tun
ls /hosts; chown 0:0 /hosts
touch /new; chown 7:8 /new
grep Cap /proc/self/status
grep ' /sys ' /proc/mounts | cut -d' ' -f2-4
mount -t tmpfs tmpfs /tmp && echo mounted
nc -l -p 80 -w 1
echo heard >/dev/stderr
"""


def test_what_it_sees(by_runc: Run, by_us: Run) -> None:
    """With rights for the network, of which it needs one for a low port, and sysctls of it."""
    rights = [*CAPABILITIES, "CAP_SYS_ADMIN"]
    sysctl = {"net.ipv4.ping_group_range": "0 5"}
    owners = list[tuple[int, int]]()

    def said(run: Run) -> str:
        roots = list[Path]()

        def prepare(rootfs: Path) -> None:
            _files(rootfs)
            roots.append(rootfs)

        found = run(
            *("sh", "-c", _LOOK),
            prepare=prepare,
            process={"capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights)},
            linux=LINUX | {"sysctl": sysctl, "devices": [DEVICE]},
        )
        status = (roots[0] / "new").stat()
        owners.append((status.st_uid, status.st_gid))
        return found

    expected = said(by_runc)
    assert "nc: timed out" in expected
    assert "\nmounted\n" in expected
    assert said(by_us) == expected
    assert owners == [(FIRST + 7, FIRST + 8)] * 2


def test_whose_program_it_is(by_runc: Run, by_us: Run) -> None:
    """It is looked up by the container's user, who is another one for the host."""
    process = {"user": {"uid": 1000, "gid": 1000}, "capabilities": {}}
    expected, found = (
        run("/theirs/program", prepare=_files, process=process, linux=LINUX)
        for run in (by_runc, by_us)
    )
    assert expected == "0 it ran\nuid=1000 gid=1000\n"
    assert found == expected


def test_members_of_a_pod(runtime: Runtime, tmp_path: Path) -> None:
    """One joins the users of the pod, as containerd has it; one has its own; and one has files of
    the host's root, which an id-mapped mount gives to its own root."""
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "file").write_text("text\n")
    (volume / "file").chmod(0o600)
    bound: dict[str, Any] = {"destination": "/data", "type": "bind", "source": str(volume)}
    bound |= MAPPED | {"options": ["rbind"]}
    with pod(runtime, linux=LINUX) as sandbox:
        joining = member(sandbox, "sleep", "1000")
        users = {"type": "user", "path": f"/proc/{sandbox.pid}/ns/user"}
        joining["linux"]["namespaces"].append(users)
        joining["linux"] |= MAPPED
        joining["mounts"].append(bound)
        own = member(sandbox, "sleep", "1000")
        own["linux"]["namespaces"].append({"type": "user"})
        other = [{"containerID": 0, "hostID": 2 * FIRST, "size": 10}]
        own["linux"] |= {"uidMappings": other, "gidMappings": other}
        with runtime.created(joining) as one, runtime.created(own) as two:
            one.start()
            two.start()
            of_pod = sandbox.says("readlink", "/proc/self/ns/user")
            assert one.says("readlink", "/proc/self/ns/user") == of_pod
            assert two.says("readlink", "/proc/self/ns/user") != of_pod
            assert two.says("cat", "/proc/self/uid_map").split() == ["0", str(2 * FIRST), "10"]
            # Detached, they have the null device for stdin, which crun gives to their users.
            for container in (sandbox, one, two):
                assert container.says("stat", "-c", "%u %a", "/dev/null") == "65534 666\n"
            assert one.says("cat", "/data/file") == "text\n"
            one.says("sh", "-c", "touch /data/new; chown 7:8 /data/new")
            status = (volume / "new").stat()
            assert (status.st_uid, status.st_gid) == (7, 8)
