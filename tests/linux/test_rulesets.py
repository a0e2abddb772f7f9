"""Packet rules of one namespace, made anew in another: the kernel's usual tools show the same
of both. The rules are of the shapes in which plugins and platforms set them (rulesets/)."""

import errno
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import ipset, netns, nfnetlink, nftables, packet_rules, xtables
from tapwright.linux.netlink import NetlinkError
from tapwright.linux.nftables import Place
from tests.namespaces import Namespace, namespace

CORPUS = Path(__file__).with_name("rulesets")
OF_IPTABLES = {".v4": "iptables", ".v6": "ip6tables", ".arp": "arptables", ".eb": "ebtables"}


def files(*suffixes: str) -> list[str]:
    return sorted(path.name for path in CORPUS.iterdir() if path.suffix in suffixes)


@pytest.fixture
def here() -> Iterator[Namespace]:
    with namespace("tw-here") as made:
        made.ip("link add eth0 type veth peer name eth1")
        yield made


@pytest.fixture
def there() -> Iterator[Namespace]:
    """The same interfaces, with other indices."""
    with namespace("tw-there") as made:
        made.ip("link add first type bridge")
        made.ip("link add eth0 type veth peer name eth1")
        yield made


def run(where: Namespace, *command: str, text: str = "") -> str:
    done = subprocess.run(
        ["ip", "netns", "exec", where.name, *command],
        input=text,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[:500]}"
    return done.stdout


def told(where: Namespace, *command: str) -> str:
    """What a tool shows, without the parts that change with time, such as the rest of a timeout."""
    output = run(where, *command)
    lines = [line for line in output.splitlines() if not line.startswith("#")]
    return re.sub(r" expires \w+| timeout \d{3}\b", "", "\n".join(lines))


