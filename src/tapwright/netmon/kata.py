"""Drives a runtime by Kata's contract: `RUNTIME kata-network VERB ID FILE`, the file with JSON
(kata-containers/runtime 1.x, netmon/netmon.go and cli/network.go).

The contract has no change of an interface, so a changed interface is removed and added.
"""

import json
import os
import subprocess
from typing import Any

from tapwright.endpoint import discovery
from tapwright.endpoint.discovery import Interface
from tapwright.errors import NetworkError
from tapwright.linux.netlink import Netlink, family_of
from tapwright.linux.routes import TABLE_MAIN, Route

_SECONDS = 120.0
_KATAS = "kata"

Json = Any


class Kata:
    """The network of the sandbox with this id. The runtime has carried the initial state into the
    VM already."""

    def __init__(self, runtime: str, sandbox_id: str) -> None:
        self._runtime = runtime
        self._id = sandbox_id
        self._carried: dict[int, Json] = {}
        self._routes: list[Json] = []

    def begin(self) -> None:
        """Raises OSError."""
        found, routes = _scan()
        ready = [interface for interface in found if interface.is_ready]
        self._carried = {interface.link.index: _interface(interface) for interface in ready}
        self._routes = _routes(ready, routes)

    def sync(self) -> float | None:
        """Make the runtime follow the namespace; return None. Raises NetworkError when some of it
        failed, after trying all of it; OSError."""
        found, in_order = _scan()
        failures = self._remove_gone(found) + self._add_new(found)
        routes = _routes([i for i in found if i.link.index in self._carried], in_order)
        if routes != self._routes:
            try:
                self._call("update-routes", routes)
                self._routes = routes
            except NetworkError as error:
                failures.append(str(error))
        if failures:
            raise NetworkError("; ".join(failures))
        return None

    def _remove_gone(self, found: list[Interface]) -> list[str]:
        present = {interface.link.index: _interface(interface) for interface in found}
        failures = []
        for index, carried in list(self._carried.items()):
            if present.get(index) != carried:
                try:
                    self._call("del-iface", carried)
                    del self._carried[index]
                    # The routes of the guest's NIC went with it.
                    self._routes = [r for r in self._routes if r["device"] != carried["name"]]
                except NetworkError as error:
                    failures.append(str(error))
        return failures

    def _add_new(self, found: list[Interface]) -> list[str]:
        failures = []
        for interface in found:
            index = interface.link.index
            if index not in self._carried and interface.is_ready and interface.is_running:
                described = _interface(interface)
                try:
                    self._call("add-iface", described)
                    self._carried[index] = described
                except NetworkError as error:
                    failures.append(str(error))
        return failures

    def _call(self, verb: str, content: Json) -> None:
        """Raises NetworkError with the runtime's words."""
        # A memfd can't be left behind: Kata ends its monitor by SIGKILL.
        fd = os.memfd_create("interface.json")
        try:
            os.write(fd, json.dumps(content).encode())
            path = f"/proc/{os.getpid()}/fd/{fd}"
            done = subprocess.run(
                [self._runtime, "kata-network", verb, self._id, path],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_SECONDS,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NetworkError(f"{self._runtime} {verb}: {error}") from None
        finally:
            os.close(fd)
        if done.returncode:
            said = (done.stderr or done.stdout).strip() or f"exit status {done.returncode}"
            raise NetworkError(f"{os.path.basename(self._runtime)} {verb} failed: {said}")


def _scan() -> tuple[list[Interface], list[Route]]:
    """Return interfaces, without the devices that Kata makes for itself, and routes."""
    with Netlink() as nl:
        found = discovery.scan(nl)
    own = [one for one in found.interfaces if not one.link.name.endswith(_KATAS)]
    return own, found.routes()


def _interface(interface: Interface) -> Json:
    link = interface.link
    return {
        "device": link.name,
        "name": link.name,
        "IPAddresses": [
            {
                "family": int(family_of(address.address)),
                "address": address.address,
                "mask": str(address.prefix_length),
            }
            for address in interface.addresses
        ],
        "mtu": link.mtu,
        "hwAddr": link.mac,
        "linkType": link.kind,
    }


def _routes(found: list[Interface], routes: list[Route]) -> list[Json]:
    """Return the routes of the main table: the contract has no other table."""
    names = {interface.link.index: interface.link.name for interface in found}
    return [
        _route(route, names)
        for route in routes
        if route.device in names and route.table == TABLE_MAIN
    ]


def _route(route: Route, names: dict[int, str]) -> Json:
    default = route.destination in ("0.0.0.0/0", "::/0") and route.gateway
    return {
        "dest": "default" if default else route.destination,
        "gateway": route.gateway or "",
        "device": names[route.device],
        "source": route.source or "",
        "scope": route.scope,
    }
