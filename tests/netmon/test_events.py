"""The changes of a namespace that the network monitor notices."""

import subprocess
from collections.abc import Iterator

import pytest

from tapwright.linux import netns
from tapwright.netmon.events import Events
from tests.namespaces import Namespace, namespace

_LONG = 60.0


@pytest.fixture
def here() -> Iterator[Namespace]:
    with namespace("tw-heard") as made:
        yield made


def events(where: Namespace) -> Events:
    with netns.entered(where.path):
        return Events()


def inside(where: Namespace, command: str, text: str = "") -> None:
    words = ["ip", "netns", "exec", where.name, *command.split()]
    subprocess.run(words, input=text, check=True, text=True, capture_output=True)


def test_rules_of_nf_tables(here: Namespace) -> None:
    heard = events(here)
    assert not heard.wait(0.0)
    for command in (
        "nft add table ip t",
        "iptables-nft -t nat -A OUTPUT -p tcp -j REDIRECT --to-ports 15001",
        "nft delete table ip t",
    ):
        inside(here, command)
        assert heard.wait(_LONG), command
        assert not heard.wait(0.0)


def test_more_rules_than_there_is_room_to_tell_of(here: Namespace) -> None:
    heard = events(here)
    elements = ", ".join(f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(50_000))
    text = f"table ip t {{ set s {{ type ipv4_addr; elements = {{ {elements} }}; }}; }}"
    inside(here, "nft -f -", text)
    assert heard.wait(_LONG)


def test_looking_at_rules_is_no_change(here: Namespace) -> None:
    heard = events(here)
    inside(here, "nft list ruleset")
    inside(here, "iptables-nft-save")
    assert not heard.wait(0.0)
