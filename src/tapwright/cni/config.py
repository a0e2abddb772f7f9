"""Network configurations: files read, checked, and found by name (specification, section 1)."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapwright.cni.errors import ConfigurationError

DEFAULT_DIRECTORY = "/etc/cni/net.d"
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")

_SUFFIXES = (".conf", ".conflist", ".json")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")


@dataclass(frozen=True)
class Network:
    """A network: plugins to be run one after the other. `raw` is the configuration as written."""

    name: str
    cni_version: str
    plugins: tuple[dict[str, Any], ...]
    raw: bytes = field(repr=False)
    source: str = ""
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def capabilities(self) -> set[str]:
        """What the plugins can be told at run time, such as portMappings."""
        return {
            name
            for plugin in self.plugins
            for name, enabled in plugin.get("capabilities", {}).items()
            if enabled
        }


def load_networks(directory: str | Path) -> tuple[list[Network], list[ConfigurationError]]:
    """All networks of a directory in the order of its files, and what is wrong with the rest.

    The first of several networks of one name wins. A missing directory has no networks.
    """
    networks: dict[str, Network] = {}
    problems: list[ConfigurationError] = []
    try:
        paths = sorted(Path(directory).iterdir())
    except FileNotFoundError:
        paths = []
    for path in paths:
        if path.suffix not in _SUFFIXES or not path.is_file():
            continue
        try:
            network = load_network(path)
        except ConfigurationError as problem:
            problems.append(problem)
        else:
            networks.setdefault(network.name, network)
    return list(networks.values()), problems


def find_network(directory: str | Path, name: str) -> Network:
    """The network of that name. Raises ConfigurationError, which tells what there is instead."""
    networks, problems = load_networks(directory)
    for network in networks:
        if network.name == name:
            return network
    known = ", ".join(network.name for network in networks) or "none"
    broken = "".join(f"; {problem}" for problem in problems)
    raise ConfigurationError(
        f"no network {name!r} in {directory}; the networks there: {known}{broken}"
    )


def load_network(path: Path) -> Network:
    """Read one file, a list of plugins or a single one. Raises ConfigurationError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path}: {error.strerror}") from None
    return parse_network(raw, str(path))


def parse_network(raw: bytes, source: str) -> Network:
    """Read a configuration; `source` names it in errors. Raises ConfigurationError."""
    try:
        content = json.loads(raw.decode())
    except json.JSONDecodeError as error:
        raise ConfigurationError(
            f"{source}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}"
        ) from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigurationError(f"{source}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigurationError(f"{source}: a network is a JSON object")
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"{source}: key 'name': {name!r} is not a network name (letters, digits, '_', '.', "
            "'-', first a letter or digit)"
        )
    plugins = content.get("plugins", [content] if "type" in content else None)
    return Network(
        name=name,
        cni_version=_version(content, source),
        plugins=_plugins(plugins, source),
        raw=raw,
        source=source,
        disable_check=_flag(content, "disableCheck", source),
        disable_gc=_flag(content, "disableGC", source),
    )


def _version(content: dict[str, Any], source: str) -> str:
    version = content.get("cniVersion", "0.1.0") or "0.1.0"
    if version not in VERSIONS:
        raise ConfigurationError(
            f"{source}: key 'cniVersion': {version!r} is not supported; one of "
            f"{', '.join(VERSIONS)} is"
        )
    return str(version)


def _plugins(plugins: Any, source: str) -> tuple[dict[str, Any], ...]:
    if not isinstance(plugins, list) or not plugins:
        raise ConfigurationError(f"{source}: key 'plugins': a list of at least one plugin")
    for number, plugin in enumerate(plugins):
        place = f"{source}: key 'plugins', entry {number}"
        if not isinstance(plugin, dict):
            raise ConfigurationError(f"{place}: a plugin is a JSON object")
        kind = plugin.get("type")
        if not isinstance(kind, str) or not kind or "/" in kind:
            raise ConfigurationError(f"{place}: key 'type': {kind!r} is not a plugin's name")
        if not isinstance(plugin.get("capabilities", {}), dict):
            raise ConfigurationError(f"{place}: key 'capabilities': a JSON object of booleans")
    return tuple(plugins)


def _flag(content: dict[str, Any], key: str, source: str) -> bool:
    value = content.get(key, False)
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if not isinstance(value, bool):
        raise ConfigurationError(f"{source}: key {key!r}: {value!r} is neither true nor false")
    return value
