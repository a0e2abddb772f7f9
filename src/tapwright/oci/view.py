"""A container's files, for a process that joins the mount namespace of the shim.

`podman cp` joins that namespace to find a running container's files as they are mounted, and works
on `/`, which must not be the host's. The view lacks filesystems that only the guest has (tmpfs,
proc), and overlays. Instead of a tmpfs, it has an empty read-only one: otherwise, a copy would go
into the root filesystem below it, where the container does not see it.
"""

import os
from contextlib import contextmanager, suppress

from tapwright.errors import ContainerStateError
from tapwright.linux import libc, mounts
from tapwright.linux.files import closing
from tapwright.oci.mounts import cloned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tapwright.oci.mounts import Shared


@contextmanager
def of_container(shared: "Sequence[Shared]", memory: "Sequence[str]" = ()) -> "Iterator[int]":
    """A mount namespace with the shared files at their destinations; the first of them is the root.
    The places of `memory`, which the guest has as tmpfs, are empty. The namespace exists for the
    length of the block, and as long as a process is in it.

    Raises ContainerStateError, BundleError.
    """
    # An overlay can't be made twice of the same directories.
    shown = [one for one in shared if not one.overlay]
    with cloned(shown) as (root, *below):
        places = list(zip(below, [one.destination for one in shown[1:]], strict=True))
        try:
            hidden = [path for path in memory if path not in {path for _, path in places}]
            namespace = _namespace(root, places, hidden)
        except OSError as error:
            raise ContainerStateError(f"the container's files can't be shown: {error}") from None
        with closing(namespace):
            yield namespace


def _namespace(root: int, places: "list[tuple[int, str]]", hidden: "list[str]") -> int:
    namespace = mounts.new_namespace(root)
    try:
        mounts.within(namespace, lambda: _attach_all(places, hidden))
    except BaseException:
        os.close(namespace)
        raise
    return namespace


def _attach_all(places: "Iterable[tuple[int, str]]", hidden: "Iterable[str]") -> None:
    for fd, path in places:
        # A place in a filesystem of the guest does not exist here.
        with suppress(FileNotFoundError, NotADirectoryError):
            mounts.attach(fd, path)
    for path in hidden:
        with closing(libc.detached_mount("tmpfs")) as fd:
            mounts.restrict(fd, mounts.READ_ONLY)
            with suppress(FileNotFoundError, NotADirectoryError):
                mounts.attach(fd, path)
