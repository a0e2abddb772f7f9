"""The parameters and the output of ipvsadm(8) and conntrack(8), as far as openEuler's `kata-ipvs`
has them: this module reads and checks the parameters, and writes the output.

A refusal is a UsageError that names parameter, value and rule. No text of a caller goes further:
the results of reading are numbers and addresses.
"""

import ipaddress
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from tapwright.errors import UsageError
from tapwright.linux.conntrack import ASSURED, SEEN_REPLY, Connection, Way
from tapwright.linux.ipvs import (
    ONE_PACKET,
    PERSISTENT,
    TCP,
    UDP,
    Change,
    Counters,
    Server,
    Service,
)

SCHEDULERS = ("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq")
DEFAULT_SCHEDULER = "wlc"
PERSISTENCES = range(1, 2_678_401)
DEFAULT_PERSISTENCE = 360
WEIGHTS = range(65_536)
TIMEOUTS = range(1_296_001)
MOST_RULES = 20_000
"""Services and servers of a sandbox together, as in openEuler."""
_PORTS = range(1, 65_536)
_LINE_CHARACTERS = 512

_PROTOCOLS = {"tcp": TCP, "udp": UDP}
_PLACE = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9.]+)):([0-9]{1,5})")
_FORWARDS = ("Masq", "Local", "Tunnel", "Route")
_STATES = (
    *("NONE", "SYN_SENT", "SYN_RECV", "ESTABLISHED", "FIN_WAIT", "CLOSE_WAIT"),
    *("LAST_ACK", "TIME_WAIT", "CLOSE", "SYN_SENT2"),
)


@dataclass(frozen=True)
class Changes:
    """Changes of the table, in their order."""

    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Clear:
    """Remove all services."""


@dataclass(frozen=True)
class SetTimeouts:
    """Seconds for TCP, TCP after a FIN, UDP; 0 leaves one as it is."""

    seconds: tuple[int, int, int]


@dataclass(frozen=True)
class Listing:
    """List all, or one `service`. `form` is empty, `stats`, `rate` or `timeout`; `exact` numbers
    have all of their digits; without `sort` all is in the kernel's order."""

    service: Service | None = None
    form: str = ""
    exact: bool = False
    sort: bool = True


Command = Changes | Clear | SetTimeouts | Listing


class Cleanup(NamedTuple):
    """Which connections to remove: by their original destination, and protocol."""

    destination: str
    protocol: int


class _Option(NamedTuple):
    short: str
    long: str
    takes: int = 0  # how many words; -1 is one that may be left out

    @property
    def shown(self) -> str:
        return "|".join(filter(None, (self.short and f"-{self.short}", f"--{self.long}")))


_ADD_SERVICE, _EDIT_SERVICE = _Option("A", "add-service"), _Option("E", "edit-service")
_DELETE_SERVICE, _ADD_SERVER = _Option("D", "delete-service"), _Option("a", "add-server")
_EDIT_SERVER, _DELETE_SERVER = _Option("e", "edit-server"), _Option("d", "delete-server")
_LIST, _LIST_TOO = _Option("L", "list"), _Option("l", "list")
_CLEAR, _SET = _Option("C", "clear"), _Option("", "set", 3)
_ON_TCP, _ON_UDP = _Option("t", "tcp-service", 1), _Option("u", "udp-service", 1)
_SCHEDULER, _PERSISTENCE = _Option("s", "scheduler", 1), _Option("p", "persistent", -1)
_SERVER, _WEIGHT = _Option("r", "real-server", 1), _Option("w", "weight", 1)
_MASQUERADING, _NUMERIC = _Option("m", "masquerading"), _Option("n", "numeric")
_FORMS = (_Option("", "stats"), _Option("", "rate"), _Option("", "timeout"))
_EXACT, _SORT, _NO_SORT = _Option("", "exact"), _Option("", "sort"), _Option("", "nosort")
_DESTINATION, _PROTOCOL = _Option("d", "orig-dst", 1), _Option("p", "protonum", 1)

_SERVICE_OPTIONS = (_ON_TCP, _ON_UDP)
_OF_SERVICE = (*_SERVICE_OPTIONS, _SCHEDULER, _PERSISTENCE)
_OF_SERVER = (*_SERVICE_OPTIONS, _SERVER, _WEIGHT, _MASQUERADING)
_OF_LIST = (*_SERVICE_OPTIONS, _NUMERIC, *_FORMS, _EXACT, _SORT, _NO_SORT)
_ACTIONS: dict[_Option, tuple[_Option, ...]] = {
    _ADD_SERVICE: _OF_SERVICE,
    _EDIT_SERVICE: _OF_SERVICE,
    _DELETE_SERVICE: _SERVICE_OPTIONS,
    _ADD_SERVER: _OF_SERVER,
    _EDIT_SERVER: _OF_SERVER,
    _DELETE_SERVER: (*_SERVICE_OPTIONS, _SERVER),
    _LIST: _OF_LIST,
    _LIST_TOO: _OF_LIST,
    _CLEAR: (),
    _SET: (),
}
_VERBS = {
    _ADD_SERVICE: "add",
    _EDIT_SERVICE: "edit",
    _DELETE_SERVICE: "delete",
    _ADD_SERVER: "add",
    _EDIT_SERVER: "edit",
    _DELETE_SERVER: "delete",
}
_ON_SERVERS = (_ADD_SERVER, _EDIT_SERVER, _DELETE_SERVER)

