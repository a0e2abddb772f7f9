"""Indexes of NICs, in a namespace of this host."""

from collections.abc import Iterator

import pytest

from tapwright.agent.guest import renumbering
from tapwright.linux import addresses, links, netns
from tapwright.linux.netlink import Netlink


@pytest.fixture
def nl(scratch_netns: str) -> Iterator[Netlink]:
    renumbering.prepare()
    with netns.entered(scratch_netns), Netlink() as found:
        links.add_veth(found, "nic", "other")
        yield found


def test_an_index_that_is_free(nl: Netlink) -> None:
    before = links.named(nl, "nic")
    after = renumbering.renumber(nl, before, 777, [])
    assert after == before._replace(index=777, parent=after.parent)
    assert links.named(nl, "nic").index == 777


def test_one_that_is_taken(nl: Netlink) -> None:
    before, other = links.named(nl, "nic"), links.named(nl, "other")
    assert renumbering.renumber(nl, before, other.index, []) == before
    links.set_up(nl, before.index)
    up = links.named(nl, "nic")
    assert renumbering.renumber(nl, up, 778, []) == up


def test_one_that_a_nic_has_which_waits_for_its_own(
    nl: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of NICs that are plugged in together. A NIC has no kind, as all interfaces here have."""
    first, second = links.named(nl, "nic"), links.named(nl, "other")
    decode = links.decode
    monkeypatch.setattr(links, "decode", lambda body: decode(body)._replace(kind=""))
    refused: list[str] = []
    assert renumbering.renumber(nl, first, second.index, refused).index == second.index
    assert links.named(nl, "nic").index == second.index
    moved = links.named(nl, "other")
    assert moved.index not in (first.index, second.index)
    assert renumbering.renumber(nl, moved, first.index, refused).index == first.index
    assert (links.named(nl, "other").index, refused) == (first.index, [])


@pytest.mark.parametrize("state", ["up", "address"])
def test_one_that_a_nic_has_which_waits_no_more(
    nl: Netlink, monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    first, second = links.named(nl, "nic"), links.named(nl, "other")
    decode = links.decode
    monkeypatch.setattr(links, "decode", lambda body: decode(body)._replace(kind=""))
    if state == "up":
        links.set_up(nl, second.index)
    else:
        addresses.add(nl, second.index, addresses.Address("10.1.2.3", 24))
    assert renumbering.renumber(nl, first, second.index, []).index == first.index
    assert links.named(nl, "other").index == second.index


def test_another_with_its_mac_address(nl: Netlink) -> None:
    """As what a container puts on a NIC."""
    before, other = links.named(nl, "nic"), links.named(nl, "other")
    links.set_mac(nl, other.index, before.mac)
    assert renumbering.renumber(nl, before, 779, []).index == 779
    assert links.named(nl, "nic").index == 779


def test_its_name_is_taken_meanwhile(nl: Netlink, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a NIC that is plugged in while it is away."""
    before, list_all = links.named(nl, "nic"), links.listing

    def listing(where: Netlink) -> list[links.Link]:
        monkeypatch.setattr(links, "listing", list_all)
        links.add_veth(nl, "nic", "further")
        return list_all(where)

    monkeypatch.setattr(links, "listing", listing)
    refused: list[str] = []
    after = renumbering.renumber(nl, before, 780, refused)
    assert (after.mac, after.index, refused) == (before.mac, 780, [])
    assert links.named(nl, after.name).index == 780


def test_it_comes_back_when_it_can_not_have_it(
    nl: Netlink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody took the index meanwhile."""
    before, other = links.named(nl, "nic"), links.named(nl, "other")
    monkeypatch.setattr(links, "at", lambda *_: None)
    refused: list[str] = []
    after = renumbering.renumber(nl, before, other.index, refused)
    assert (after.mac, after.index) == (before.mac, before.index)
    (reason,) = refused
    assert f"no index {other.index}" in reason
