"""A program for the guest: it changes and lists the tables of IPVS and of connections.

The program serves one request, a JSON object on standard input. It answers in lines of JSON on
standard output; the last line is an object. It is no part of the agent, because the agent could
serve no other request while it goes through tens of thousands of entries.
"""

import contextlib
import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from tapwright.agent.guest.files import read
from tapwright.linux import conntrack, ipvs
from tapwright.linux.ipvs import Change, Ipvs, Service
from tapwright.linux.netlink import NetlinkError

_LOCK = "/run/tapwright/ipvs.lock"
_TABLE, _HEAD_LINES = "/proc/net/ip_vs", 3
_MODPROBE, _MODULE = "/proc/sys/kernel/modprobe", "ip_vs"

IpvsRequest = dict[str, Any]
Answer = dict[str, Any]


class RefusedError(Exception):
    """The reason why the request was refused; nothing was changed."""


def change(request: IpvsRequest) -> Iterator[Any]:
    """Make `changes`, [verb, service, server or null] each, in their order. With `into_empty`, make
    all changes or none, and only if the table is empty. The table never has more than `most`
    rules."""
    changes = ipvs.changes(request["changes"])
    with _locked(), _opened() as table:
        _check_room(changes, int(request["most"]), bool(request["into_empty"]))
        for number, refusal in enumerate(table.change(changes)):
            if refusal is None:
                continue
            if request["into_empty"]:
                table.clear()
            error = ipvs.reason(changes[number], refusal)
            yield {"refused": error, "number": number}
            return
    yield {"done": len(changes)}


def clear(request: IpvsRequest) -> Iterator[Any]:
    with _locked(), _opened() as table:
        table.clear()
    yield {}


def set_timeouts(request: IpvsRequest) -> Iterator[Any]:
    with _locked(), _opened() as table:
        table.set_timeouts(request["seconds"])
    yield {}


def list_timeouts(request: IpvsRequest) -> Iterator[Any]:
    with _opened() as table:
        yield {"seconds": table.timeouts()}


def list_table(request: IpvsRequest) -> Iterator[Any]:
    """Yield a line [service, servers] for each service, or for the one `service` of the request.
    With `counted`, the lines have counters."""
    counted = bool(request["counted"])
    with _opened() as table:
        if request["service"]:
            try:
                services = [table.service(Service(*request["service"]), counted)]
            except NetlinkError as error:
                if error.errno == errno.ESRCH:
                    raise RefusedError("No such service") from None
                raise
        else:
            services = table.services(counted)
        for service in services:
            yield [service, table.servers(service, counted)]
        yield {"version": table.version(), "count": len(services)}


def forget(request: IpvsRequest) -> Iterator[Any]:
    """Remove the connections to a `destination` by a `protocol`, and yield a line for each."""
    try:
        gone = conntrack.remove(str(request["destination"]), int(request["protocol"]))
    except OSError as error:
        if error.errno not in (errno.EPROTONOSUPPORT, errno.EINVAL):
            raise
        raise RefusedError(
            "the guest's kernel does not report its connections (module nf_conntrack_netlink); use "
            "an image whose kernel does"
        ) from None
    yield from gone
    yield {"count": len(gone)}


OPERATIONS = {
    operation.__name__: operation
    for operation in (change, clear, set_timeouts, list_timeouts, list_table, forget)
}


def main() -> None:
    request = json.load(sys.stdin)
    try:
        for line in OPERATIONS[request["op"]](request):
            sys.stdout.write(json.dumps(line, separators=(",", ":")) + "\n")
    except RefusedError as error:
        print(json.dumps({"refused": str(error)}))
    except OSError as error:
        print(json.dumps({"refused": str(error.args[-1])}))


@contextlib.contextmanager
def _locked() -> Iterator[None]:
    """Make one change at a time: requests at the same time would all look at the table before any
    change."""
    os.makedirs(os.path.dirname(_LOCK), exist_ok=True)
    with open(_LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _opened() -> Ipvs:
    """Open IPVS, and load its module if it is not loaded yet. Raises RefusedError."""
    try:
        return Ipvs()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
    modprobe = read(_MODPROBE).strip()
    with contextlib.suppress(OSError):
        if modprobe:
            subprocess.run([modprobe, "-q", "--", _MODULE], capture_output=True, check=False)
    try:
        return Ipvs()
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise
        raise RefusedError(
            f"the guest's kernel has no IPVS (module {_MODULE}); use an image whose kernel has it"
        ) from None


def _check_room(changes: list[Change], most: int, into_empty: bool) -> None:
    """Raises RefusedError if the changes would not fit."""
    if not into_empty and all(change.verb != "add" for change in changes):
        return
    with open(_TABLE, "rb") as file:
        count = max(0, sum(1 for _ in file) - _HEAD_LINES)
    if into_empty and count:
        raise RefusedError(
            f"the guest has {count} rules already, and a whole table is restored into an empty "
            'one only: clear it before (--parameters "-C")'
        )
    if count + len(changes) > most:
        raise RefusedError(f"the guest has {count} rules, and can have {most} at most")


if __name__ == "__main__":
    main()
