"""Random work with a fixed seed: on the content of a file (the idea of fsx), and on names.

The file is compared with what should be in it after each step, so an outcome names the first step
that went wrong. What is done to names has no model: the results of all steps are the outcome.
"""

import hashlib
import mmap
import os
import random
from collections.abc import Callable

from tests.programs.checks.frame import Outcome, check, error, mode, system

_PAGE = 4096
_LARGEST = 256 * 1024
_STEPS = int(os.environ.get("CHECKS_STEPS", "600"))


class _Model:
    """A file, and what should be in it."""

    def __init__(self, seed: int, path: str = "file") -> None:
        self._random = random.Random(seed)  # noqa: S311 - to be the same each time
        self._path = path
        self._content = bytearray()
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT)
        self._steps: list[Callable[[], str]] = [
            *(self.write, self.write, self.read, self.read, self.truncate, self.append),
            *(self.map_write, self.map_read, self.punch, self.zero, self.copy, self.allocate),
            *(self.open_again, self.sync, self.replace, self.child_writes),
        ]

    def step(self) -> str:
        """What was done. Raises AssertionError when the file is not as it should be."""
        done = self._random.choice(self._steps)()
        size = os.fstat(self._fd).st_size
        assert size == len(self._content), f"{done}: size {size}, not {len(self._content)}"
        return done

    def check(self, done: str) -> None:
        found = os.pread(self._fd, _LARGEST * 2, 0)
        if found != self._content:
            where = next(
                (
                    at
                    for at, pair in enumerate(zip(found, self._content, strict=False))
                    if pair[0] != pair[1]
                ),
                min(len(found), len(self._content)),
            )
            raise AssertionError(f"{done}: differs at {where}")

    def digest(self) -> str:
        return hashlib.sha256(self._content).hexdigest()[:16]

    def _part(self) -> tuple[int, int]:
        """A piece of the file, from and length."""
        if not self._content:
            return 0, 0
        start = self._random.randrange(len(self._content))
        return start, self._random.randint(1, min(20_000, len(self._content) - start))

    def _place(self) -> tuple[int, bytes]:
        start = self._random.randrange(_LARGEST - 20_000)
        return start, self._random.randbytes(self._random.randint(1, 20_000))

    def _put(self, start: int, data: bytes) -> None:
        if start > len(self._content):
            self._content.extend(bytes(start - len(self._content)))
        self._content[start : start + len(data)] = data

    def write(self) -> str:
        start, data = self._place()
        os.pwrite(self._fd, data, start)
        self._put(start, data)
        return f"write {len(data)} at {start}"

    def append(self) -> str:
        if len(self._content) > _LARGEST - 20_000:
            return self.truncate()
        data = self._random.randbytes(self._random.randint(1, 5_000))
        fd = os.open(self._path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        os.close(fd)
        self._content.extend(data)
        return f"append {len(data)}"

    def read(self) -> str:
        start, length = self._part()
        found = os.pread(self._fd, length, start)
        done = f"read {length} at {start}"
        assert found == self._content[start : start + length], done
        return done

    def truncate(self) -> str:
        size = self._random.randrange(_LARGEST)
        os.ftruncate(self._fd, size)
        del self._content[size:]
        self._content.extend(bytes(size - len(self._content)))
        return f"truncate to {size}"

    def map_write(self) -> str:
        start, length = self._part()
        if not length:
            return "map nothing"
        data = self._random.randbytes(length)
        with mmap.mmap(self._fd, len(self._content)) as mapped:
            mapped[start : start + length] = data
        self._put(start, data)
        return f"write by map {length} at {start}"

    def map_read(self) -> str:
        start, length = self._part()
        if not length:
            return "map nothing"
        done = f"read by map {length} at {start}"
        with mmap.mmap(self._fd, len(self._content), prot=mmap.PROT_READ) as mapped:
            assert mapped[start : start + length] == self._content[start : start + length], done
        return done

    def punch(self) -> str:
        start, length = self._part()
        if length:
            system("fallocate", self._fd, 3, start, length)
            self._put(start, bytes(length))
        return f"punch {length} at {start}"

    def zero(self) -> str:
        start, length = self._part()
        if length:
            system("fallocate", self._fd, 16, start, length)
            self._put(start, bytes(length))
        return f"zero {length} at {start}"

    def allocate(self) -> str:
        start, data = self._place()
        os.posix_fallocate(self._fd, start, len(data))
        missing = start + len(data) - len(self._content)
        self._content.extend(bytes(max(0, missing)))
        return f"allocate {len(data)} at {start}"

    def copy(self) -> str:
        start, length = self._part()
        target = self._random.randrange(_LARGEST - 20_000)
        if not length or (target < start + length and start < target + length):
            return self.read()
        copied = os.copy_file_range(self._fd, self._fd, length, start, target)
        self._put(target, bytes(self._content[start : start + copied]))
        return f"copy {copied} of {length} from {start} to {target}"

    def open_again(self) -> str:
        os.close(self._fd)
        self._fd = os.open(self._path, os.O_RDWR)
        return "open again"

    def sync(self) -> str:
        os.fsync(self._fd)
        return "sync"

    def replace(self) -> str:
        """By a copy that is renamed over it."""
        fd = os.open("copy", os.O_RDWR | os.O_CREAT)
        os.sendfile(fd, self._fd, 0, len(self._content)) if self._content else None
        os.rename("copy", self._path)
        os.close(self._fd)
        self._fd = fd
        return "replace by a copy"

    def child_writes(self) -> str:
        start, data = self._place()
        pid = os.fork()
        if pid == 0:
            fd = os.open(self._path, os.O_WRONLY)
            os.pwrite(fd, data, start)
            os._exit(0)
        os.waitpid(pid, 0)
        self._put(start, data)
        return f"child writes {len(data)} at {start}"


def _exercised(seed: int, steps: int) -> Outcome:
    model = _Model(seed)
    done = "nothing"
    for number in range(steps):
        try:
            done = model.step()
            if number % 20 == 19:
                model.check(done)
        except (AssertionError, OSError) as failed:
            return {"step": number, "failed": f"{type(failed).__name__}: {failed}", "before": done}
    return {"steps": steps, "content": model.digest()}


@check
def content_one() -> Outcome:
    return _exercised(1, _STEPS)


@check
def content_two() -> Outcome:
    return _exercised(20_251, _STEPS)


_PLACES = ("", "d0/", "d1/", "d0/e/")


def _name(source: random.Random) -> str:
    return f"{source.choice(_PLACES)}{source.choice('abc') if source.random() < 0.8 else 'd0'}"


def _create(one: str, other: str) -> None:
    os.close(os.open(one, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


_WITH_NAMES: dict[str, Callable[[str, str], object]] = {
    "create": _create,
    "open": lambda one, other: os.close(os.open(one, os.O_RDONLY | os.O_NONBLOCK)),
    "mkdir": lambda one, other: os.mkdir(one),
    "symlink": lambda one, other: os.symlink(os.path.basename(other), one),
    "mkfifo": lambda one, other: os.mkfifo(one),
    "link": lambda one, other: os.link(one, other, follow_symlinks=False),
    "unlink": lambda one, other: os.unlink(one),
    "rmdir": lambda one, other: os.rmdir(one),
    "rename": os.rename,
    "exchange": lambda one, other: system("renameat2", -100, one, -100, other, 2),
    "move": lambda one, other: system("renameat2", -100, one, -100, other, 1),
    "stat": lambda one, other: os.stat(one),
    "truncate": lambda one, other: os.truncate(one, 5),
    "list": lambda one, other: os.listdir(one),
}


@check
def names() -> Outcome:
    source = random.Random(7)  # noqa: S311 - to be the same each time
    for directory in ("d0", "d1", "d0/e"):
        os.mkdir(directory)
    steps = []
    for number in range(_STEPS * 2):
        word = source.choice(list(_WITH_NAMES))
        one, other = _name(source), _name(source)
        said = error(_WITH_NAMES[word], one, other)
        steps.append(f"{number} {word} {one} {other}: {said}")
        if not os.path.isdir("d0") and not os.path.lexists("d0"):
            os.mkdir("d0")
    found = {}
    for path, directories, files in os.walk("."):
        for name in (*directories, *files):
            full = f"{path}/{name}"
            links = os.lstat(full).st_nlink
            found[full] = f"{mode(full)} {links}"
    return {"steps": steps, "left": dict(sorted(found.items()))}
