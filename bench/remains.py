"""What a sandbox has on the host, and what is still left of it after a while."""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bench.place import NETWORK, Place
from tapwright.linux import links
from tapwright.linux.netlink import Netlink
from tapwright.state import registry, supervisors
from tapwright.state.registry import Sandbox

_PAUSE = 0.001
_SECONDS = 20.0


@dataclass(frozen=True)
class Remains:
    """`interfaces` by index: those of the host that came with the sandbox."""

    processes: frozenset[int]
    interfaces: frozenset[int]
    paths: tuple[Path, ...]

    def left(self) -> list[str]:
        """What is there of it."""
        return [
            *(f"process {pid}" for pid in self.processes if _lives(pid)),
            *(f"interface {index}" for index in self.interfaces & interfaces()),
            *(f"file {path.name}" for path in self.paths if path.exists()),
        ]

    def gone(self) -> float:
        """Wait until nothing is left; return when that was (monotonic clock).

        Raises TimeoutError: what does not go.
        """
        deadline = time.monotonic() + _SECONDS
        while left := self.left():
            if time.monotonic() > deadline:
                raise TimeoutError(f"of a sandbox that was deleted are left: {', '.join(left)}")
            time.sleep(_PAUSE)
        return time.monotonic()


def remains(place: Place, root: str, sandbox_id: str, before: frozenset[int]) -> Remains:
    """All that a running sandbox has; `before` are the interfaces from before it was there."""
    sandbox = registry.find(root, sandbox_id)
    paths = [sandbox.directory]
    if sandbox.record:
        paths.append(Path(sandbox.record.netns))
        for nic in sandbox.record.interfaces:
            paths += [
                *(place.leases / NETWORK / given.split("/")[0] for given in nic.addresses),
                place.cache / "results" / f"{NETWORK}-{sandbox_id}-{nic.name}",
            ]
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        raise RuntimeError(f"a running sandbox has no {', '.join(missing)}")
    return Remains(
        processes=frozenset(processes(sandbox)),
        interfaces=interfaces() - before,
        paths=tuple(paths),
    )


def processes(sandbox: Sandbox) -> Iterator[int]:
    """The supervisor, and all that it has started."""
    if supervisor := supervisors.pid_of(sandbox.directory):
        yield from _family(supervisor)


def interfaces() -> frozenset[int]:
    """Those of this process's namespace."""
    with Netlink() as nl:
        return frozenset(link.index for link in links.listing(nl))


def _family(pid: int) -> Iterator[int]:
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            yield from _family(int(child))


def _lives(pid: int) -> bool:
    """Whether there is more of it than its exit status."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return fields[0] not in "ZX"
    return False
