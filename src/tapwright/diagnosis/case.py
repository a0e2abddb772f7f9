"""The plain data that `judging` judges: all that `explaining` read and saw of a packet's way."""

from dataclasses import dataclass, field
from typing import Any

from tapwright.diagnosis.facts import Host, Process
from tapwright.diagnosis.way import Way
from tapwright.linux.lookup import Entry, Path
from tapwright.linux.nftrace import Step
from tapwright.linux.sightings import Sighting

GUEST, TAP, INTERFACE, PEER, BRIDGE, OUT = "guest", "tap", "interface", "peer", "bridge", "out"
"""Keys of stations, which are the places where packets are seen, from the guest outwards."""

Json = dict[str, Any]


@dataclass
class Wish:
    """The question: does a packet arrive at `target` (an address or a name, empty for the default
    gateway), at `port` (0 for none), by TCP or UDP? With `towards` the packet goes from the host,
    or from its address `source`, to the guest or to a port that the host publishes."""

    target: str = ""
    port: int = 0
    udp: bool = False
    source: str = ""
    towards: bool = False


@dataclass
class Station:
    """An interface on the way. `place` is the path of its namespace, empty for the host's."""

    key: str
    name: str
    index: int
    place: str = ""
    mac: str = ""


@dataclass
class Drop:
    """A rule that dropped a packet, or the policy of a chain (`handle` 0). `text` is the rule,
    `where` the hook. `is_legacy` is true for iptables-legacy, `guest` for rules of the guest."""

    family: str
    table: str
    chain: str
    handle: int
    where: str = ""
    text: str = ""
    is_legacy: bool = False
    guest: bool = False


@dataclass
class Case:
    """`guest` are the facts of the guest (`agent.guest.probing`), `netns` is the path of its
    namespace, `way` that of its NIC (without a name where there is none). `probes` are the results
    by their names, `asked` the questions to name servers; `own` is the guest's address, `target`
    the one that was probed. `path` is the guest's route, `forward` the host's for what the guest
    sends, `back` that for the answer. `seen` are the sightings at each station, `of_ports` those at
    other ports of the bridge, `astray` those at other interfaces of the host where rp_filter is
    strict. `learned_before` has (MAC, port) of the bridge's forwarding table before the probes.
    `by_host` says whether the host itself has an answer from the target, None if it did not try.
    `reasons` counts why the host's kernel dropped packets meanwhile, of any sender."""

    sandbox: str
    wish: Wish
    status: str = "running"
    problem: str = ""
    processes: list[Process] = field(default_factory=list)
    netns: str = ""
    way: Way = field(default_factory=lambda: Way("", ""))
    guest: Json = field(default_factory=dict)
    guest_failure: str = ""
    target: str = ""
    own: str = ""
    asked: list[Json] = field(default_factory=list)
    path: Path | None = None
    probes: dict[str, Json] = field(default_factory=dict)
    neighbours: list[Json] = field(default_factory=list)
    host: Host = field(default_factory=Host)
    inside_routes: list[Entry] = field(default_factory=list)
    is_local: bool = False
    forward: Path | None = None
    back: Path | None = None
    stations: list[Station] = field(default_factory=list)
    seen: dict[str, list[Sighting]] = field(default_factory=dict)
    of_ports: dict[str, list[Sighting]] = field(default_factory=dict)
    astray: dict[str, list[Sighting]] = field(default_factory=dict)
    learned_before: list[tuple[str, str]] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    guest_steps: list[Step] = field(default_factory=list)
    drops: list[Drop] = field(default_factory=list)
    by_host: bool | None = None
    reasons: dict[str, int] = field(default_factory=dict)
    host_neighbours: list[tuple[str, str, str, str]] = field(default_factory=list)
    """(interface, address, MAC, state) of the host."""
    queues: list[tuple[str, str, str, int]] = field(default_factory=list)
    """(place, interface, kind, packets that wait) of qdiscs on the way."""
    promised: Json = field(default_factory=dict)
    """Of the CNI networks: `nameservers`, `search`, and `published`, (port of the host, port of the
    guest) each."""

    @property
    def version(self) -> int:
        return 6 if ":" in (self.target or self.own) else 4

    def station(self, key: str) -> Station | None:
        return next((one for one in self.stations if one.key == key), None)


@dataclass
class Verdict:
    """Where the packet ends (`hop`), why, and what to do. `remedy` has shell commands for the host,
    `advice` says what no command can do, `evidence` what was seen."""

    hop: str
    why: str
    remedy: list[str] = field(default_factory=list)
    advice: str = ""
    evidence: list[str] = field(default_factory=list)


@dataclass
class Explanation:
    """The answer. `way` names the stations. `notes` says what is useful to know although the packet
    arrives. `seconds` is how long the probes took."""

    sandbox: str
    question: str
    arrives: bool
    verdict: Verdict | None = None
    way: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    seconds: float = 0.0
