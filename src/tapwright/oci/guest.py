"""Makes the configuration of a container in the guest, the input of crun there, from the bundle's.
This leaves out what only the host has, and refuses what is impossible, or warns of it. docs/oci.md
lists all of this.
"""

import os
import resource

from tapwright.errors import BundleError
from tapwright.linux import rlimits
from tapwright.oci import devices, home, size, sysctls, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from tapwright.oci.bundle import Bundle
    from tapwright.oci.log import Log
    from tapwright.shapes import Json

_OF_EACH = ("pid", "mount", "ipc", "uts", "cgroup")
"""Namespaces that each container has in the guest: its own, unless it joins those of its pod."""
_NETWORK = {"type": "network", "path": "/proc/1/ns/net"}
"""The guest's network namespace, which all containers of a pod share."""

_RESOURCES = {
    "memory": ("limit", "reservation", "swap", "checkBeforeUpdate"),
    "cpu": ("shares", "quota", "period", "burst", "idle"),
    "pids": ("limit",),
}
_CAPABILITY_NAMES = """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
    NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO
    SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME
    SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG
    WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
"""
_CAPABILITIES = frozenset(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())
"""Those that runc knows (capabilities(7)). crun takes names in small letters, too, and its later
versions refuse unknown ones."""
_UNLIMITED = 2**64 - 1  # RLIM_INFINITY
_LEAST_MEMORY = 4 << 20
_MAY_BE_ZERO = ("burst", "idle")
_DOMAIN = "kernel.domainname"


def configuration(
    bundle: "Bundle",
    container_id: str,
    rootfs: str,
    mounts: "list[Json]",
    joined: "Mapping[str, str]",
    seccomp: "Json | None",
    log: "Log",
) -> "Json":
    """The guest's configuration. `rootfs`, the sources of `mounts`, and the namespaces in `joined`
    (by type) are paths in the guest; `seccomp` is what `oci.seccomp` adds for crun. Raises
    BundleError."""
    users.check(bundle, "user" in joined)
    _warn(bundle, log)
    linux: Json = {
        "namespaces": [
            _NETWORK,
            *(
                {"type": kind, **({"path": joined[kind]} if kind in joined else {})}
                for kind in (*_OF_EACH, *(["user"] if users.are_own(bundle) else []))
            ),
        ],
        "cgroupsPath": f"/{container_id}",
        "resources": resources(bundle.linux.get("resources", {}), log),
    }
    kept = ("uidMappings", "gidMappings", "maskedPaths", "readonlyPaths", "personality")
    linux.update({key: bundle.linux[key] for key in kept if key in bundle.linux})
    if propagation := _propagation(bundle, mounts):
        linux["rootfsPropagation"] = propagation
    settings = sysctls.of_runtime(bundle)
    made, mounted, lacking = devices.of_guest(
        bundle.linux.get("devices", ()), mounts, can_make=not users.are_own(bundle)
    )
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
        "process": process(home.given(bundle.process, bundle), log),
        "mounts": [*mounts, *mounted],
        "linux": linux,
    }
    if "uts" not in joined:
        names = ("hostname", "domainname")
        # As on the host: a new UTS namespace begins with the host's names; with `--uts host` a
        # container has them, too.
        config.update(zip(names, (os.uname().nodename, _host_domain()), strict=True))
        config.update({key: bundle.config[key] for key in names if bundle.config.get(key)})
        # docker's `--domainname`. The guest's runtime takes one of the two alone.
        if _DOMAIN in settings and not bundle.config.get("domainname"):
            config["domainname"] = settings.pop(_DOMAIN)
    if settings:
        linux["sysctl"] = settings
    if started := bundle.config.get("hooks", {}).get("startContainer"):
        config["hooks"] = {"startContainer": started}
    return config


def _propagation(bundle: "Bundle", of_guest: "list[Json]") -> str:
    """The propagation of the root filesystem, on which that of its mounts depends: crun's default
    passes nothing on, and runc's (`rslave`) to the container only."""
    from tapwright.oci.mounts import FOLLOWING  # `exec` does without

    given: str = bundle.linux.get("rootfsPropagation", "")
    follows = any(not FOLLOWING.isdisjoint(mount.get("options", ())) for mount in of_guest)
    return given or ("rslave" if follows else "")


def _host_domain() -> str:
    with open("/proc/sys/kernel/domainname") as file:
        return file.read().strip()


def process(given: "Json", log: "Log") -> "Json":
    """A process object for the guest: without labels of the host's security modules and without
    unknown capabilities, and with all limits. A limit that it lacks is the caller's, which a child
    of runc would inherit."""
    kept = {
        key: value
        for key, value in given.items()
        if key not in ("apparmorProfile", "selinuxLabel", "scheduler", "ioPriority")
    }
    if groups := kept.get("user", {}).get("additionalGids"):
        # Each once, as runc sets them; docker names some twice.
        kept["user"] = {**kept["user"], "additionalGids": list(dict.fromkeys(groups))}
    if "capabilities" in kept:
        wanted = {name for names in kept["capabilities"].values() for name in names}
        if unknown := sorted(wanted - _CAPABILITIES):
            log.warn(f"ignoring unknown or unavailable capabilities: [{' '.join(unknown)}]")
        kept["capabilities"] = {
            kind: [name for name in names if name in _CAPABILITIES]
            for kind, names in kept["capabilities"].items()
        }
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
    """The limits that the guest's cgroups can set. For most limits 0 is none, as in runc
    (libcontainer/cgroups/fs2): docker sends 0 for each limit that an update does not change. Raises
    BundleError for a memory limit that is too low for any program."""
    limit = size.number((given.get("memory") or {}).get("limit"))
    if 0 < limit < _LEAST_MEMORY:
        # The kernel would drop and read the program's pages again and again, and never get on.
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


def _warn(bundle: "Bundle", log: "Log") -> None:
    if bundle.linux.get("rootfsPropagation", "").lstrip("r") == "shared":
        log.warn("rootfsPropagation: mounts of the container do not reach the host")
    for kind, what in (("pid", "processes"), ("ipc", "System V IPC")):
        if bundle.namespace(kind) is None:
            log.warn(f"without a {kind} namespace: the host's {what} are not in the VM")
