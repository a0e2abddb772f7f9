"""`linux.netDevices` of a bundle: interfaces of the host for the container (config-linux.md,
"Network Devices"). As with runc, they move into its network namespace before the hooks run."""

from tapwright.errors import BundleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.oci.bundle import Bundle

_NAME_BYTES = 15  # IFNAMSIZ, without the NUL


def wanted(bundle: "Bundle") -> dict[str, str]:
    """The names of the interfaces in the container, by their names on the host. Raises
    BundleError."""
    found: dict[str, str] = {}
    for device, settings in bundle.linux.get("netDevices", {}).items():
        if not isinstance(settings, dict | None):
            raise BundleError(f"linux.netDevices: {device} must be an object")
        name = (settings or {}).get("name") or device
        for each in (device, name):
            _check(each)
        if "%" in device:
            raise BundleError(f"linux.netDevices: {device!r} names no interface of the host")
        if name in found.values() and "%" not in name:
            raise BundleError(f"linux.netDevices: two interfaces can't both be called {name}")
        found[device] = name
    if found and bundle.namespace("network") is None:
        raise BundleError(
            "linux.netDevices: without a network namespace there is nothing to move interfaces "
            "into; add one to linux.namespaces"
        )
    return found


def _check(name: object) -> None:
    """Raises BundleError for an invalid name by the kernel's rule (net/core/dev.c: dev_valid_name).
    One `%d` is allowed, which the kernel replaces by a number."""
    if (
        not isinstance(name, str)
        or not 0 < len(name.encode(errors="surrogatepass")) <= _NAME_BYTES
        or name in (".", "..")
        or any(character in "/:" or character.isspace() for character in name)
        or name.replace("%d", "", 1).count("%")
    ):
        raise BundleError(
            f"linux.netDevices: {name!r} is not the name of an interface: 1 to 15 bytes without "
            "'/', ':' and white space"
        )
