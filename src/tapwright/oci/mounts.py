"""Plans a container's mounts. The guest sees files of the host through the share, and binds them;
filesystems of a kernel (proc, sysfs, tmpfs, …) are the guest's own."""

import os
import re
import stat
from contextlib import ExitStack, contextmanager

from tapwright.agent.protocol import DATAGRAM, SHARE, STREAM
from tapwright.errors import BundleError
from tapwright.linux import libc, mount_table
from tapwright.linux import mounts as trees
from tapwright.oci import memory, users

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from tapwright.oci.bundle import Bundle
    from tapwright.oci.log import Log
    from tapwright.shapes import Json

ROOTFS = "rootfs"

_DEVICES: "Json" = {
    "destination": "/dev",
    "type": "tmpfs",
    "source": "tmpfs",
    "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
}
"""As runc's `spec` writes it. A directory of the host can't have device nodes of the guest."""

FOLLOWING = frozenset(("slave", "rslave", "shared", "rshared"))
"""Options by which a mount has what is mounted later below its source."""
_ACCESS_TIMES = {"noatime": trees.NO_ACCESS_TIMES, "strictatime": trees.ALL_ACCESS_TIMES}
_SHARING = frozenset(("shared", "rshared"))

_MAPPED = frozenset(("idmap", "ridmap"))

_NO_LINKS = {"nosymfollow": "none", "rnosymfollow": "none below"}
"""Options that the guest's runtime does not know, and the field that the agent gets for each."""

_MODULES = frozenset(("/lib/modules", "/usr/lib/modules"))
"""Kernel modules of the host. The guest mounts its own kernel's modules instead, if it has any."""

_CONTROL_GROUPS = "/sys/fs/cgroup"

_KERNEL_OWN = """
    bpf cgroup cgroup2 debugfs devpts devtmpfs fusectl mqueue proc pstore ramfs
    securityfs sysfs tmpfs tracefs
"""


_OF_OVERLAY = """
    lowerdir upperdir workdir redirect_dir index uuid nfs_export xino metacopy userxattr volatile
    default_permissions
"""
_OVERLAY_DIRECTORIES = frozenset(("lowerdir", "upperdir", "workdir"))
_MOST_BYTES = 255
_MOST_LINKS = 255  # as runc follows (cyphar/filepath-securejoin)


class Shared:
    """A file or directory of the host that the guest sees under a name, for a destination in the
    container. `recursive` includes the mounts below it, `following` also those that come later.
    `read_only` applies to the mount itself, `all_read_only` also to mounts below it. With options
    in `overlay` it is an overlay filesystem, made on the host. With `mappings`, of users and of
    groups, owners of files are mapped by them; with `all_mapped` in mounts below it, too. A
    `socket` is of a kind of `agent.protocol`: the guest has a counterpart of it."""

    def __init__(
        self, name: str, source: str, destination: str, options: "Sequence[str]" = ()
    ) -> None:
        self.name = name
        self.source = source
        self.destination = destination
        self.all_read_only = "rro" in options
        self.read_only = self.all_read_only or "ro" in options
        self.recursive = "bind" not in options or "rbind" in options
        self.following = not FOLLOWING.isdisjoint(options)
        self.overlay: list[str] = []
        self.mappings: tuple[list[Json], list[Json]] | None = None
        self.all_mapped = "ridmap" in options
        self.socket = ""
        self.access_times = _access_times(options)
        self.is_apart = (
            self.all_read_only or not self.recursive or name == ROOTFS or self.access_times > 0
        )
        """Whether the guest can't use one place for this and other mounts of the same source,
        because their submounts or their flags differ."""


