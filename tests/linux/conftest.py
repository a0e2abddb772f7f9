"""What the tests of kernel objects make them with."""

from collections.abc import Iterator

import pytest

from tapwright.linux import links, netns
from tapwright.linux.netlink import Netlink


@pytest.fixture
def nl(scratch_netns: str) -> Iterator[Netlink]:
    with netns.entered(scratch_netns):
        opened = Netlink()
    with opened:
        yield opened


@pytest.fixture
def veth(nl: Netlink) -> links.Link:
    """One end of a veth pair, both ends up."""
    links.add_veth(nl, "a0", "b0")
    for name in ("b0", "a0"):
        link = links.find(nl, name)
        assert link is not None
        links.set_up(nl, link.index)
    found = links.find(nl, "a0")
    assert found is not None
    return found
