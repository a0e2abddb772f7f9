"""Reads and checks one network configuration (section 1)."""

import json
import re
from collections.abc import Iterable
from typing import Any, NamedTuple

from tapwright.cni import strictjson
from tapwright.cni.errors import ConfigurationError
from tapwright.cni.names import is_name
from tapwright.cni.versions import VERSIONS, number

# Also with fewer than three parts, as in libcni (pkg/version/plugin.go, ParseVersion).
_VERSION = re.compile(r"\d{1,9}(\.\d{1,9}){0,2}(-[0-9A-Za-z.\-]+)?(\+[0-9A-Za-z.\-]+)?", re.ASCII)
_RESERVED = ("runtimeConfig", "prevResult")

Plugin = dict[str, Any]


class Network(NamedTuple):
    """A network: the configurations of plugins that run one after the other.

    `versions` are the configuration's versions that this package knows, the highest last; `raw` is
    the form that libcni would remember (a single plugin as a list); `whole` is a complete conflist,
    with plugins from other files; `source` names the file.
    """

    name: str
    versions: tuple[str, ...]
    plugins: tuple[Plugin, ...]
    raw: bytes
    whole: bytes
    source: str = ""
    disable_check: bool = False
    disable_gc: bool = False

    @property
    def cni_version(self) -> str:
        return self.versions[-1]

    @property
    def capabilities(self) -> set[str]:
        """The capabilities of the plugins, such as portMappings."""
        return {
            name
            for plugin in self.plugins
            for name, enabled in capabilities_of(plugin).items()
            if enabled
        }


def capabilities_of(plugin: Plugin) -> dict[str, Any]:
    """The capabilities of a plugin, by name; null means false."""
    return member(plugin, "capabilities") or {}


def ipam_type(plugin: Plugin) -> str:
    """The IPAM plugin to which a plugin delegates its addresses; empty for none."""
    return member(member(plugin, "ipam") or {}, "type") or ""


def member(holder: dict[str, Any], key: str) -> Any:
    """A value by its key; None without such a key. As in Go (encoding/json), the case of letters
    does not matter, and the last of several keys counts."""
    found = holder.get(key)
    for name, value in holder.items():
        if name.lower() == key.lower():
            found = value
    return found


def is_reserved(key: str) -> bool:
    """Whether only the runtime may set this key of a plugin's request (section 1, "Reserved keys").
    `args` is not reserved: by convention administrators write it, and libcni passes it on."""
    return key in _RESERVED or key.startswith("cni.dev/")


def parse_network(raw: bytes, source: str, any_version: bool = False) -> Network:
    """Read a list of plugins or a single plugin; `source` names it in errors.

    With `any_version`, its version may be unknown, or its name may break the rules, which is enough
    for DEL. This reads no files: `directory.load_network` reads a network with a folder of plugins.
    Raises ConfigurationError.
    """
    return build_network(Document(raw, source), (), any_version)


class Document:
    """The JSON object of one file, which makes the errors about it."""

    def __init__(self, raw: bytes, source: str) -> None:
        self.raw = raw
        self.source = source
        try:
            content = strictjson.parse(raw)
        except json.JSONDecodeError as error:
            reason = f"not JSON: {error.msg} (column {error.colno})"
            raise ConfigurationError(source, reason, line=error.lineno) from None
        except ValueError as error:
            raise ConfigurationError(source, f"not JSON: {error}") from None
        if not isinstance(content, dict):
            raise ConfigurationError(source, "not a JSON object", line=1)
        self.content: dict[str, Any] = content

    def error(self, key: str, reason: str) -> ConfigurationError:
        """An error about a key, which may be a path such as 'plugins[1].type'. It names the line if
        that is certain."""
        pattern = rb'"%s"\s*:' % re.escape(re.split(r"[.\[]", key)[0].encode())
        found = list(re.finditer(pattern, self.raw))
        line = self.raw.count(b"\n", 0, found[0].start()) + 1 if len(found) == 1 else 0
        return ConfigurationError(self.source, reason, key, line)

    @property
    def is_single(self) -> bool:
        """Whether the document is a single plugin, and not a list."""
        return "plugins" not in self.content and member(self.content, "type") is not None

    def get(self, key: str) -> Any:
        """The value of a key; None without such a key. The case of letters does not matter in a
        single plugin, which libcni decodes into a structure; it matters in a list
        (libcni/conf.go)."""
        return member(self.content, key) if self.is_single else self.content.get(key)

    def flag(self, key: str) -> bool:
        """A boolean, which may also be a string, as in libcni; false when it is missing."""
        value = self.content.get(key, False)
        if isinstance(value, str) and value.lower() in ("true", "false"):
            return value.lower() == "true"
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, not {_shown(value)}")
        return value