_Given = dict[_Option, list[str]]


def read(parameters: str) -> Command:
    """The command that these parameters of ipvsadm mean. Raises UsageError."""
    action, given = _read_action(parameters)
    if action is _CLEAR:
        return Clear()
    if action is _SET:
        tcp, fin, udp = (
            _number(f"--set {name}", word, TIMEOUTS, "seconds, 0 for no change")
            for name, word in zip(("TCP", "TCPFIN", "UDP"), given[_SET], strict=True)
        )
        return SetTimeouts((tcp, fin, udp))
    if action in (_LIST, _LIST_TOO):
        forms = [form.long for form in _FORMS if form in given]
        if len(forms) > 1:
            raise UsageError(f"--{forms[0]} and --{forms[1]} can't be listed together")
        return Listing(
            service=_service(given) if _has_service(given) else None,
            form=forms[0] if forms else "",
            exact=_EXACT in given,
            sort=_NO_SORT not in given,
        )
    return Changes((_change(action, given),))


def read_rules(text: str) -> Changes:
    """The rules of a file for `--restore`: -A and -a, one a line, in their order; a server comes
    after its service. Raises UsageError with the number of the line."""
    changes: list[Change] = []
    servers: dict[Service, set[tuple[str, int]]] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if len(changes) == MOST_RULES:
            raise UsageError(f"there are more than {MOST_RULES} rules; a sandbox can have no more")
        try:
            change = _rule(line)
            _check_order(change, servers)
        except UsageError as error:
            raise UsageError(f"line {number}: {error}") from None
        changes.append(change)
    if not changes:
        raise UsageError("there are no rules on standard input: give one a line, -A … or -a …")
    return Changes(tuple(changes))


def read_cleanup(parameters: str) -> Cleanup:
    """The connections that the parameters of `cleanup` name. Raises UsageError."""
    given = _options(parameters.split(), (_DESTINATION, _PROTOCOL))
    for option in (_DESTINATION, _PROTOCOL):
        if option not in given:
            raise UsageError(f"{option.shown} is missing: cleanup needs -d ADDRESS -p tcp|udp")
    (address,), (protocol,) = given[_DESTINATION], given[_PROTOCOL]
    if protocol not in _PROTOCOLS:
        raise _refusal(_PROTOCOL, protocol, "tcp or udp")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise _refusal(_DESTINATION, address, "an IPv4 or IPv6 address") from None
    if found.version == 6 and found.scope_id:
        raise _refusal(_DESTINATION, address, "an address without an interface")
    return Cleanup(str(found), _PROTOCOLS[protocol])


def written(
    version: tuple[int, int] | None,
    table: Sequence[tuple[Service, Sequence[Server]]],
    listing: Listing,
) -> Iterator[str]:
    """The lines of a list, each with its end, as ipvsadm prints them with -n. `version` is the
    kernel's and the size of its table of connections; None for a list of one service."""
    if version:
        number, size = version
        dotted = f"{number >> 16}.{number >> 8 & 0xFF}.{number & 0xFF}"
        yield f"IP Virtual Server version {dotted} (size={size})\n"
    yield _title(listing.form)
    for service, servers in sorted(table, key=_service_order) if listing.sort else table:
        yield _service_line(service, listing)
        for server in sorted(servers, key=_server_order) if listing.sort else servers:
            yield _server_line(server, listing)


def written_timeouts(seconds: Sequence[int]) -> str:
    tcp, fin, udp = seconds
    return f"Timeout (tcp tcpfin udp): {tcp} {fin} {udp}\n"


def written_cleanup(gone: Iterable[Connection]) -> Iterator[str]:
    """The lines that conntrack prints: one for each removed connection, and their number."""
    count = 0
    for count, connection in enumerate(gone, 1):  # noqa: B007
        yield _connection_line(connection)
    yield f"{count} flow entries have been deleted.\n"


