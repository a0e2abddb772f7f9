"""Requests to a guest's network: for a NIC, for a route. The module that reads a request from
outside has checked it (`control.kata`, `sandbox.taps`, `socket_nics`)."""

import ipaddress
import secrets
from dataclasses import dataclass
from typing import Any

from tapwright.linux.routes import SCOPE_LINK, SCOPE_UNIVERSE

MTUS = range(46, 9601)
DEFAULT_MTU = 1500
QUEUES = range(257)
"""0 is one queue; a TAP has 256 at most (MAX_TAP_QUEUES, drivers/net/tun.c)."""

Address = ipaddress.IPv4Interface | ipaddress.IPv6Interface


@dataclass(frozen=True)
class InterfaceRequest:
    """A NIC that is asked for. `queues` 0 is one queue; `vhost_user_socket` is empty for a NIC on
    a device of the host."""

    device: str
    name: str
    mac: str
    addresses: tuple[Address, ...] = ()
    mtu: int = DEFAULT_MTU
    queues: int = 0
    vhost_user_socket: str = ""
    link_type: str = ""


@dataclass(frozen=True)
class RouteRequest:
    """A route of the guest, or for its removal a pattern: what is empty or None fits all.
    `dest` is ADDRESS/PREFIX; `default` without a gateway, in a pattern, is empty."""

    dest: str
    gateway: str = ""
    device: str = ""
    source: str = ""
    scope: int | None = None
    metric: int | None = None

    def guest_route(self) -> dict[str, Any]:
        """The route as the agent takes it."""
        scope = self.scope
        if scope is None:
            on_link = not self.gateway and ":" not in self.dest
            scope = SCOPE_LINK if on_link else SCOPE_UNIVERSE
        return {
            "destination": self.dest,
            "device": self.device,
            "gateway": self.gateway or None,
            "source": self.source or None,
            "scope": scope,
            "metric": self.metric or 0,
        }

    def matches(self, route: dict[str, Any]) -> bool:
        """Whether a route of the guest is one to be removed."""
        default = route["destination"] in ("0.0.0.0/0", "::/0")
        return (
            (route["destination"] == self.dest if self.dest else default)
            and self.gateway in ("", route["gateway"])
            and self.device in ("", route["device"])
        )


def any_mac() -> str:
    """A random MAC: the second bit marks it as locally assigned, the first as unicast."""
    return f"02:{secrets.token_bytes(5).hex(':')}"
