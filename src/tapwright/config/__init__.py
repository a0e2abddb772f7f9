"""configuration.toml: where it is, what is in it, and what is wrong with it.

`sections` has the keys, their defaults and the values they may have, and what conflicts with what;
`reading` makes a `Config` of a file; `kata` knows the keys that only Kata Containers has a use for.
`configuration.toml`, beside them, is the file with all defaults.
"""

import os

from tapwright.errors import ConfigError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.config.sections import (
        Cni,
        Config,
        Factory,
        Image,
        Netmon,
        Qemu,
        Runtime,
        Setting,
        conflicts,
    )

__all__ = [
    "DEFAULT_FILE",
    "DROP_INS",
    "ENVIRONMENT_VARIABLE",
    "PLACES",
    "Cni",
    "Config",
    "Factory",
    "Image",
    "Netmon",
    "Qemu",
    "Runtime",
    "Setting",
    "conflicts",
    "drop_ins",
    "find",
    "load",
    "read",
]

ENVIRONMENT_VARIABLE = "TAPWRIGHT_CONFIG"
PLACES = (
    "/etc/tapwright/configuration.toml",
    "/etc/kata-containers/configuration.toml",
    "/usr/share/defaults/kata-containers/configuration.toml",
)
DEFAULT_FILE = os.path.join(os.path.dirname(__file__), "configuration.toml")
"""Every key with its default, and what it means."""

DROP_INS = "config.d"

_MAX_BYTES = 1 << 20


def load(path: str | None = None) -> "Config":
    """The configuration from `path`, or from the first place that has one, or the defaults.

    Raises ConfigError: with file, key and value, or with what conflicts.
    """
    from tapwright.config.sections import conflicts

    loaded = read(path)
    if found := conflicts(loaded):
        raise ConfigError(f"{loaded.source}: {'; '.join(found)}")
    return loaded


def read(path: str | None = None) -> "Config":
    """Read the configuration without the check for conflicts. Raises ConfigError."""
    from tapwright.config import reading
    from tapwright.config.sections import Config

    found = find(path)
    if not found:
        return Config()
    files = [(found, _content(found)), *((each, _content(each)) for each in drop_ins(found))]
    return reading.parse(files)


def find(path: str | None = None) -> str | None:
    """The file to read: `path`, or what the environment names, or the first place that has one."""
    named = path or os.environ.get(ENVIRONMENT_VARIABLE)
    return named or next((place for place in PLACES if os.path.exists(place)), None)


def drop_ins(path: str) -> list[str]:
    """The files in `config.d` beside the file at `path`, where a link leads, in the order in which
    they are read: each one's values take the place of those before. As in Kata, where every file
    counts (pkg/katautils/config.go: decodeDropIns); what begins with a dot, and directories, are
    left out. Raises ConfigError."""
    directory = os.path.join(os.path.dirname(os.path.realpath(path)), DROP_INS)
    try:
        status = os.stat(directory)
        # In a directory such as /tmp, any user could make it, and root runs the programs that it
        # names.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o002:
            raise ConfigError(
                f"{directory} can be written by others; make it root's, or name a file elsewhere"
            )
        with os.scandir(directory) as entries:
            found = [each.path for each in entries if each.name[0] != "." and not each.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise ConfigError(f"{directory} can't be read: {error.strerror}") from None
    return sorted(found)


def _content(path: str) -> bytes:
    try:
        # A FIFO would block for ever; a file that never ends would fill the memory.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            raw = file.read(_MAX_BYTES + 1) or b""
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigError(
            f"{path} has more than {_MAX_BYTES} bytes: that is no configuration; name the right "
            f"file with --config or {ENVIRONMENT_VARIABLE}"
        )
    return raw


def __getattr__(name: str) -> object:
    """Import on first use: most commands only ask whether there is a file."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tapwright.config import sections

    return getattr(sections, name)
