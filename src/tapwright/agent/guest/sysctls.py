"""Settings of the guest's kernel. The network's are those that a container asks for
(`linux.sysctl`) and those of the namespace; the others are the host's."""

import os
from typing import Any

from tapwright.agent.guest import disk
from tapwright.agent.guest.refusal import FAILED, RefusedError
from tapwright.linux.files import closing
from tapwright.linux.netlink import Netlink

_NETWORK, _ALL = "/proc/sys/net", "/proc/sys"
# What is in a module that a host has loaded by the time that somebody names it. Below _NETWORK.
_MODULES = {
    "bridge/": "br_netfilter",
    "ipv4/vs/": "ip_vs",
    "mpls/": "mpls_router",
    "netfilter/nf_conntrack": "nf_conntrack",
    "nf_conntrack_max": "nf_conntrack",
    "sctp/": "sctp",
}


def set_sysctls(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set `sysctls`, each [path below /proc/sys/net, value], in their order. Raises RefusedError at
    the first one that the kernel refuses."""
    for path, value in request["sysctls"]:
        try:
            _write(path, value)
        except OSError as error:
            # As Go has the texts of errors: docker finds its exit status by them.
            reason = (error.strerror or "").lower()
            raise RefusedError(
                f"linux.sysctl: net/{path} = {value!r} was refused by the VM's kernel: "
                f"{reason}; name what it or an interface has once the hooks have run, with "
                "a value that it takes, or leave it out",
                FAILED,
            ) from None
    return {}


def change_settings(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set `settings`, each [path below /proc/sys/net, value], in their order. The reply names in
    `refused` those that the kernel refused."""
    return {"refused": try_all(request["settings"])}


def change_kernel_settings(nl: Netlink, request: dict[str, Any]) -> dict[str, Any]:
    """Set `settings`, each [path below /proc/sys, value], as `change_settings` does."""
    return {"refused": try_all(request["settings"], _ALL)}


def try_all(settings: list[Any], directory: str = _NETWORK) -> list[str]:
    """Set all settings; return those that the kernel refused, in words."""
    refused = []
    for path, value in settings:
        try:
            _write(path, value, directory)
        except OSError as error:
            place = f"{directory}/{path}".removeprefix("/proc/sys/")
            refused.append(f"{place} = {value!r}: {error.strerror}")
    return refused


def _write(path: str, value: str, directory: str = _NETWORK) -> None:
    module = next((name for start, name in _MODULES.items() if path.startswith(start)), "")
    if module and directory == _NETWORK and not os.path.exists(f"{directory}/{path}"):
        disk.load(module)
    # Without O_CREAT and O_TRUNC: with them the error would differ from runc's.
    with closing(os.open(f"{directory}/{path}", os.O_WRONLY | os.O_CLOEXEC)) as fd:
        os.write(fd, value.encode() or b"\n")
