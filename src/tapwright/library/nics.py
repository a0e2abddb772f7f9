"""The NICs and the routes of a running sandbox."""

import ipaddress
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from tapwright.errors import UsageError
from tapwright.nics.request import any_mac
from tapwright.sandbox import client
from tapwright.state import registry

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IP = ipaddress.IPv4Address | ipaddress.IPv6Address

Find = Callable[[], registry.Sandbox]


@dataclass(frozen=True)
class Nic:
    """A NIC of the guest, at the time of the call. `device` is the interface on the host that the
    NIC is joined with, empty where that is not known."""

    name: str
    mac: str
    mtu: int
    addresses: tuple[Address, ...]
    device: str
    _nics: "Nics" = field(repr=False)

    def remove(self) -> None:
        """Take the NIC out of the guest. Raises as `Nics.add` does."""
        client.of(self._nics.find()).remove_interface({"name": self.name})

    def set_addresses(self, addresses: Iterable[str | Address]) -> "Nic":
        """Replace the NIC's addresses; return the new `Nic`. Raises as `Nics.add` does."""
        wanted = [_written(address) for address in addresses]
        client.of(self._nics.find()).update_interface({"name": self.name, "IPAddresses": wanted})
        return self._nics[self.name]


class Nics:
    """The NICs of a guest: iterable, and a mapping by name."""

    def __init__(self, find: Find) -> None:
        self.find = find

    def add(
        self,
        device: str,
        name: str,
        *,
        mac: str = "",
        addresses: Iterable[str | Address] = (),
        mtu: int = 0,
        queues: int = 0,
        vhost_user_socket: str = "",
    ) -> Nic:
        """Plug an interface of the host into the running VM, as `kata-network add-iface` does.

        `device` is the interface's name in the sandbox's network namespace or the host's, `name`
        the NIC's name in the guest. Addresses are ADDRESS/PREFIX. Without a `mac` the NIC gets a
        random one, without an `mtu` 1500. Raises UsageError, NetworkError, HypervisorError,
        AgentError, SandboxStateError.
        """
        interface: dict[str, Any] = {
            "device": device,
            "name": name,
            "hwAddr": mac or any_mac(),
            "IPAddresses": [_written(address) for address in addresses],
            "queues": queues,
            "vhostUserSocket": vhost_user_socket,
        }
        if mtu:
            interface["mtu"] = mtu
        client.of(self.find()).add_interface(interface)
        return self[name]

    def __iter__(self) -> Iterator[Nic]:
        sandbox = self.find()
        nics = sandbox.record.interfaces if sandbox.record else []
        devices = {nic.mac: nic.device for nic in nics} | {nic.name: nic.device for nic in nics}
        for entry in client.of(sandbox).list_interfaces() or ():
            mac = str(entry.get("mac") or entry.get("hwAddr", ""))
            yield Nic(
                name=str(entry["name"]),
                mac=mac,
                mtu=int(entry["mtu"]),
                addresses=tuple(_addresses(entry)),
                device=str(devices.get(str(entry["name"])) or devices.get(mac, "")),
                _nics=self,
            )

    def __getitem__(self, name: str) -> Nic:
        """Raises KeyError where there is no such NIC."""
        for nic in self:
            if nic.name == name:
                return nic
        raise KeyError(name)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@dataclass(frozen=True)
class Route:
    """A route of the guest. `gateway` and `source` are None where the route has none."""

    destination: Network
    gateway: IP | None
    device: str
    source: IP | None
    metric: int


class Routes:
    """The routes of a guest's main table: iterable."""

    def __init__(self, find: Find) -> None:
        self.find = find

    def add(
        self,
        destination: str | Network,
        *,
        via: str | IP = "",
        device: str,
        source: str | IP = "",
        metric: int = 0,
    ) -> None:
        """Add a route; `destination` is ADDRESS/PREFIX, or "default", which needs `via`. Raises
        UsageError, AgentError, SandboxStateError."""
        route = _route(destination, via, device)
        if source:
            route["source"] = str(source)
        if metric:
            route["metric"] = metric
        client.of(self.find()).add_routes([route])

    def remove(self, destination: str | Network, *, via: str | IP = "", device: str = "") -> None:
        """Remove all routes to `destination`; with `via` or `device`, only the routes through that.
        Raises as `add` does."""
        client.of(self.find()).remove_routes([_route(destination, via, device)])

    def __iter__(self) -> Iterator[Route]:
        for entry in client.of(self.find()).list_routes() or ():
            gateway, source = str(entry.get("gateway", "")), entry.get("source")
            destination = entry["dest"]
            if destination == "default":
                destination = "::/0" if ":" in gateway else "0.0.0.0/0"
            yield Route(
                destination=ipaddress.ip_network(destination, strict=False),
                gateway=ipaddress.ip_address(gateway) if gateway else None,
                device=str(entry.get("device", "")),
                source=ipaddress.ip_address(source) if source else None,
                metric=int(entry.get("metric", 0)),
            )


def _route(destination: str | Network, via: str | IP, device: str) -> dict[str, Any]:
    route = {"dest": str(destination), "gateway": str(via), "device": device}
    return {key: value for key, value in route.items() if value}


def _addresses(entry: dict[str, Any]) -> Iterator[Address]:
    """The addresses of a NIC. `list-ifaces` has two forms (`enable_compat_old_cni`)."""
    for text in entry.get("ip") or ():
        yield ipaddress.ip_interface(text)
    for one in entry.get("IPAddresses") or ():
        yield ipaddress.ip_interface(f"{one['Address']}/{one['Mask']}")


def _written(address: str | Address) -> dict[str, str]:
    try:
        found = ipaddress.ip_interface(address)
    except ValueError:
        raise UsageError(f"{address!r} is not ADDRESS/PREFIX") from None
    if isinstance(address, str) and "/" not in address:
        raise UsageError(f"{address!r} is not ADDRESS/PREFIX: the prefix is missing")
    return {"address": str(found.ip), "mask": str(found.network.prefixlen)}
