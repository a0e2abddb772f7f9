"""Packet rules follow the namespace into a guest, which is another namespace here: the agent's code
puts them there, and its kernel is this host's. With a real guest: test_guest_rulesets.py."""

import asyncio
import contextlib
import json
import logging
import subprocess
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent.guest import rulesets as guest
from tapwright.errors import AgentRefusedError, NetworkError
from tapwright.linux import netns, nftables
from tapwright.linux.ipvs import Server, Service
from tapwright.linux.netlink import Netlink
from tapwright.nics import carried_rules
from tapwright.nics.attempts import Attempts
from tapwright.nics.interfaces import Followers
from tapwright.nics.rulesets import LOOK_AGAIN_SECONDS, Rulesets
from tests.namespaces import Namespace, namespace

CORPUS = Path(__file__).parent.parent / "linux" / "rulesets"
Json = dict[str, Any]


class Agent:
    """Does what the agent does, in a namespace. `answer` is given instead, once it is set."""

    def __init__(self, where: Namespace) -> None:
        self._where = where
        self.asked: list[Json] = []
        self.answer: Any = None

    async def call(self, request: Json, timeout: float = 0) -> Any:
        parts = json.loads(json.dumps(request))
        assert parts.pop("op") == "set_rulesets"
        self.asked.append(parts)
        if self.answer is not None:
            return self.answer
        with netns.entered(self._where.path), Netlink() as nl:
            return json.loads(json.dumps(guest.set_rulesets(nl, self.asked[-1])))


class Case:
    def __init__(self, here: Namespace, there: Namespace, mode: str = "required") -> None:
        self.here, self.there = here, there
        self.agent = Agent(there)
        self.rulesets = Rulesets(here.path, self.agent, mode)  # type: ignore[arg-type]
        self.attempts = Attempts()
        names = "eth0", "eth1"
        self.nics = Followers({here.index(name): name for name in names})

    def load(self) -> None:
        run(self.rulesets.load(self.nics))

    def follow(self, strictly: bool = False) -> float | None:
        again = run(self.rulesets.follow(self.nics, self.attempts, strictly))
        return self.attempts.end_round() or again

    def look_at_once(self) -> None:
        """As if the time in which nothing is looked at were over."""
        self.rulesets._not_before = 0.0

    def of_guest(self, *command: str) -> str:
        return inside(self.there, *command)


@pytest.fixture
def case() -> Iterator[Case]:
    with namespace("tw-here") as here, namespace("tw-there") as there:
        for where in (here, there):
            where.ip("link add eth0 type veth peer name eth1")
        yield Case(here, there)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


def inside(where: Namespace, *command: str, text: str = "") -> str:
    words = ["ip", "netns", "exec", where.name, *command]
    done = subprocess.run(words, input=text, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[:500]}"
    return done.stdout


def test_no_rules_are_no_work(case: Case) -> None:
    case.load()
    assert case.follow() is None
    assert case.agent.asked == []


def test_rules_come_and_go(case: Case) -> None:
    inside(case.here, "nft", "add", "table", "ip", "before")
    case.load()
    assert "before" in case.of_guest("nft", "list", "tables")
    inside(case.here, "iptables-nft-restore", text=(CORPUS / "istio-redirect.v4").read_text())
    case.look_at_once()
    assert case.follow() is None
    assert "--to-ports 15006" in case.of_guest("iptables-nft-save")
    inside(case.here, "nft", "flush", "ruleset")
    case.look_at_once()
    case.follow()
    assert case.of_guest("nft", "list", "ruleset") == ""


def test_a_table_that_is_the_same_is_not_touched(case: Case) -> None:
    for name in ("one", "two"):
        inside(case.here, "nft", "add", "table", "ip", name)
        inside(case.here, "nft", "add", "chain", "ip", name, "c")
    case.load()
    inside(case.there, "nft", "add", "rule", "ip", "one", "c", "counter")
    inside(case.here, "nft", "add", "rule", "ip", "two", "c", "accept")
    case.look_at_once()
    case.follow()
    assert "counter" in case.of_guest("nft", "list", "table", "ip", "one")
    assert "accept" in case.of_guest("nft", "list", "table", "ip", "two")


def test_the_guests_own_tables_stay(case: Case) -> None:
    inside(case.there, "nft", "add", "table", "ip", "own")
    inside(case.there, "ipset", "create", "own", "hash:ip")
    inside(case.here, "nft", "add", "table", "ip", "other")
    case.load()
    inside(case.here, "nft", "delete", "table", "ip", "other")
    case.look_at_once()
    case.follow()
    assert case.of_guest("nft", "list", "tables") == "table ip own\n"
    assert case.of_guest("ipset", "list", "-n") == "own\n"


