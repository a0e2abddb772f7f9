"""What a process sees that joins the mount namespace of a container's process on the host."""

import os
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tapwright.linux import mounts
from tapwright.oci import shim, view
from tapwright.oci.mounts import Shared


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A container's root filesystem, with a link that leads out of it."""
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hosts").touch()
    (root / "memory").mkdir()
    (root / "memory" / "below").touch()
    (root / "out").symlink_to(tmp_path)
    (tmp_path / "bound").write_text("bound\n")
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "hosts").write_text("the host's\n")
    return root


@pytest.fixture
def pid(root: Path, tmp_path: Path) -> Iterator[int]:
    """Of a shim with such a view."""
    bound = str(tmp_path / "bound")
    shared = [
        Shared("rootfs", str(root), "/"),
        Shared("mount-0", bound, "/etc/hosts", ["ro"]),
        Shared("mount-1", bound, "/run/of/the/guest"),
        Shared("mount-2", bound, "/out/etc/hosts"),
    ]
    ours, theirs = socket.socketpair()
    with closing(ours), closing(theirs):
        with view.of_container(shared, ["/memory", "/not/there"]) as namespace:
            pid = shim.start(theirs, "c1", view=namespace)
        yield pid
        ours.sendall(b'{"exited": {"status": 0}}\n')
        assert os.waitpid(pid, 0)[1] == 0


def joined(pid: int, path: str) -> list[str]:
    """The lines of a file, or the names in a directory, as a process that joins sees them."""

    def look() -> list[str]:
        return os.listdir(path) if os.path.isdir(path) else Path(path).read_text().splitlines()

    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return mounts.within(fd, look)
    finally:
        os.close(fd)


def test_the_container_and_nothing_else(pid: int, tmp_path: Path) -> None:
    assert sorted(joined(pid, "/")) == ["etc", "memory", "out"]
    assert joined(pid, "/etc/hosts") == ["bound"]
    assert (tmp_path / "etc" / "hosts").read_text() == "the host's\n"


def test_what_may_not_be_written(pid: int) -> None:
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError, match="Read-only"):
            mounts.within(fd, lambda: Path("/etc/hosts").write_text("changed"))
    finally:
        os.close(fd)


def test_what_is_in_the_guests_memory_can_not_be_written(pid: int) -> None:
    """It would be in the root filesystem, where the container does not see it."""
    assert joined(pid, "/memory") == []
    fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    try:
        with pytest.raises(OSError, match="Read-only"):
            mounts.within(fd, lambda: Path("/memory/new").touch())
    finally:
        os.close(fd)


def test_the_shim_runs_programs_of_the_host(pid: int) -> None:
    assert os.path.samefile(f"/proc/{pid}/root", "/")
    assert os.path.samefile(f"/proc/{pid}/cwd", "/")
