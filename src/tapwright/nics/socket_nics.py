"""NICs on vhost-user sockets in the results of CNI plugins: no interface of the namespace stands
for them (CNI 1.1.0, section 5, "ADD Success": `socketPath`)."""

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tapwright.errors import NetworkError
from tapwright.linux.routes import SCOPE_LINK, SCOPE_UNIVERSE, TABLE_MAIN
from tapwright.nics.request import DEFAULT_MTU, InterfaceRequest, any_mac

Result = dict[str, Any]


@dataclass(frozen=True)
class SocketNic:
    """The NIC, and the routes through it as the agent takes them."""

    request: InterfaceRequest
    routes: list[dict[str, Any]]


def of(result: Result) -> list[SocketNic]:
    """The NICs that a result (of version 1.0.0 or above) has sockets for. Where it places one
    interface alone in the sandbox, all its addresses and routes are meant for that one: not every
    plugin says so.

    Raises NetworkError for a device that would have to be passed through.
    """
    found = []
    interfaces = result.get("interfaces") or []
    is_alone = sum(bool(interface.get("sandbox")) for interface in interfaces) == 1
    for index, interface in enumerate(interfaces):
        if not interface.get("sandbox"):
            continue
        if interface.get("pciID"):
            raise NetworkError(
                f"the interface {interface.get('name')} is a PCI device ({interface['pciID']}), "
                "which would have to be given to the VM by VFIO; that is not supported. Use a "
                "network that makes an interface in the namespace"
            )
        if interface.get("socketPath"):
            found.append(_nic(interface, None if is_alone else index, result))
    return found


def _nic(interface: dict[str, Any], index: int | None, result: Result) -> SocketNic:
    """The NIC with the addresses of this index in the result, or with all of them."""
    ips = [
        entry
        for entry in result.get("ips") or []
        if index is None or entry.get("interface") == index
    ]
    addresses = tuple(ipaddress.ip_interface(entry["address"]) for entry in ips)
    name = str(interface["name"])
    request = InterfaceRequest(
        device=name,
        name=name,
        mac=interface.get("mac") or any_mac(),
        addresses=addresses,
        mtu=int(interface.get("mtu") or DEFAULT_MTU),
        vhost_user_socket=str(interface["socketPath"]),
    )
    return SocketNic(request, list(_routes(result, name, ips, index is None)))


def _routes(
    result: Result, name: str, ips: list[dict[str, Any]], is_alone: bool
) -> Iterator[dict[str, Any]]:
    """The routes that lead through the interface: those to a gateway on its networks, or, as
    plugins mean it, without one of their own through that of an address. A gateway elsewhere is on
    the link of the interface if there is no other."""
    networks = [ipaddress.ip_interface(entry["address"]).network for entry in ips]
    for route in result.get("routes") or []:
        version = ipaddress.ip_network(route["dst"], strict=False).version
        gateways = [
            entry["gateway"]
            for entry in ips
            if entry.get("gateway") and ipaddress.ip_address(entry["gateway"]).version == version
        ]
        gateway = route.get("gw") or next(iter(gateways), None)
        if not any(network.version == version for network in networks):
            continue
        is_near = any(ipaddress.ip_address(gateway) in network for network in networks if gateway)
        if gateway and not (is_near or is_alone):
            continue
        yield {
            "destination": route["dst"],
            "device": name,
            "gateway": gateway,
            "source": None,
            "scope": int(route.get("scope") or (SCOPE_UNIVERSE if gateway else SCOPE_LINK)),
            "metric": int(route.get("priority") or 0),
            "table": int(route.get("table") or TABLE_MAIN),
            "mtu": int(route.get("mtu") or 0),
            "advmss": int(route.get("advmss") or 0),
            "onlink": bool(gateway) and not is_near,
        }
