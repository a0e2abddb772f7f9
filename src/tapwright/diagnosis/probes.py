"""Runs the probes in the guest, by a program there (`agent.guest.probing`), and checks the answers.

The guest is hostile. Its answer is bounded in size and time, and `vetting` builds it anew part by
part; an invalid answer is an AgentError. A valid answer may still be a lie.
"""

import json
import socket
import time
from typing import Any

from tapwright.diagnosis import vetting
from tapwright.errors import AgentError, printable
from tapwright.linux.lookup import Path
from tapwright.linux.nftrace import Step
from tapwright.linux.sightings import Sighting
from tapwright.sandbox import client
from tapwright.sandbox.execution import Process
from tapwright.state.registry import Sandbox

_MOST_BYTES, _MOST, _MOST_SAID = 4 << 20, 4000, 300
SECONDS = 20.0
"""The longest wait for a line of the answer; a guest may be slow."""

Json = dict[str, Any]
Shape = dict[str, vetting.Part]

_u32 = vetting.number()
_error = vetting.number(vetting.MOST_ERROR)
_port = vetting.number(65535)
_name_or_none = vetting.or_empty(vetting.name)
_address_or_none = vetting.or_empty(vetting.address)
_mac_or_none = vetting.or_empty(vetting.mac)
_setting = vetting.or_empty(vetting.name)

_LINK: Shape = {
    "index": _u32,
    "name": vetting.name,
    "mac": _mac_or_none,
    "mtu": _u32,
    **dict.fromkeys(("up", "running", "loopback"), vetting.flag),
    "addresses": vetting.each(vetting.network, _MOST),
    "settings": vetting.entry(
        dict.fromkeys(
            ("rp_filter", "arp_ignore", "disable_ipv6", "accept_ra", "forwarding"), _setting
        ),
        lacking=True,
    ),
}
_ROUTE: Shape = {
    "destination": vetting.network,
    "kind": vetting.name,
    "device": _u32,
    "gateway": _address_or_none,
    "metric": _u32,
    "table": _u32,
}
_KNOWN: Shape = {
    "address": vetting.address,
    "mac": _mac_or_none,
    "device": _u32,
    "state": vetting.name,
}
_RESOLV: Shape = {
    # An invalid address in resolv.conf is the guest's mistake; the answer is still valid.
    "nameservers": vetting.each_that_fits(vetting.address, _MOST),
    "search": vetting.each(vetting.text, _MOST),
    "ndots": _u32,
}
_SETTINGS: Shape = dict.fromkeys(
    ("ipv4/icmp_echo_ignore_all", "ipv6/icmp/echo_ignore_all"), _setting
)


def _listening(value: Any) -> list[Any]:
    if not isinstance(value, list) or len(value) != 3:
        raise ValueError("what listens is no triple")
    return [vetting.name(value[0]), vetting.socket_address(value[1]), _port(value[2])]


_FACTS: Shape = {
    "links": vetting.each(vetting.entry(_LINK), _MOST),
    "routes": vetting.each(vetting.entry(_ROUTE), _MOST),
    "neighbours": vetting.each(vetting.entry(_KNOWN), _MOST),
    "listening": vetting.each(_listening, _MOST),
    "resolv": vetting.entry(_RESOLV),
    "settings": vetting.entry(_SETTINGS, lacking=True),
}


def _name_of_probe(value: Any) -> str:
    word, _, address = value.partition(" ") if isinstance(value, str) else ("", "", "")
    if word == "duplicate":
        return f"duplicate {vetting.address(address)}"
    return vetting.name(value)


_PROBE: Shape = {
    "name": _name_of_probe,
    "outcome": vetting.name,
    "error": _error,
    "origin": _name_or_none,
    "reporter": _address_or_none,
    "size": _u32,
    "mtu": _u32,
    "port": _port,
    "macs": vetting.each(vetting.mac, _MOST),
}
_ASKED: Shape = {
    "server": vetting.address,
    "name": vetting.text,
    "outcome": vetting.name,
    "code": vetting.number(15),
    "error": _error,
    "addresses": vetting.each(vetting.address, _MOST),
}
_PATH: Shape = {
    "kind": _name_or_none,
    "device": _u32,
    "gateway": _address_or_none,
    "source": _address_or_none,
    "mtu": _u32,
    "error": _error,
}
_STEP: Shape = {
    "packet": _u32,
    "table": _name_or_none,
    "chain": _name_or_none,
    "kind": _name_or_none,
    "handle": vetting.number(2**64 - 1),
    "verdict": vetting.number(least=-(2**31)),
    "source": _address_or_none,
    "destination": _address_or_none,
    "protocol": _u32,
    "inside": _u32,
    "outside": _u32,
    "ours": vetting.flag,
    "family": vetting.name,
}
_SIGHTING: Shape = {
    "what": vetting.name,
    "outgoing": vetting.flag,
    "source": _address_or_none,
    "destination": _address_or_none,
    "from_mac": _mac_or_none,
    "to_mac": _mac_or_none,
    "size": _u32,
    "source_port": _port,
    "destination_port": _port,
    "detail": _name_or_none,
    "about": _address_or_none,
    "marked": vetting.flag,
}


