"""A physical NIC, which a VM could only get as a whole, by VFIO.

Tapwright does not do that: it refuses such a NIC, and says what can be used instead.
"""

from tapwright.errors import NetworkError
from tapwright.linux import ethtool
from tapwright.linux.links import Link


def refuse(link: Link) -> None:
    """Raises NetworkError when the interface, in the calling thread's namespace, is hardware."""
    if link.kind:
        return
    bus = ethtool.bus_address(link.name)
    if bus:
        raise NetworkError(
            f"device: {link.name} is a physical NIC ({bus}), which would have to be given to the "
            "VM whole, by VFIO; that is not supported. Leave it on the host, and put a macvlan of "
            "it, or a veth into a bridge with it, into the namespace"
        )