def plan(bundle: "Bundle", container_id: str, log: "Log") -> tuple[list[Shared], "list[Json]"]:
    """(files that the guest shares with the host, mounts of the guest's configuration). Raises
    BundleError."""
    shared = [Shared(ROOTFS, bundle.rootfs, "/")]
    wanted = _with_own_control_groups(bundle)
    mounts = []
    if not any(os.path.normpath(mount["destination"]) == "/dev" for mount in wanted):
        mounts.append(_DEVICES)
    places: dict[str, str] = {}
    for number, mount in enumerate(wanted):
        options = [option for option in mount.get("options", ()) if not _is_label(option)]
        kind = mount.get("type", "")
        is_bound = kind == "bind" or "bind" in options or "rbind" in options
        _refuse(mount, is_bound)
        place = _in_rootfs(bundle.rootfs, mount["destination"], places)
        places.pop(place, None)
        places[place] = ""
        if is_bound:
            source = _source(bundle, mount, log)
            places[place] = source
            share = Shared(f"mount-{number}", source, mount["destination"], options)
            share.mappings = users.of_mount(mount, bundle)
            if not _SHARING.isdisjoint(options):
                log.warn(f"{mount['destination']}: what the container mounts there stays in the VM")
            options = [each for each in options if each not in _MAPPED]
            bound = _bound(place, f"{SHARE}/{container_id}/{share.name}", options)
            mounts.append(bound)
            if os.path.realpath(source) in _MODULES:
                bound["modules"] = True
            if share.mappings:
                share.is_apart = True
            elif memory.serves(bound, source):
                continue
            share.socket = _kind_of_socket(share, log)
            shared.append(share)
            if share.read_only and not share.all_read_only and _has_mounts_below(share):
                # In the guest all is one mount, so the host must make only the first one read-only.
                share.is_apart = True
                bound["options"] = [option for option in bound["options"] if option != "ro"]
        elif kind == "overlay":
            # podman's `--volume SOURCE:DESTINATION:O`.
            share = Shared(f"mount-{number}", "overlay", mount["destination"], options)
            share.overlay = [each for each in options if _is_of_overlay(each)]
            share.is_apart = True
            shared.append(share)
            options = [each for each in options if not _is_of_overlay(each)]
            mounts.append(_bound(place, f"{SHARE}/{container_id}/{share.name}", options))
        elif kind in _KERNEL_OWN.split():
            if kind == "tmpfs":
                options = [*_mode_beneath(bundle.rootfs, place, mounts, shared), *options]
            own = {**mount, "destination": place, "options": options}
            mounts.append(_guests_sysfs(own) if _needs_root(kind, bundle) else own)
        else:
            raise BundleError(
                f"{mount['destination']}: a mount of type {kind!r} can't be made in a VM, which "
                "has no device for it; mount it on the host, and bind it into the container"
            )
    return shared, [_marked(mount) for mount in mounts]


def _access_times(options: "Iterable[str]") -> int:
    """Attributes of a mount by its options for access times, the last of which counts; 0 for those
    of the source. It is the host that notes when a file was read."""
    kept = of_directories = 0
    for option in options:
        kept = _ACCESS_TIMES.get(option, kept)
        if option == "nodiratime":
            of_directories = trees.NO_ACCESS_TIMES_OF_DIRECTORIES
    return kept | of_directories


def _marked(mount: "Json") -> "Json":
    """A mount with `links` in place of the options that the guest's runtime does not know."""
    options = mount.get("options", ())
    named = [_NO_LINKS[option] for option in options if option in _NO_LINKS]
    if not named:
        return mount
    options = [option for option in options if option not in _NO_LINKS]
    return {**mount, "options": options, "links": named[-1]}


def in_memory(of_guest: "Sequence[Json]") -> list[str]:
    """The places where the topmost of the guest's mounts is a filesystem in memory, except below
    /dev and /sys."""
    kinds = {mount["destination"]: mount.get("type") for mount in of_guest}
    return [
        place
        for place, kind in kinds.items()
        if kind in ("tmpfs", "ramfs") and not f"{place}/".startswith(("/dev/", "/sys/"))
    ]


@contextmanager
def cloned(shared: "Sequence[Shared]") -> "Iterator[list[int]]":
    """Detached mounts of the shared files, in their order, for the length of the block. Raises
    BundleError."""
    descriptors: list[int] = []
    try:
        for one in shared:
            try:
                descriptors.append(_cloned(one))
            except OSError as error:
                what = f"{one.destination}: overlay" if one.overlay else one.source
                raise BundleError(f"{what}: {error.strerror}") from None
        yield descriptors
    finally:
        for fd in descriptors:
            os.close(fd)


def _cloned(one: Shared) -> int:
    """Raises OSError."""
    if one.overlay:
        options = (each.partition("=") for each in one.overlay)
        with ExitStack() as stack:
            fd = libc.detached_mount(
                "overlay",
                **{name: _as_short(name, value, stack) for name, _, value in options},
            )
    else:
        fd = trees.clone(
            one.source,
            recursive=one.recursive,
            read_only=one.all_read_only,
            following=one.following,
        )
    try:
        if one.mappings:
            _map(fd, one)
        if one.access_times:
            trees.keep_access_times(fd, one.access_times)
        if one.read_only:
            trees.restrict(fd, trees.READ_ONLY, recursive=False)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _map(fd: int, one: Shared) -> None:
    """Raises OSError, BundleError."""
    from tapwright.linux import user_namespaces  # few containers have such mounts

    ids = [
        [tuple(each.get(key, 0) for key in ("containerID", "hostID", "size")) for each in kind]
        for kind in one.mappings or ()
    ]
    namespace = user_namespaces.nameless(*ids)
    try:
        trees.map_users(fd, namespace, recursive=one.all_mapped)
    except OSError as error:
        raise BundleError(
            f"{one.destination}: the kernel can't map users of {one.source}: {error.strerror}"
        ) from None
    finally:
        os.close(namespace)