class _Program(Process):
    """The program is part of the agent; the request `probe` starts it."""

    def _opened(self, supervisor: client.Supervisor, **_: Any) -> socket.socket:
        return supervisor.opened("probe")


class Guest:
    """A conversation with the program. It is a context manager, which ends the program."""

    def __init__(self, sandbox: Sandbox, request: Json) -> None:
        """Start the program. Raises SandboxStateError."""
        self._kept = bytearray()
        self._process = _Program(sandbox, ("explain",))
        self._process.write(json.dumps(request).encode() + b"\n")

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.close()

    def begin(self) -> tuple[Json, Json]:
        """Return (facts, preparation) once the program waits for `end`. Raises AgentError,
        SandboxStateError."""
        answer = self._line()
        return checked_facts(_object(answer, "facts")), _object(answer, "prepared")

    def end(self) -> Json:
        """Let the program send its probes, and return the results. Raises AgentError,
        SandboxStateError."""
        self._process.write(b"\n")
        return _object(self._line(), "results")

    def _line(self) -> bytes:
        deadline = time.monotonic() + SECONDS
        while b"\n" not in self._kept:
            try:
                part = self._process.stdout.read1(timeout=max(0.0, deadline - time.monotonic()))
            except TimeoutError:
                raise AgentError(f"the guest has not answered within {SECONDS:g} s") from None
            self._kept += part
            if not part:
                raise AgentError(self._reason())
            if len(self._kept) > _MOST_BYTES:
                raise AgentError(f"the guest's answer has more than {_MOST_BYTES} bytes")
        line, _, rest = bytes(self._kept).partition(b"\n")
        self._kept = bytearray(rest)
        return line

    def _reason(self) -> str:
        """Say why the program ended."""
        said = self._process.stderr.read_waiting()[-_MOST_SAID:].decode(errors="replace")
        *_, reason = ["no reason given", *filter(None, map(str.strip, said.splitlines()))]
        return f"the guest's part failed: {printable(reason)}"


def _object(line: bytes, key: str) -> Json:
    try:
        found = json.loads(line)[key]
    except (ValueError, RecursionError, KeyError, TypeError):
        found = None
    if not isinstance(found, dict):
        raise AgentError("the guest's answer is not what it should be")
    return found


def checked_facts(facts: Json) -> Json:
    """Return valid facts, with the known keys alone. Raises AgentError."""
    return dict(_vetted(vetting.entry(_FACTS), facts))


def target_of(prepared: Json) -> str:
    """Return the address that the guest sends to; empty if it found none. Raises AgentError."""
    return str(_vetted(_address_or_none, prepared.get("target", "")))


def probes_of(results: Json) -> dict[str, Json]:
    """Return the results of the probes by their names. Raises AgentError."""
    return {one["name"]: one for one in _entries(results, "probes", _PROBE)}


def asked_of(prepared: Json) -> list[Json]:
    """Return the questions to name servers, of servers with a valid address. Raises AgentError."""
    found = prepared.get("asked", [])
    if isinstance(found, list):
        found = [one for one in found if isinstance(one, dict) and _is_address(one.get("server"))]
    return _entries({"asked": found}, "asked", _ASKED)


def neighbours_of(results: Json) -> list[Json]:
    """Raises AgentError."""
    return _entries(results, "neighbours", _KNOWN)


def steps_of(results: Json) -> list[Step]:
    """Return the trace of the guest's packet rules. Raises AgentError."""
    return [Step(**one) for one in _entries(results, "trace", _STEP)]


def seen_of(results: Json) -> list[Sighting]:
    """Raises AgentError."""
    return [Sighting(**one) for one in _entries(results, "seen", _SIGHTING)]


def path_of(results: Json) -> Path | None:
    """Return the guest's route to the target. Raises AgentError."""
    found = results.get("path")
    return Path(**_vetted(vetting.entry(_PATH), found)) if found else None


def _entries(results: Json, key: str, shape: Shape) -> list[Json]:
    return list(_vetted(vetting.each(vetting.entry(shape), _MOST), results.get(key, [])))


def _is_address(value: object) -> bool:
    try:
        vetting.address(value)
    except ValueError:
        return False
    return True


def _vetted(part: vetting.Part, content: object) -> Any:
    try:
        return part(content)
    except ValueError as error:
        raise AgentError(f"the guest's answer is not what it should be: {error}") from None
