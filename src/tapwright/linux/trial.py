"""What this kernel can do, tried in a network namespace that nobody else sees and that ends with
the trial: nothing is left of it but the kernel modules that it made the kernel load."""

import os
import threading
from collections.abc import Callable

from tapwright.linux import libc, links, tc, tuntap
from tapwright.linux.netlink import Netlink


def tap() -> OSError | None:
    """Make a TAP; return why it can't be made."""
    return _attempt(lambda nl: os.close(tuntap.create("trial")))


def redirection() -> OSError | None:
    """Redirect what arrives at one interface to another with `u32` and `mirred`."""
    return _attempt(_redirect)


def macvtap() -> OSError | None:
    """Make a macvtap."""
    return _attempt(lambda nl: links.add_macvtap(nl, "trial", _veth(nl), "bridge"))


def ifb() -> OSError | None:
    """Make an intermediate functional block, which limits what a NIC sends."""
    return _attempt(lambda nl: links.add_ifb(nl, "trial"))


def _redirect(nl: Netlink) -> None:
    source = _veth(nl)
    tc.add_ingress(nl, source)
    tc.redirect_ingress(nl, source, 1)


def _veth(nl: Netlink) -> int:
    """Make a pair; return the index of one end."""
    links.add_veth(nl, "trial-a", "trial-b")
    return links.listing(nl)[-1].index


def _attempt(work: Callable[[Netlink], None]) -> OSError | None:
    """Run `work` in a thread with a namespace of its own, which ends with the thread."""
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
