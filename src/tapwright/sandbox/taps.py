"""Requests for TAPs of the host's namespace: `NAME[,bridge=BR|,ovs=BR][,KEY=…]`."""

import ipaddress
import re
from dataclasses import dataclass, field

from tapwright import cni
from tapwright.errors import UsageError
from tapwright.nics.request import MTUS, any_mac
from tapwright.state.record import TapRequest

FORM = "NAME[,bridge=BR|,ovs=BR][,ip=ADDRESS/PREFIX][,mac=MAC][,mtu=N][,name=IFNAME]"

_MAC = re.compile(r"[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}")


@dataclass
class TapWish:
    """The TAP `device`, and the NIC on it. An empty name becomes eth0, eth1, …; an empty MAC a
    random one; an MTU of 0 becomes that of the TAP, or of the bridge for a new TAP."""

    device: str
    bridge: str = ""
    ovs: str = ""
    mac: str = ""
    mtu: int = 0
    name: str = ""
    addresses: list[str] = field(default_factory=list)


def parse(text: str) -> TapWish:
    """Raises UsageError."""
    device, *options = text.split(",")
    tap = TapWish(_name(device, text))
    for option in options:
        key, _, value = option.partition("=")
        if key in ("bridge", "ovs", "name"):
            setattr(tap, key, _name(value, text))
        elif key == "mac":
            if not _MAC.fullmatch(value) or int(value[:2], 16) & 1:
                raise _refusal(text, value, "the MAC address of one NIC, such as 02:00:00:00:00:01")
            tap.mac = value.lower()
        elif key == "mtu":
            if not value.isdecimal() or int(value) not in MTUS:
                raise _refusal(text, value, f"an MTU, {MTUS[0]} to {MTUS[-1]}")
            tap.mtu = int(value)
        elif key == "ip":
            tap.addresses.append(_address(value, text))
        else:
            raise UsageError(f"--tap {text}: {option!r} is unknown; the form is {FORM}")
    if tap.bridge and tap.ovs:
        raise UsageError(f"--tap {text}: a TAP can be in only one bridge")
    return tap


def requested(tap: TapWish, name: str) -> TapRequest:
    """The TAP for a specification, with the NIC's `name`."""
    return TapRequest(
        tap.device, name, tap.mac or any_mac(), tap.bridge, tap.ovs, tap.mtu, tap.addresses
    )


def _name(name: str, text: str) -> str:
    if not cni.is_interface_name(name):
        raise _refusal(
            text, name, "an interface name: 1 to 15 bytes without '/', ':' and white space"
        )
    return name


def _address(value: str, text: str) -> str:
    try:
        if "/" in value:
            return str(ipaddress.ip_interface(value))
    except ValueError:
        pass
    raise _refusal(text, value, "ADDRESS/PREFIX")


def _refusal(text: str, value: str, rule: str) -> UsageError:
    return UsageError(f"--tap {text}: {value!r} is not {rule}")
