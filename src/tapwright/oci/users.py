"""The users of a container with a user namespace (config-linux.md, "User namespace mappings"): the
guest's runtime makes one with the same mappings, so that owners of files are those of the host.

The guest's network belongs to the guest's root, because its containers may have different users.
So rights of such a container do not reach the network. Settings of the network let it do what most
programs need such rights for: listen on low ports, and ping.
"""

from tapwright.errors import BundleError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from tapwright.oci.bundle import Bundle
    from tapwright.shapes import Json


_PORTS, _PING = "ipv4/ip_unprivileged_port_start", "ipv4/ping_group_range"


def are_own(bundle: "Bundle") -> bool:
    """Whether the container has a user namespace."""
    return bundle.namespace("user") is not None


def mappings(bundle: "Bundle") -> "tuple[list[Json], list[Json]]":
    return bundle.linux.get("uidMappings", []), bundle.linux.get("gidMappings", [])


def check(bundle: "Bundle", is_joined: bool) -> None:
    """Raises BundleError, in runc's words (libcontainer, validate: namespaces; configs:
    HostRootUID), for mappings that can't be. One that `is_joined` needs none."""
    users, groups = mappings(bundle)
    if not are_own(bundle):
        if users or groups:
            raise BundleError(
                "user namespace mappings specified, but user namespace isn't enabled in the config"
            )
        return
    if is_joined:
        return
    if bundle.namespace("user") and not (users or groups):
        raise BundleError(
            f"the user namespace {bundle.namespace('user')} belongs to no container in this VM; "
            "give its mappings (uidMappings, gidMappings)"
        )
    for kind, of_root, given in (("uid", "user", users), ("gid", "group", groups)):
        if not given:
            raise BundleError(f"user namespaces enabled, but no {kind} mappings found")
        if _on_the_host(0, given) is None:
            raise BundleError(f"user namespaces enabled, but no {of_root} mapping found")
        if _on_the_host(bundle.process.get("user", {}).get(kind, 0), given) is None:
            raise BundleError(
                f"unable to setup user: cannot set {kind} to unmapped user in user namespace"
            )


def of_mount(mount: "Json", bundle: "Bundle") -> "tuple[list[Json], list[Json]] | None":
    """The mappings of an id-mapped mount: its own, or those of the container. None for other
    mounts."""
    own = mount.get("uidMappings", []), mount.get("gidMappings", [])
    if all(own):
        return own
    if any(own):
        raise BundleError(
            f"{mount['destination']}: it has one of uidMappings and gidMappings; give both"
        )
    if {"idmap", "ridmap"}.isdisjoint(mount.get("options", ())):
        return None
    if not all(found := mappings(bundle)):
        raise BundleError(
            f"{mount['destination']}: an id-mapped mount needs uidMappings and gidMappings, its "
            "own or the container's"
        )
    return found


def of_network(bundle: "Bundle", given: "Iterable[tuple[str, str]]") -> list[tuple[str, str]]:
    """Settings of the network, (path below /proc/sys/net, value), for a container that is `given`
    these: those, as they read in its namespace, after those that stand for its rights."""
    asked = list(given)
    if not are_own(bundle):
        return asked
    named = {path for path, _ in asked}
    rights: Collection[str] = bundle.process.get("capabilities", {}).get("bounding", ())
    found = []
    if "CAP_NET_BIND_SERVICE" in rights and _PORTS not in named:
        found.append((_PORTS, "0"))
    groups = mappings(bundle)[1]
    if "CAP_NET_RAW" in rights and _PING not in named and groups:
        found.append((_PING, _all(groups)))
    return found + [
        (path, _groups(value, groups) if path == _PING else value) for path, value in asked
    ]


def _all(groups: "list[Json]") -> str:
    first = min(each.get("hostID", 0) for each in groups)
    return f"{first}\t{max(each.get('hostID', 0) + each.get('size', 0) for each in groups) - 1}"


def _groups(value: str, mapped: "list[Json]") -> str:
    """A range of groups as the guest's root has to write it; values that are none, or that the
    container does not have, stay."""
    words = value.split()
    found = [_on_the_host(int(word), mapped) if word.isdecimal() else None for word in words]
    return value if None in found else "\t".join(map(str, found))


def _on_the_host(number: int, mapped: "list[Json]") -> int | None:
    for each in mapped:
        first: int = each.get("containerID", 0)
        if first <= number < first + each.get("size", 0):
            return int(each.get("hostID", 0)) + number - first
    return None