ADDED = """
table ip mesh {
    set own { type ipv4_addr; elements = { 10.1.1.1 }; }
    map ports { type inet_service : verdict; elements = { 99 : drop }; }
    counter seen { }
    chain mine { ip saddr @own counter name seen accept; tcp dport vmap @ports; }
    chain out { tcp dport { 81, 82 } jump mine; tcp dport vmap { 83 : drop, 84 : accept }; }
}
"""
MESH = """
table ip mesh {
    set theirs { type ipv4_addr; elements = { 10.2.2.2 }; }
    chain out { type nat hook output priority -100; policy accept; %s; }
    chain other { tcp dport { 70, 71 } accept; }
}
"""


def change(case: Case, text: str) -> None:
    """Make the namespace's rules others."""
    inside(case.here, "nft", "-f", "-", text=f"flush ruleset\n{text}")
    case.look_at_once()
    case.follow()


def rules(case: Case, chain: str) -> list[str]:
    listed = case.of_guest("nft", "list", "chain", "ip", "mesh", chain).splitlines()
    return [line.strip() for line in listed if line.startswith("\t\t") and "hook" not in line]


def test_what_a_container_put_into_a_table_survives_its_change(case: Case) -> None:
    inside(case.here, "nft", "-f", "-", text=MESH % "ip daddr @theirs counter; tcp dport 1 accept")
    case.load()
    inside(case.there, "nft", "insert", "rule", "ip", "mesh", "out", "tcp", "dport", "80", "drop")
    inside(case.there, "nft", "insert", "rule", "ip", "mesh", "out", "tcp", "dport", "79", "drop")
    inside(case.there, "nft", "-f", "-", text=ADDED)
    own = [
        "tcp dport 79 drop",
        "tcp dport 80 drop",
        "tcp dport { 81, 82 } jump mine",
        "tcp dport vmap { 83 : drop, 84 : accept }",
    ]
    mine = ['ip saddr @own counter name "seen" accept', "tcp dport vmap @ports"]
    # Anonymous sets of both sides would have the same names.
    for port in ("tcp dport { 2, 3 } accept", "tcp dport { 4, 5 } accept; tcp dport 6 accept"):
        change(case, MESH % port)
        assert rules(case, "out") == [*own[:2], *port.split("; "), *own[2:]]
        assert rules(case, "mine") == mine
        assert rules(case, "other") == ["tcp dport { 70, 71 } accept"]
        listed = case.of_guest("nft", "list", "table", "ip", "mesh")
        assert "10.1.1.1" in listed
        assert "99 : drop" in listed
        assert "@theirs" not in listed
    # The table goes, what is not the namespace's stays.
    change(case, "")
    assert rules(case, "out") == own
    assert rules(case, "mine") == mine
    assert "other" not in case.of_guest("nft", "list", "table", "ip", "mesh")
    change(case, MESH % "tcp dport 7 accept")
    assert sorted(rules(case, "out")) == sorted([*own, "tcp dport 7 accept"])
    inside(case.there, "nft", "delete", "rule", "ip", "mesh", "out", "handle", handle(case, "79"))
    change(case, MESH % "tcp dport 8 accept")
    assert "tcp dport 79 drop" not in rules(case, "out")


def handle(case: Case, port: str) -> str:
    listed = case.of_guest("nft", "-a", "list", "chain", "ip", "mesh", "out")
    (line,) = [line for line in listed.splitlines() if f"dport {port} " in line]
    return line.rpartition(" ")[2]


def test_rules_of_iptables_that_a_container_added_survive(case: Case) -> None:
    """As docker's in a pod of a mesh do."""
    inside(case.here, "iptables-nft-restore", text=(CORPUS / "istio-redirect.v4").read_text())
    case.load()
    for words in (
        "-N DOCKER",
        "-A DOCKER -p tcp --dport 8080 -m comment --comment own -j DNAT --to 172.17.0.2:80",
        "-A OUTPUT -m addrtype --dst-type LOCAL -j DOCKER",
    ):
        inside(case.there, "iptables-nft", "-t", "nat", *words.split())
    before = case.of_guest("iptables-nft-save", "-t", "nat")
    more = "iptables-nft -t nat -A OUTPUT -p tcp --dport 9 -j RETURN"
    inside(case.here, *more.split())
    case.look_at_once()
    case.follow()
    after = case.of_guest("iptables-nft-save", "-t", "nat")
    assert uncommented(after) == uncommented(before, "-A OUTPUT -p tcp -m tcp --dport 9 -j RETURN")


def uncommented(saved: str, *more: str) -> list[str]:
    lines = [line.partition(" [")[0] for line in saved.splitlines() if line[0] != "#"]
    return sorted([*lines, *more])


