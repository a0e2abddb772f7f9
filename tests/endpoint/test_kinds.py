"""Which endpoint an interface becomes."""

import os
import subprocess
from contextlib import ExitStack

import pytest

from tapwright.endpoint import kinds
from tapwright.endpoint.limits import Limits
from tapwright.endpoint.tap import ExistingTap
from tapwright.endpoint.tcfilter import TcFilter
from tapwright.errors import NetworkError
from tapwright.linux import ethtool, links, netns, tuntap
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


def test_taps_that_a_process_holds(scratch_netns: str) -> None:
    """One that is found in a namespace is joined as any interface; one that is asked for is to be
    the NIC itself, which it can't be."""
    persistent = tuntap.Tap(False, False, True, False)
    several = tuntap.Tap(False, False, True, True)
    with netns.entered(scratch_netns), Netlink() as nl, ExitStack() as stack:
        for name, tap in (("tap0", persistent), ("tap1", persistent), ("tap2", several)):
            more = ["multi_queue"] if tap.multi_queue else []
            words = ["ip", "tuntap", "add", "dev", name, "mode", "tap", *more]
            subprocess.run(words, check=True)
            links.set_up(nl, links.named(nl, name).index)
        for fd in (
            *tuntap.attach("tap1", persistent, 1),
            *tuntap.attach("tap2", several, 1),
            tuntap.create("tap3"),
        ):
            stack.callback(os.close, fd)
        for name in ("tap0", "tap1", "tap2", "tap3"):
            link = links.named(nl, name)
            found, asked = (
                kinds.choose(link, scratch_netns, "tcfilter", Limits(), whole)
                for whole in (False, True)
            )
            assert isinstance(found, ExistingTap if name == "tap0" else TcFilter), name
            assert isinstance(asked, ExistingTap), name
