"""Files in a place that somebody else writes to."""

import errno
import os
from pathlib import Path

import pytest

from tapwright.linux import foreign
from tests.host import open_files

pytestmark = pytest.mark.unit


def failure(path: Path) -> int | None:
    """Why it is not read."""
    try:
        foreign.read(path, 100)
    except OSError as error:
        return error.errno
    return None


def test_a_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 100)
    assert foreign.read(tmp_path / "file", 100) == b"x" * 100


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("fifo", errno.EINVAL),
        ("directory", errno.EINVAL),
        ("device", errno.EINVAL),
        ("link", errno.ELOOP),
        ("way", errno.ELOOP),
        ("large", errno.EFBIG),
        ("sparse", errno.EFBIG),
        ("nothing", errno.ENOENT),
    ],
)
def test_all_else_is_refused_at_once(tmp_path: Path, kind: str, code: int) -> None:
    path = tmp_path / "it"
    match kind:
        case "fifo":
            os.mkfifo(path)
        case "directory":
            path.mkdir()
        case "device":
            path = Path("/dev/zero")
        case "link":
            path.symlink_to("/etc/passwd")
        case "way":
            (tmp_path / "way").symlink_to("/etc")
            path = tmp_path / "way" / "passwd"
        case "large":
            path.write_bytes(b"x" * 101)
        case "sparse":
            path.touch()
            os.truncate(path, 1 << 40)
    assert failure(path) == code


def test_an_open_finds_no_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match=os.strerror(errno.ELOOP)):
        foreign.opened(tmp_path / "link")


def test_nothing_stays_open(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    before = open_files()
    for name in ("fifo", "nothing"):
        assert failure(tmp_path / name)
    assert open_files() == before
