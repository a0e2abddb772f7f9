"""Compares what is seen in a namespace with what is seen in its guest, field by field."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

Json = Any

COLUMNS = ("links", "addresses", "routes", "rules", "neighbours", "groups", "settings")

REASONS = (
    (
        r"links: \w+ mtu 655(35|21): ",
        "a TAP takes no larger MTU than 65,521",
    ),
    (
        r"links: \w+ txqlen 1000: only in the guest",
        "an interface without a queue (`txqlen` 0, as bridge and ptp make them); the guest's NIC "
        "has a queue of 1000 frames, because without a queue it would drop what it can't send "
        "at once",
    ),
    (
        r"settings: ipv6/conf/eth0/mtu is 65535, in the guest 65521",
        "a TAP takes no larger MTU than 65,521",
    ),
    (
        r"groups: \w+ ff0[15]::2: not in the guest",
        "a kernel joins the groups of all routers, except that of the link, only when somebody "
        "switches forwarding on while the interface exists",
    ),
    (
        r"settings: ipv6/conf/\w+/accept_dad",
        "the guest does not look for duplicates of its addresses: the host holds them",
    ),
    (
        r"settings: ipv6/conf/\w+/addr_gen_mode is 0, in the guest 1|"
        r"links: \w+ inet6_addr_gen_mode \w+: ",
        "the interface has no link-local address made from its present MAC address (the MAC "
        "address was another one, or somebody removed the address), so Tapwright keeps the "
        "guest's kernel from making one",
    ),
    (
        r"settings: ipv[46]/neigh/\w+/retrans_time\b",
        "in ticks of each kernel's own clock; the same in milliseconds is equal",
    ),
    (
        r"settings: ipv[46]/neigh/\w+/unres_qlen(_bytes)?\b",
        "the kernel computes it from the size of its own structures",
    ),
)
"""What may differ, and why: a pattern of the difference as it is told, and the reason."""

# Of a link what a program cares for, but for those that REASONS names for all networks.
_LINK = (
    *("address", "mtu", "txqlen", "link_type", "group"),
    *("inet6_addr_gen_mode", "ifalias", "altnames"),
)
_LINK_FLAGS = frozenset(
    ("UP", "BROADCAST", "MULTICAST", "NOARP", "LOOPBACK", "LOWER_UP", "PROMISC")
)
_ADDRESS = (
    *("family", "local", "address", "prefixlen", "broadcast", "scope", "label", "metric"),
    *("noprefixroute", "nodad", "home", "mngtmpaddr", "deprecated", "dynamic", "secondary"),
    *("temporary", "tentative", "dadfailed", "protocol"),
)
_LIFETIMES = "valid_life_time", "preferred_life_time"
_SECONDS = 30  # that a probe may be later than the other
# What is the kernel's own of a route: of a carrier, of hardware, of its cache.
_NOT_OF_A_ROUTE = frozenset(("flags", "cache", "expires", "users", "age", "used", "error"))


class Side(NamedTuple):
    """What was seen on one side, by column, as lines that can be compared."""

    lines: dict[str, list[str]]
    settings: dict[str, str | None]


def seen(probe: Json, interfaces: list[str]) -> Side:
    lines = {
        "links": sorted(_links(probe["links"], interfaces)),
        "addresses": sorted(_addresses(probe["addresses"], interfaces)),
        "routes": sorted(
            _route(route)
            for route in [*probe["routes"], *probe["routes6"], *probe["nexthops"]]
            if not str(route.get("dev")).endswith("_kata")  # Tapwright's own device
        ),
        "rules": [_rule(rule) for rule in [*probe["rules"], *probe["rules6"]]],
        "neighbours": sorted(
            _line({key: entry.get(key) for key in ("dst", "dev", "lladdr", "proxy", "router")})
            for entry in [*probe["neighbours"], *probe["proxies"]]
        ),
        "groups": sorted(_groups(probe["groups"], interfaces)),
    }
    return Side(lines, probe["settings"])


def differences(here: Side, there: Side) -> dict[str, list[str]]:
    """In words, by column."""
    found: dict[str, list[str]] = {}
    for column in COLUMNS[:-1]:
        ours, theirs = here.lines[column], there.lines[column]
        told = [f"{column}: {line}: not in the guest" for line in ours if line not in theirs]
        told += [f"{column}: {line}: only in the guest" for line in theirs if line not in ours]
        if not told and ours != theirs:
            told = [f"{column}: in another order: {ours}, in the guest {theirs}"]
        found[column] = told
    found["settings"] = [
        f"settings: {path} is {value}, in the guest {there.settings[path]}"
        for path, value in here.settings.items()
        # One kernel may know settings that another does not.
        if value is not None
        and there.settings.get(path) is not None
        and value != there.settings[path]
    ]
    return found


def reason(difference: str) -> str | None:
    """Why it may be; None where it may not."""
    return next((why for pattern, why in REASONS if re.match(pattern, difference)), None)


def _rule(rule: Json) -> str:
    """Since Linux 6.14 a kernel lists masks of ports, which are full where nobody asked for one."""
    full = {key for key, value in rule.items() if key.endswith("_mask") and value == "0xffff"}
    return _line({key: value for key, value in rule.items() if key not in full})


def _links(found: list[Json], interfaces: list[str]) -> Iterator[str]:
    for link in found:
        if link["ifname"] in interfaces:
            name = link["ifname"]
            flags = sorted(_LINK_FLAGS.intersection(link["flags"]))
            yield f"{name} flags {' '.join(flags)}"
            for key in _LINK:
                if key in link:
                    yield f"{name} {key} {link[key]}"


def _addresses(found: list[Json], interfaces: list[str]) -> Iterator[str]:
    for link in found:
        if link["ifname"] not in interfaces:
            continue
        number = 0
        for address in link["addr_info"]:
            entry = {key: address[key] for key in _ADDRESS if key in address}
            for key in _LIFETIMES:
                left = address[key]
                entry[key] = left if left in (0, 0xFFFFFFFF) else f"~{round(left, -2)}"
            if address["family"] == "inet" or not address["local"].startswith("fe80:"):
                # Their order matters. The kernel's own link-local one comes when it likes.
                entry["number"] = number = number + 1
            yield f"{link['ifname']} {_line(entry)}"


def _route(route: Json) -> str:
    def stripped(value: Json) -> Json:
        if isinstance(value, dict):
            return {
                key: stripped(item)
                for key, item in value.items()
                if key not in _NOT_OF_A_ROUTE or (key == "flags" and "onlink" in item)
            }
        if isinstance(value, list):
            return [stripped(item) for item in value if item != "linkdown"]
        return value

    return _line(stripped(route))


def _groups(found: list[Json], interfaces: list[str]) -> Iterator[str]:
    for link in found:
        if link["ifname"] in interfaces:
            for group in link["maddr"]:
                if "family" in group:  # the others are of frames, and of the driver
                    yield f"{link['ifname']} {group['address']}"


def _line(entry: Json) -> str:
    return json.dumps(entry, sort_keys=True)


Rows = list[tuple[str, dict[str, list[str]] | str]]
"""Of each its name, and its differences by column (none for what was not compared there), or why it
was not tried."""


def written(rows: Rows, behaviours: Rows, columns: tuple[str, ...]) -> str:
    """docs/parity.md: of what is seen, and of what works, in these columns."""
    notes: dict[str, int] = {}

    def cell(told: list[str]) -> str:
        marks = sorted({notes.setdefault(reason(one) or "?", len(notes) + 1) for one in told})
        return "same" if not told else "differs " + ", ".join(f"({mark})" for mark in marks)

    def table(some: Rows, columns: tuple[str, ...]) -> Iterator[str]:
        yield f"| network | {' | '.join(columns)} |"
        yield "| --- " * (len(columns) + 1) + "|"
        for name, result in some:
            if isinstance(result, str):
                yield f"| {name} | {result} |" + " |" * (len(columns) - 1)
            else:
                cells = (f" {cell(result[key])} |" if key in result else " |" for key in columns)
                yield f"| {name} |{''.join(cells)}"

    lines = [_HEAD, *table(rows, COLUMNS), _BEHAVIOUR, *table(behaviours, columns), ""]
    lines += [f"{number}. {why}." for why, number in notes.items()]
    return "\n".join([*lines, _TAIL])


Written = Callable[[], str]

_HEAD = """\
# Parity

