"""The kind of a socket, which its owner must not notice to be looked at."""

import os
import socket
from pathlib import Path

import pytest

from tapwright.linux import unixsocket

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    "kind",
    [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET],
    ids=lambda kind: kind.name,
)
def test_kind_as_long_as_it_is_bound(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / ("d" * 100) / "socket"
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, kind) as bound, unixsocket.address(path) as address:
        bound.setblocking(False)
        bound.bind(address)
        assert unixsocket.kind_of(path) == kind
        if kind != socket.SOCK_DGRAM:
            bound.listen(0)
            assert unixsocket.kind_of(path) == kind
            with pytest.raises(BlockingIOError):
                bound.accept()
            with socket.socket(socket.AF_UNIX, kind) as client:
                client.connect(address)
                assert unixsocket.kind_of(path) == kind, "its backlog is full"
    assert unixsocket.kind_of(path) is None


def test_kind_of_one_that_takes_from_one_only(tmp_path: Path) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as only,
    ):
        for each, name in ((bound, "bound"), (only, "only")):
            each.bind(str(tmp_path / name))
        bound.connect(str(tmp_path / "only"))
        assert unixsocket.kind_of(tmp_path / "bound") == socket.SOCK_DGRAM


def test_no_socket(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unixsocket.kind_of(tmp_path / "missing")
    os.mkfifo(tmp_path / "fifo")
    assert unixsocket.kind_of(tmp_path / "fifo") is None
