#!/usr/bin/env python3
"""How quickly many routes, rules and settings of a namespace are in its guest.

    python -m bench.carrying [CHANGES] [ROUTES]

Changes, spread over one second (of ten: five routes, two rules, two settings, and a route that is
taken away again), with the network monitor: how long after the last of them the guest has them all.
Then many routes that come at once, and go at once. And more than are carried, which is to be
refused with words. The guest has them when the supervisor has nothing left to do.
"""

import dataclasses
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

from bench.place import Place, make_bridge, new_host, private, run
from bench.samples import Milliseconds
from tapwright.errors import NetworkError
from tapwright.linux import entries, links, netns, routes
from tapwright.linux.netlink import NLM_F_CREATE, Netlink, attribute
from tapwright.linux.routes import Route
from tapwright.sandbox import client, lifecycle
from tapwright.sandbox.planning import our_monitor
from tapwright.state import registry
from tapwright.state.registry import Sandbox

BRIDGE, GATEWAY = "br-carry", "10.78.0.1"
_NAME = "bench-carry"
_SETTINGS = (
    *("ipv4/conf/eth0/arp_notify", "ipv4/conf/eth0/rp_filter", "ipv4/tcp_keepalive_time"),
    *("ipv6/conf/eth0/accept_ra", "ipv4/conf/all/log_martians"),
)


class Carrying(TypedDict):
    """Milliseconds: after the last of `changes` (`mixed`), and of `routes` that came (`came`) or
    went (`went`) at once, until the guest is what the namespace is; until `too_many` routes were
    refused (`refused`), and in which `words`."""

    changes: int
    mixed: Milliseconds
    routes: int
    came: Milliseconds
    went: Milliseconds
    too_many: int
    refused: Milliseconds
    words: str


def measure(place: Place, changes: int, many: int, too_many: int) -> Carrying:
    new_host()
    make_bridge(BRIDGE, f"{GATEWAY}/16")
    with _sandbox(place) as sandbox:
        path = sandbox.record.netns if sandbox.record else ""
        name = Path(path).name
        run(f"ip link add h0 type veth peer name eth0 netns {name}")
        run(f"ip link set h0 master {BRIDGE} up")
        run(f"ip -n {name} address add 10.78.0.2/16 dev eth0")
        run(f"ip -n {name} link set eth0 up")
        client.of(sandbox).call("sync", at_once=True)
        mixed = _mixed(sandbox, path, changes)
        came = _after(sandbox, lambda: _batch(name, "add", many))
        went = _after(sandbox, lambda: _batch(name, "delete", many))
        _batch(name, "add", too_many)
        start = time.monotonic()
        try:
            client.of(sandbox).call("sync", at_once=True)
            words = ""
        except NetworkError as error:
            words = str(error)
        refused = (time.monotonic() - start) * 1e3
    return {
        "changes": changes,
        "mixed": round(mixed, 1),
        "routes": many,
        "came": round(came, 1),
        "went": round(went, 1),
        "too_many": too_many,
        "refused": round(refused, 1),
        "words": words,
    }


@contextmanager
def _sandbox(place: Place) -> Iterator[Sandbox]:
    root, spec = place.root("carrying"), dataclasses.replace(place.spec(), netmon=our_monitor())
    try:
        lifecycle.run(root, _NAME, spec)
        yield registry.find(root, _NAME)
    finally:
        lifecycle.delete(root, _NAME)


def _after(sandbox: Sandbox, do: Callable[[], None]) -> Milliseconds:
    do()
    start = time.monotonic()
    client.of(sandbox).call("sync", at_once=True)
    return (time.monotonic() - start) * 1e3


def _mixed(sandbox: Sandbox, path: str, changes: int) -> Milliseconds:
    def change() -> None:
        with netns.entered(path), Netlink() as inside:
            index = links.named(inside, "eth0").index
            start = time.monotonic()
            for number in range(changes):
                _change(inside, index, number)
                time.sleep(max(start + (number + 1) / changes - time.monotonic(), 0))

    return _after(sandbox, change)


def _change(inside: Netlink, index: int, number: int) -> None:
    ten, kind = divmod(number, 10)
    if kind in (5, 6):
        body = struct.pack("=BBBBBBBBI", 2, 0, 0, 0, 254, 0, 0, 1, 0)
        body += attribute(entries.FRA_PRIORITY, 1000 + number) + attribute(_FRA_FWMARK, number)
        inside.request("add a rule", entries.RTM_NEWRULE, body, NLM_F_CREATE)
    elif kind in (7, 8):
        # Only where it is another value something has changed.
        file = Path("/proc/sys/net", _SETTINGS[number % len(_SETTINGS)])
        file.write_text(str(ten % 2 if "keepalive" not in file.name else 100 + ten))
    elif kind == 9:
        routes.remove_many(inside, [_route(index, number - 9)])
    else:
        routes.add_many(inside, [_route(index, number)])


_FRA_FWMARK = 10


def _route(index: int, number: int) -> Route:
    return Route(f"10.{100 + number // 250}.{number % 250}.0/24", index, "10.78.0.3")


def _batch(name: str, verb: str, count: int) -> None:
    lines = "".join(
        f"route {verb} {20 + n // 65536}.{n // 256 % 256}.{n % 256}.0/24 via 10.78.0.3 dev eth0\n"
        for n in range(count)
    )
    subprocess.run(["ip", "-n", name, "-batch", "-"], input=lines, text=True, check=True)


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:]]
    changes, many = (numbers + [1000, 10_000][len(numbers) :])[:2]
    with private() as place:
        for key, value in measure(place, changes, many, 100_000).items():
            print(f"{key:10} {value}")


if __name__ == "__main__":
    main()
