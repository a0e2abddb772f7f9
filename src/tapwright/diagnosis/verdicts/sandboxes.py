"""Before all other rules: do the processes run, and is there a NIC of its own?"""

from collections.abc import Iterator

from tapwright.diagnosis.case import BRIDGE, PEER, TAP, Case, Verdict
from tapwright.diagnosis.verdicts.reading import bridges_of, guest_link


def of_processes(case: Case) -> Iterator[Verdict]:
    if case.status != "running":
        reason = f": {case.problem}" if case.problem else ""
        yield Verdict(
            "supervisor",
            f"the sandbox is {case.status}{reason}",
            [f"tapwright sandbox delete {case.sandbox}"],
            "then run it anew, as it was run before",
        )
    for process in case.processes:
        if process.state in ("T", "t"):
            yield Verdict(
                process.name.removeprefix("the "),
                f"{process.name} is stopped (process {process.pid}, state {process.state}): "
                "the guest stands still, or nothing can reach it",
                [f"kill -CONT {process.pid}"],
            )
        elif process.state in ("Z", ""):
            yield Verdict(
                process.name.removeprefix("the "),
                f"{process.name} has ended (process {process.pid})",
                [f"tapwright sandbox delete {case.sandbox}"],
                "then run it anew",
            )
    if case.guest_failure:
        yield Verdict(
            "agent",
            f"the agent in the guest does not answer: {case.guest_failure}",
            [f"tapwright sandbox delete {case.sandbox}"],
            "then run it anew; the sandbox's log may say what happened to the agent",
        )


def of_record(case: Case) -> Iterator[Verdict]:
    if not case.way.nic:
        yield Verdict(
            "guest",
            "the guest has no NIC at all",
            advice="run the sandbox with --network, or give it a NIC by kata-network add-iface",
        )


def of_duplicates(case: Case) -> Iterator[Verdict]:
    """Judge duplicate addresses, even where packets arrive: with a duplicate, packets arrive by
    chance."""
    own = {point.mac for point in case.way.points}
    for name, probe in case.probes.items():
        # Without its tc filters the TAP answers for the namespace; that is no duplicate.
        macs = [mac for mac in probe["macs"] if mac not in own]
        if name.startswith("duplicate ") and macs:
            address = name.removeprefix("duplicate ")
            where = _port_of(case, macs[0])
            yield Verdict(
                "bridge" if case.station(BRIDGE) else "interface",
                f"{address} is a duplicate address: {', '.join(macs)} answers for it, too"
                + (f", which is beyond the port {where}" if where else ""),
                advice="take the address from the other one, or give this sandbox another",
                evidence=[f"asked on the link who has {address}: {', '.join(macs)}"],
            )
    link = guest_link(case)
    for bridge in bridges_of(case):
        for mac, port, entered in bridge.learned:
            peer = case.station(PEER) or case.station(TAP)
            if not (link and peer and entered):
                continue
            if mac == link["mac"] and port not in (peer.name, bridge.name):
                yield Verdict(
                    "bridge",
                    f"the bridge {bridge.name} sends what is for {mac} to the port {port} by an "
                    f"entry that somebody made, and the guest is beyond {peer.name}",
                    [f"bridge fdb del {mac} dev {port} master"],
                )
        peer = case.station(PEER) or case.station(TAP)
        if not link or not peer:
            continue
        talkers = {
            name
            for name, seen in case.of_ports.items()
            if any(one.from_mac == link["mac"] and not one.outgoing for one in seen)
        }
        talkers |= {
            port
            for mac, port in case.learned_before
            if mac == link["mac"] and port not in (peer.name, bridge.name)
        }
        if talkers:
            yield Verdict(
                "bridge",
                f"{link['mac']} is a duplicate MAC address: frames from it come in at the port "
                f"{', '.join(sorted(talkers))}, too",
                advice="give one of the two another MAC address",
            )


def _port_of(case: Case, mac: str) -> str:
    for bridge in bridges_of(case):
        for known, port, _ in bridge.learned:
            if known == mac:
                return port
    return next(
        (
            name
            for name, seen in case.of_ports.items()
            if any(one.from_mac == mac and not one.outgoing for one in seen)
        ),
        "",
    )
