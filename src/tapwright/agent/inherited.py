"""What a new network namespace has from the host's, for the network of a guest."""

import contextlib
from pathlib import Path

from tapwright.agent import requests
from tapwright.linux import settings

SETTINGS = "net/ipv4/tcp_congestion_control", "net/ipv4/tcp_rmem", "net/ipv4/tcp_wmem"
"""Below /proc/sys, in place of the kernel's own defaults (net/ipv4/tcp_ipv4.c: tcp_sk_init). So
they are not among those that make a namespace special, and later changes on the host are none of
the namespace."""
OF_NEW_NAMESPACES = (
    *("ipv4/tcp_max_syn_backlog", "ipv4/tcp_max_tw_buckets"),
    *("ipv4/tcp_limit_output_bytes", "ipv6/icmp/ratelimit"),
)
"""Below /proc/sys/net, what another kernel would give a new namespace differently. It makes the
first ones out of the size of its machine: a small guest would forget connections early. Of the
others kernels have had several defaults."""


def request() -> requests.Request:
    """The request that gives the guest's network these. The first time, the guest may have to load
    a module, which takes it a fifth of a second under emulation; so templates and spares have it
    loaded."""
    found = []
    for path in SETTINGS:
        with contextlib.suppress(OSError):  # kernels differ, and namespaces
            found.append([path, Path("/proc/sys", path).read_text().strip()])
    with contextlib.suppress(OSError):
        fresh = settings.defaults().values
        found += [[f"net/{path}", fresh[path]] for path in OF_NEW_NAMESPACES if path in fresh]
    return requests.change_kernel_settings(found)
