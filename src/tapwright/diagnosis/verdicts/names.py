"""Why a name has no address."""

import ipaddress
from collections.abc import Iterator

from tapwright.diagnosis import vetting
from tapwright.diagnosis.case import Case, Verdict
from tapwright.diagnosis.verdicts.reading import with_port
from tapwright.diagnosis.verdicts.remedies import in_guest
from tapwright.linux.probes import ANSWERED, REFUSED

_RCODES = {1: "a malformed question", 2: "a failure of its own", 4: "not implemented", 5: "refused"}


def of_names(case: Case) -> Iterator[Verdict]:
    """Judge DNS: whether a name server knows the target's name."""
    if case.target or not case.asked:
        if not case.target and _is_name(case.wish.target):
            yield from _no_server(case)
        return
    promised = case.promised
    servers = list(dict.fromkeys(one["server"] for one in case.asked))
    text = ", ".join(servers)
    mend = _resolv_conf(case)
    if all(one["outcome"] != ANSWERED for one in case.asked):
        refused = any(one["outcome"] == REFUSED for one in case.asked)
        if promised.get("nameservers") and not set(servers) & set(promised["nameservers"]):
            yield Verdict(
                "DNS",
                f"the guest asks the name server {text}, which does not answer; its network has "
                f"{', '.join(promised['nameservers'])}",
                mend,
            )
        yield Verdict(
            "DNS",
            f"the name server {text} "
            + (
                "refuses: nothing listens on its port 53"
                if refused
                else "does not answer: it can't be reached, or is not there"
            ),
            advice="start the name server, or see why it is not reached: tapwright sandbox "
            f"explain {case.sandbox} --to {with_port(servers[0], 53)} --udp",
        )
    codes = {one["code"] for one in case.asked if one["outcome"] == ANSWERED}
    for code in sorted(codes & set(_RCODES)):
        yield Verdict(
            "DNS",
            f"the name server {text} answers {_RCODES[code]} (code {code})",
            advice="configure the name server to answer questions from this network",
        )
    search = list(case.guest.get("resolv", {}).get("search", []))
    if promised.get("search") and search != promised["search"]:
        yield Verdict(
            "DNS",
            f"no server knows {case.wish.target} in the search domain "
            f"{' '.join(search) or '(none)'}; the network's search domain is "
            + " ".join(promised["search"]),
            mend,
        )
    yield Verdict(
        "DNS",
        f"the name server {text} knows no such name as {case.wish.target} (asked: "
        + ", ".join(dict.fromkeys(one["name"] for one in case.asked))
        + ")",
        advice="see whether the name is right, and the search domains of /etc/resolv.conf",
    )


def _no_server(case: Case) -> Iterator[Verdict]:
    mend = _resolv_conf(case)
    yield Verdict(
        "DNS",
        "the guest's /etc/resolv.conf names no name server"
        + (", and its network has some" if mend else ""),
        mend,
        "" if mend else "give the network one (dns in its CNI configuration)",
    )


def _resolv_conf(case: Case) -> list[str]:
    """Return the command that writes the name servers and search domains of the networks."""
    promised = case.promised
    servers, search = promised.get("nameservers", []), promised.get("search", [])
    try:  # A plugin may take these values from the network's DHCP server, so they are checked.
        lines = [f"nameserver {vetting.address(server)}" for server in servers]
        if search:
            lines.append(f"search {' '.join(map(vetting.name, search))}")
    except ValueError:
        return []
    if not lines:
        return []
    text = "\\n".join(lines)
    return [in_guest(case, f"sh -c \"printf '{text}\\n' > /etc/resolv.conf\"")]


def _is_name(text: str) -> bool:
    try:
        ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return bool(text)
    return False