The same probe runs in a namespace and in the guest that belongs to it; this page says, field by
field, whether both see the same network. `TAPWRIGHT_WRITE_PARITY=1 scripts/test tests/parity`
writes the page; without the variable, the test compares the page with what it finds.

- *links*: MAC, MTU, queue length, flags, group, generation of addresses, alias, other names.
- *addresses*: with scope, peer, broadcast, label, metric, flags and times; in their order, except
  link-local ones.
- *routes*: of all tables and types, also those that the kernel makes, and next hop objects.
- *rules*: of both families, in their order.
- *neighbours*: static ones, and proxies.
- *groups*: the multicast groups of both families.
- *settings*: `/proc/sys/net/*/conf` and `neigh` of each interface and of loopback, and all
  settings of the namespace that differ from a new namespace's, if both kernels know them.
"""

_BEHAVIOUR = """
## What works

The same program tries what works on a network: first in a container of runc on a namespace, then
in a guest on a namespace of the same kind. Its partners are the host, a neighbour in the subnet (a
second container of the network), and a node behind a router, to which the last link has an MTU of
1300. The test compares each answer, with the addresses, hop limits and segment sizes that both
ends see.

- *reaching*: ICMP, UDP and TCP of both families, to the gateway, the others and itself; the source
  address that is chosen; what is forwarded.
