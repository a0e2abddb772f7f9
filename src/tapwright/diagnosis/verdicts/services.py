"""The target's own port."""

import contextlib
import ipaddress
from collections.abc import Iterator

from tapwright.diagnosis.case import GUEST, INTERFACE, PEER, TAP, Case, Verdict
from tapwright.diagnosis.facts import readable
from tapwright.diagnosis.verdicts.reading import outcome_of
from tapwright.linux.probes import REFUSED

_EVERYWHERE = str(ipaddress.IPv4Address(0)), str(ipaddress.IPv6Address(0))


def of_service(case: Case) -> Iterator[Verdict]:
    wish = case.wish
    if not wish.port:
        return
    name = "udp" if wish.udp else "tcp"
    outcome = outcome_of(case, name)
    if wish.towards:
        yield from _of_guest_service(case, name, outcome)
        return
    if outcome != REFUSED:
        return
    if case.is_local:
        yield Verdict(
            "target",
            f"nothing listens on port {wish.port} ({name}) of the host: it refuses",
            advice=f"start what is to listen on {case.target}:{wish.port}"
            + _only_elsewhere(case.host.listening, name, wish.port),
        )
    yield Verdict(
        "target",
        f"{case.target} refuses port {wish.port} ({name}): nothing listens there, or its firewall "
        "says so",
        advice="start what is to listen there",
    )


def _only_elsewhere(listening: list[tuple[str, str, int]], name: str, port: int) -> str:
    where = [a for protocol, a, number in listening if number == port and name in protocol]
    return f"; it listens on {', '.join(where)} alone" if where else ""


def _of_guest_service(case: Case, name: str, outcome: str) -> Iterator[Verdict]:
    wish = case.wish
    port = _guest_port(case)
    if case.target in case.host.addresses and port is None:
        published = [p for p in _published(case) if p[0] == wish.port]
        if published:
            number, inside = published[0]
            yield Verdict(
                "host",
                f"port {number} of the host is published for the guest's port {inside}, but the "
                "rules that say so are gone",
                [_dnat(case, number, inside)],
                "the plugin portmap makes its own anew when the sandbox is run again",
            )
        yield Verdict(
            "host",
            f"port {wish.port} of the host is not published to the guest: no rule leads there"
            if outcome == REFUSED
            else f"port {wish.port} of the host leads nowhere",
            [_dnat(case, wish.port, wish.port)],
            f"or run the sandbox with --publish {wish.port}:PORT",
        )
    port = port or wish.port
    waiting = [
        (protocol, address)
        for protocol, address, number in _guest_listening(case)
        if number == port and protocol.startswith(name)
    ]
    if not waiting:
        yield Verdict(
            GUEST,
            f"nothing listens on port {port} ({name}) in the guest",
            advice=f"start what is to listen there on 0.0.0.0:{port}",
        )
        return
    usable = [
        address
        for protocol, address in waiting
        if address in (*_EVERYWHERE, case.own) or address.endswith(case.own)
    ]
    if not usable:
        yield Verdict(
            GUEST,
            f"what listens on port {port} in the guest does so on "
            f"{', '.join(dict.fromkeys(a for _, a in waiting))} only, and not on {case.own}",
            advice=f"configure it to listen on 0.0.0.0:{port}, or on {case.own}",
        )


def _guest_listening(case: Case) -> list[tuple[str, str, int]]:
    """Return (protocol, address, port) of each socket that listens in the guest. Addresses that
    are not valid are left out, because the guest may report anything."""
    found = []
    for protocol, address, number in case.guest.get("listening", []):
        with contextlib.suppress(ValueError):
            found.append((str(protocol), readable(str(address)), int(number)))
    return found


def _guest_port(case: Case) -> int | None:
    """Return the guest's port to which the packet went; None when it is not known."""
    for key in (TAP, INTERFACE, PEER):
        for one in case.seen.get(key, []):
            if one.what in ("syn", "udp") and one.destination == case.own:
                return one.destination_port
    return case.wish.port if case.target == case.own else None


def _published(case: Case) -> list[tuple[int, int]]:
    """Return (port of the host, port of the guest) of each port that CNI networks publish."""
    return [(int(one), int(other)) for one, other in case.promised.get("published", [])]


def _dnat(case: Case, port: int, inside: int) -> str:
    tool = "ip6tables" if case.version == 6 else "iptables"
    protocol = "udp" if case.wish.udp else "tcp"
    own = f"[{case.own}]" if case.version == 6 else case.own
    rule = f"-p {protocol} -d {case.target} --dport {port} -j DNAT --to-destination {own}:{inside}"
    return f"{tool} -t nat -A OUTPUT {rule} && {tool} -t nat -A PREROUTING {rule}"
