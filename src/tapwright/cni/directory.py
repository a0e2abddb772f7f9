"""Reads the directory of networks, /etc/cni/net.d, in lexical order.

A file is a list of plugins (.conflist) or a single plugin (.conf, .json). A network may have more
plugins, one a file, in a folder with the network's name (section 1, "loadOnlyInlinedPlugins").
"""

import os

from tapwright.cni.errors import ConfigurationError
from tapwright.cni.network import Document, Network, Plugin, build_network, check_plugin

DEFAULT_DIRECTORY = "/etc/cni/net.d"
_SUFFIXES = (".conf", ".conflist", ".json")
_MAX_BYTES = 1 << 20


def load_networks(
    directory: str | os.PathLike[str], any_version: bool = False
) -> tuple[list[Network], list[ConfigurationError]]:
    """(all networks of a directory, in the order of its files; what is wrong with other files).

    Of several networks with one name the first wins, but any .conflist wins over other files
    (libcni, libcni/conf.go, LoadNetworkConf); the others are problems. A missing directory has no
    networks.
    """
    networks: dict[str, Network] = {}
    problems: list[ConfigurationError] = []
    try:
        paths = _files(directory, _SUFFIXES)
    except OSError as error:
        return [], [ConfigurationError(str(directory), f"can't be read: {error.strerror}")]
    for path in sorted(paths, key=lambda path: not path.endswith(".conflist")):
        try:
            network = load_network(path, any_version)
            first = networks.setdefault(network.name, network)
            if first is not network:
                raise ConfigurationError(
                    path, f"must be unique: {network.name!r} is in {first.source} too", "name"
                )
        except ConfigurationError as problem:
            problems.append(problem)
    return sorted(networks.values(), key=lambda network: paths.index(network.source)), problems


def find_network(
    directory: str | os.PathLike[str], name: str, any_version: bool = False
) -> Network:
    """The network of that name. With `any_version`, its version may be unknown, or its name may
    break the rules; only DEL works for such a network. Raises ConfigurationError, which names the
    networks that exist."""
    networks, problems = load_networks(directory, any_version)
    for network in networks:
        if network.name == name:
            return network
    known = ", ".join(network.name for network in networks) or "none"
    broken = "".join(f"; broken: {problem}" for problem in problems)
    raise ConfigurationError(
        str(directory), f"no network {name!r}; the networks there: {known}{broken}"
    )


def load_network(path: str, any_version: bool = False) -> Network:
    """Read one file, and its folder of plugins if it has one. Raises ConfigurationError."""
    document = Document(_read(path), path)
    inlined_only = document.flag("loadOnlyInlinedPlugins")
    name = document.get("name")
    if inlined_only or document.is_single or not isinstance(name, str) or "/" in name:
        return build_network(document, (), any_version)
    folder = os.path.join(os.path.dirname(path), name)
    return build_network(document, _folder_plugins(folder), any_version)


def _folder_plugins(folder: str) -> list[Plugin]:
    try:
        paths = _files(folder, (".conf",))
    except NotADirectoryError:
        return []
    except OSError as error:
        raise ConfigurationError(folder, f"can't be read: {error.strerror}") from None
    documents = [Document(_read(path), path) for path in paths]
    return [check_plugin(document, document.content, "") for document in documents]


def _files(directory: str | os.PathLike[str], suffixes: tuple[str, ...]) -> list[str]:
    """The files with these suffixes, in lexical order; none when the directory does not exist."""
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return []
    paths = (os.path.join(directory, name) for name in sorted(names) if name.endswith(suffixes))
    return [path for path in paths if not os.path.isdir(path)]


def _read(path: str) -> bytes:
    try:
        # A FIFO would block for ever; a file that never ends would fill the memory.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(fd, "rb") as file:
            raw = file.read(_MAX_BYTES + 1) or b""
    except OSError as error:
        raise ConfigurationError(path, f"can't be read: {error.strerror}") from None
    if len(raw) > _MAX_BYTES:
        raise ConfigurationError(path, f"it has more than {_MAX_BYTES} bytes")
    return raw
