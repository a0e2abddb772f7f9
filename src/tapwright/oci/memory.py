"""Replaces a tmpfs of the host by one in the guest: the one that a platform binds to a container's
/dev/shm, and Kubernetes' emptyDir volumes of `medium: Memory`.

Processes share memory through them, which is impossible through files of the share. So an empty
tmpfs of the host becomes one of the guest, equal in size, owner and mode; containers of a sandbox
that bind the same one share it. A tmpfs that contains files is in use on the host, and the guest
sees it like any other directory.

As in Kata Containers (pkg/katautils: IsEphemeralStorage), the path shows whether a tmpfs is a
volume.
"""

import os
import re

from tapwright.errors import BundleError
from tapwright.linux import libc, mount_table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tapwright.shapes import Json

_SIZE = re.compile(r"(\d+)([kmgt]?)", re.IGNORECASE | re.ASCII)
_SHM = "/dev/shm"  # noqa: S108 - the container's
_VOLUMES, _SUBPATHS = "kubernetes.io~empty-dir", "volume-subpaths"
_MOST_DIRECTORIES = 1000
_INHERITED = {os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec"}
_ATTRIBUTES = """
    ro nosuid nodev noexec noatime nodiratime relatime strictatime sync dirsync mand
"""


def serves(mount: "Json", source: str) -> bool:
    """Whether memory of the guest replaces this source of a bind mount. If so, or if it may, the
    mount gets a field `memory`:

    `name` identifies the memory, `bytes` is its size (0: the guest's default). `directories` are
    those from its root to the bound one: `name`, `mode`, `uid`, `gid` of each; the root has no
    name. `lasting` memory stays until the sandbox ends, other memory until no container uses it.
    Without `make`, the host's directory has files: then the guest uses the memory only if it exists
    already, and otherwise the mount's source. Raises BundleError.
    """
    destination = mount["destination"]
    try:
        found = _found(source, destination)
        if found is None:
            return False
        mount["options"] = [*mount["options"], *_inherited(source, mount["options"])]
        mount["memory"] = memory = _described(*found)
    except OSError as error:
        raise BundleError(f"{destination}: its source {source}: {error.strerror}") from None
    return bool(memory["make"])


def asked_for(mounts: "Sequence[Json]") -> int:
    """The sizes, in bytes, of a container's memory volumes and /dev/shm, by its mounts in the
    guest; mounts without a size count 0."""
    described = [mount["memory"] for mount in mounts if "memory" in mount]
    of_guest: dict[str, int] = {memory["name"]: memory["bytes"] for memory in described}
    of_runtime = [
        _bounded(_bytes(option.removeprefix("size=")))
        for mount in mounts
        if mount.get("type") == "tmpfs" and os.path.normpath(mount["destination"]) == _SHM
        for option in mount.get("options", ())
        if option.startswith("size=")
    ]
    return sum(of_guest.values()) + sum(of_runtime[-1:])


def _bytes(text: str) -> int:
    """A size as tmpfs takes it (lib/cmdline.c: memparse); 0 for others, percentages among them."""
    match = _SIZE.fullmatch(text)
    return int(match[1]) << 10 * " kmgt".index(match[2].lower() or " ") if match else 0


def _found(source: str, destination: str) -> tuple[str, str, bool] | None:
    """(directory that is memory, path in it, whether it is a volume) of a bind mount's source; None
    for other files."""
    if not libc.is_tmpfs(source) or not os.path.isdir(source):
        return None
    if os.statvfs(source).f_flag & os.ST_RDONLY:
        return None
    if _is_volume(source):
        return source, "", True
    if found := _volume_of_subpath(source):
        return *found, True
    return (source, "", False) if os.path.normpath(destination) == _SHM else None


def _described(root: str, below: str, is_volume: bool) -> "Json":
    return {
        # Another tmpfs may get the same device and inode later, but not the same handle.
        "name": f"{_device(root):x}-{libc.file_handle(root).hex()}",
        "bytes": _size(root),
        "directories": list(_directories(root, below)),
        "lasting": is_volume,
        "make": not _has_content(root, directories_too=not is_volume),
    }


def _inherited(source: str, options: "Sequence[str]") -> list[str]:
    """A bind mount that is given no attributes has those of its source, as with runc."""
    if not set(options).isdisjoint(_ATTRIBUTES.split()):
        return []
    flags = os.statvfs(source).f_flag
    return [option for flag, option in _INHERITED.items() if flags & flag]


def _is_volume(path: str) -> bool:
    return os.path.basename(os.path.dirname(path)) == _VOLUMES and os.path.ismount(path)


def _volume_of_subpath(source: str) -> tuple[str, str] | None:
    """(volume, path in it) of what the kubelet has bound for a `subPath` as
    POD/volume-subpaths/VOLUME/CONTAINER/NUMBER (pkg/volume/util/subpath)."""
    source = os.path.realpath(source)
    before, found, after = source.rpartition(f"/{_SUBPATHS}/")
    root = f"{before}/volumes/{_VOLUMES}/{after.partition('/')[0]}"
    if not found or not _is_volume(root) or _device(root) != _device(source):
        return None
    mounted = dict(mount_table.entries())
    return (root, mounted[source].strip("/")) if source in mounted else None


def _device(path: str) -> int:
    return os.stat(path).st_dev


def _size(root: str) -> int:
    """The size in bytes; 0 for no limit, or a default one: tmpfs may use half of the host's memory
    by default, and the kubelet sets all of its memory for pods."""
    facts = os.statvfs(root)
    return _bounded(facts.f_blocks * facts.f_frsize)


def _bounded(size: int) -> int:
    half = os.sysconf("SC_PHYS_PAGES") // 2 * os.sysconf("SC_PAGE_SIZE")
    return size if size < half else 0


def _directories(root: str, below: str) -> "Iterator[Json]":
    path = root
    for name in ("", *filter(None, below.split("/"))):
        path = os.path.join(path, name)
        status = os.lstat(path)
        mode = status.st_mode & 0o7777
        yield {"name": name, "mode": mode, "uid": status.st_uid, "gid": status.st_gid}


def _has_content(directory: str, directories_too: bool) -> bool:
    """Whether a directory contains a file. Directories alone are no content, because the kubelet
    makes those of subPaths on the host; a very large number of them is."""
    waiting, seen = [directory], 0
    while waiting:
        with os.scandir(waiting.pop()) as entries:
            for entry in entries:
                seen += 1
                is_directory = entry.is_dir(follow_symlinks=False)
                if directories_too or seen > _MOST_DIRECTORIES or not is_directory:
                    return True
                waiting.append(entry.path)
    return False
