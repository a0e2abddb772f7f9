"""The templates from which a worker's tests start guests."""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path


class Templates:
    """Those at `path`, which only one worker uses: its tests kill guests that start, and their
    template goes with them. What any worker has made is kept at `kept`, for to make one takes as
    long as ten starts."""

    def __init__(self, path: Path, kept: Path) -> None:
        self.path = path
        self._kept = kept
        kept.mkdir(mode=0o700, exist_ok=True)
        self.renew()

    def add(self, directory: Path) -> None:
        """Keep those that a test has made elsewhere, too."""
        _copy(directory, self.path)
        self.renew()

    def renew(self) -> None:
        """Keep what is new, put back what has gone; what failed may be tried again: it would not be
        for ten minutes, and all guests be booted."""
        for note in self.path.glob(".template-failed-*"):
            note.unlink(missing_ok=True)
        lock = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # one is being made, and would be in the way of its like
            return
        else:
            _copy(self.path, self._kept)
            _copy(self._kept, self.path)
        finally:
            os.close(lock)


def _copy(source: Path, target: Path) -> None:
    for template in source.glob("template-*"):
        if (target / template.name).exists():
            continue
        # One may go meanwhile, and another worker may be quicker.
        with suppress(OSError), tempfile.TemporaryDirectory(prefix=".kept-", dir=target) as place:
            draft = Path(place) / template.name
            shutil.copytree(template, draft, copy_function=os.link)
            draft.rename(target / template.name)
