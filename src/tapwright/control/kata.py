"""The JSON of `kata-network`: interfaces and routes read, checked, and written.

As in Kata's runtime, keys match without regard to case, unknown keys are ignored, and null is no
value. A refusal is a UsageError that names field, value and rule.
"""

import ipaddress
import re
from collections.abc import Iterable
from typing import Any

from tapwright.errors import UsageError
from tapwright.hypervisor.ports import pci_address
from tapwright.nics.interfaces import Listed
from tapwright.nics.request import (
    DEFAULT_MTU,
    MTUS,
    QUEUES,
    Address,
    InterfaceRequest,
    RouteRequest,
)
from tapwright.state.record import Nic

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]{0,14}")
_NAME_RULE = "1 to 15 letters, digits, '_', '-', '.', the first a letter"
# As Go's net.ParseMAC has them, by which Kata's runtime reads them.
_MAC = re.compile(
    r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}|[0-9A-Fa-f]{2}(-[0-9A-Fa-f]{2}){5}"
    r"|[0-9A-Fa-f]{4}(\.[0-9A-Fa-f]{4}){2}"
)
_SOCKET_BYTES = 128
_SUN_PATH_BYTES = 107  # unix(7), without the closing NUL
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6


def read_interface(content: Any) -> InterfaceRequest:
    """Raises UsageError."""
    fields = _fields(content, "an interface")
    socket = _text(fields, "vhostUserSocket")
    if socket and not socket.startswith("/"):
        raise _refusal("vhostUserSocket", socket, "an absolute path")
    size = len(socket.encode())
    if size > _SOCKET_BYTES:
        raise _refusal("vhostUserSocket", socket, f"at most {_SOCKET_BYTES} bytes, not {size}")
    if size > _SUN_PATH_BYTES:
        raise _refusal(
            "vhostUserSocket",
            socket,
            f"at most {_SUN_PATH_BYTES} bytes, the longest path of a unix socket",
        )
    return InterfaceRequest(
        device=_name(fields, "device"),
        name=_name(fields, "name"),
        mac=_mac(fields),
        addresses=tuple(map(_address, _list(fields, "IPAddresses"))),
        mtu=_number(fields, "mtu", MTUS, 0) or DEFAULT_MTU,
        queues=_number(fields, "queues", QUEUES, 0),
        vhost_user_socket=socket,
        link_type=_text(fields, "linkType"),
    )


def read_update(content: Any) -> tuple[str, tuple[Address, ...]]:
    """(name of the NIC, its new addresses; no addresses for no change). As in openEuler, all other
    fields must be empty or 0. Raises UsageError."""
    fields = _fields(content, "an interface")
    for key in ("device", "mtu", "hwAddr", "linkType", "queues", "vhostUserSocket"):
        if value := fields.get(key.lower()):
            raise UsageError(
                f"{key}: {_shown(value)} is refused: only IPAddresses can be updated, and all else "
                "must be empty or 0"
            )
    addresses = map(_address, _list(fields, "IPAddresses"))
    return _name(fields, "name"), tuple(dict.fromkeys(addresses))


def read_leaving(content: Any) -> tuple[str, str]:
    """(name, MAC address) of an interface to remove. One of them may be empty: openEuler's users
    give the name, and Kata's runtime uses only the MAC address. Raises UsageError."""
    fields = _fields(content, "an interface")
    mac = _mac(fields) if _text(fields, "hwAddr") else ""
    if mac and not _text(fields, "name"):
        return "", mac
    return _name(fields, "name"), mac


def read_routes(content: Any, as_patterns: bool = False, one: bool = False) -> list[RouteRequest]:
    """Routes to add, or patterns of routes to remove. With `one`, a single object is a route, too:
    openEuler's users write that. Bits of a destination beyond its prefix do not count, as in Kata's
    agent. Raises UsageError."""
    if one and isinstance(content, dict):
        return [_route(_fields(content, "a route"), as_patterns)]
    if content is None:
        return []
    if not isinstance(content, list):
        raise UsageError(f"routes are a JSON list, not {_shown(content)}")
    return [_route(_fields(item, "a route"), as_patterns) for item in content]


def read_table(content: Any) -> list[RouteRequest]:
    """All routes that the guest must have. A route with a device and no destination is a default
    route: Kata's monitor sends `default dev eth0` so. Raises UsageError."""
    if isinstance(content, list):
        content = [_with_destination(item) if isinstance(item, dict) else item for item in content]
    return read_routes(content)


def _with_destination(route: dict[str, Any]) -> dict[str, Any]:
    fields = _fields(route, "a route")
    return (
        fields if fields.get("dest") or not fields.get("device") else {**fields, "dest": "default"}
    )


def written_listing(listed: Listed, machine_type: str) -> dict[str, Any]:
    """A NIC of the guest, as list-ifaces prints it in Kata's full form: like add-iface, without
    unknown fields. Raises ValueError for an invalid address."""
    nic = listed.nic
    found = {
        "device": nic.device if nic else "",
        "name": listed.name,
        "IPAddresses": _written_addresses(listed.addresses),
        "mtu": listed.mtu,
        "hwAddr": listed.mac,
        "pciAddr": pci_address(nic.slot, machine_type) if nic else "",
    }
    return {key: value for key, value in found.items() if value}


def written_short(listed: Listed) -> dict[str, Any]:
    """A listed NIC in openEuler's short form."""
    return {"name": listed.name, "mac": listed.mac, "ip": listed.addresses, "mtu": listed.mtu}


def written_interface(nic: Nic, machine_type: str) -> dict[str, Any]:
    """A NIC of the sandbox as add-iface prints it."""
    return {
        "device": nic.device,
        "name": nic.name,
        "IPAddresses": _written_addresses(nic.addresses),
        "mtu": nic.mtu,
        "hwAddr": nic.mac,
        "pciAddr": pci_address(nic.slot, machine_type),
    }


