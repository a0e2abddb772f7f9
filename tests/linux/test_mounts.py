"""Mounts by descriptor: what a clone has, and that nobody else sees it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import libc, mount_table, mounts

MOUNTINFO = Path("/proc/self/mountinfo")


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[Path]:
    """A directory with a file, and a mount in it with another one; of a shared mount."""
    place = tmp_path / "tree"
    (place / "below").mkdir(parents=True)
    subprocess.run(["mount", "--bind", place, place], check=True)
    subprocess.run(["mount", "--make-shared", place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "below", place / "below"], check=True)
    (place / "file").write_text("of the tree")
    (place / "below" / "file").write_text("of the mount below")
    yield place
    subprocess.run(["umount", "--recursive", place], check=True)


@pytest.fixture
def namespace() -> Iterator[int]:
    """With nothing in it but two places to mount on."""
    root = libc.detached_mount("tmpfs", size="64k")
    os.mkdir("directory", dir_fd=root)
    os.close(os.open("file", os.O_CREAT, dir_fd=root))
    fd = mounts.new_namespace(root)
    os.close(root)
    yield fd
    os.close(fd)


def attached(namespace: int, fd: int, path: str) -> None:
    mounts.within(namespace, lambda: mounts.attach(fd, path))
    os.close(fd)


def read(namespace: int, path: str) -> str:
    return mounts.within(namespace, lambda: Path(path).read_text())


def test_a_namespace_has_nothing_of_the_host(namespace: int) -> None:
    before = MOUNTINFO.read_text()
    assert sorted(mounts.within(namespace, lambda: os.listdir("/"))) == ["directory", "file"]
    assert sorted(mounts.within(namespace, lambda: os.listdir("/../.."))) == ["directory", "file"]
    assert MOUNTINFO.read_text() == before
    assert os.path.exists("/proc/self"), "the thread that entered it has ended"


@pytest.mark.parametrize("root", [".", "of/no/mount"])
def test_a_namespace_made_in_a_chroot_has_nothing_of_the_host(tree: Path, root: str) -> None:
    """As in a pod that works on its node by `chroot /host`."""
    (tree / root / "proc").mkdir(parents=True)
    subprocess.run(["mount", "--rbind", "/proc", tree / root / "proc"], check=True)

    def make() -> int:
        libc.unshare(libc.CLONE_FS)
        os.chroot(tree / root)
        empty = libc.detached_mount("tmpfs", size="64k")
        try:
            return mounts.new_namespace(empty)
        finally:
            os.close(empty)

    made = mounts.in_thread(make)
    try:
        assert mounts.within(made, lambda: os.listdir("/")) == []
        assert mounts.within(made, lambda: os.listdir("/../..")) == []
    finally:
        os.close(made)


def test_a_clone_has_what_is_mounted_below(namespace: int, tree: Path) -> None:
    attached(namespace, mounts.clone(str(tree)), "/directory")
    assert read(namespace, "/directory/file") == "of the tree"
    assert read(namespace, "/directory/below/file") == "of the mount below"


def test_without_what_is_mounted_below(namespace: int, tree: Path) -> None:
    attached(namespace, mounts.clone(str(tree), recursive=False), "/directory")
    assert mounts.within(namespace, lambda: os.listdir("/directory/below")) == []


def test_a_file(namespace: int, tree: Path) -> None:
    fd = mounts.clone(str(tree / "file"))
    assert not mounts.is_directory(fd)
    attached(namespace, fd, "/file")
    (tree / "file").write_text("written later")
    assert read(namespace, "/file") == "written later"


def test_a_descriptor(namespace: int, tree: Path) -> None:
    directory = os.open(tree, os.O_PATH)
    attached(namespace, mounts.clone(directory), "/directory")
    os.close(directory)
    assert read(namespace, "/directory/file") == "of the tree"


def test_mounts_do_not_propagate(namespace: int, tree: Path) -> None:
    attached(namespace, mounts.clone(str(tree)), "/directory")
    before = MOUNTINFO.read_text()
    attached(namespace, libc.detached_mount("tmpfs"), "/directory/below")
    assert MOUNTINFO.read_text() == before
    (tree / "later").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "later", tree / "later"], check=True)
    (tree / "later" / "file").touch()
    assert mounts.within(namespace, lambda: os.listdir("/directory/later")) == []


def test_read_only_with_what_is_below(namespace: int, tree: Path) -> None:
    attached(namespace, mounts.clone(str(tree), read_only=True), "/directory")
    for name in ("/directory/new", "/directory/below/new"):
        with pytest.raises(OSError, match="Read-only"):
            mounts.within(namespace, Path(name).touch)
    (tree / "new").touch()
    assert mounts.within(namespace, lambda: os.path.exists("/directory/new"))


def test_no_devices(namespace: int, tree: Path) -> None:
    os.mknod(tree / "null", 0o20666, os.makedev(1, 3))
    fd = mounts.clone(str(tree))
    mounts.restrict(fd, mounts.NO_DEVICES)
    attached(namespace, fd, "/directory")
    assert (tree / "null").read_bytes() == b""
    with pytest.raises(PermissionError):
        read(namespace, "/directory/null")


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mounts.clone(str(tmp_path / "missing"))


def test_the_table_of_mounts(tmp_path: Path) -> None:
    place = tmp_path / "white space\tand \\ more"
    (place / "below").mkdir(parents=True)
    subprocess.run(["mount", "--bind", place / "below", place], check=True)
    try:
        found = dict(mount_table.entries())
        assert found[str(place)].endswith(f"{place.name}/below")
        assert "/" in found
    finally:
        subprocess.run(["umount", place], check=True)
