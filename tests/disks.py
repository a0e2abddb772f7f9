"""Disks that are full, or can't be written to."""

import fcntl
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.host import eventually


class Disk:
    """A small filesystem of its own, at `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte more can be written, for the length of the block."""
        ballast = self.path / ".ballast"
        with ballast.open("wb", buffering=0) as file:
            size = 1 << 16
            while size:
                try:
                    file.write(b"x" * size)
                except OSError:
                    size //= 2
        try:
            yield
        finally:
            ballast.unlink()

    @contextmanager
    def out_of_inodes(self) -> Iterator[None]:
        """Not a file more can be made, for the length of the block."""
        directory = self.path / ".ballast"
        directory.mkdir()
        made: list[Path] = []
        try:
            while True:
                made.append(directory / str(len(made)))
                made[-1].touch()
        except OSError:
            made.pop()
        try:
            yield
        finally:
            for path in made:
                path.unlink()
            directory.rmdir()

    @contextmanager
    def read_only(self) -> Iterator[None]:
        self._remount("ro")
        try:
            yield
        finally:
            self._remount("rw")

    def _remount(self, how: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{how}", str(self.path)], check=True)


@contextmanager
def small(path: Path) -> Iterator[Disk]:
    path.mkdir()
    options = "size=2m,nr_inodes=200,mode=755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "small", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


class Powered:
    """A filesystem (ext4) at `path` from which the power can be taken: what was not written to its
    disk by then is lost."""

    _SHUTDOWN, _WITHOUT_LOG = 0x8004587D, 2  # fs/ext4/ext4.h: EXT4_IOC_SHUTDOWN, and its flags

    def __init__(self, path: Path) -> None:
        self.path = path
        self._image = path.with_suffix(".image")
        self._root = -1
        path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(64 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)
        self._mount()

    def lose(self) -> None:
        """From now on nothing can be written."""
        fcntl.ioctl(self._root, self._SHUTDOWN, struct.pack("=I", self._WITHOUT_LOG))

    def restart(self) -> None:
        """Mount it anew, as far as it was written. Nobody may have a file of it open."""
        self.close()
        self._mount()

    def close(self) -> None:
        if self._root < 0:
            return
        os.close(self._root)
        self._root = -1
        # Who had it open until just now may hold it for a moment.
        assert eventually(self._is_unmounted)

    def _is_unmounted(self) -> bool:
        return subprocess.run(["umount", str(self.path)], check=False).returncode == 0

    def _mount(self) -> None:
        subprocess.run(["mount", "-o", "loop", str(self._image), str(self.path)], check=True)
        self._root = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
