"""Results of ADD in every version of the specification (section 5, "ADD Success").

A result stays the JSON object that the plugin printed, so that no key is lost, known or not:

    {"cniVersion": "1.1.0",
     "interfaces": [{"name", "mac", "mtu", "sandbox", "socketPath", "pciID"}],
     "ips": [{"address": "10.1.0.5/16", "gateway", "interface": index into interfaces}],
     "routes": [{"dst", "gw", "mtu", "advmss", "priority", "table", "scope"}],
     "dns": {"nameservers", "domain", "search", "options"}}

Below 1.1.0 an interface has name, mac and sandbox only, and a route dst and gw. Below 1.0.0 each
of the ips says its "version", "4" or "6". Below 0.3.0 there are "ip4" and "ip6" instead, each
{"ip", "gateway", "routes"}, and no interfaces.
"""

from tapwright.cni.versions import RICH_RESULTS, VERSIONS, at_least

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Result = dict[str, Any]

_NEW_INTERFACE_KEYS = frozenset(("mtu", "socketPath", "pciID"))
_NEW_ROUTE_KEYS = frozenset(("mtu", "advmss", "priority", "table", "scope"))
_FAMILIES = (("ip4", "4"), ("ip6", "6"))


def as_version(result: "Any", version: str) -> "Result":
    """What a plugin or a cache calls a result, checked, as that version has it. Raises ValueError.

    A result that names no version has `version`, that of its configuration (libcni,
    pkg/invoke/exec.go).
    """
    return convert(check(result, version), version)


def check(result: "Any", default_version: str) -> "Result":
    """The result, if it has a known version and known keys of the right type. Raises ValueError,
    which names the key."""
    if not isinstance(result, dict):
        raise ValueError("a result is a JSON object")
    version = result.get("cniVersion") or default_version
    if version not in VERSIONS:
        raise ValueError(f"key 'cniVersion': {version!r} is not one of {', '.join(VERSIONS)}")
    for key in ("interfaces", "ips", "routes"):
        _expect_objects(result, key, key)
    for key in ("ip4", "ip6", "dns"):
        if not isinstance(result.get(key) or {}, dict):
            raise ValueError(f"key '{key}' is not an object")
    for key, _ in _FAMILIES:
        _expect_objects(result.get(key) or {}, "routes", f"{key}.routes")
    _check_ips(result)
    return {**result, "cniVersion": version}


def _expect_objects(container: "Result", key: str, name: str) -> None:
    entries = container.get(key) or []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f"key '{name}' is not a list of objects")
    for number, entry in enumerate(entries):
        if key == "routes" and not isinstance(entry.get("dst"), str):
            raise ValueError(f"key '{name}', entry {number}: key 'dst' is not a string")


def _check_ips(result: "Result") -> None:
    interfaces = len(result.get("interfaces") or ())
    for number, entry in enumerate(result.get("ips") or ()):
        if not isinstance(entry.get("address"), str):
            raise ValueError(f"key 'ips', entry {number}: key 'address' is not a string")
        index = entry.get("interface")
        if index is not None and not (
            isinstance(index, int) and not isinstance(index, bool) and 0 <= index < interfaces
        ):
            raise ValueError(
                f"key 'ips', entry {number}: key 'interface': {index!r} is not the index of one "
                f"of the {interfaces} interfaces"
            )
    for key, _ in _FAMILIES:
        if result.get(key) and not isinstance(result[key].get("ip"), str):
            raise ValueError(f"key '{key}': key 'ip' is not a string")


def convert(result: "Result", version: str) -> "Result":
    """A result that `check` has passed, as that version has it.

    What the other version has no word for is left out, nothing else; nothing at all between
    equal versions. Raises ValueError when it can't be said: below 0.3.0 a result needs an address.
    """
    source = result["cniVersion"]
    if source == version:
        return result
    rich = dict(result) if at_least(source, RICH_RESULTS) else _split(result)
    rich["cniVersion"] = version
    if not at_least(version, "1.1.0"):
        _rewrite(rich, "interfaces", _without(_NEW_INTERFACE_KEYS))
        _rewrite(rich, "routes", _without(_NEW_ROUTE_KEYS))
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
