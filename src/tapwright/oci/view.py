"""A container's files, for who joins the mount namespace of the process that platforms know.

`podman cp` does, to find a running container's files as they are mounted, and works on `/`, which
must not be the host's. What the guest alone has mounted (tmpfs, proc) is not there.
"""

import os
from contextlib import contextmanager, suppress

from tapwright.errors import ContainerStateError
from tapwright.linux import mounts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from tapwright.oci.mounts import Shared


@contextmanager
def of_container(shared: "Sequence[Shared]") -> "Iterator[int]":
    """A mount namespace of what is shared, each at its destination, the first being the root. It
    lasts for the block, and as long as a process is in it. Raises ContainerStateError."""
    descriptors: list[int] = []
    try:
        for one in shared:
            descriptors.append(mounts.clone(one.source, read_only=one.read_only))
        namespace = mounts.new_namespace(descriptors[0])
        descriptors.append(namespace)
        places = zip(descriptors[1:], [one.destination for one in shared[1:]], strict=False)
        mounts.within(namespace, lambda: _attach_all(places))
        yield namespace
    except OSError as error:
        raise ContainerStateError(f"the container's files can't be shown: {error}") from None
    finally:
        for fd in descriptors:
            os.close(fd)


def _attach_all(places: "Iterable[tuple[int, str]]") -> None:
    for fd, path in places:
        # In a filesystem of the guest's own, which is not here.
        with suppress(FileNotFoundError, NotADirectoryError):
            mounts.attach(fd, path)
