"""`linux.sysctl` of a bundle. The agent sets those of the network after the hooks, when all
interfaces exist, as runc does; crun in the guest sets the others.
"""

from tapwright.errors import BundleError
from tapwright.oci import users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tapwright.oci.bundle import Bundle

_SWAPPED = str.maketrans("./", "/.")


def of_runtime(bundle: "Bundle") -> dict[str, str]:
    """The sysctls that are not the network's, by name, with dots between its parts. Raises
    BundleError."""
    return {
        name if "." in path else path.replace("/", "."): value
        for name, path, value in _all(bundle)
        if not _is_of_network(path)
    }


def of_network(bundle: "Bundle") -> list[tuple[str, str]]:
    """(path below /proc/sys/net, value) of the network's, in their order, after those that the
    container's users need. Raises BundleError."""
    given = (
        (path.removeprefix("net/"), value)
        for _, path, value in _all(bundle)
        if _is_of_network(path)
    )
    return users.of_network(bundle, given)


def _all(bundle: "Bundle") -> list[tuple[str, str, str]]:
    """(name, path below /proc/sys, value) of each."""
    given = bundle.linux.get("sysctl", {})
    return [(name, _path(name), _value(name, value)) for name, value in given.items()]


def _path(name: str) -> str:
    """The path below /proc/sys. By the rule of sysctl(8), the first separator in the name, dot or
    slash, separates its parts; the other character stands for the separator inside a part
    (`eth0/100`, `eth0.100`)."""
    dot, slash = name.find("."), name.find("/")
    is_path = slash >= 0 and (dot < 0 or slash < dot)
    path = name if is_path else name.translate(_SWAPPED)
    if not {"", ".", ".."}.isdisjoint(path.split("/")) or "\0" in path:
        raise BundleError(
            f"linux.sysctl: {name!r} is not the name of a setting; write it as in "
            "net.ipv4.ip_forward, or net/ipv4/conf/eth0.100/forwarding"
        )
    return path


def _value(name: str, value: "Any") -> str:
    if not isinstance(value, str):
        raise BundleError(f"linux.sysctl: {name} must be a string; write {value} in quotes")
    return value


def _is_of_network(path: str) -> bool:
    return path.startswith("net/")
