"""A program for the guest: it reports the guest's network, and where packets go.

The program serves one request, a JSON object on a line, and answers in two lines of JSON. It is a
process of its own (`probe`), because the agent could serve no other request meanwhile. It changes
nothing: the kernel removes the trace of packets when the program ends.

Request: `target` (an address or a name, empty for the default gateway), `port`, `udp`, `token`
(hexadecimal). First line: {"facts": …, "prepared": the target's address, the route to it, the
answers of name servers}. Then the program waits for a line, sends the probes, and writes
{"results": …}. With `towards` it sends none: it reports what came between the two lines from the
address `peer` at the NIC `nic`.
"""

import json
import os
import select
from contextlib import nullcontext, suppress
from typing import Any

from tapwright.agent.guest.files import read
from tapwright.linux import addresses, counted, links, lookup, nftrace, probes, sightings
from tapwright.linux.netlink import Netlink, pack_address

_SETTINGS = {
    4: ("ipv4/conf/{}/rp_filter", "ipv4/conf/{}/arp_ignore"),
    6: ("ipv6/conf/{}/disable_ipv6", "ipv6/conf/{}/accept_ra", "ipv6/conf/{}/forwarding"),
}
_GLOBAL = "ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"
_LISTENING = {"tcp": "0A", "tcp6": "0A", "udp": "07", "udp6": "07"}
_MOST = 500
_WAIT_SECONDS, _READ_BYTES = 5.0, 64 * 1024

Json = dict[str, Any]


class _Line:
    """The connection with the caller: requests come by one descriptor, answers go by the other."""

    def __init__(self, source: int, sink: int) -> None:
        self._source, self._sink = source, sink

    def request(self) -> Json:
        """Raises EOFError, ValueError."""
        line = b""
        while not line.endswith(b"\n"):
            part = os.read(self._source, _READ_BYTES)
            if not part or len(line) > _READ_BYTES:
                raise EOFError("no request came")
            line += part
        content: Json = json.loads(line)
        return content

    def tell(self, content: Json) -> None:
        rest = json.dumps(content).encode() + b"\n"
        while rest:
            rest = rest[os.write(self._sink, rest) :]

    def wait(self) -> None:
        """Wait for a line, or for the end of input."""
        select.select([self._source], [], [], _WAIT_SECONDS)


def serve(source: int, sink: int) -> None:
    line = _Line(source, sink)
    request = line.request()
    with Netlink() as nl:
        facts = of_network(nl)
        if request.get("towards"):
            results = _listen(nl, facts, request, line)
        else:
            prepared = _prepared(nl, facts, request)
            line.tell({"facts": facts, "prepared": prepared})
            line.wait()
            results = _probe(facts, prepared, request)
        results["neighbours"] = _neighbours(nl)
        line.tell({"results": results})


def of_network(nl: Netlink) -> Json:
    """Return interfaces, addresses, routes, settings, name servers and listening sockets."""
    by_index: dict[int, list[str]] = {}
    for index, address in addresses.listing(nl):
        by_index.setdefault(index, []).append(str(address))
    found = links.listing(nl)
    return {
        "links": [
            {
                "index": link.index,
                "name": link.name,
                "mac": link.mac,
                "mtu": link.mtu,
                "up": link.is_up,
                "running": link.is_running,
                "loopback": link.is_loopback,
                "addresses": by_index.get(link.index, []),
                "settings": _settings(link.name),
            }
            for link in found[:_MOST]
        ],
        "routes": [entry._asdict() for version in (4, 6) for entry in _routes(nl, version)],
        "neighbours": _neighbours(nl),
        "listening": _listening(),
        "resolv": _resolv(),
        "settings": {name: _setting(name) for name in _GLOBAL},
    }


def _routes(nl: Netlink, version: int) -> list[lookup.Entry]:
    return lookup.routes(nl, version)[:_MOST]


def _neighbours(nl: Netlink) -> list[Json]:
    return [known._asdict() for known in counted.neighbours(nl, _MOST)]


def _settings(name: str) -> Json:
    paths = [path.format(name) for several in _SETTINGS.values() for path in several]
    return {path.rpartition("/")[2]: _setting(path) for path in paths}


def _setting(path: str) -> str:
    try:
        return read(f"/proc/sys/net/{path}").strip()
    except OSError:
        return ""


