"""Probes from the guest, by a program in it (`agent.guest.probing`), and what they brought back.

The guest is hostile: what it says is bounded in size and time, and of the shape it should be, or an
AgentError; it may lie all the same.
"""

import json
import time
from typing import Any

from tapwright import shapes
from tapwright.errors import AgentError
from tapwright.linux.lookup import Path
from tapwright.linux.nftrace import Step
from tapwright.linux.sightings import Sighting
from tapwright.sandbox.execution import Process
from tapwright.state.registry import Sandbox

_PROGRAM = ("python3", "-S", "-s", "-m", "tapwright.agent.guest.probing")
_SOURCES = {"PYTHONPATH": "/usr/lib/tapwright"}
_MOST_BYTES, _MOST, _TOLD = 4 << 20, 4000, 300
SECONDS = 20.0
"""Until a line comes, of a guest whose agent answers: it may be slow."""

Json = dict[str, Any]

_LINK = {"index": int, "name": str, "mac": str, "mtu": int, "up": bool, "running": bool}
_LINK |= {"loopback": bool, "addresses": list[str], "settings": dict[str, str]}
_ROUTE = {"destination": str, "kind": str, "device": int, "gateway": str, "metric": int}
_ROUTE |= {"table": int}
_KNOWN = {"address": str, "mac": str, "device": int, "state": str}
_PROBE = {"name": str, "outcome": str, "error": int, "origin": str, "reporter": str, "size": int}
_PROBE |= {"mtu": int, "port": int, "macs": list[str]}
_ASKED = {"server": str, "name": str, "outcome": str, "code": int, "error": int}
_ASKED |= {"addresses": list[str]}
_FACTS: dict[str, Any] = {"links": list, "routes": list, "neighbours": list, "listening": list}
_FACTS |= {"resolv": dict, "settings": dict[str, str]}
_RESOLV = {"nameservers": list[str], "search": list[str], "ndots": int}
_ENTRIES = (("links", _LINK), ("routes", _ROUTE), ("neighbours", _KNOWN))


class Guest:
    """A conversation with the program; a context manager, which ends it."""

    def __init__(self, sandbox: Sandbox, request: Json) -> None:
        """Begin. Raises SandboxStateError."""
        self._kept = bytearray()
        self._process = Process(sandbox, _PROGRAM, stdin=True, environment=_SOURCES)
        self._process.write(json.dumps(request).encode() + b"\n")

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def begin(self) -> tuple[Json, Json]:
        """(facts, what was prepared), when it waits to go on. Raises AgentError,
        SandboxStateError."""
        answer = self._line()
        return checked_facts(_object(answer, "facts")), _object(answer, "prepared")

    def end(self) -> Json:
        """Have it go on; the results. Raises AgentError, SandboxStateError."""
        self._process.write(b"\n")
        return _object(self._line(), "results")

    def _line(self) -> bytes:
        deadline = time.monotonic() + SECONDS
        while b"\n" not in self._kept:
            try:
                part = self._process.stdout.read1(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise AgentError(f"it has not answered within {SECONDS:g} s") from None
            self._kept += part
            if not part:
                raise AgentError(self._reason())
            if len(self._kept) > _MOST_BYTES:
                raise AgentError(f"the guest's answer has more than {_MOST_BYTES} bytes")
        line, _, rest = bytes(self._kept).partition(b"\n")
        self._kept = bytearray(rest)
        return line

    def _reason(self) -> str:
        """Why the program has ended."""
        said = self._process.stderr.read_waiting()[-_TOLD:].decode(errors="replace")
        if "No module named" in said:
            return "its image is of another version, which has no probes; make the sandbox anew"
        *_, reason = ["no reason given", *filter(None, map(str.strip, said.splitlines()))]
        return f"the guest's part failed: {_told(reason)}"


def _object(line: bytes, key: str) -> Json:
    try:
        found = json.loads(line)[key]
    except (ValueError, RecursionError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise AgentError("the guest's answer is not what it should be")
    return found


def checked_facts(facts: Json) -> Json:
    """Raises AgentError."""
    _check(facts, _FACTS)
    _check(facts["resolv"], _RESOLV)
    for key, shape in _ENTRIES:
        for entry in facts[key][:_MOST]:
            _check(entry, shape)
    for one in facts["listening"]:
        if not (isinstance(one, list) and [type(part) for part in one] == [str, str, int]):
            raise AgentError("the guest's answer is not what it should be")
    return facts


def probes_of(results: Json) -> dict[str, Json]:
    """The results of probes by their names. Raises AgentError."""
    found = {}
    for one in _entries(results, "probes", _PROBE):
        found[one["name"]] = one
    return found


def asked_of(results: Json) -> list[Json]:
    """Raises AgentError."""
    return _entries(results, "asked", _ASKED)


def neighbours_of(results: Json) -> list[Json]:
    """Raises AgentError."""
    return _entries(results, "neighbours", _KNOWN)


def steps_of(results: Json) -> list[Step]:
    """The trace of the guest's packet rules. Raises AgentError."""
    return [_made(Step, one) for one in _entries(results, "trace", {})]


def seen_of(results: Json) -> list[Sighting]:
    """Raises AgentError."""
    return [_made(Sighting, one) for one in _entries(results, "seen", {})]


def path_of(results: Json) -> Path | None:
    """The guest's route to the target. Raises AgentError."""
    found = results.get("path")
    return _made(Path, found) if found else None


def _entries(results: Json, key: str, shape: Json) -> list[Json]:
    found = results.get(key, [])
    if not isinstance(found, list):
        raise AgentError("the guest's answer is not what it should be")
    for one in found[:_MOST]:
        _check(one, shape)
    return found[:_MOST]


def _check(content: object, shape: Json) -> None:
    if not isinstance(content, dict) or shapes.mistake(content, shape):
        raise AgentError("the guest's answer is not what it should be")


def _made(cls: Any, content: Json) -> Any:
    """A NamedTuple of the right types."""
    defaults = cls(*(_EMPTY[kind] for kind in cls.__annotations__.values()))
    try:
        made = cls(**content)
    except TypeError:
        raise AgentError("the guest's answer is not what it should be") from None
    if [type(part) for part in made] != [type(part) for part in defaults]:
        raise AgentError("the guest's answer is not what it should be")
    return made


_EMPTY: dict[Any, Any] = {str: "", int: 0, bool: False}


def _told(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text[:_TOLD])