def _read_action(parameters: str) -> tuple[_Option, _Given]:
    words = parameters.split()
    if not words:
        raise UsageError(f"there is nothing to do: give one of {_actions()}")
    # As many programs write it: -Ln, -ln.
    if re.fullmatch(r"-[Ll]n+", words[0]):
        words[:1] = [words[0][:2], "-n"]
    given = _options(words, (*_ACTIONS, *(o for some in _ACTIONS.values() for o in some)))
    actions = [option for option in given if option in _ACTIONS]
    if len(actions) != 1:
        raise UsageError(f"there must be one of {_actions()}, not {len(actions)}")
    action = actions[0]
    for option in given:
        if option is not action and option not in _ACTIONS[action]:
            raise UsageError(f"{option.shown} is not for {action.shown}")
    return action, given


def _actions() -> str:
    return ", ".join(option.shown for option in _ACTIONS)


def _options(words: Sequence[str], known: Iterable[_Option]) -> _Given:
    """The options with their values. Raises UsageError."""
    by_word: dict[str, _Option] = {}
    for option in known:
        if option.short:
            by_word[f"-{option.short}"] = option
        by_word.setdefault(f"--{option.long}", option)
    given: _Given = {}
    rest = list(words)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        found = by_word.get(word)
        if found is None:
            raise UsageError(f"{_shown(word)} is not a parameter that is known here")
        if found in given:
            raise UsageError(f"{found.shown} is given twice")
        values = [value] if equals else []
        optional = found.takes == -1 and not equals
        if optional and rest and not rest[0].startswith("-"):
            values.append(rest.pop(0))
        while not optional and len(values) < abs(found.takes) and rest:
            values.append(rest.pop(0))
        if not optional and len(values) != abs(found.takes):
            raise UsageError(f"{found.shown} takes {abs(found.takes)} values, not {len(values)}")
        given[found] = values
    return given


def _rule(line: str) -> Change:
    if len(line) > _LINE_CHARACTERS:
        raise UsageError(f"it has more than {_LINE_CHARACTERS} characters")
    action, given = _read_action(line)
    if action not in (_ADD_SERVICE, _ADD_SERVER):
        raise UsageError(f"{action.shown} is no rule: a file has -A and -a")
    return _change(action, given)


def _check_order(change: Change, servers: dict[Service, set[tuple[str, int]]]) -> None:
    """Refuse a file that would fail half way, before anything changes."""
    key = Service(*change.service[:3])
    if change.server is None:
        if key in servers:
            raise UsageError("this service is in the file already")
        servers[key] = set()
        return
    if key not in servers:
        raise UsageError("its service must come before it")
    place = change.server.address, change.server.port
    if place in servers[key]:
        raise UsageError("this server is in the file already")
    servers[key].add(place)


def _change(action: _Option, given: _Given) -> Change:
    service = _service(given)
    verb = _VERBS[action]
    if action in _ON_SERVERS:
        return Change(verb, service, _server(given, service))
    if action is _DELETE_SERVICE:
        return Change(verb, service)
    scheduler = given.get(_SCHEDULER, [DEFAULT_SCHEDULER])[0]
    if scheduler not in SCHEDULERS:
        raise _refusal(_SCHEDULER, scheduler, f"one of {', '.join(SCHEDULERS)}")
    seconds = 0
    if _PERSISTENCE in given:
        word = (given[_PERSISTENCE] or [str(DEFAULT_PERSISTENCE)])[0]
        rule = "seconds; for none, leave it out"
        seconds = _number(_PERSISTENCE.shown, word, PERSISTENCES, rule)
    return Change(verb, service._replace(scheduler=scheduler, persistence=seconds))


def _has_service(given: _Given) -> bool:
    return any(option in given for option in _SERVICE_OPTIONS)


def _service(given: _Given) -> Service:
    named = [option for option in _SERVICE_OPTIONS if option in given]
    if len(named) != 1:
        raise UsageError(
            "there must be one service, -t|--tcp-service or -u|--udp-service IP:PORT, "
            f"not {len(named)}"
        )
    address, port = _place(named[0], given[named[0]][0])
    return Service(TCP if named[0] is _ON_TCP else UDP, address, port)


def _server(given: _Given, service: Service) -> Server:
    if _SERVER not in given:
        raise UsageError(f"{_SERVER.shown} is missing: name the server, IP:PORT")
    address, port = _place(_SERVER, given[_SERVER][0])
    if (":" in address) != (":" in service.address):
        raise _refusal(_SERVER, given[_SERVER][0], f"an address of the family of {service.address}")
    weight = given.get(_WEIGHT, ["1"])[0]
    return Server(address, port, _number(_WEIGHT.shown, weight, WEIGHTS, "the weight"))


def _place(option: _Option, text: str) -> tuple[str, int]:
    match = _PLACE.fullmatch(text)
    try:
        address = ipaddress.ip_address(match[1] or match[2]) if match else None
    except ValueError:
        address = None
    port = int(match[3]) if match else 0
    if match is None or address is None or port not in _PORTS:
        rule = "IP:PORT, an IPv6 address in brackets, the port from 1 to 65535"
        raise _refusal(option, text, rule)
    if (address.version == 6) != bool(match[1]) or address.is_multicast or address.is_unspecified:
        raise _refusal(option, text, "an address that one machine can have")
    return str(address), port