def _as_short(name: str, value: str, stack: ExitStack) -> str:
    """An option of an overlay, with at most 255 bytes, because the kernel takes no more
    (fs/fsopen.c) and podman's `--mount type=image` has more. It then names directories by
    descriptors, which `stack` closes. Raises OSError."""
    if len(os.fsencode(value)) <= _MOST_BYTES or name not in _OVERLAY_DIRECTORIES:
        return value
    short = []
    for path in re.split(r"(?<!\\):", value):
        if path:  # "::" is before layers of data only
            fd = os.open(re.sub(r"\\(.)", r"\1", path), os.O_PATH | os.O_CLOEXEC)
            stack.callback(os.close, fd)
            path = f"/proc/self/fd/{fd}"
        short.append(path)
    return ":".join(short)


def moved(of_guest: "Json", container_id: str, paths: "Mapping[str, str]") -> None:
    """Set root and mounts of the guest's configuration to the guest's `paths`, by their names in
    the share."""
    sources = {f"{SHARE}/{container_id}/{name}": path for name, path in paths.items()}
    of_guest["root"]["path"] = paths[ROOTFS]
    for mount in of_guest["mounts"]:
        mount["source"] = sources.get(mount.get("source", ""), mount.get("source", ""))


def _has_mounts_below(share: Shared) -> bool:
    if not share.recursive:
        return False
    below = os.path.realpath(share.source).rstrip("/") + "/"
    return any(place.startswith(below) for place, _ in mount_table.entries())


def _source(bundle: "Bundle", mount: "Json", log: "Log") -> str:
    source = bundle.path(mount.get("source", ""))
    if not mount.get("source") or not os.path.exists(source):
        raise BundleError(f"{mount['destination']}: its source {source}: no such file or directory")
    if libc.is_hugetlbfs(source):
        raise _no_huge_pages(mount)
    if os.path.isdir(source) and libc.has_no_sizes(source):
        log.warn(f"{mount['destination']}: files of {source} look empty in a VM: they have no size")
    return source


def _with_own_control_groups(bundle: "Bundle") -> "list[Json]":
    """The bundle's mounts, but for binds of the host's control groups where a program looks for its
    own: those that it may change are the guest's. A container with systemd has such binds, of the
    whole tree (docker) or of one hierarchy of version 1 (podman); the guest has version 2, in one
    mount."""
    made: list[Json] = []
    for mount in bundle.config.get("mounts", ()):
        place, options = os.path.normpath(mount["destination"]), mount.get("options", ())
        source = os.path.realpath(bundle.path(mount.get("source", "")))
        is_bound = mount.get("type") == "bind" or "bind" in options or "rbind" in options
        if not (is_bound and all(_is_below(each, [_CONTROL_GROUPS]) for each in (place, source))):
            made.append(mount)
            continue
        kept = ["nosuid", "noexec", "nodev", "relatime", *(["ro"] if "ro" in options else [])]
        whole = [each for each in made if os.path.normpath(each["destination"]) == _CONTROL_GROUPS]
        if place == _CONTROL_GROUPS or not whole:
            own = {"type": "cgroup", "source": "cgroup", "options": kept}
            made.append({"destination": _CONTROL_GROUPS, **own})
        elif "ro" not in options:
            last = whole[-1]
            writable = [option for option in last.get("options", ()) if option != "ro"]
            made[made.index(last)] = {**last, "options": writable}
    return made


def _needs_root(kind: str, bundle: "Bundle") -> bool:
    """Whether only the owner of the network can mount a new filesystem of that kind, and that is
    the guest's root."""
    return kind == "sysfs" and users.are_own(bundle)


def _guests_sysfs(mount: "Json") -> "Json":
    return {**mount, "type": "bind", "source": "/sys", "options": ["bind", *mount["options"]]}


def _kind_of_socket(share: Shared, log: "Log") -> str:
    """Empty for other files, and for a socket that the guest sees as a file: nobody can connect to
    it."""
    if not stat.S_ISSOCK(os.stat(share.source).st_mode):
        return ""
    import socket

    from tapwright.linux import unixsocket

    try:
        kind = unixsocket.kind_of(share.source)
    except OSError as error:
        raise BundleError(
            f"{share.destination}: its source {share.source}: {error.strerror}"
        ) from None
    if kind == socket.SOCK_SEQPACKET:
        log.warn(
            f"{share.destination}: {share.source} is a socket for sequenced packets, to which "
            "nobody can connect in a VM"
        )
    return {socket.SOCK_STREAM: STREAM, socket.SOCK_DGRAM: DATAGRAM}.get(kind, "") if kind else ""


