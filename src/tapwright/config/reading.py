"""Makes a Config from the text of a file: checks types and values, and reports unknown keys, with
the key that may have been meant."""

import math
import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tapwright.config import kata
from tapwright.config.sections import (
    KATAS_MODELS,
    MODEL,
    MOST_BRIDGES,
    RULES,
    SECTIONS,
    SHARED_FS,
    Config,
    Rule,
)
from tapwright.errors import ConfigError

_NAMED = 20
_SHOWN_CHARACTERS = 80

_NO_RULE = Rule()


class _Item(NamedTuple):
    """A key of a section. Its default also shows its type."""

    name: str
    default: Any
    rule: Rule


def parse(files: Sequence[tuple[str, bytes]]) -> Config:
    """Read the configuration's file, then its drop-ins, each as (path, content); the last value of
    a key counts. Raises ConfigError with file, key and value."""
    reading = _Reading(files[0][0])
    for path, raw in files:
        reading.path = path
        try:
            content = tomllib.loads(raw.decode())
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path} is not UTF-8, as TOML must be: {error}") from None
        except RecursionError:
            raise ConfigError(f"{path} is nested too deeply") from None
        except ValueError as error:
            raise ConfigError(f"{path} is not TOML: {error}") from None
        for section, table in _tables(content, path):
            reading.take(section, table)
    return reading.config()


def overridden(config: Config, section: str, values: Mapping[str, tuple[str, Any]]) -> Config:
    """The configuration with other values in a section. `values` maps keys to (source, value as in
    a file). Raises ConfigError."""
    if not values:
        return config
    attribute, _ = SECTIONS[section]
    items = _items(section)
    found = {
        key: _Reading(f"annotation {name}")._checked(section, items[key], value)
        for key, (name, value) in values.items()
    }
    return config._replace(**{attribute: getattr(config, attribute)._replace(**found)})


class _Reading:
    """The keys read so far. `path` is the present file, `source` the first one; keys are written
    "[section] key"."""

    def __init__(self, source: str) -> None:
        self.path = source
        self._source = source
        self._values: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        self._given: dict[str, str] = {}  # the last file with that key
        self._unused: list[str] = []
        self._unknown: list[tuple[str, str]] = []  # section, and a key of it or nothing
        self._guest: list[str] = []  # keys that name Kata's guest
        self._model = ""  # as it is written

    def take(self, section: str, table: dict[str, Any]) -> None:
        """Read a section. Raises ConfigError."""
        if section in kata.OTHER_HYPERVISORS:
            self._unused.append(f"[{section}]")
            return
        if section and section not in _known_sections():
            self._unknown.append((section, ""))
            return
        items = _items(section)
        for key, value in table.items():
            if (section, key) == ("netmon", "disable_new_netns"):
                self._take_misplaced(value)
            elif (section, key) == ("hypervisor.qemu", kata.FACTORY):
                self.take(kata.FACTORY, _table(value, f"{section}.{key}", self.path))
            elif key in items:
                self._values[section][key] = self._checked(section, items[key], value)
                self._given[f"[{section}] {key}"] = self.path
                if key == "internetworking_model":
                    self._model = value
            elif key in kata.KEYS.get(section, ()):
                self._unused.append(f"[{section}] {key}")
                if (section, key) == ("hypervisor.qemu", "image"):
                    self._guest = [key] if value else []
            else:
                self._unknown.append((section, key))

    def config(self) -> Config:
        if self._values["netmon"].pop("disable_new_netns", False):
            self._values["runtime"]["disable_new_netns"] = True
        qemu = self._values["hypervisor.qemu"]
        self._pass_over_guest(qemu)
        if "default_bridges" in qemu:
            # As in Kata, which has no root ports by default.
            qemu.setdefault("pcie_root_port", 0)
        if self._is_for_kata():
            # Kata boots each guest by default. Guests from a template share more, and the author of
            # this file has not chosen that.
            self._values["factory"].setdefault("enable_template", False)
        parts: dict[str, Any] = {
            attribute: kind(**self._values[section])
            for section, (attribute, kind) in SECTIONS.items()
        }
        return Config(
            **parts,
            source=self._source,
            given=self._given,
            unused=tuple(dict.fromkeys(self._unused)),
            warnings=tuple(self._warnings()),
        )

    def _is_for_kata(self) -> bool:
        """Whether the file is Kata's: by its directory, or by keys that only Kata uses."""
        directories = os.path.abspath(self._source).split("/")[:-1]
        return bool(self._unused) or kata.GUEST_DIRECTORY in directories

    def _take_misplaced(self, value: Any) -> None:
        """Read `disable_new_netns` in [netmon], where some documents have it; true in either place
        is true."""
        item = _items("runtime")["disable_new_netns"]
        self._values["netmon"]["disable_new_netns"] = self._checked("netmon", item, value)
        self._given["[runtime] disable_new_netns"] = self.path

    def _pass_over_guest(self, values: dict[str, Any]) -> None:
        for key in ("initrd", "kernel"):
            if kata.GUEST_DIRECTORY in values.get(key, "").split("/")[:-1]:
                values[key] = ""
                self._unused.insert(0, f"[hypervisor.qemu] {key}")
                self._guest.insert(0, key)

    def _warnings(self) -> Iterator[str]:
        if self._guest:
            yield (
                f"[hypervisor.qemu] {', '.join(self._guest)}: that is Kata's guest, whose agent "
                "Tapwright can't talk to; its own guest image is used"
            )
        shared_fs = self._values["hypervisor.qemu"].get("shared_fs", SHARED_FS)
        if shared_fs != SHARED_FS:
            yield f'[hypervisor.qemu] shared_fs = "{shared_fs}": files are shared by {SHARED_FS}'
        if self._model in KATAS_MODELS:
            what = f'[runtime] internetworking_model = "{self._model}"'
            yield f"{what}: interfaces are joined by {MODEL}"
        for section, key in self._unknown[:_NAMED]:
            place = f"[{_shown(section)}]" if section else "outside of all sections:"
            what = f"{place} {_shown(key)}".rstrip()
            yield f"{what} is not known, and passed over{_hint(section, key)}"
        if len(self._unknown) > _NAMED:
            yield f"{len(self._unknown) - _NAMED} more are not known, and passed over"

    def _checked(self, section: str, item: _Item, value: Any) -> Any:
        """The effective value. Raises ConfigError."""
        if item.name == "default_vcpus" and isinstance(value, float) and math.isfinite(value):
            # Rounded up, as in Kata (hypervisor.go: NumVCPUs).
            value = math.ceil(value) if value >= 0 else math.floor(value)
        if type(value) is type(item.default) and not value and item.rule.blank:
            return item.default
        if expected := _objection(value, item.default, item.rule):
            raise ConfigError(
                f"{self.path}: [{section}] {item.name} = {_written(value)}: must be {expected}"
            )
        if item.name == "default_vcpus":
            cpus = len(os.sched_getaffinity(0))
            return min(value, cpus) if value > 0 else cpus
        if item.name == "default_maxvcpus":
            return min(value, len(os.sched_getaffinity(0)))
        if item.name == "default_bridges":
            return min(value, MOST_BRIDGES)
        if item.name == "internetworking_model":
            return MODEL if value in ("default", *KATAS_MODELS) else value
        return tuple(value) if isinstance(value, list) else value