def test_what_can_not_survive_does_not_keep_the_others_away(
    case: Case, caplog: pytest.LogCaptureFixture
) -> None:
    inside(case.here, "nft", "-f", "-", text="table ip t { chain a { accept; }\n chain b { }\n }")
    case.load()
    inside(case.there, "nft", "add", "rule", "ip", "t", "a", "jump", "b")
    change(case, "table ip t { chain a { drop; }\n }")
    assert case.of_guest("nft", "list", "table", "ip", "t").split() == (
        ["table", "ip", "t", "{", "chain", "a", "{", "drop", "}", "}"]
    )
    assert "what a container has put into tables of the namespace's" in caplog.text


def test_legacy_tables_and_ipsets_are_looked_at_again(case: Case) -> None:
    inside(case.there, "ipset", "create", "own", "hash:ip")  # so that numbers differ
    inside(case.here, "ipset", "create", "pods", "hash:ip")
    rule = "-A OUTPUT -m set --match-set pods dst -j DROP"
    for program in ("iptables-nft", "iptables-legacy"):
        inside(case.here, program, *rule.split())
    case.load()
    for program in ("iptables-nft-save", "iptables-legacy-save"):
        assert rule in case.of_guest(program)
    # Of these nothing tells.
    inside(case.here, "ipset", "add", "pods", "10.0.0.9")
    inside(case.here, "iptables-legacy", "-A", "OUTPUT", "-j", "ACCEPT")
    case.look_at_once()
    assert case.follow() == LOOK_AGAIN_SECONDS
    assert "add pods 10.0.0.9" in case.of_guest("ipset", "save")
    assert "-A OUTPUT -j ACCEPT" in case.of_guest("iptables-legacy-save")
    inside(case.here, "iptables-legacy", "-F")
    inside(case.here, "iptables-nft", "-F")
    inside(case.here, "ipset", "destroy")
    case.look_at_once()
    case.follow()
    assert "-A" not in case.of_guest("iptables-legacy-save")
    assert case.of_guest("ipset", "list", "-n") == "own\n"
    count = len(case.agent.asked)
    case.look_at_once()
    case.follow()
    assert len(case.agent.asked) == count


def test_a_table_nobody_touched_is_not_carried(case: Case) -> None:
    inside(case.here, "iptables-legacy", "-t", "nat", "-L")
    case.load()
    assert not any("tables" in asked for asked in case.agent.asked)


def test_what_a_nic_took_with_it_comes_again(case: Case) -> None:
    """The guest's kernel ends hooks of a device with it."""
    rules = "table netdev t { chain c { type filter hook ingress device eth0 priority 0; }; }"
    inside(case.here, "nft", rules)
    case.load()
    for command in ("link delete eth0", "link add eth0 type veth peer name eth1"):
        case.there.ip(command)
    inside(case.there, "nft", "flush", "ruleset")
    case.follow()
    assert case.of_guest("nft", "list", "ruleset") == ""
    case.rulesets.doubt()
    case.look_at_once()
    case.follow()
    assert "device" in case.of_guest("nft", "list", "ruleset")


def test_indices_of_interfaces_are_the_guests(case: Case) -> None:
    case.there.ip("link delete eth0")
    case.there.ip("link add other type bridge")
    case.there.ip("link add eth0 type veth peer name eth1")
    assert case.there.index("eth0") != case.here.index("eth0")
    inside(case.here, "nft", "-f", str(CORPUS / "devices.nft"))
    case.load()
    listed = case.of_guest("nft", "list", "ruleset")
    assert listed == inside(case.here, "nft", "list", "ruleset")
    assert 'oif "eth0"' in listed


def test_hooks_that_frames_pass_in_the_namespace_are_not_the_guests(case: Case) -> None:
    rules = "table netdev t { chain c { type filter hook ingress device eth0 priority 0; }; }"
    inside(case.here, "nft", rules)
    case.nics = Followers(case.nics.names, frozenset({"eth0"}))
    case.load()
    assert "chain" not in case.of_guest("nft", "list", "ruleset")


def refusing(case: Case) -> None:
    """A table that the guest can't take: a process of its own holds one of that name."""
    inside(case.here, "nft", "table ip wanted { chain c { accept; }; }")
    inside(case.here, "nft", "table ip held { chain c { accept; }; }")


@pytest.fixture
def held(case: Case) -> Iterator[Case]:
    with case.there.table_of_another("held"):
        refusing(case)
        yield case


