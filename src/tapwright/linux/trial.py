"""Tries what this kernel can do, in a private network namespace that ends with the trial. Only
kernel modules that were loaded for it stay."""

import os
import threading
from collections.abc import Callable

from tapwright.linux import libc, links, tc, tuntap
from tapwright.linux import macvtap as macvtap_device
from tapwright.linux.netlink import Netlink

_RATE = 1_000_000


def tap() -> OSError | None:
    """Make a TAP; return why it can't be made."""
    return _attempt(lambda nl: os.close(tuntap.create("trial")))


def redirection() -> OSError | None:
    """Redirect what arrives at one interface to another with `u32` and `mirred`; return why that
    fails."""
    return _attempt(_redirect)


def macvtap() -> OSError | None:
    """Make a macvtap, and open it; return why that fails."""
    return _attempt(_make_macvtap)


def limits() -> OSError | None:
    """Limit what an interface receives, with an `ifb` and with `htb`, which limits sending, too;
    return why that fails."""
    return _attempt(_limit)


def _redirect(nl: Netlink) -> None:
    source = _veth(nl)
    tc.add_ingress(nl, source)
    tc.redirect_ingress(nl, source, 1)


def _make_macvtap(nl: Netlink) -> None:
    links.add_macvtap(nl, "trial", _veth(nl), "bridge")
    for fd in macvtap_device.open_queues("trial", 1):
        os.close(fd)


def _limit(nl: Netlink) -> None:
    device = _veth(nl)
    links.add_ifb(nl, "trial")
    tc.limit_ingress(nl, device, links.named(nl, "trial").index, _RATE)


def _veth(nl: Netlink) -> int:
    """Make a pair; return the index of one end."""
    links.add_veth(nl, "trial-a", "trial-b")
    return links.named(nl, "trial-a").index


def _attempt(work: Callable[[Netlink], None]) -> OSError | None:
    """Call `work` in a thread with a namespace of its own, which ends with the thread."""
    failures: list[OSError] = []

    def run() -> None:
        try:
            libc.unshare(libc.CLONE_NEWNET)
            with Netlink() as nl:
                work(nl)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return failures[0] if failures else None
