"""HOME of a process whose environment lacks it. Like runc (libcontainer/init_linux.go), it is the
user's home in the container's /etc/passwd, or `/` when that file lacks the user. crun in the guest
does the first; this module does the second.
"""

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from tapwright.oci.bundle import Bundle

    Json = dict[str, Any]

_USERS = "/etc/passwd"
_MOST_BYTES = 4 << 20


def lacks(process: "Json") -> bool:
    """Whether a process has no HOME, or an empty one, which counts as none. The last one counts."""
    homes = [each for each in process.get("env", ()) if each.startswith("HOME=")]
    return not homes or homes[-1] == "HOME="


def given(process: "Json", bundle: "Bundle") -> "Json":
    """The process, with HOME=/ where crun would set none."""
    if not lacks(process):
        return process
    env = [each for each in process.get("env", ()) if not each.startswith("HOME=")]
    if not _knows(bundle, process.get("user", {}).get("uid", 0)):
        env.append("HOME=/")
    return {**process, "env": env}


def _knows(bundle: "Bundle", uid: int) -> bool:
    path = os.path.join(os.path.realpath(bundle.rootfs), _USERS.strip("/"))
    for mount in bundle.config.get("mounts", ()):
        if os.path.normpath(mount["destination"]) == _USERS:
            path = os.path.realpath(bundle.path(mount.get("source", "")))
    from tapwright.linux import foreign  # few processes lack a HOME

    try:
        lines = foreign.read(path, _MOST_BYTES).split(b"\n")
    except (FileNotFoundError, NotADirectoryError):
        # The directory may be a link, which crun follows in the container.
        return os.path.islink(os.path.dirname(path))
    except OSError:
        return True  # a link, or no regular file: crun may be able to read it
    return any(line.split(b":")[2:3] == [b"%d" % uid] for line in lines)