def load(where: Namespace, name: str) -> None:
    """Where the kernel has not got what a file asks for, that is not this test's affair."""
    command = ["ip", "netns", "exec", where.name, "nft", "-f", str(CORPUS / name)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if "Could not process rule: No such file or directory" in done.stderr:
        what = done.stderr.splitlines()[1].strip()
        pytest.skip(f"this host's kernel has not got what {name} needs: {what}")
    assert done.returncode == 0, done.stderr


def read(where: Namespace, place: Place | None = None) -> list[nftables.Table]:
    with netns.entered(where.path), nfnetlink.opened() as nl:
        return nftables.read(nl, place or Place())[1]


def place_of(here: Namespace, there: Namespace) -> Place:
    names = "lo", "eth0", "eth1"
    return Place(names, {here.index(name): there.index(name) for name in names})


def commit(where: Namespace, tables: list[nftables.Table]) -> list[nfnetlink.Refusal]:
    changes = [change for table in tables for change in nftables.replacement(table)]
    with netns.entered(where.path):
        return nfnetlink.commit(nfnetlink.packed(changes))


@pytest.mark.parametrize("name", files(".nft"))
def test_nft_shows_the_same(name: str, here: Namespace, there: Namespace) -> None:
    load(here, name)
    for _ in range(2):  # where there is nothing, and in the place of the same
        assert commit(there, read(here, place_of(here, there))) == []
        assert told(there, "nft", "list", "ruleset") == told(here, "nft", "list", "ruleset")


@pytest.mark.parametrize("name", files(*OF_IPTABLES))
def test_iptables_nft_shows_the_same(name: str, here: Namespace, there: Namespace) -> None:
    program = OF_IPTABLES[Path(name).suffix]
    run(here, f"{program}-nft-restore", text=(CORPUS / name).read_text())
    assert commit(there, read(here, place_of(here, there))) == []
    save = f"{program}-nft-save"
    assert told(there, save) == told(here, save) != ""
    assert told(there, "nft", "list", "ruleset") == told(here, "nft", "list", "ruleset")


@pytest.mark.parametrize("name", files(".v4", ".v6"))
def test_iptables_legacy_shows_the_same(name: str, here: Namespace, there: Namespace) -> None:
    program = OF_IPTABLES[Path(name).suffix]
    rules = (CORPUS / name).read_text().replace("ACCEPT [0:0]", "ACCEPT [7:700]")
    run(here, f"{program}-legacy-restore", "-c", text=rules)
    copy_legacy(here, there)
    save = f"{program}-legacy-save", "-c"
    assert told(there, *save) == told(here, *save) != ""


def test_arptables_legacy_shows_the_same(here: Namespace, there: Namespace) -> None:
    run(here, "arptables-legacy", "-A", "INPUT", "-s", "10.0.0.9", "-j", "DROP")
    mangle = "-A OUTPUT -d 10.0.0.9 -j mangle --mangle-ip-s 10.0.0.1"
    run(here, "arptables-legacy", *mangle.split())
    copy_legacy(here, there)
    assert "10.0.0.9" in told(here, "arptables-legacy", "-L")
    assert told(there, "arptables-legacy", "-L") == told(here, "arptables-legacy", "-L")


def copy_legacy(here: Namespace, there: Namespace) -> None:
    with netns.entered(here.path):
        tables = [xtables.read(*which) for which in packet_rules.legacy_tables()]
    with netns.entered(there.path):
        for table in tables:
            xtables.replace(table)
        assert [xtables.read(*which).key for which in packet_rules.legacy_tables()] == [
            t.key for t in tables
        ]


def test_a_table_that_was_only_listed_is_untouched(here: Namespace) -> None:
    run(here, "iptables-legacy", "-t", "mangle", "-L")

    def untouched() -> list[bool]:
        with netns.entered(here.path):
            return [xtables.read(*which).is_untouched for which in packet_rules.legacy_tables()]

    assert untouched() == [True]
    run(here, "iptables-legacy", "-t", "mangle", "-P", "OUTPUT", "DROP")
    assert untouched() == [False]
    run(here, "iptables-legacy", "-t", "mangle", "-P", "OUTPUT", "ACCEPT")
    run(here, "iptables-legacy", "-t", "mangle", "-N", "ours")
    assert untouched() == [False]


def test_looking_sets_no_table_up(here: Namespace) -> None:
    with netns.entered(here.path):
        assert packet_rules.legacy_tables() == ()
        with nfnetlink.opened() as nl:
            assert not packet_rules.has_tables(nl)
            assert nftables.read(nl, Place())[1] == []
        assert packet_rules.legacy_tables() == ()


def test_ipset_shows_the_same(here: Namespace, there: Namespace) -> None:
    run(here, "ipset", "restore", text=(CORPUS / "kinds.ipset").read_text())
    run(there, "ipset", "create", "own", "hash:ip")
    for _ in range(2):
        copy_ipsets(here, there)
    ours = told(there, "ipset", "save").splitlines()
    assert sorted(line for line in ours if not line.startswith("create own ")) == sorted(
        told(here, "ipset", "save").splitlines()
    )


def test_an_ipset_changes_under_the_rule_that_uses_it(here: Namespace, there: Namespace) -> None:
    run(here, "ipset", "create", "pods", "hash:ip")
    copy_ipsets(here, there)
    rule = "-A INPUT -m set --match-set pods src -j DROP"
    run(there, "iptables-nft", *rule.split())
    run(here, "ipset", "add", "pods", "10.0.0.9")
    copy_ipsets(here, there)
    assert "10.0.0.9" in run(there, "ipset", "save")
    assert "--match-set pods src" in run(there, "iptables-nft-save")
    run(here, "ipset", "flush", "pods")
    copy_ipsets(here, there)
    assert "10.0.0.9" not in run(there, "ipset", "save")
    assert run(there, "ipset", "list", "-n").split() == ["pods"]


def copy_ipsets(here: Namespace, there: Namespace) -> dict[int, int]:
    with netns.entered(here.path), nfnetlink.opened() as nl:
        sets = ipset.read(nl)
        assert sorted(packet_rules.ipset_names(nl)) == sorted(one.name for one in sets)
    with netns.entered(there.path), nfnetlink.opened() as nl:
        return {one.number: ipset.put(nl, one) for one in sets}


@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_rules_find_their_ipsets(back_end: str, here: Namespace, there: Namespace) -> None:
    """Which have other numbers there."""
    run(there, "ipset", "create", "own", "hash:ip")
    for name in ("one", "two"):
        run(here, "ipset", "create", name, "hash:ip")
    for rule in (
        "-A INPUT -m set --match-set two src -m set ! --match-set one dst -j DROP",
        "-A OUTPUT -p tcp -j SET --add-set one src --exist --timeout 5",
        "-A OUTPUT -p tcp -j SET --del-set two dst",
    ):
        run(here, f"iptables-{back_end}", *rule.split())
    ipsets = copy_ipsets(here, there)
    if back_end == "nft":
        assert commit(there, read(here, Place(ipsets=ipsets))) == []
    else:
        with netns.entered(here.path):
            tables = [
                xtables.read(*which).with_ipsets(ipsets) for which in packet_rules.legacy_tables()
            ]
        with netns.entered(there.path):
            for table in tables:
                xtables.replace(table)
    save = f"iptables-{back_end}-save"
    assert told(there, save) == told(here, save)


def test_a_key_is_that_of_what_lasts(here: Namespace) -> None:
    load(here, "kinds.nft")
    before = read(here)
    # The same, with other counters.
    text = (CORPUS / "kinds.nft").read_text()
    text = re.sub(r"packets \d+ bytes \d+", "packets 77 bytes 7777", text)
    text = text.replace("used 2 kbytes", "used 5 kbytes")
    run(here, "nft", "flush", "ruleset")
    run(here, "nft", "-f", "-", text=text)
    assert [table.key for table in read(here)] == [table.key for table in before]
    run(here, "nft", "add", "element", "ip", "filter", "counting", "{ 10.7.7.7 }")
    changed = [a.name for a, b in zip(read(here), before, strict=True) if a.key != b.key]
    assert changed == ["filter"]


def test_the_generation_is_another_after_each_change(here: Namespace) -> None:
    with netns.entered(here.path), nfnetlink.opened() as nl:
        first = packet_rules.generation(nl)
        assert packet_rules.generation(nl) == first
        run(here, "nft", "add", "table", "ip", "t")
        assert packet_rules.generation(nl) != first


def test_hooks_of_devices_that_are_not_there_are_left_out(here: Namespace) -> None:
    load(here, "kinds.nft")
    (table,) = [t for t in read(here, Place({"lo", "eth0"})) if str(t) == "table netdev guard"]
    assert set(table.left_out) == {
        "chain ingress for eth1, which the guest lacks",
        "chain one for eth1, which the guest lacks",
    }
    with namespace("tw-one") as one:
        one.ip("link add eth0 type veth peer name other")
        assert commit(one, [table]) == []
        listed = run(one, "nft", "list", "ruleset")
    assert 'hook ingress device "eth0"' in listed
    assert "chain one" not in listed


def test_a_transaction_that_is_refused_changes_nothing(here: Namespace, there: Namespace) -> None:
    load(here, "kinds.nft")
    tables = read(here)
    run(there, "nft", "add", "table", "ip", "filter")
    _, removal_of_nothing = nftables.removal(socket.AF_INET, "nothing")
    broken = tables[-1]._replace(changes=(*tables[-1].changes, removal_of_nothing))
    (refusal,) = commit(there, [*tables[:-1], broken])
    assert (refusal.number > len(tables), refusal.code) == (True, errno.ENOENT)
    assert run(there, "nft", "list", "ruleset").split() == ["table", "ip", "filter", "{", "}"]


def test_a_table_of_another_process_is_nobodys_there(here: Namespace, there: Namespace) -> None:
    with here.table_of_another("held"):
        assert commit(there, read(here)) == []
        assert "held" in run(there, "nft", "list", "tables")


def test_more_than_the_limit_is_refused(here: Namespace) -> None:
    run(here, "nft", "-f", "-", text=_many(2000))
    with (
        netns.entered(here.path),
        nfnetlink.opened() as nl,
        pytest.raises(NetlinkError, match="more than"),
    ):
        nftables.read(nl, Place(), most_bytes=100_000)


def test_more_elements_than_the_limit_are_refused(
    here: Namespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(here, "nft", "-f", "-", text=_many(100))
    monkeypatch.setattr(nftables, "MOST_ELEMENTS", 99)
    with pytest.raises(NetlinkError, match="more than 99 elements"):
        read(here)


def test_many_rules_and_elements(here: Namespace, there: Namespace) -> None:
    run(here, "nft", "-f", "-", text=_many(5000))
    assert commit(there, read(here)) == []
    assert [table.key for table in read(there)] == [table.key for table in read(here)]


def _many(count: int) -> str:
    addresses = [f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(count)]
    rules = "\n".join(f"ip saddr {address} counter accept" for address in addresses)
    return (
        "table ip many {\n"
        f"set them {{ type ipv4_addr; elements = {{ {', '.join(addresses)} }}\n}}\n"
        f"chain c {{\n{rules}\n}}\n}}\n"
    )
