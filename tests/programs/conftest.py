from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from tapwright.linux import netns
from tests.host import eventually
from tests.programs import box, root
from tests.programs.box import Box
from tests.sandboxes import Tapwright


class Pair(NamedTuple):
    """Two containers of the same root filesystem, each with a copy of its own."""

    runc: Box
    tapwright: Box


@pytest.fixture(scope="session")
def debian(machine_netns: str) -> Path:
    """The root filesystem, made from the package archive when it is not there yet."""
    with netns.entered(machine_netns):
        return root.ensure(root.USUAL)


@pytest.fixture(scope="module")
def pair(
    debian: Path, tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Fails when anything of the two is left."""
    directory = tmp_path_factory.mktemp("programs")
    runtimes = box.runc(directory / "runc"), tapwright.command()
    with ExitStack() as stack:
        boxes = [
            stack.enter_context(box.running(runtime, debian, directory / str(number)))
            for number, runtime in enumerate(runtimes)
        ]
        yield Pair(*boxes)
    eventually(lambda: not left(boxes[0].id, directory, tapwright.root))
    assert left(boxes[0].id, directory, tapwright.root) == []


def left(name: str, *directories: Path) -> list[str]:
    """What names a container, or is in these directories: not what else runs on the machine, for
    the two are there for minutes."""
    places = Path("/run/netns"), *Path("/sys/fs/cgroup").glob("*"), directories[-1] / "sandboxes"
    found = [str(path) for place in places for path in place.glob(f"*{name}")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if any(f" {each}/" in line for each in directories)]
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if name in words or any(str(each) in word for word in words for each in directories):
                found.append(" ".join(words))
    return found