- *being reached*: the same from each of them; closed ports; ports of the host that portmap
  forwards to it, also from itself.
- *groups*: multicast and broadcast, sent and heard; frames for another station, as a bridge floods
  them.
- *sizes*: fragments, the MTU of the path, packets that must not be fragmented, large transfers by
  TCP.
- *errors*: hops exceeded, closed ports, what a router refuses, absent neighbours, and types of
  routes.
- *discovery*: answers to ARP and neighbour solicitations; router advertisements, taken or not;
  DHCP.
"""

_TAIL = """
## In every network

- An interface of the guest has the kind, queues and offloads of a virtio NIC, and the speed of a
  veth. Its `iflink` is its own index, not that of an end on the host. Its index is the one that
  the interface has in the namespace, if no other interface of the guest has that index, and the
  guest's kernel is 5.13 or later. In a sandbox without containers of a platform, a NIC that exists
  from the start has the guest's own index.
- The guest's NIC has a queueing discipline of its own (`pfifo_fast` or `fq_codel` instead of
  `noqueue`). The namespace's queueing disciplines shape, on the host, what leaves the interface
  there; in the guest they would shape it a second time.
- When a table of nf_tables changes in the namespace, Tapwright makes it anew in the guest, in one
  transaction. It keeps what a container has added to the table (chains, rules, sets, maps,
  counters): the rules stay before or after the namespace's, with other handles. It undoes what a
  container has changed of the namespace's own (policies, elements of sets, deleted rules).
  Tapwright replaces a table of iptables-legacy as a whole.
- The guest does not look for duplicates of its addresses, because the host holds them:
  `ipv6/conf/*/accept_dad` is 0. (In these tests it is 0 in the namespace, too, so no program has
  to wait.)
- Settings in ticks of a kernel's clock (`neigh/*/retrans_time`), and sizes that a kernel computes
  (`unres_qlen`), differ where the kernels differ.
- busybox's `ip link add d …` and `ip link add n …` fail in the guest as on a host: busybox takes
  `d` for `dev` and `n` for `name`.
- An interface that is down in the namespace carries nothing, even if a program in the guest brings
  its NIC up. Bring the interface up in the namespace.
- A guest with containers has the settings of connection tracking (`net.netfilter.nf_conntrack_*`).
  It has those of IPVS, SCTP, MPLS and bridges' packet filters if the configuration or the
  namespace has them: then the guest loads the module.
- Loopback is up, and has 127.0.0.1 and ::1. In a namespace where no program has brought it up, it
  is down.
- Tapwright does not carry interfaces that are no Ethernet devices (such as the tunnels that each
  kernel puts into each namespace), bridges, and routes through these or through VRFs.
- Tapwright does not carry what no known plugin or platform sets: address labels (`ip addrlabel`,
  and labels of IPv4 addresses without a colon), tokens (`ip token`), MPTCP's endpoints and limits,
  an alias of loopback, groups of `ip maddr add`, and very long queues (600,000 frames).
- Tapwright does not carry IPsec's policies and states, because two kernels would have their keys
  and counters; neighbours by `nud noarp`, which a kernel forgets when nobody uses them, as in the
  namespace; the end of a route by `expires`, because the route goes when the namespace's route has
  gone; and `ipv6/conf/*/mtu`, which follows the link.
- An interface that takes all multicast when its NIC comes does so in the guest, too; Tapwright
  does not carry later changes of that to the guest.
- The guest has the kernel's own routes of the table `local` (of an address, of a broadcast, of
  `ff00::/8`), even if somebody has removed them from the namespace.
- Router advertisements and redirects reach the guest's kernel, too, which makes routes from them
  itself.
- When a program in the namespace joins a multicast group, the guest does not join it.
- Tapwright does not carry `ipv4/tcp_fastopen_key`, `netfilter/nf_log`, and settings that only one
  of the kernels has. The guest's kernel refuses a congestion control that it lacks, and Tapwright
  logs that.
- Tapwright refuses, and logs, an attribute of a rule that Linux has only since 6.13: an older
  kernel would ignore the attribute, and the rule would match more traffic.
"""
