"""configuration.toml: where it is, what is in it, and what is wrong with it.

Sections and keys are those of Kata Containers where Kata has them.
"""

import os
import tomllib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from tapwright.errors import ConfigError

ENVIRONMENT_VARIABLE = "TAPWRIGHT_CONFIG"
PLACES = ("/etc/tapwright/configuration.toml",)


@dataclass(frozen=True)
class Qemu:
    """[hypervisor.qemu]: memory in MiB; empty kernel and initrd mean the image we build;
    `pcie_root_port` is how many NICs there is room for, `file_mem_backend` a directory for memory
    that other processes can share."""

    path: str = "qemu-system-x86_64"
    kernel: str = ""
    initrd: str = ""
    kernel_params: str = ""
    accelerator: str = "auto"
    default_vcpus: int = 1
    default_memory: int = 256
    boot_timeout: int = 60
    file_mem_backend: str = ""
    pcie_root_port: int = 32


@dataclass(frozen=True)
class Cni:
    """[cni]: where networks and plugins are, and where attachments are remembered."""

    conf_dir: str = "/etc/cni/net.d"
    bin_dirs: tuple[str, ...] = ("/opt/cni/bin", "/usr/lib/cni")
    cache_dir: str = "/var/lib/cni"


@dataclass(frozen=True)
class Image:
    """[image]: where guest images are kept."""

    store: str = "/var/lib/tapwright/images"


@dataclass(frozen=True)
class Config:
    """A whole configuration. `source` is the file, empty for the defaults; `unknown` lists keys
    that nothing here makes use of."""

    qemu: Qemu = field(default_factory=Qemu)
    cni: Cni = field(default_factory=Cni)
    image: Image = field(default_factory=Image)
    source: str = ""
    unknown: tuple[str, ...] = ()


_MOST = {"pcie_root_port": 120}
"""120: fifteen devices of eight ports each, below those that the machine itself has."""

_SECTIONS: dict[str, tuple[str, type[Any]]] = {
    "hypervisor.qemu": ("qemu", Qemu),
    "cni": ("cni", Cni),
    "image": ("image", Image),
}


def load(path: str | None = None) -> Config:
    """The configuration from `path`, or from the first place that has one, or the defaults.

    Raises ConfigError with file, key and value.
    """
    path = path or os.environ.get(ENVIRONMENT_VARIABLE)
    if path is None:
        path = next((place for place in PLACES if os.path.exists(place)), None)
    if path is None:
        return Config()
    try:
        content = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    return _from_content(content, path)


def _from_content(content: dict[str, Any], path: str) -> Config:
    sections = _flatten(content)
    parts: dict[str, Any] = {}
    unknown: list[str] = []
    for name, keys in sections.items():
        if name not in _SECTIONS:
            unknown.extend(f"[{name}] {key}" for key in keys)
            continue
        attribute, kind = _SECTIONS[name]
        defaults = {item.name: getattr(kind(), item.name) for item in fields(kind)}
        values = {}
        for key, value in keys.items():
            if key in defaults:
                place = f"{path}: [{name}] {key}"
                values[key] = _checked(value, defaults[key], place, _MOST.get(key))
            else:
                unknown.append(f"[{name}] {key}")
        parts[attribute] = kind(**values)
    return Config(source=path, unknown=tuple(unknown), **parts)


def _flatten(content: dict[str, Any], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Tables by their dotted name."""
    sections: dict[str, dict[str, Any]] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            sections |= _flatten(value, f"{prefix}{key}.")
        else:
            sections.setdefault(prefix.rstrip("."), {})[key] = value
    return sections


def _checked(value: Any, default: Any, place: str, most: int | None) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        raise ConfigError(f"{place} = {value!r}: must be a list of strings")
    if type(value) is not type(default):
        kind = {str: "a string", int: "a whole number", bool: "true or false"}[type(default)]
        raise ConfigError(f"{place} = {value!r}: must be {kind}")
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ConfigError(f"{place} = {value!r}: must be at least 1")
    if most is not None and value > most:
        raise ConfigError(f"{place} = {value!r}: must be at most {most}")
    return value