def _number(name: str, word: str, allowed: range, what: str) -> int:
    # Not int(): that takes spaces, signs, underscores and the digits of other scripts.
    if not re.fullmatch(r"[0-9]{1,10}", word) or int(word) not in allowed:
        raise UsageError(
            f"{name}: {_shown(word)} is refused: it must be a whole number from {allowed[0]} to "
            f"{allowed[-1]}, {what}"
        )
    return int(word)


def _refusal(option: _Option, value: str, rule: str) -> UsageError:
    return UsageError(f"{option.shown}: {_shown(value)} is refused: it must be {rule}")


def _shown(value: str) -> str:
    text = repr(value)
    return text if len(text) <= 100 else text[:100] + "…"


def _service_order(entry: tuple[Service, Sequence[Server]]) -> tuple[object, ...]:
    service = entry[0]
    place = ipaddress.ip_address(service.address)
    return service.mark, place.version, service.protocol, int(place), service.port


def _server_order(server: Server) -> tuple[object, ...]:
    place = ipaddress.ip_address(server.address)
    return place.version, int(place), server.port


def _title(form: str) -> str:
    if form in _COUNTED:
        heads = "".join(f" {name:>8}" for name in _COUNTED[form])
        return f"{'Prot LocalAddress:Port':<33}{heads}\n  -> RemoteAddress:Port\n"
    return (
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
    )


_COUNTED = {
    "stats": ("Conns", "InPkts", "OutPkts", "InBytes", "OutBytes"),
    "rate": ("CPS", "InPPS", "OutPPS", "InBPS", "OutBPS"),
}


def _service_line(service: Service, listing: Listing) -> str:
    if service.mark:
        family = " IPv6" if ":" in service.address else ""
        name = f"FWM  {service.mark}{family}"
    else:
        protocol = "TCP" if service.protocol == TCP else "UDP"
        name = f"{protocol}  {_addressed(service.address, service.port)}"
    if listing.form:
        return f"{name:<33}{_counted(service.counters, listing)}\n"
    words = [name, service.scheduler]
    if service.flags & PERSISTENT:
        words.append(f"persistent {service.persistence}")
        whole = 128 if ":" in service.address else 32
        if service.netmask not in (-1, whole):
            words.append(f"mask {_mask(service)}")
    if service.engine:
        words.append(f"pe {service.engine}")
    if service.flags & ONE_PACKET:
        words.append("ops")
    return " ".join(words) + "\n"


def _mask(service: Service) -> str:
    if ":" in service.address:
        return str(service.netmask)
    return str(ipaddress.ip_network(f"0.0.0.0/{service.netmask}").netmask)


def _server_line(server: Server, listing: Listing) -> str:
    name = f"  -> {_addressed(server.address, server.port):<28}"
    if listing.form:
        return f"{name}{_counted(server.counters, listing)}\n"
    forward = _FORWARDS[server.forward] if server.forward < len(_FORWARDS) else "Unknown"
    return f"{name} {forward:<7} {server.weight:<6} {server.active:<10} {server.inactive:<10}\n"


def _addressed(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _counted(counters: Counters, listing: Listing) -> str:
    first = 0 if listing.form == "stats" else 5
    return "".join(_large(number, listing.exact) for number in counters[first : first + 5])


def _large(number: int, exact: bool) -> str:
    if exact:
        digits = str(number)
        return digits.rjust(9 if len(digits) <= 8 else len(digits) + 1)
    for least, unit, letter in (
        (10**14, 10**12, "T"),
        (10**11, 10**9, "G"),
        (10**9, 10**6, "M"),
        (10**8, 10**3, "K"),
    ):
        if number >= least:
            return f"{number // unit:>8}{letter}"
    return f"{number:>9}"


def _connection_line(found: Connection) -> str:
    name = next((name for name, one in _PROTOCOLS.items() if one == found.protocol), "unknown")
    words = [f"{name:<8}", str(found.protocol), str(found.seconds)]
    if found.protocol == TCP:
        words.append(_STATES[found.state] if found.state < len(_STATES) else "NONE")
    words.append(_way(found.original))
    if not found.status & SEEN_REPLY:
        words.append("[UNREPLIED]")
    words.append(_way(found.reply))
    if found.status & ASSURED:
        words.append("[ASSURED]")
    words += [f"mark={found.mark}", f"use={found.use}"]
    return " ".join(words) + "\n"


def _way(way: Way) -> str:
    return (
        f"src={way.source} dst={way.destination} "
        f"sport={way.source_port} dport={way.destination_port}"
    )