def _listening() -> list[list[Any]]:
    """Return [protocol, address in hexadecimal as in /proc, port] of each."""
    found: list[list[Any]] = []
    for name, state in _LISTENING.items():
        with suppress(OSError):
            for line in read(f"/proc/net/{name}").splitlines()[1 : _MOST + 1]:
                words = line.split()
                if words[3] == state:
                    address, _, port = words[1].partition(":")
                    found.append([name, address, int(port, 16)])
    return found


def _resolv() -> Json:
    found: Json = {"nameservers": [], "search": [], "ndots": 1}
    with suppress(OSError):
        for line in read("/etc/resolv.conf").splitlines()[:_MOST]:
            word, *rest = line.split() or [""]
            if word == "nameserver" and rest:
                found["nameservers"].append(rest[0])
            elif word in ("search", "domain"):
                found["search"] = rest
            elif word == "options":
                for option in rest:
                    if option.startswith("ndots:") and option[6:].isdecimal():
                        found["ndots"] = int(option[6:])
    return found


def _prepared(nl: Netlink, facts: Json, request: Json) -> Json:
    target = str(request["target"])
    found: Json = {"asked": []}
    if not target:
        target = next((r["gateway"] for r in facts["routes"] if _is_default(r)), "")
    elif not _is_address(target):
        resolv = facts["resolv"]
        asked = probes.resolve(target, resolv["nameservers"], resolv["search"], resolv["ndots"])
        found["asked"] = probes.written(asked)
        answers = [address for answer in asked for address in answer.addresses]
        # IPv4 comes first, as RFC 6724 does where both addresses can be reached; its table matters
        # for other cases.
        target = next(iter(sorted(answers, key=lambda address: ":" in address)), "")
    found["target"] = target
    found["path"] = lookup.path(nl, target)._asdict() if target else {}
    return found


def _probe(facts: Json, prepared: Json, request: Json) -> Json:
    target, way = prepared["target"], prepared["path"]
    if (not target or not way["kind"]) and (router := _router_unheard(facts, target, request)):
        return {"probes": probes.written([router]), "trace": []}
    if not target:
        return {"probes": [], "trace": []}
    link = next((one for one in facts["links"] if one["index"] == way["device"]), None)
    own, large = None, 0
    if link and not link["loopback"] and link["up"]:
        version = ":" in target
        ours = [a.partition("/")[0] for a in link["addresses"] if (":" in a) == version]
        own = link["name"], link["mac"], [a for a in ours if not a.startswith("fe80")][:4]
        large = way["mtu"] or link["mtu"]
    token = bytes.fromhex(request["token"])
    with _traced(target) as trace:
        found = probes.run(target, int(request["port"]), bool(request["udp"]), token, large, own)
        steps = trace.steps() if trace else []
    return {"probes": probes.written(found), "trace": [step._asdict() for step in steps]}


def _listen(nl: Netlink, facts: Json, request: Json, line: _Line) -> Json:
    peer, token = str(request["peer"]), bytes.fromhex(request["token"])
    results: Json = {"path": lookup.path(nl, peer)._asdict() if peer else {}}
    index = next((one["index"] for one in facts["links"] if one["name"] == request["nic"]), 0)
    with _traced(peer) as trace, _watched(index, token) as watch:
        line.tell({"facts": facts, "prepared": {}})
        line.wait()
        seen = watch.sightings() if watch else []
        steps = trace.steps() if trace else []
    return {
        **results,
        "seen": [one._asdict() for one in seen[:_MOST]],
        "trace": [step._asdict() for step in steps],
    }


def _router_unheard(facts: Json, target: str, request: Json) -> probes.Result | None:
    """Ask a router to advertise itself, if the guest refuses advertisements and has no default
    route."""
    if (request["target"] and ":" not in target) or any(
        ":" in r["destination"] and _is_default(r) for r in facts["routes"]
    ):
        return None
    link = next(filter(probes.refuses_routers, facts["links"]), None)
    return probes.find_router(link["index"]) if link else None


def _traced(peer: str) -> Any:
    """Trace the packets to and from an address, if there are rules at all: the probe must not load
    nf_tables into the guest's kernel."""
    if peer and os.path.exists("/sys/module/nf_tables"):
        with suppress(OSError):
            return nftrace.Trace(6 if ":" in peer else 4, [("", peer), (peer, "")])
    return nullcontext()


def _watched(index: int, token: bytes) -> Any:
    with suppress(OSError):
        return sightings.Watch(index, token)
    return nullcontext()


def _is_default(route: Json) -> bool:
    return bool(route["gateway"]) and route["destination"] in ("0.0.0.0/0", "::/0")


def _is_address(text: str) -> bool:
    try:
        pack_address(text)
    except ValueError:
        return False
    return True
