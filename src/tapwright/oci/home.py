"""HOME of a process whose environment lacks it. Like runc (libcontainer/init_linux.go), it is the
user's home in the container's /etc/passwd, or `/` when that file lacks the user.

This reads the file on the host, because a guest may still have what was in it a second ago. Where
only the container's own process can follow the way to the file, crun looks in the guest.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.oci.bundle import Bundle
    from tapwright.shapes import Json

_USERS = "/etc/passwd"
_OF_OTHERS = "/"
"""The home of a user that the file lacks."""
_MOST_BYTES = 4 << 20


def lacks(process: "Json") -> bool:
    """Whether a process has no HOME, or an empty one, which counts as none. The last one counts."""
    homes = [each for each in process.get("env", ()) if each.startswith("HOME=")]
    return not homes or homes[-1] == "HOME="


def given(process: "Json", bundle: "Bundle") -> "Json":
    """The process with a HOME, unless crun is to find it."""
    if not lacks(process):
        return process
    env = [each for each in process.get("env", ()) if not each.startswith("HOME=")]
    home = _home(bundle, process.get("user", {}).get("uid", 0))
    return {**process, "env": env if home is None else [*env, f"HOME={home}"]}


def _home(bundle: "Bundle", uid: int) -> str | None:
    """None where only the guest can tell."""
    path = os.path.join(os.path.realpath(bundle.rootfs), _USERS.strip("/"))
    for mount in bundle.config.get("mounts", ()):
        if os.path.normpath(mount["destination"]) == _USERS:
            path = os.path.realpath(bundle.path(mount.get("source", "")))
    from tapwright.linux import foreign  # few processes lack a HOME

    try:
        lines = foreign.read(path, _MOST_BYTES).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        # The directory may be a link, which crun follows in the container.
        return None if os.path.islink(os.path.dirname(path)) else _OF_OTHERS
    except OSError:
        return None  # a link, or no regular file: crun may be able to read it
    of_user = (fields for line in lines if (fields := line.split(b":"))[2:3] == [b"%d" % uid])
    if not (found := next(of_user, None)):
        return _OF_OTHERS
    try:
        return b"".join(found[5:6]).decode()
    except UnicodeDecodeError:  # which no JSON can carry
        return None
