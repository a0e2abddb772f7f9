"""Which endpoint an interface becomes, and how that follows the interface's MAC address."""

import os
import subprocess
from contextlib import ExitStack

import pytest

from tapwright.endpoint import heard, kinds
from tapwright.endpoint.limits import Limits
from tapwright.endpoint.tap import ExistingTap
from tapwright.endpoint.tcfilter import TcFilter
from tapwright.errors import NetworkError
from tapwright.hypervisor.backends import Tap
from tapwright.linux import ethtool, links, netns, tc, tuntap
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


FIRST, LATER = "02:00:00:00:00:21", "02:00:00:00:00:22"


@pytest.mark.parametrize("model", ["tcfilter", "macvtap"])
@pytest.mark.parametrize("kind", ["macvlan", "veth"])
def test_another_mac_address(
    scratch_netns: str, monkeypatch: pytest.MonkeyPatch, model: str, kind: str
) -> None:
    """The NIC gets it, and frames for it reach the device that the VM has."""
    shared = []
    share = tc.share_ingress
    with netns.entered(scratch_netns), Netlink() as nl:

        def run(command: str) -> None:
            subprocess.run(["ip", *command.split()], check=True)

        run(f"link add in0 address {FIRST} type veth peer name far0")
        if kind == "macvlan":
            run("link set in0 name on0")
            run(f"link add in0 link on0 address {FIRST} type macvlan mode bridge")
            run("link set on0 address 02:00:00:00:00:20 up")
        run("link set in0 up")
        link = links.named(nl, "in0")
        endpoint = kinds.choose(link, scratch_netns, model, Limits())
        several = [endpoint]
        if kind == "macvlan" and model == "tcfilter":
            several.insert(0, kinds.choose(links.named(nl, "on0"), scratch_netns, model, Limits()))
        backends = [each.attach(0, 0) for each in several]
        assert endpoint.is_joined(links.named(nl, "in0"))
        assert endpoint.mac_for(links.named(nl, "in0"), FIRST) == FIRST
        run(f"link set in0 address {LATER}")
        assert endpoint.is_joined(links.named(nl, "in0"))
        assert endpoint.mac_for(links.named(nl, "in0"), FIRST) == LATER

        def note(socket: Netlink, source: int, target: int, program: tc.Program) -> None:
            shared.append((source, program))
            share(socket, source, target, program)

        monkeypatch.setattr(tc, "share_ingress", note)
        endpoint.set_mac(LATER)
        assert endpoint.mac_for(links.named(nl, "in0"), LATER) == LATER
        beside = links.named(nl, f"tap{link.index}_kata")
        if model == "macvtap":
            assert beside.mac == LATER
        elif kind == "macvlan":
            assert shared == [(link.parent, heard.of_one_on_it(LATER))]
        for backend in backends:
            assert isinstance(backend, Tap)
            os.close(backend.fds[0])
        endpoint.detach()