def _bound(place: str, source: str, options: list[str]) -> "Json":
    return {
        "destination": place,
        "type": "bind",
        "source": source,
        "options": options if "bind" in options or "rbind" in options else ["rbind", *options],
    }


def _mode_beneath(
    rootfs: str, place: str, mounts: "Sequence[Json]", shared: "Sequence[Shared]"
) -> list[str]:
    """The option that gives a tmpfs the mode of the directory that it covers, as runc does
    (libcontainer, rootfs_linux.go: mountToRootfs); a later option overrides it. No option where the
    tmpfs covers nothing, or a directory that only the guest has."""
    path = rootfs + place
    for mount in reversed(mounts):
        over = mount["destination"]
        if not _is_below(place, [over]):
            continue
        name = os.path.basename(mount.get("source", ""))
        sources = [each.source for each in shared if each.name == name and not each.overlay]
        if mount.get("type") != "bind" or not sources:
            return []
        path = sources[0] + place.removeprefix(over)
        break
    try:
        found = os.lstat(path)
    except OSError:
        return []
    return [f"mode={stat.S_IMODE(found.st_mode):04o}"] if stat.S_ISDIR(found.st_mode) else []


def _in_rootfs(rootfs: str, destination: str, mounted: "Mapping[str, str]") -> str:
    """Where a mount comes to lie: the destination with the links in the rootfs followed, `/` being
    the rootfs, whether what they lead to is there or not. The guest's runtime follows only those
    that lead somewhere, where runc makes what is missing. Nothing is opened on this way. Links are
    followed in what is `mounted` by then, too: the host's directories by their places, in order,
    and nothing at those that are not the host's. Raises BundleError."""
    left, done, links = destination.split("/")[::-1], list[str](), 0
    while left:
        part = left.pop()
        if part in ("", "."):
            continue
        if part == "..":
            del done[-1:]
            continue
        path = "/" + "/".join([*done, part])
        target = _link(_on_the_host(rootfs, path, mounted))
        if not target:
            done.append(part)
            continue
        links += 1
        if links > _MOST_LINKS:
            raise BundleError(f"{destination}: too many levels of symbolic links in the rootfs")
        if target.startswith("/"):
            done = []
        left += target.split("/")[::-1]
    return "/" + "/".join(done)


def _on_the_host(rootfs: str, path: str, mounted: "Mapping[str, str]") -> str:
    """The host's path of what a container has at a path; empty for what can be no link of the
    host's: a mount itself, and what is below one of the guest's."""
    for place, source in reversed(list(mounted.items())):
        if _is_below(path, [place]):
            below = path.removeprefix(place.rstrip("/"))
            return source + below if source and below else ""
    return rootfs + path


def _is_below(path: str, places: "Sequence[str]") -> bool:
    return any(f"{path}/".startswith(f"{place.rstrip('/')}/") for place in places)


def _link(path: str) -> str:
    """The target of a link; empty for other files."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _is_label(option: str) -> bool:
    """Whether it is an option of SELinux, which the guest lacks."""
    return option.partition("=")[0] in ("context", "fscontext", "defcontext", "rootcontext")


def _is_of_overlay(option: str) -> bool:
    return option.partition("=")[0] in _OF_OVERLAY.split()


def _refuse(mount: "Json", is_bound: bool) -> None:
    """Raises BundleError for a mount that the guest would make in another way."""
    destination = mount["destination"]
    if os.path.normpath(destination).strip("/") in ("", "."):
        raise BundleError(
            f"{destination}: the root of a container can't be mounted over; give it as the root "
            "filesystem (podman run --rootfs), or choose another destination"
        )
    if mount.get("type") == "hugetlbfs":
        raise _no_huge_pages(mount)
    mapped = [key for key in ("uidMappings", "gidMappings") if mount.get(key)]
    options = mount.get("options", ())
    mapped += [each for each in options if each.partition("=")[0] in _MAPPED]
    if mapped and not is_bound:
        raise BundleError(f"{destination}: {mapped[0]}: id-mapped mounts are bind mounts alone")
    if written := [each for each in mapped if "=" in each]:
        raise BundleError(
            f"{destination}: {written[0]}: give the mappings as the mount's uidMappings and "
            "gidMappings"
        )


def _no_huge_pages(mount: "Json") -> BundleError:
    return BundleError(
        f"{mount['destination']}: the VM has no huge pages: a program would end when it writes "
        "to them; leave the volume out, and let the program use ordinary memory"
    )
