"""The guest's IPVS table and connections, as `kata-ipvs` changes and lists them.

A program in the guest (`agent.guest.balancing`) does the work. The guest is hostile: its answers
are bounded, and this module checks each part of them before it uses any.
"""

import ipaddress
import json
from collections.abc import Iterator
from typing import Any

from tapwright.errors import AgentError, AgentRefusedError
from tapwright.linux.conntrack import Connection, Way
from tapwright.linux.ipvs import Server, Service
from tapwright.sandbox import ipvsadm
from tapwright.sandbox.execution import Process
from tapwright.sandbox.ipvsadm import Changes, Cleanup, Clear, Command, Listing, SetTimeouts
from tapwright.state.registry import Sandbox

_PROGRAM = ("python3", "-S", "-s", "-m", "tapwright.agent.guest.balancing")
_SOURCES = {"PYTHONPATH": "/usr/lib/tapwright"}
_MOST_BYTES, _EXCERPT_BYTES = 32 * 1024 * 1024, 1000
_MOST_NUMBER = 2**64 - 1
_NAME_CHARACTERS, _COUNTERS = 32, 10

Json = Any


def run(sandbox: Sandbox, command: Command) -> Iterator[str]:
    """Do what ipvsadm would do; yield its output, in lines with their ends. Raises
    SandboxStateError, AgentError; AgentRefusedError with the reason when the guest's kernel
    refuses, and then nothing has changed. Call this from the main thread."""
    match command:
        case Changes():
            _change(sandbox, command, into_empty=False)
        case Clear():
            _ask(sandbox, {"op": "clear"})
        case SetTimeouts():
            _ask(sandbox, {"op": "set_timeouts", "seconds": command.seconds})
        case Listing(form="timeout"):
            _, last = _ask(sandbox, {"op": "list_timeouts"})
            seconds = _checked(lambda: [_number(last["seconds"][n]) for n in range(3)])
            yield ipvsadm.written_timeouts(seconds)
        case Listing():
            yield from _list(sandbox, command)


def restore(sandbox: Sandbox, rules: Changes) -> None:
    """Fill the table, which must be empty, with these rules: all of them, or after a failure none.
    Raises as `run` does."""
    _change(sandbox, rules, into_empty=True)


def cleanup(sandbox: Sandbox, wanted: Cleanup) -> Iterator[str]:
    """Remove connections; yield the output of conntrack. Raises as `run` does."""
    lines, _ = _ask(sandbox, {"op": "forget", **wanted._asdict()})
    gone = _checked(lambda: [_connection(line) for line in lines])
    yield from ipvsadm.written_cleanup(gone)


def _change(sandbox: Sandbox, rules: Changes, into_empty: bool) -> None:
    request = {
        "op": "change",
        "changes": [
            (change.verb, change.service[:5], change.server and change.server[:3])
            for change in rules.changes
        ],
        "most": ipvsadm.MOST_RULES,
        "into_empty": into_empty,
    }
    _ask(sandbox, request)


def _list(sandbox: Sandbox, listing: Listing) -> Iterator[str]:
    service = listing.service[:3] if listing.service else None
    request = {"op": "list_table", "service": service, "counted": bool(listing.form)}
    lines, last = _ask(sandbox, request)
    count = _COUNTERS if listing.form else 0
    table = _checked(lambda: [_entry(one, servers, count) for one, servers in lines])
    version = _checked(lambda: (_number(last["version"][0]), _number(last["version"][1])))
    yield from ipvsadm.written(None if service else version, table, listing)


def _ask(sandbox: Sandbox, request: Json) -> tuple[list[Json], Json]:
    """(the lines before the last, the last one, which is an object)."""
    question = json.dumps(request, separators=(",", ":")).encode()
    with Process(sandbox, _PROGRAM, stdin=True, environment=_SOURCES) as process:
        done = process.communicate(question, limit=_MOST_BYTES)
    if done.status:
        *_, reason = [b"no reason given", *done.stderr[-_EXCERPT_BYTES:].splitlines()]
        text = _excerpt(reason.decode(errors="replace"))
        raise AgentError(f"the program in the guest failed with status {done.status}: {text}")
    return _read(done.stdout)


def _read(output: bytes) -> tuple[list[Json], Json]:
    try:
        *lines, last = map(json.loads, output.splitlines())
    except (ValueError, RecursionError):
        raise AgentError("the guest's answer is not what it should be") from None
    if not isinstance(last, dict):
        raise AgentError("the guest's answer has no end")
    if reason := last.get("refused"):
        number = last.get("number")
        number = number if isinstance(number, int) and 0 < number < _MOST_NUMBER else 0
        where = f"rule {number + 1}: " if number else ""
        raise AgentRefusedError(where + _excerpt(str(reason)))
    return lines, last


def _excerpt(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_EXCERPT_BYTES])


def _checked(read: Any) -> Any:
    try:
        return read()
    except (TypeError, ValueError, KeyError, IndexError, OverflowError):
        raise AgentError("the guest's answer is not what it should be") from None


def _entry(service: Json, servers: Json, count: int) -> tuple[Service, list[Server]]:
    return _service(service, count), [_server(server, count) for server in servers]


def _service(fields: Json, count: int) -> Service:
    found = Service(*fields)
    numbers = _numbers(found, "protocol", "port", "persistence", "flags", "mark")
    return found._replace(
        **numbers,
        address=_address(found.address),
        scheduler=_name(found.scheduler),
        engine=_name(found.engine),
        netmask=_number(found.netmask, 128),
        counters=_counters(found.counters, count),
    )


def _server(fields: Json, count: int) -> Server:
    found = Server(*fields)
    numbers = _numbers(
        found,
        *("port", "weight", "forward", "active", "inactive", "persistent", "most", "least"),
    )
    return found._replace(
        **numbers, address=_address(found.address), counters=_counters(found.counters, count)
    )


def _connection(fields: Json) -> Connection:
    found = Connection(*fields)
    numbers = _numbers(found, "protocol", "seconds", "state", "status", "mark", "use")
    return found._replace(**numbers, original=_way(found.original), reply=_way(found.reply))


def _numbers(found: Json, *names: str) -> dict[str, Any]:
    return {name: _number(getattr(found, name)) for name in names}


def _way(fields: Json) -> Way:
    source, destination, *ports = Way(*fields)
    return Way(_address(source), _address(destination), *map(_number, ports))


def _counters(found: Json, count: int) -> tuple[int, ...]:
    counters = tuple(map(_number, found))
    if len(counters) != count:
        raise ValueError("counters")
    return counters


def _number(value: Json, most: int = _MOST_NUMBER) -> int:
    if type(value) is not int or not 0 <= value <= most:
        raise ValueError("a number")
    return value


def _name(value: Json) -> str:
    if type(value) is not str or len(value) > _NAME_CHARACTERS or not value.isprintable():
        raise ValueError("a name")
    return value


def _address(value: Json) -> str:
    # The name of an interface could be anything.
    if type(value) is not str or "%" in value:
        raise ValueError("an address")
    return str(ipaddress.ip_address(value))