def test_required_rules_that_are_refused_are_an_error(held: Case) -> None:
    with pytest.raises(AgentRefusedError, match="table ip held: Operation not permitted") as error:
        held.load()
    assert "netns_rulesets" in str(error.value)
    # All that the guest takes is there nevertheless.
    assert "wanted" in held.of_guest("nft", "list", "tables")


def test_without_those_that_are_refused(held: Case, caplog: pytest.LogCaptureFixture) -> None:
    lenient = Case(held.here, held.there, "best-effort")
    with caplog.at_level(logging.WARNING):
        lenient.load()
    assert "wanted" in held.of_guest("nft", "list", "tables")
    assert "held" in caplog.text


def test_none_are_carried(case: Case) -> None:
    refusing(case)
    none = Case(case.here, case.there, "none")
    none.load()
    assert none.follow() is None
    assert none.agent.asked == []


def test_a_later_refusal_is_tried_again(held: Case, caplog: pytest.LogCaptureFixture) -> None:
    inside(held.here, "nft", "delete", "table", "ip", "held")
    held.load()
    inside(held.here, "nft", "add", "table", "ip", "held")
    inside(held.here, "nft", "add", "table", "ip", "more")
    held.look_at_once()
    with caplog.at_level(logging.WARNING):
        again = held.follow()
    assert again is not None
    assert again < 1
    assert "held" in caplog.text
    assert "more" in held.of_guest("nft", "list", "tables")
    with pytest.raises(AgentRefusedError):
        held.follow(strictly=True)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"refused": "all", "ipsets": [], "interfaces": {"eth0": "2"}},
        {"refused": [None, {"kind": "nftables", "number": 10**9, "reason": ["x"] * 1000}]},
        {"ipsets": {"pods": 70_000}, "interfaces": {"eth0": True}},
        {"refused": [{"kind": "nftables", "number": -1}], "interfaces": {"eth0": -(10**30)}},
        {"interfaces": {"eth0": 10**30}, "ipsets": {"pods": None}},
    ],
)
def test_a_guest_may_answer_anything(answer: Json, case: Case) -> None:
    inside(case.here, "ipset", "create", "pods", "hash:ip")
    inside(case.here, "nft", "-f", str(CORPUS / "devices.nft"))
    case.agent.answer = answer
    with contextlib.suppress(AgentRefusedError):
        case.load()


def test_too_many_rules_are_refused_with_words(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nftables, "MOST_BYTES", 10_000)
    rules = "".join(f"add rule ip t c ip saddr 10.0.0.{n} accept\n" for n in range(200))
    inside(case.here, "nft", "-f", "-", text=f"add table ip t\nadd chain ip t c\n{rules}")
    with pytest.raises(NetworkError, match=r"can't be read: .*more than"):
        case.load()
    assert case.follow() is not None  # it is logged, and tried again later


def test_the_hosts_own_rules_are_nobodys_elses(case: Case) -> None:
    rulesets = Rulesets(netns.OWN, case.agent)  # type: ignore[arg-type]
    run(rulesets.load(case.nics))
    assert case.agent.asked == []


WEB, DNS = Service(6, "10.0.0.1", 80, "rr"), Service(17, "fd00::1", 53, "sh")
ONE, OTHER = Server("10.1.0.1", 80), Server("10.1.0.2", 80)
HEAVIER = ONE._replace(weight=5)


def table(*servers: Server) -> dict[Server, Server]:
    return {Server(server.address, server.port): server for server in servers}


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        ({}, {}, []),
        ({WEB: table(ONE)}, {WEB: table(ONE)}, []),
        ({}, {WEB: table(ONE)}, [("add", WEB, None), ("add", WEB, ONE)]),
        ({WEB: table(ONE)}, {}, [("delete", WEB, None)]),
        ({WEB: table(ONE)}, {WEB: table(HEAVIER)}, [("edit", WEB, HEAVIER)]),
        (
            {WEB: table(ONE)},
            {WEB: table(OTHER)},
            [("delete", WEB, ONE), ("add", WEB, OTHER)],
        ),
        (
            {WEB: table(ONE)},
            {WEB._replace(scheduler="wrr"): table(ONE)},
            [("edit", WEB._replace(scheduler="wrr"), None)],
        ),
        (
            {WEB: table(ONE)},
            {DNS: table()},
            [("delete", WEB, None), ("add", DNS, None)],
        ),
        (
            {Service(0, "", 0, mark=7): table()},
            {Service(0, "", 0, mark=8): table()},
            [
                ("delete", Service(0, "", 0, mark=7), None),
                ("add", Service(0, "", 0, mark=8), None),
            ],
        ),
    ],
)
def test_changes_of_services(
    before: dict[Service, Any], after: dict[Service, Any], changes: list[Any]
) -> None:
    assert list(carried_rules.service_changes(before, after)) == changes
