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
    return veth_pair(nl, "a0", "b0")


def veth_pair(nl: Netlink, one: str, other: str) -> links.Link:
    """Make one, both ends up; return one end."""
    links.add_veth(nl, one, other)
    for name in (other, one):
        links.set_up(nl, links.named(nl, name).index)
    return links.named(nl, one)