def build_network(
    document: Document, others: Iterable[Plugin], any_version: bool = False
) -> Network:
    """The network of a file, with `others` (plugins from its folder) after its own plugins."""
    content = document.content
    name = document.get("name")
    # What a runtime that looks less closely has attached can be taken down by its name.
    is_fit = isinstance(name, str) and (is_name(name) or (any_version and _is_file_name(name)))
    if not isinstance(name, str) or not is_fit:
        raise document.error(
            "name",
            "must be a network name (letters, digits, '_', '.' and '-', the first a letter or "
            f"digit), not {_shown(name)}",
        )
    others = list(others)
    own = _own_plugins(document)
    if not own and not others:
        raise document.error("plugins", "must be a list of at least one plugin")
    raw = whole = document.raw
    if others or "plugins" not in content:
        whole = _conflist(document, [*own, *others])
    if document.is_single:
        raw = _upconverted(document)
    return Network(
        name=name,
        versions=_versions(document, any_version),
        plugins=(*own, *others),
        raw=raw,
        whole=whole,
        source=document.source,
        disable_check=document.flag("disableCheck"),
        disable_gc=document.flag("disableGC"),
    )


def _is_file_name(name: str) -> bool:
    return name not in ("", ".", "..") and not re.search(r"[/\x00]", name)


def _own_plugins(document: Document) -> list[Plugin]:
    content = document.content
    if document.flag("loadOnlyInlinedPlugins") and "plugins" not in content:
        raise document.error("loadOnlyInlinedPlugins", "can't be true without the key 'plugins'")
    if "plugins" not in content:
        return [check_plugin(document, content, "")] if document.is_single else []
    plugins = content["plugins"]
    if not isinstance(plugins, list):
        raise document.error("plugins", f"must be a list of plugins, not {_shown(plugins)}")
    return [
        check_plugin(document, plugin, f"plugins[{number}]")
        for number, plugin in enumerate(plugins)
    ]


def check_plugin(document: Document, plugin: Any, place: str) -> Plugin:
    """A plugin configuration; `place` is its path in the document. Raises ConfigurationError.

    As in libcni's decoder, null counts as missing, and `Type` as `type`.
    """
    if not isinstance(plugin, dict):
        raise document.error(place, f"must be a JSON object, not {_shown(plugin)}")
    prefix = f"{place}." if place else ""
    _check_type(document, plugin, f"{prefix}type")
    capabilities = member(plugin, "capabilities")
    if not isinstance(capabilities, dict | None) or not all(
        isinstance(enabled, bool | None) for enabled in (capabilities or {}).values()
    ):
        raise document.error(
            f"{prefix}capabilities", "must be an object whose values are true or false"
        )
    ipam = member(plugin, "ipam")
    if not isinstance(ipam, dict | None):
        raise document.error(f"{prefix}ipam", f"must be a JSON object, not {_shown(ipam)}")
    if member(ipam or {}, "type") not in (None, ""):
        _check_type(document, ipam or {}, f"{prefix}ipam.type")
    return plugin if "type" in plugin else {**plugin, "type": member(plugin, "type")}


def _check_type(document: Document, holder: dict[str, Any], key: str) -> None:
    kind = member(holder, "type")
    if not isinstance(kind, str) or kind in ("", ".", "..") or re.search(r"[/\\\x00]", kind):
        raise document.error(
            key, f"must be the file name of a plugin, without '/' or '\\', not {_shown(kind)}"
        )


def _versions(document: Document, any_version: bool) -> tuple[str, ...]:
    """The known versions of the configuration (section 1, "Version considerations"); with
    `any_version`, if it names no known version, the highest one that it names."""
    named = document.content.get("cniVersions", [])
    if not isinstance(named, list):
        raise document.error("cniVersions", f"must be a list of versions, not {_shown(named)}")
    single = document.get("cniVersion") or ("" if named else "0.1.0")
    for key, version in [*(("cniVersions", v) for v in named), ("cniVersion", single or "0.1.0")]:
        if not isinstance(version, str) or not _VERSION.fullmatch(version):
            raise document.error(key, f"must hold versions such as 1.0.0, not {_shown(version)}")
    known = tuple(version for version in VERSIONS if version in (*named, single))
    if not known and any_version:
        return (max((*named, *filter(None, [single])), key=number),)
    if not known:
        raise document.error(
            "cniVersions" if named else "cniVersion",
            f"names no supported version; those are {', '.join(VERSIONS)}",
        )
    return known


def _conflist(document: Document, plugins: list[Plugin]) -> bytes:
    """A complete conflist, for programs that do not know folders of plugins."""
    kept = document.content
    if document.is_single:
        keys = ("cniVersion", "cniVersions", "name", "disableCheck", "disableGC")
        kept = {key: document.get(key) for key in keys if document.get(key) is not None}
    return json.dumps({**kept, "plugins": plugins}).encode()


def _upconverted(document: Document) -> bytes:
    """The list that libcni makes of a single plugin (libcni/conf.go, ConfListFromConf), with only
    these keys."""
    version = document.get("cniVersion") or ""
    network = {"cniVersion": version, "name": document.get("name"), "plugins": [document.content]}
    return json.dumps(network, sort_keys=True, separators=(",", ":")).encode()


def _shown(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)[:60]
