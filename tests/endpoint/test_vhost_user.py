"""vhost-user sockets in directories of other users, who put something else in their place."""

import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.endpoint import vhost_user
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import VhostUser
from tests.host import open_files

QEMU, SWITCH = 60001, 60002


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """That of a switch."""
    directory = tmp_path / "switch"
    directory.mkdir()
    os.chown(directory, SWITCH, SWITCH)
    return directory


@pytest.fixture
def precious(tmp_path: Path) -> Iterator[Path]:
    """A file of root's, which is to be as it was at the end."""
    path = tmp_path / "precious"
    path.write_text("x")
    path.chmod(0o600)
    yield path
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, 0, 0o600)
    assert path.read_text() == "x"


def listening(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    return listener


def attached(path: Path) -> VhostUser:
    return vhost_user.of("vhost0", str(path)).attach(1, QEMU)


def owner(path: Path) -> int:
    return path.lstat().st_uid


def test_a_socket_that_somebody_listens_on(directory: Path) -> None:
    path = directory / "s"
    with listening(path):
        os.chown(path, SWITCH, SWITCH)
        backend = attached(path)
        assert owner(path) == QEMU
        backend.opened()
        assert owner(path) == SWITCH
        os.close(backend.fd)
        vhost_user.of("vhost0", str(path)).detach()
        assert path.exists()


def test_a_directory_that_takes_no_second_name(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = directory / "s"
    with listening(path):
        os.chown(path, SWITCH, SWITCH)

        def refused(*_: object, **__: object) -> None:
            raise PermissionError(errno.EPERM, "refused")

        before = open_files()
        monkeypatch.setattr(os, "link", refused)
        with pytest.raises(NetworkError, match="refused"):
            attached(path)
        assert open_files() == before
        vhost_user.VhostUserSocket("vhost0", str(path), SWITCH).detach()
        assert owner(path) == SWITCH
        assert os.listdir(directory) == ["s"]


def test_a_socket_that_qemu_makes(directory: Path) -> None:
    path = directory / "s"
    listening(path).close()  # of one that has died
    backend = attached(path)
    workshop = directory / ".s.tapwright"
    assert owner(workshop) == QEMU
    with listening(workshop / "s"):
        backend.opened()
        status = path.stat()
        assert (status.st_uid, status.st_gid, status.st_mode & 0o777) == (0, SWITCH, 0o660)
        assert status.st_nlink == 1
        assert not workshop.exists()
    os.close(backend.fd)
    vhost_user.VhostUserSocket("vhost0", str(path), None).detach()
    assert os.listdir(directory) == []


def test_qemu_makes_a_link(directory: Path, precious: Path) -> None:
    path = directory / "s"
    backend = attached(path)
    (directory / ".s.tapwright" / "s").symlink_to(precious)
    with pytest.raises(OSError, match="it is a link"):
        backend.opened()
    os.close(backend.fd)
    assert not path.exists()


def test_qemu_makes_something_else(directory: Path, precious: Path) -> None:
    path = directory / "s"
    backend = attached(path)
    os.link(precious, directory / ".s.tapwright" / "s")
    with pytest.raises(OSError, match="no socket"):
        backend.opened()
    os.close(backend.fd)


def test_qemu_makes_a_socket_of_another_program(directory: Path, tmp_path: Path) -> None:
    with listening(tmp_path / "others"):
        backend = attached(directory / "s")
        os.link(tmp_path / "others", directory / ".s.tapwright" / "s")
        with pytest.raises(OSError, match="another name"):
            backend.opened()
        os.close(backend.fd)
        assert stat.S_IMODE((tmp_path / "others").stat().st_mode) != 0o660


def test_the_switch_has_a_link_there(directory: Path, precious: Path) -> None:
    path = directory / "s"
    path.symlink_to(precious)
    endpoint = vhost_user.of("vhost0", str(path))
    for refused in (endpoint.check, lambda: endpoint.attach(1, QEMU)):
        with pytest.raises(NetworkError, match="it is a link"):
            refused()
    endpoint.detach()
    assert path.is_symlink()


def test_the_switch_swaps_its_socket_for_a_link(directory: Path, precious: Path) -> None:
    path = directory / "s"
    with listening(path):
        backend = attached(path)
        path.unlink()
        path.symlink_to(precious)
        backend.opened()
        os.close(backend.fd)


def test_the_switch_has_a_link_in_place_of_the_workshop(
    directory: Path, precious: Path, tmp_path: Path
) -> None:
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "file").touch()
    (directory / ".s.tapwright").symlink_to(tmp_path / "all")
    with pytest.raises(NetworkError, match="can't be used: File exists"):
        attached(directory / "s")
    vhost_user.of("vhost0", str(directory / "s")).detach()
    assert (tmp_path / "all" / "file").exists()
    assert owner(tmp_path / "all") == 0


def test_a_directory_that_has_gone(tmp_path: Path) -> None:
    endpoint = vhost_user.of("vhost0", str(tmp_path / "gone" / "s"))
    endpoint.detach()
    with pytest.raises(NetworkError, match="No such file or directory"):
        endpoint.check()


def test_no_descriptor_stays(directory: Path, precious: Path) -> None:
    before = open_files()
    for place in ("s", "t"):
        backend = attached(directory / place)
        (directory / f".{place}.tapwright" / place).symlink_to(precious)
        with pytest.raises(OSError, match="it is a link"):
            backend.opened()
        os.close(backend.fd)
        vhost_user.of("vhost0", str(directory / place)).detach()
    assert open_files() == before
    assert os.listdir(directory) == []