def _objection(value: Any, default: Any, rule: Rule) -> str:
    """What the value must be; empty for a valid value."""
    if isinstance(default, tuple):
        fits = isinstance(value, list) and all(_is_text(entry) and entry for entry in value)
        return "" if fits else "a list of strings that are not empty"
    if rule.choices:
        allowed = " or ".join(f'"{choice}"' for choice in rule.choices)
        return "" if value in (*rule.choices, *rule.also) else allowed
    if isinstance(default, bool):
        return "" if isinstance(value, bool) else "true or false"
    if isinstance(default, int):
        fits = type(value) is int and rule.least <= value <= rule.most
        blank = f" (or 0, which means {default or 'none'})" if rule.blank and rule.least > 0 else ""
        return "" if fits else f"a whole number from {rule.least} to {rule.most}{blank}"
    if not _is_text(value):
        return "a string without NUL characters"
    needed = default and not rule.or_none
    return "a string that is not empty" if needed and not value else ""


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _tables(content: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(section, its keys); the section is empty for keys outside of all sections. Raises
    ConfigError."""
    for name, value in content.items():
        if name in kata.FAMILIES:
            for kind, table in _table(value, name, path).items():
                yield f"{name}.{kind}", _table(table, f"{name}.{kind}", path)
        elif name in SECTIONS or isinstance(value, dict):
            yield name, _table(value, name, path)
        else:
            yield "", {name: value}


def _table(value: Any, name: str, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} must be a section of keys, beginning with [{name}]")
    return value


def _items(section: str) -> dict[str, _Item]:
    if section not in SECTIONS:
        return {}
    defaults: dict[str, Any] = SECTIONS[section][1]._field_defaults
    rules = RULES.get(section, {})
    return {key: _Item(key, default, rules.get(key, _NO_RULE)) for key, default in defaults.items()}


def _known_sections() -> list[str]:
    return [*SECTIONS, *kata.KEYS, *kata.OTHER_HYPERVISORS]


def _hint(section: str, key: str) -> str:
    """The key, or for an empty `key` the section, that may have been meant."""
    if not key:
        near = _near(section, _known_sections())
        return f"; did you mean [{near}]?" if near else ""
    if near := _near(key, [*_items(section), *kata.KEYS.get(section, ())]):
        return f"; did you mean {near}?"
    for other in SECTIONS:
        if key in _items(other):
            return f"; it belongs into [{other}]"
    return ""


def _shown(name: str) -> str:
    """A name from the file, made safe for a terminal."""
    return _shortened(name if name.isprintable() else repr(name))


def _written(value: Any) -> str:
    try:
        return _shortened(repr(value))
    except ValueError:  # more digits than Python prints
        return "a huge number"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}…"


def _near(word: str, known: Iterable[str]) -> str:
    if len(word) > _SHOWN_CHARACTERS:
        return ""
    import difflib  # slow to import, and hardly ever needed

    return next(iter(difflib.get_close_matches(word, known, 1, 0.7)), "")
