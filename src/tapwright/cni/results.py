"""Results of ADD in every version of the specification (section 5, "ADD Success").

A result stays the JSON object that the plugin printed, so that no key is lost, known or not:

    {"cniVersion": "1.1.0",
     "interfaces": [{"name", "mac", "mtu", "sandbox", "socketPath", "pciID"}],
     "ips": [{"address": "10.1.0.5/16", "gateway", "interface": index into interfaces}],
     "routes": [{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}],
     "dns": {"nameservers", "domain", "search", "options"}}

Below 1.1.0 an interface has only name, mac and sandbox, and a route only dst and gw; but from 0.3.0
on, further keys of a plugin stay, as in libcni, whose types for 1.0.0 and 1.1.0 are the same. Below
1.0.0 each of the ips has a "version", "4" or "6". Below 0.3.0 a result has "ip4" and "ip6" instead
of ips, each {"ip", "gateway", "routes"}, and no interfaces.

This module checks what libcni's decoder checks (pkg/types, pkg/types/100): the types of known keys,
and the form of addresses. Null counts as missing, and the case of keys does not matter.
"""

from tapwright.cni.versions import RICH_RESULTS, VERSIONS, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Result = dict[str, Any]

_NEW_ROUTE_KEYS = frozenset(("mtu", "advmss", "priority", "table", "scope"))
_FAMILIES = (("ip4", "4"), ("ip6", "6"))
_TEXT, _NUMBER, _ADDRESS, _NETWORK = "a string", "an integer", "an address", "an ADDRESS/PREFIX"
_TEXTS = "a list of strings"
_ROUTE = {"dst": _NETWORK, "gw": _ADDRESS, **dict.fromkeys(sorted(_NEW_ROUTE_KEYS), _NUMBER)}
_KEYS = {
    "interfaces": {
        **dict.fromkeys(("name", "mac", "sandbox", "socketPath", "pciID"), _TEXT),
        "mtu": _NUMBER,
    },
    "ips": {"address": _NETWORK, "gateway": _ADDRESS, "interface": _NUMBER},
    "routes": _ROUTE,
}
_DNS = {"domain": _TEXT, **dict.fromkeys(("nameservers", "search", "options"), _TEXTS)}
_REQUIRED = ("address", "dst", "ip")


def as_version(result: "Any", version: str) -> "Result":
    """Check the result of a plugin or a cache, and convert it to a version. Raises ValueError.

    A result without a version has `version`, that of its configuration (libcni,
    pkg/invoke/exec.go).
    """
    if version not in VERSIONS:
        raise ValueError(f"version {version} is not one of {', '.join(VERSIONS)}")
    return convert(check(result, version), version)


def check(result: "Any", default_version: str) -> "Result":
    """The result, if it has a known version and known keys of the right type. Raises ValueError,
    which names the key."""
    if not isinstance(result, dict):
        raise ValueError("a result is a JSON object")
    result = spelled_as(result, ("cniVersion", "dns", *_KEYS, *(key for key, _ in _FAMILIES)))
    version = result.get("cniVersion")
    if not isinstance(version, str) or not version:
        version = _version_by_keys(result) or default_version
    if version not in VERSIONS:
        raise ValueError(f"key 'cniVersion': {version!r} is not one of {', '.join(VERSIONS)}")
    checked = {**result, "cniVersion": version}
    for key, keys in _KEYS.items():
        if key == "ips" and not at_least(version, "1.0.0"):
            keys = {**keys, "version": _TEXT}
        if result.get(key):
            checked[key] = _checked_list(result[key], keys, f"key '{key}'")
    if result.get("dns"):
        checked["dns"] = _checked(result["dns"], _DNS, "key 'dns'")
    for key, _ in _FAMILIES:
        if result.get(key):
            checked[key] = _checked_family(result[key], f"key '{key}'")
    return checked


def _version_by_keys(result: "Result") -> str:
    """The first version for a result with the addresses of only that; else empty."""
    is_old = any(result.get(key) for key, _ in _FAMILIES) and not result.get("ips")
    return VERSIONS[0] if is_old else ""


def remarks(result: "Result") -> "Iterator[str]":
    """Yield oddities of a result, which all runtimes that use libcni accept."""
    if isinstance(message := result.get("msg"), str) and not result.get("ips"):
        yield (
            f"it looks like an error ({message}), but the plugin's exit status was 0, which is "
            "success"
        )
    interfaces = result.get("interfaces")
    count = len(interfaces) if isinstance(interfaces, list) else 0
    ips = result.get("ips")
    for number, entry in enumerate(ips if isinstance(ips, list) else ()):
        index = entry.get("interface") if isinstance(entry, dict) else None
        if isinstance(index, int) and not 0 <= index < count:
            yield (
                f"key 'ips', entry {number}: key 'interface': {index} is not the index of one of "
                f"the {count} interfaces; it counts from 0"
            )