def written_route(route: dict[str, Any]) -> dict[str, Any]:
    """A route of the guest as list-routes prints it: without empty or zero fields."""
    default = route["destination"] in ("0.0.0.0/0", "::/0") and route["gateway"]
    fields = {
        "dest": "default" if default else route["destination"],
        "gateway": route["gateway"],
        "device": route["device"],
        "source": route["source"],
        "scope": route["scope"],
        "metric": route["metric"],
    }
    return {key: value for key, value in fields.items() if value}


def _written_addresses(texts: Iterable[str]) -> list[dict[str, Any]]:
    return [
        {
            "Family": _FAMILIES[address.version],
            "Address": str(address.ip),
            "Mask": str(address.network.prefixlen),
        }
        for address in map(ipaddress.ip_interface, texts)
    ]


def _route(fields: dict[str, Any], as_pattern: bool) -> RouteRequest:
    gateway = _ip(fields, "gateway")
    source = _ip(fields, "source")
    dest = _destination(fields, gateway, as_pattern)
    for key, value in (("gateway", gateway), ("source", source)):
        if value and dest and (":" in value) != (":" in dest):
            raise _refusal(key, value, f"an address of the same family as dest, {dest}")
    device = _text(fields, "device")
    if (device or not as_pattern) and not _NAME.fullmatch(device):
        raise _refusal("device", device, _NAME_RULE)
    return RouteRequest(
        dest=dest,
        gateway=gateway,
        device=device,
        source=source,
        scope=_number(fields, "scope", range(256), None),
        metric=_number(fields, "metric", range(1 << 32), None),
    )


def _destination(fields: dict[str, Any], gateway: str, as_pattern: bool) -> str:
    dest = _text(fields, "dest")
    # Kata's monitor leaves the destination of a default route empty.
    if dest == "default" or (not dest and gateway):
        if as_pattern and not gateway:
            return ""
        # One that leads to a link has no gateway; Kata's agent, too, takes it for IPv4.
        return "::/0" if ":" in (gateway or _ip(fields, "source")) else "0.0.0.0/0"
    try:
        return str(ipaddress.ip_network(_without_zone(dest), strict=False))
    except ValueError:
        raise _refusal("dest", dest, "ADDRESS/PREFIX, ADDRESS, or default") from None


def _address(content: Any) -> Address:
    fields = _fields(content, "an entry of IPAddresses")
    address, mask = fields.get("address"), fields.get("mask")
    if isinstance(mask, int) and not isinstance(mask, bool):
        mask = str(mask)
    if not isinstance(mask, str) or not mask.isascii() or not mask.isdecimal():
        raise _refusal("IPAddresses mask", mask, "a prefix length")
    try:
        found = ipaddress.ip_interface(_without_zone(f"{address}/{int(mask)}"))
    except ValueError:
        raise _refusal(
            "IPAddresses", f"{address}/{mask}", "an IPv4 or IPv6 address and its prefix length"
        ) from None
    if found.is_multicast or found.is_unspecified or int(mask) == 0:
        raise _refusal("IPAddresses", f"{address}/{mask}", "an address that one NIC can have")
    return found


def _mac(fields: dict[str, Any]) -> str:
    mac = _text(fields, "hwAddr")
    if not _MAC.fullmatch(mac):
        raise _refusal("hwAddr", mac, "six bytes in hexadecimal, separated by ':'")
    if ":" not in mac:
        mac = bytes.fromhex(re.sub(r"[-.]", "", mac)).hex(":")
    if int(mac[:2], 16) & 1 or not int(mac.replace(":", ""), 16):
        raise _refusal("hwAddr", mac, "a unicast address")
    return mac


def _ip(fields: dict[str, Any], key: str) -> str:
    text = _text(fields, key)
    try:
        return str(ipaddress.ip_address(_without_zone(text))) if text else ""
    except ValueError:
        raise _refusal(key, text, "an IP address") from None


def _without_zone(text: str) -> str:
    """Raises ValueError for an address with an interface (fe80::1%eth0), which Python would take,
    and no kernel."""
    if "%" in text:
        raise ValueError(text)
    return text


def _name(fields: dict[str, Any], key: str) -> str:
    name = _text(fields, key)
    if not _NAME.fullmatch(name):
        raise _refusal(key, name, _NAME_RULE)
    return name


def _number(fields: dict[str, Any], key: str, allowed: range, default: Any) -> Any:
    value = fields.get(key.lower())
    if value is None or (type(value) is int and value == default):
        return default
    if type(value) is not int or value not in allowed:
        raise _refusal(key, value, f"a whole number from {allowed[0]} to {allowed[-1]}")
    return value


def _text(fields: dict[str, Any], key: str) -> str:
    value = fields.get(key.lower())
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _refusal(key, value, "a string")
    if "\0" in value or any("\ud800" <= each <= "\udfff" for each in value):
        raise _refusal(key, value, "text without NUL, and without halves of characters")
    return value


def _list(fields: dict[str, Any], key: str) -> list[Any]:
    value = fields.get(key.lower())
    if value is None:
        return []
    if not isinstance(value, list):
        raise _refusal(key, value, "a list")
    return value


def _fields(content: Any, what: str) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise UsageError(f"{what} is a JSON object, not {_shown(content)}")
    return {key.casefold(): value for key, value in content.items() if value is not None}


def _refusal(field: str, value: Any, rule: str) -> UsageError:
    if value == "":
        return UsageError(f"{field}: it is missing; it must be {rule}")
    return UsageError(f"{field}: {_shown(value)} is refused: it must be {rule}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else text[:200] + "…"
