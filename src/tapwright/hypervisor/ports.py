"""The ports into which NICs are plugged. A machine has them from its start; the module knows their
addresses.

`q35` has a PCI Express root port for each NIC, eight to a device of the root bus. `pc` has PCI
bridges of thirty places each, as Kata lays them out. A NIC there is plugged in through ACPI, which
takes the guest longer.
"""

from collections.abc import Sequence

from tapwright.dataclass import dataclass
from tapwright.errors import HypervisorError

# Places on the root bus. On q35: all but the host bridge (0x0), the machine's own devices (SERIAL
# and RNG) and the south bridge (0x1f). On pc: after the host bridge (0x0) and the south bridge
# (0x1), below the machine's own devices.
SERIAL_ADDRESS, RNG_ADDRESS = 0x10, 0x11
# Beside RNG, where it takes no place from a NIC.
DISK_FUNCTION = 1
_ROOT_PORT_ADDRESSES = (*range(0x01, 0x10), *range(0x12, 0x1F))
_PORTS_PER_ADDRESS = 8
_SHARE_NUMBER = 0xFF  # no NIC's port has this number
# Beside the serial device on q35, where it takes no place from a NIC.
_SHARE_PORT = (
    f"pcie-root-port,id=slot-share,bus=pcie.0,chassis={_SHARE_NUMBER},slot={_SHARE_NUMBER},"
    f"addr={SERIAL_ADDRESS:#x}.1"
)
_SHARE_ADDRESS = 0x12  # on pc
_BRIDGE_ADDRESSES = range(0x02, 0x10)
_PLACES_PER_BRIDGE = 30  # from 1 on: 0 is the bridge's own hot-plug controller

MOST = {
    "q35": len(_ROOT_PORT_ADDRESSES) * _PORTS_PER_ADDRESS,
    "pc": len(_BRIDGE_ADDRESSES) * _PLACES_PER_BRIDGE,
}
"""The most slots of each machine type; the limit is 255 buses below the root bus."""


@dataclass(frozen=True)
class Ports:
    """The ports for `slots` NICs, and with `share` one more for the files of the host. A NIC's
    *slot* counts from 0; a caller needs no other address. Raises HypervisorError: no such machine
    type, or too many slots."""

    machine_type: str
    slots: int
    share: bool = False

    def __post_init__(self) -> None:
        if self.machine_type not in MOST:
            raise HypervisorError(
                f"machine type {self.machine_type!r} is none of {', '.join(MOST)}; set machine_type"
            )
        most = MOST[self.machine_type]
        if self.slots > most:
            raise HypervisorError(f"{self.slots} NIC slots: {self.machine_type} has {most} at most")

    def devices(self) -> Sequence[str]:
        """Return the ports as values of QEMU's option -device, one by one."""
        if self.machine_type == "q35":
            of_share = [_SHARE_PORT] if self.share else []
            return [*map(_root_port, range(self.slots)), *of_share]
        return [_bridge(number) for number in range(-(-self.slots // _PLACES_PER_BRIDGE))]

    def share_place(self) -> dict[str, str]:
        """Return where the device of the share is plugged in. It takes no place from a NIC."""
        if self.machine_type == "q35":
            return {"bus": "slot-share"}
        return {"bus": "pci.0", "addr": f"{_SHARE_ADDRESS:#x}"}

    def place(self, slot: int) -> dict[str, str]:
        """Return where a NIC is plugged in, as arguments of device_add."""
        if self.machine_type == "q35":
            return {"bus": f"slot{slot}"}
        number, place = divmod(slot, _PLACES_PER_BRIDGE)
        return {"bus": f"bridge{number}", "addr": f"{place + 1:#x}"}


def pci_address(slot: int, machine_type: str = "q35") -> str:
    """Return the NIC's address in the guest, in Kata's notation: the address of port or bridge on
    the root bus, and the device behind it. `01.0/00` on q35, where the port is a device's function;
    `02/01` on pc."""
    if machine_type == "q35":
        address, function = _root_port_place(slot)
        return f"{address:02x}.{function}/00"
    number, place = divmod(slot, _PLACES_PER_BRIDGE)
    return f"{_BRIDGE_ADDRESSES[number]:02x}/{place + 1:02x}"


def _root_port(slot: int) -> str:
    address, function = _root_port_place(slot)
    first = ",multifunction=on" if function == 0 else ""
    number = slot + 1
    return (
        f"pcie-root-port,id=slot{slot},bus=pcie.0,chassis={number},slot={number},"
        f"addr={address:#x}.{function:#x}{first}"
    )


def _root_port_place(slot: int) -> tuple[int, int]:
    """Return device and function."""
    device, function = divmod(slot, _PORTS_PER_ADDRESS)
    return _ROOT_PORT_ADDRESSES[device], function


def _bridge(number: int) -> str:
    address = _BRIDGE_ADDRESSES[number]
    return f"pci-bridge,id=bridge{number},bus=pci.0,chassis_nr={number + 1},addr={address:#x}"
