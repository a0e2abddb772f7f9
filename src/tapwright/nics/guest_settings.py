"""The settings of the guest's network (/proc/sys/net) that follow those of the namespace.

The guest gets a setting when the namespace's value is not the default, and when that value changes.
Until then, a value that a container sets in the guest stays.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.endpoint.discovery import Interface
from tapwright.linux import settings
from tapwright.linux.settings import Defaults

_log = logging.getLogger(__name__)

_MOST_REASONS = 10

Setting = list[str]
"""[path below /proc/sys/net, value]."""


class Found(NamedTuple):
    """The special settings of a namespace: its own, in the order in which to set them, those of
    neighbours by interface, and the defaults."""

    own: dict[str, str]
    neigh: dict[str, dict[str, str]]
    defaults: Defaults


def read(names: Iterable[str], defaults: Defaults) -> Found:
    """The settings of this thread's namespace, with interfaces of those names."""
    return Found(settings.wide(defaults), settings.of_neighbours(defaults, names), defaults)


class GuestSettings:
    """The settings that the guest has got."""

    def __init__(self, agent: AgentClient) -> None:
        self._agent = agent
        self._own: dict[str, str] = {}
        # By index of the interface and PLACE/PROTOCOL/NAME, where a place is `conf` or `neigh`.
        self._of_interfaces: dict[tuple[int, str], str] = {}
        # PROTOCOL/NAME of those that were set for all interfaces at once.
        self._common: set[str] = set()

    def forget(self, index: int) -> None:
        """The NIC of the interface with that index has gone from the guest."""
        for place in [place for place in self._of_interfaces if place[0] == index]:
            del self._of_interfaces[place]

    def of_interface(self, interface: Interface, name: str) -> list[Setting]:
        """The settings that the interface's NIC still lacks, whose name in the guest is `name`;
        from then on they count as given."""
        index = interface.link.index
        special = interface.special_settings
        given = {
            key.removeprefix("conf/")
            for of, key in self._of_interfaces
            if of == index and key.startswith("conf/")
        }
        if not (special or given or self._common):
            return []
        values = interface.settings.values() | special
        wanted = {
            f"conf/{key}": values[key]
            for key in dict.fromkeys([*special, *given, *self._common])
            if key in values
        }
        return list(self._new(index, name, wanted))

    async def change(
        self, found: Found, interfaces: Mapping[str, Interface], refused: list[str]
    ) -> None:
        """Give the guest what has changed; `interfaces` by the names of their NICs.

        Raises AgentError. What the guest's kernel refuses is logged, and added to `refused`.
        """
        changed = list(self._changed_own(found))
        for name, interface in interfaces.items():
            changed += self.of_interface(interface, name)
            changed += self._of_neighbours(found, interface, name)
        if not changed:
            return
        try:
            refused += tell_refused(await self._agent.call(requests.change_settings(changed)))
        except BaseException:
            # It is not known how much of it was done.
            self._own.clear()
            self._of_interfaces.clear()
            raise

    def _changed_own(self, found: Found) -> Iterator[Setting]:
        for path in self._own.keys() - found.own.keys():
            if (value := settings.default_of(path, found.defaults)) is not None:
                yield from self._set_own(path, value)
            del self._own[path]
        for path, value in found.own.items():
            if self._own.get(path) != value:
                self._own[path] = value
                yield from self._set_own(path, value)

    def _set_own(self, path: str, value: str) -> Iterator[Setting]:
        parts = path.split("/")
        if parts[1] == "conf":
            # The kernel may have each interface follow it.
            key = f"{parts[0]}/{parts[-1]}"
            self._common.add(key)
            for place in [place for place in self._of_interfaces if place[1] == f"conf/{key}"]:
                del self._of_interfaces[place]
        yield [path, value]

    def _of_neighbours(self, found: Found, interface: Interface, name: str) -> Iterator[Setting]:
        index = interface.link.index
        special = found.neigh.get(interface.link.name, {})
        wanted = {f"neigh/{key}": value for key, value in special.items()}
        for of, place in self._of_interfaces:
            if of == index and place.startswith("neigh/"):
                wanted.setdefault(place, found.defaults.neigh[place.removeprefix("neigh/")])
        yield from self._new(index, name, wanted)

    def _new(self, index: int, name: str, wanted: Mapping[str, str]) -> Iterator[Setting]:
        for key, value in wanted.items():
            if self._of_interfaces.get((index, key)) != value:
                self._of_interfaces[index, key] = value
                place, protocol, setting = key.split("/")
                yield [f"{protocol}/{place}/{name}/{setting}", value]


def tell_refused(answer: object) -> list[str]:
    """Log, and return, what the guest's agent says that its kernel refused."""
    refused = answer.get("refused") if isinstance(answer, dict) else None
    if not isinstance(refused, list) or not refused:
        return []
    reasons = [str(item)[:200] for item in refused[:_MOST_REASONS]]
    if len(refused) > _MOST_REASONS:
        reasons.append(f"and {len(refused) - _MOST_REASONS} more")
    _log.warning("the guest's kernel refused what its namespace has: %s", "; ".join(reasons))
    return reasons
