"""Part 1: files where a container writes, exchanged all the time while root reads them. Root gets
what a small regular file has at that path, or an error, and nothing of another file, at once."""

import contextlib
import errno
import os
import random
import threading
from collections import Counter
from pathlib import Path

import pytest

from tapwright.linux import foreign
from tests.torture.bound import Bound

pytestmark = pytest.mark.unit

_LIMIT = 4096
_SHORT = 3000
_REFUSED = {errno.ELOOP, errno.EINVAL, errno.EFBIG, errno.ENOENT, errno.ENOTDIR, errno.EAGAIN}


class Attacker(threading.Thread):
    """Has something else at `place/file` all the time, and at `place` now and then."""

    def __init__(self, directory: Path, secret: Path, draw: random.Random) -> None:
        super().__init__(daemon=True)
        self._place = directory / "place"
        self._beside = directory / "beside"
        self._secret = secret
        self._draw = draw
        self.over = threading.Event()
        self._place.mkdir()
        self._kinds = [self._regular, self._large, self._sparse, self._fifo, self._link]
        self._kinds += [self._zero, self._directory, self._hop]

    def run(self) -> None:
        while not self.over.is_set():
            with contextlib.suppress(OSError):
                self._draw.choice(self._kinds)(self._beside)
                os.rename(self._beside, self._place / "file")
            # For as long as a read takes, more or less.
            self.over.wait(self._draw.choice([0, 0, 0.0005]))
            self._remove(self._beside)
            self._remove(self._place / "file")

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        with contextlib.suppress(OSError):
            path.rmdir()

    def _regular(self, path: Path) -> None:
        path.write_bytes(b"m" * self._draw.randrange(_LIMIT))

    def _large(self, path: Path) -> None:
        path.write_bytes(b"m" * (_LIMIT + 1))

    def _sparse(self, path: Path) -> None:
        path.touch()
        os.truncate(path, 1 << 40)

    def _fifo(self, path: Path) -> None:
        os.mkfifo(path)

    def _link(self, path: Path) -> None:
        path.symlink_to(self._secret)

    def _zero(self, path: Path) -> None:
        path.symlink_to("/dev/zero")

    def _directory(self, path: Path) -> None:
        path.mkdir()

    def _hop(self, path: Path) -> None:
        """The directory becomes a link to one of root's, for a moment."""
        away = self._place.with_name("away")
        self._place.rename(away)
        self._place.symlink_to(self._secret.parent)
        self._place.unlink()
        away.rename(self._place)


def what_comes_of(path: Path) -> str:
    try:
        content = foreign.read(path, _LIMIT)
    except OSError as error:
        if error.errno not in _REFUSED:
            raise
        return "refused"
    assert len(content) <= _LIMIT
    assert set(content) <= set(b"m"), "what is not at that path"
    return "read"


def test_files_that_change_all_the_time(bound: Bound, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    secret = tmp_path / "root" / "file"
    secret.write_text("secret")
    attacker = Attacker(tmp_path, secret, bound.random)
    came: Counter[str] = Counter()
    attacker.start()
    try:
        for _ in bound.goes_on(short=_SHORT):
            came[what_comes_of(tmp_path / "place" / "file")] += 1
        while len(came) < 2:  # the attacker may have been given no time
            came[what_comes_of(tmp_path / "place" / "file")] += 1
    finally:
        attacker.over.set()
        attacker.join()
    bound.tell(
        1,
        "a file exchanged for links, FIFOs, devices, large and sparse ones while root reads it",
        "{read} read, {refused} refused; nothing of another file",
        counts=came,
    )
