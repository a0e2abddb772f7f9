from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from tapwright.linux import netns
from tests.host import Host
from tests.programs import box, root
from tests.programs.box import Box
from tests.sandboxes import Networks, Tapwright


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
    debian: Path,
    tapwright: Tapwright,
    networks: Networks,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Pair]:
    """Fails when anything is left that was not there before."""
    directory = tmp_path_factory.mktemp("programs")
    runtimes = box.runc(directory / "runc"), tapwright.command()
    host = Host([tapwright.root, tapwright.cache, networks.leases, Path("/run/tapwright")])
    before = host.snapshot()
    with ExitStack() as stack:
        boxes = [
            stack.enter_context(box.running(runtime, debian, directory / str(number)))
            for number, runtime in enumerate(runtimes)
        ]
        yield Pair(*boxes)
    host.assert_same(before)
