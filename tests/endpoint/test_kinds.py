"""Which endpoint an interface becomes."""

import pytest

from tapwright.endpoint import kinds
from tapwright.endpoint.limits import Limits
from tapwright.errors import NetworkError
from tapwright.linux import ethtool, links, netns
from tapwright.linux.links import Link
from tapwright.linux.netlink import Netlink

MODELS = ["tcfilter", "macvtap", "none"]


@pytest.mark.smoke
@pytest.mark.parametrize("model", MODELS)
def test_physical_nic(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """Refused with what to use instead.

    The only hardware that a test can count on is the machine's uplink, which no test may touch: so
    the driver's answer is made up. That answer, and no kind, is all that tells a NIC of hardware.
    """
    monkeypatch.setattr(ethtool, "bus_address", lambda name: "0000:00:05.0")
    nic = Link(7, "eno1", "", "02:00:00:00:00:07", 1500, links.IFF_UP)
    with pytest.raises(NetworkError, match=r"eno1 is a physical NIC \(0000:00:05.0\)") as refusal:
        kinds.choose(nic, netns.OWN, model, Limits())
    assert "put a macvlan of it, or a veth into a bridge with it, into the namespace" in str(
        refusal.value
    )
    # And nothing that has a kind is asked for its bus.
    assert kinds.choose(nic._replace(kind="veth"), netns.OWN, model, Limits()).device == "eno1"


@pytest.mark.unit
@pytest.mark.parametrize("model", MODELS)
def test_no_ethernet(model: str) -> None:
    with Netlink() as nl:
        loopback = links.find(nl, "lo")
    assert loopback is not None
    with pytest.raises(NetworkError, match="lo carries no Ethernet frames"):
        kinds.choose(loopback, netns.OWN, model, Limits())