def _checked_list(value: "Any", keys: "dict[str, str]", place: str) -> "list[Result]":
    if not isinstance(value, list):
        raise ValueError(f"{place} is not a list of objects")
    return [_checked(entry, keys, f"{place}, entry {n}") for n, entry in enumerate(value)]


def _checked_family(value: "Any", place: str) -> "Result":
    keys = {"ip": _NETWORK, "gateway": _ADDRESS}
    checked = _checked(value, keys, place, ("routes",))
    if checked.get("routes"):
        checked["routes"] = _checked_list(checked["routes"], _ROUTE, f"{place}: key 'routes'")
    return checked


def _checked(
    value: "Any", keys: "dict[str, str]", place: str, others: tuple[str, ...] = ()
) -> "Result":
    """The object with its known keys in our spelling, if they have the right types."""
    if not isinstance(value, dict):
        raise ValueError(f"{place} is not an object")
    spelled = spelled_as(value, (*keys, *others))
    for key, wanted in keys.items():
        found = spelled.get(key)
        if found is None and key not in _REQUIRED:
            continue
        if not _is_right(found, wanted):
            raise ValueError(f"{place}: key '{key}': {found!r} is not {wanted}")
    return spelled


def spelled_as(value: "Result", keys: tuple[str, ...]) -> "Result":
    """The object with its known keys as in `keys`, whatever their capitals were."""
    ours = {key.lower(): key for key in keys}
    return {ours.get(key.lower(), key): entry for key, entry in value.items()}


def _is_right(value: "Any", wanted: str) -> bool:
    if wanted is _NUMBER:
        return isinstance(value, int) and not isinstance(value, bool)
    if wanted is _TEXTS:
        return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    if not isinstance(value, str):
        return False
    if wanted is _ADDRESS:
        return not value or bool(_family_of(value))
    return wanted is _TEXT or _is_network(value)


def _is_network(text: str) -> bool:
    address, slash, prefix = text.partition("/")
    bits = {"4": 32, "6": 128}.get(_family_of(address), 0)
    return bool(slash and bits and prefix.isascii() and prefix.isdigit() and int(prefix) <= bits)


def _family_of(address: str) -> str:
    """ "4" or "6"; empty for a text that is no address."""
    from _socket import AF_INET, AF_INET6, inet_pton  # `socket` would cost every plugin 2 ms

    for family, name in ((AF_INET, "4"), (AF_INET6, "6")):
        try:
            inet_pton(family, address)
        except (OSError, ValueError):
            continue
        return name
    return ""


def convert(result: "Result", version: str) -> "Result":
    """Convert a result that `check` has passed to a version.

    The conversion leaves out only keys that the version does not have. Raises ValueError for a
    result that the version can't express: below 0.3.0 a result needs an address.
    """
    source = result["cniVersion"]
    if source == version:
        return result
    rich = dict(result) if at_least(source, RICH_RESULTS) else _split(result)
    rich["cniVersion"] = version
    if at_least(version, "1.0.0"):
        _rewrite(rich, "ips", _without(frozenset(("version",))))
    elif at_least(version, RICH_RESULTS):
        _rewrite(rich, "ips", lambda entry: {"version": _family(entry["address"]), **entry})
    else:
        return _merged(rich)
    return rich


def _without(keys: frozenset[str]) -> "Any":
    return lambda entry: {key: value for key, value in entry.items() if key not in keys}


def _rewrite(result: "Result", key: str, change: "Any") -> None:
    if result.get(key):
        result[key] = [change(entry) for entry in result[key]]


def _family(address: str) -> str:
    return "6" if ":" in address else "4"


def _split(result: "Result") -> "Result":
    """From "ip4" and "ip6" to lists of addresses and routes."""
    rich = {key: value for key, value in result.items() if key not in ("ip4", "ip6")}
    ips: list[Result] = []
    routes: list[Result] = []
    for key, _ in _FAMILIES:
        if entry := result.get(key):
            rest = {k: v for k, v in entry.items() if k not in ("ip", "routes")}
            ips.append({"address": entry["ip"], **rest})
            routes += entry.get("routes") or []
    if ips:
        rich["ips"] = ips
    if routes:
        rich["routes"] = routes
    return rich


def _merged(rich: "Result") -> "Result":
    """From lists to "ip4" and "ip6": the first address of each family, and the family's routes."""
    poor = {k: v for k, v in rich.items() if k not in ("interfaces", "ips", "routes")}
    for key, family in _FAMILIES:
        entry = next(_of_family(rich.get("ips"), "address", family), None)
        if entry is None:
            continue
        rest = {k: v for k, v in entry.items() if k not in ("address", "interface", "version")}
        poor[key] = {"ip": entry["address"], **rest}
        routes = list(_of_family(rich.get("routes"), "dst", family))
        if routes:
            poor[key]["routes"] = routes
    if "ip4" not in poor and "ip6" not in poor:
        raise ValueError(f"a result of version {rich['cniVersion']} has at least one address")
    return poor


def _of_family(entries: "Any", key: str, family: str) -> "Iterator[Any]":
    return (entry for entry in entries or () if _family(entry[key]) == family)
