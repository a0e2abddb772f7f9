"""`sandbox explain` finds nothing on what is well: twenty ways to set a sandbox up. One of them in
the ordinary suite, all where TAPWRIGHT_CATALOGUE is `all`."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tapwright.cli.explain import wish_of
from tapwright.diagnosis import explaining
from tapwright.diagnosis.case import Wish
from tapwright.state import registry
from tapwright.state.registry import Sandbox
from tests.diagnosis.stage import sh
from tests.host import eventually
from tests.sandboxes import Networks, Tapwright

ALL = os.environ.get("TAPWRIGHT_CATALOGUE") == "all"
NAME = "well"
DEFAULTS = ({"dst": "0.0.0.0/0"}, {"dst": "::/0"})

Json = dict[str, Any]


@dataclass(frozen=True)
class Setup:
    """`plugins` of a network called `well`, or another `network` that there is; `words` are more of
    `sandbox run`, `runtime` and `qemu` keys of the configuration, `before` lines of a shell."""

    name: str
    plugins: tuple[Json, ...] = ()
    network: str = "well"
    words: tuple[str, ...] = ()
    questions: tuple[str, ...] = ("", "--from host")
    runtime: Json = field(default_factory=dict)
    before: str = "true"
    after: str = "true"


def ipam(*subnets: str, routes: tuple[Json, ...] = DEFAULTS, **more: Any) -> Json:
    ranges = [[{"subnet": subnet}] for subnet in subnets]
    found = [one for one in routes if any((":" in one["dst"]) == (":" in s) for s in subnets)]
    return {"type": "host-local", "ranges": ranges, "routes": found, **more}


def bridge(*subnets: str, **more: Any) -> tuple[Json, ...]:
    return (
        {"type": "bridge", "bridge": "br-well", "isGateway": True, "ipam": ipam(*subnets), **more},
    )


_PARENT = (
    "ip netns add twx-far; ip link add mv0 type veth peer name far0 netns twx-far; "
    "ip link set mv0 up; ip -n twx-far link set far0 up; "
    "ip -n twx-far address add 10.98.0.1/24 dev far0"
)
_NO_PARENT = "ip link delete mv0; ip netns delete twx-far"


def macvlan(**more: Any) -> tuple[Json, ...]:
    return ({"type": "macvlan", "master": "mv0", "ipam": ipam("10.98.0.0/24"), **more},)


PTP = {"type": "ptp", "ipam": ipam("10.98.0.0/24")}

SETUPS = [
    Setup("bridge", bridge("10.98.0.0/24")),
    Setup("two versions", bridge("10.98.0.0/24", "fd98::/64"), questions=("", "--to fd98::1")),
    Setup("IPv6 alone", bridge("fd98::/64")),
    Setup("masquerade", bridge("10.98.0.0/24", ipMasq=True)),
    Setup("MTU 9000", bridge("10.98.0.0/24", mtu=9000)),
    Setup("MTU 1400", bridge("10.98.0.0/24", mtu=1400)),
    Setup("hairpin", bridge("10.98.0.0/24", hairpinMode=True)),
    Setup("promiscuous bridge", bridge("10.98.0.0/24", promiscMode=True)),
    Setup("a subnet of four", network="tiny"),
    Setup("MTU and DNS", network="jumbo"),
    Setup("two networks", network="small", words=("--network", "jumbo:data0")),
    Setup("port published", network="dual", words=("--publish", "8099:80")),
    Setup(
        "firewall and bandwidth",
        (
            *bridge("10.98.0.0/24"),
            {"type": "firewall"},
            {"type": "bandwidth", "ingressRate": 10**9, "ingressBurst": 10**9},
        ),
    ),
    Setup("settings", (*bridge("10.98.0.0/24"), {"type": "tuning", "mac": "02:00:00:00:98:98"})),
    Setup("ptp", (PTP,)),
    Setup("ptp, two versions", ({"type": "ptp", "ipam": ipam("10.98.0.0/24", "fd98::/64")},)),
    Setup(
        "macvlan",
        macvlan(),
        questions=("",),
        before=_PARENT,
        after=_NO_PARENT,
    ),
    Setup(
        "macvlan, private",
        macvlan(mode="private"),
        questions=("",),
        before=_PARENT,
        after=_NO_PARENT,
    ),
    Setup(
        "macvtap on a veth",
        bridge("10.98.0.0/24"),
        runtime={"internetworking_model": "macvtap"},
    ),
    Setup(
        "a TAP in a bridge of the host",
        network="",
        words=("--tap", "twell0,bridge=br-tapwell,ip=10.99.0.2/24"),
        questions=("--to 10.99.0.1", "--from host"),
        runtime={"disable_new_netns": True, "internetworking_model": "none"},
        before="ip link add br-tapwell type bridge; ip address add 10.99.0.1/24 dev br-tapwell; "
        "ip link set br-tapwell up",
        after="ip link delete br-tapwell",
    ),
]


@pytest.fixture
def setup(
    request: pytest.FixtureRequest, tapwright: Tapwright, networks: Networks
) -> Iterator[Setup]:
    made: Setup = request.param
    if made.plugins:
        plugins = [dict(one) for one in made.plugins]
        if "ipam" in plugins[0]:
            plugins[0]["ipam"] = {**plugins[0]["ipam"], "dataDir": str(networks.leases)}
        networks.write("well", plugins)
    sh(made.before)
    try:
        network = ("--network", made.network) if made.network else ()
        config: Path | None = None
        if made.runtime:
            config = tapwright.configuration(made.runtime, template=tapwright.templates)
        done = tapwright.run("sandbox", "run", NAME, *network, *made.words, config=config)
        assert done.returncode == 0, done.stderr
        yield made
    finally:
        tapwright.delete(NAME)
        sh(made.after)
        sh("ip link delete br-well 2>/dev/null || true")


@pytest.mark.parametrize(
    "setup", SETUPS if ALL else SETUPS[14:15], ids=lambda setup: setup.name, indirect=True
)
def test_nothing_is_found(setup: Setup, tapwright: Tapwright) -> None:
    for question in setup.questions:
        words = question.split()
        to = words[words.index("--to") + 1] if "--to" in words else ""
        wish = wish_of(to, "host" if "--from" in words else None, False)
        sandbox = registry.find(tapwright.root, NAME)

        # A bridge that has just been made learns and forwards a moment later.
        def arrives(sandbox: Sandbox = sandbox, wish: Wish = wish) -> bool:
            return explaining.explain(sandbox, wish).arrives

        assert eventually(arrives), explaining.explain(sandbox, wish)
