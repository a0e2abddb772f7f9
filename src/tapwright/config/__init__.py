"""Finds, reads and checks configuration.toml.

`sections` has the keys, their defaults, the allowed values, and the conflicts between keys;
`reading` makes a `Config` from a file; `kata` lists the keys that only Kata Containers uses.
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
"""Every key with its default and its meaning."""

DROP_INS = "config.d"

_MAX_BYTES = 1 << 20


def load(path: str | None = None) -> "Config":
    """The configuration from `path`, or from the first of the default places that exists, or the
    defaults.

    Raises ConfigError, which names file, key and value, or the conflict.
    """
    from tapwright.config.sections import conflicts

    loaded = read(path)
    if found := conflicts(loaded):
        raise ConfigError(f"{loaded.source}: {'; '.join(found)}")
    return loaded


def read(path: str | None = None) -> "Config":
    """Like `load`, without the check for conflicts. Raises ConfigError."""
    from tapwright.config import reading
    from tapwright.config.sections import Config

    found = find(path)
    if not found:
        return Config()
    files = [(found, _content(found)), *((each, _content(each)) for each in drop_ins(found))]
    return reading.parse(files)


def find(path: str | None = None) -> str | None:
    """The file to read: `path`, or that of the environment, or the first default place that
    exists; None if there is none."""
    named = path or os.environ.get(ENVIRONMENT_VARIABLE)
    return named or next((place for place in PLACES if os.path.exists(place)), None)


def drop_ins(path: str) -> list[str]:
    """The files in `config.d` beside the file at `path` (its real path), in their order: later
    values replace earlier ones. As in Kata (pkg/katautils/config.go: decodeDropIns), every file
    counts, except directories and names that begin with a dot. Raises ConfigError."""
    directory = os.path.join(os.path.dirname(os.path.realpath(path)), DROP_INS)
    try:
        status = os.stat(directory)
        # In a directory such as /tmp, any user could make config.d, and root would run the programs
        # that it names.
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o002:
            raise ConfigError(
                f"users other than root can write to {directory}; give it to root, or use a file "
                "elsewhere"
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
    """Import on first use: most commands only need to know whether a file exists."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tapwright.config import sections

    return getattr(sections, name)
