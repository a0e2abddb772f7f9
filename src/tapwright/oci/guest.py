"""The configuration of a container in the guest, made from the bundle's: the input of the runtime
there (crun). It leaves out what only the host has; it refuses what is impossible, or warns of it.
docs/oci.md lists all of this.
"""

import os
import resource

from tapwright.errors import BundleError
from tapwright.linux import rlimits
from tapwright.oci import devices, home, size, sysctls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from tapwright.oci.bundle import Bundle
    from tapwright.oci.log import Log

    Json = dict[str, Any]

_OF_EACH = ("pid", "mount", "ipc", "uts", "cgroup")
"""Namespaces that a container has in the guest, of its own unless it joins a pod's."""
_NETWORK = {"type": "network", "path": "/proc/1/ns/net"}
"""The guest's, which is the pod's."""

_RESOURCES = {
    "memory": ("limit", "reservation", "swap", "checkBeforeUpdate"),
    "cpu": ("shares", "quota", "period", "burst", "idle"),
    "pids": ("limit",),
}
_UNLIMITED = 2**64 - 1  # RLIM_INFINITY
_LEAST_MEMORY = 4 << 20
_MAY_BE_ZERO = ("burst", "idle")


def configuration(
    bundle: "Bundle",
    container_id: str,
    rootfs: str,
    mounts: "list[Json]",
    joined: "Mapping[str, str]",
    seccomp: "Json | None",
    log: "Log",
) -> "Json":
    """`rootfs` and the sources of `mounts` are paths in the guest, and so are those of namespaces
    in `joined`, by type; `seccomp` is the part of the runtime's configuration on it
    (`oci.seccomp`). Raises BundleError."""
    _refuse(bundle)
    _warn(bundle, log)
    linux: Json = {
        "namespaces": [
            _NETWORK,
            *(
                {"type": kind, **({"path": joined[kind]} if kind in joined else {})}
                for kind in _OF_EACH
            ),
        ],
        "cgroupsPath": f"/{container_id}",
        "resources": resources(bundle.linux.get("resources", {}), log),
    }
    kept = ("maskedPaths", "readonlyPaths", "personality")
    linux.update({key: bundle.linux[key] for key in kept if key in bundle.linux})
    if settings := sysctls.of_runtime(bundle):
        linux["sysctl"] = settings
    made, lacking = devices.of_guest(bundle.linux.get("devices", ()), mounts)
    if made:
        linux["devices"] = made
    if lacking:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        log.warn(f"{', '.join(lacking[:3])}{more}: the host's devices are not in the VM")
    if seccomp:
        linux["seccomp"] = seccomp
    config: Json = {
        "ociVersion": "1.0.2",
        "root": {"path": rootfs, "readonly": bundle.config["root"].get("readonly", False)},
        "process": process(home.given(bundle.process, bundle)),
        "mounts": mounts,
        "linux": linux,
    }
    if "uts" not in joined:
        names = ("hostname", "domainname")
        # A new namespace begins with the host's names, and without one (`--uts host`) they stay.
        config.update(zip(names, (os.uname().nodename, _host_domain()), strict=True))
        config.update({key: bundle.config[key] for key in names if bundle.config.get(key)})
    if started := bundle.config.get("hooks", {}).get("startContainer"):
        config["hooks"] = {"startContainer": started}
    return config


def _host_domain() -> str:
    with open("/proc/sys/kernel/domainname") as file:
        return file.read().strip()


def process(given: "Json") -> "Json":
    """A process object without the labels of the host's security modules, each group once, and with
    all limits: of those that it has not, the caller's, as a child of runc has them."""
    kept = {
        key: value
        for key, value in given.items()
        if key not in ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority")
    }
    if groups := kept.get("user", {}).get("additionalGids"):
        # Each once, as runc sets them; docker names some twice.
        kept["user"] = {**kept["user"], "additionalGids": list(dict.fromkeys(groups))}
    limits = list(kept.get("rlimits", ()))
    named = {limit.get("type") for limit in limits}
    for name, kind in rlimits.KINDS.items():
        if name not in named:
            soft, hard = (
                _UNLIMITED if number == resource.RLIM_INFINITY else number
                for number in resource.getrlimit(kind)
            )
            limits.append({"type": name, "soft": soft, "hard": hard})
    return kept | {"rlimits": limits}


def resources(given: "Json", log: "Log") -> "Json":
    """The limits that the guest's cgroups can set. Of most a 0 is none, as runc has it
    (libcontainer/cgroups/fs2): docker sends it for all that an update does not change. Raises
    BundleError for a limit of memory with which nothing runs."""
    limit = size.number((given.get("memory") or {}).get("limit"))
    if 0 < limit < _LEAST_MEMORY:
        # The kernel would read the program anew for each page that it executes, without an end.
        raise BundleError(
            f"unable to set memory limit to {limit}: nothing can be started with less than "
            f"{_LEAST_MEMORY} bytes; give it more, in the right unit (Kubernetes: 64Mi, not 64m)"
        )
    found: Json = {}
    for name, keys in _RESOURCES.items():
        values = given.get(name) or {}
        zeros = {key for key in _MAY_BE_ZERO if values.get(key) == 0}
        if chosen := {key: values[key] for key in keys if values.get(key) or key in zeros}:
            found[name] = chosen
    for key in ("devices", "unified"):
        if given.get(key):
            found[key] = given[key]
    for key in ("blockIO", "hugepageLimits", "rdma"):
        if given.get(key):
            log.warn(f"linux.resources.{key} is not applied: the VM has no such device")
    return found


def _refuse(bundle: "Bundle") -> None:
    if bundle.namespace("user") is not None or bundle.linux.get("uidMappings"):
        raise BundleError(
            "user namespaces are not supported: the container's users are kept from the host by "
            "its VM; run it without (podman --userns=host, docker without userns-remap)"
        )


def _warn(bundle: "Bundle", log: "Log") -> None:
    if bundle.linux.get("rootfsPropagation", "").lstrip("r") == "shared":
        log.warn("rootfsPropagation: mounts of the container do not reach the host")
    for kind, what in (("pid", "processes"), ("ipc", "System V IPC")):
        if bundle.namespace(kind) is None:
            log.warn(f"without a {kind} namespace: the host's {what} are not in the VM")
