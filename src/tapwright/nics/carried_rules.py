"""Which of the namespace's packet rules the guest has, and how changes get there.

Loaded only where a namespace has any rules; `rulesets` says when, and why.
"""

import asyncio
import binascii
import contextlib
import logging
import time
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tapwright.agent import requests
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import MAX_REQUEST
from tapwright.errors import NetworkError
from tapwright.linux import ipset, ipvs, netns, nfnetlink, nftables, packet_rules, xtables
from tapwright.linux.ipvs import Server, Service
from tapwright.linux.nftables import Place
from tapwright.linux.packet_rules import Glance

if TYPE_CHECKING:
    from tapwright.nics.interfaces import Followers

_AGENT_SECONDS = 45.0  # it may have to load many modules of its kernel
_MOST_BYTES = MAX_REQUEST - 4096
_MOST_REASONS = 100
_MOST_SERVICES = 20_000
_OF_BRIDGES = (7,)  # NFPROTO_BRIDGE

_log = logging.getLogger(__name__)


class _Ipset(NamedTuple):
    """A set that the guest has, and by what rules know it in the namespace and in the guest."""

    key: object
    here: int
    there: int


class CarriedRules:
    """The rules of the namespace at `path` that the guest has. `reading_seconds` is how long the
    last reading took."""

    def __init__(self, path: str, agent: AgentClient) -> None:
        self._path = path
        self._agent = agent
        self.reading_seconds = 0.0
        # What the guest has from here, and a key of its contents.
        self._tables: dict[tuple[int, str], bytes] = {}
        # The last handle of what is from here in them.
        self._handles: dict[tuple[int, str], int] = {}
        self._with_devices: set[tuple[int, str]] = set()
        self._legacy: dict[tuple[str, str], bytes] = {}
        self._ipsets: dict[str, _Ipset] = {}
        self._services: dict[Service, dict[Server, Server]] = {}
        # The indices of its interfaces, and of which NICs they are.
        self._interfaces: dict[str, int] = {}
        self._nics: Followers | None = None
        self._read_for: tuple[int, Place] | None = None
        self._left_out: set[str] = set()

    def doubt(self) -> None:
        """What was bound to an interface of the guest may have gone with it."""
        self._nics = self._read_for = None
        for table in self._with_devices:
            self._tables.pop(table, None)
        self._with_devices.clear()

    async def change(self, nics: "Followers", glance: Glance) -> list[str]:
        """Make the guest's rules equal to the namespace's; return what the guest refused, in words.

        Raises NetworkError, AgentError.
        """
        sets = await asyncio.to_thread(self._read_ipsets) if glance.ipsets else []
        refused = await self._put_ipsets(sets, nics)
        place = Place(
            {"lo", *nics.names.values()} - nics.unhooked,
            {i: self._interfaces[n] for i, n in nics.names.items() if n in self._interfaces},
            {one.here: one.there for one in self._ipsets.values()},
        )
        started = time.monotonic()
        tables, legacy = await asyncio.to_thread(self._read, glance, place)
        self.reading_seconds = time.monotonic() - started
        if tables is not None:
            refused += await self._change_tables(tables)
        refused += await self._change_legacy(legacy)
        refused += await self._remove_ipsets({one.name for one in sets})
        self._read_for = None if refused else (glance.generation, place)
        if glance.balances or self._services:
            await self._change_services(await asyncio.to_thread(self._read_services))
        return refused

    def _read_ipsets(self) -> list[ipset.Set]:
        with _reading(), netns.entered(self._path), nfnetlink.opened() as nl:
            return ipset.read(nl)

    def _read(
        self, glance: Glance, place: Place
    ) -> tuple[list[nftables.Table] | None, list[xtables.Table]]:
        """Tables of nf_tables only where they may have changed."""
        with _reading(), netns.entered(self._path):
            legacy = [xtables.read(*which).with_ipsets(place.ipsets) for which in glance.legacy]
            if (glance.generation, place) == self._read_for:
                return None, legacy
            if not glance.has_tables:
                return [], legacy
            with nfnetlink.opened() as nl:
                return nftables.read(nl, place)[1], legacy

    async def _put_ipsets(self, sets: Sequence[ipset.Set], nics: "Followers") -> list[str]:
        """Send the sets; also ask for the indices of the guest's interfaces, which may have
        changed."""
        new = [one for one in sets if not self._has(one)]
        if not new and nics == self._nics:
            return []
        for one in new:
            self._ipsets.pop(one.name, None)
        items = [
            {
                **{key: getattr(one, key) for key in ("name", "kind", "revision", "family")},
                "settings": _packed(one.settings),
                "elements": [_packed(element) for element in one.elements],
            }
            for one in new
        ]
        reply = await self._ask(ipsets=items)
        there = _indices(reply, "ipsets", xtables.NO_IPSET)
        self._interfaces, self._nics = _indices(reply, "interfaces", 1 << 30), nics
        for one in new:
            if one.name in there:
                self._ipsets[one.name] = _Ipset(one.key, one.number, there[one.name])
        return _refusals(reply, "ipsets", list(map(str, new)))

    def _has(self, one: ipset.Set) -> bool:
        known = self._ipsets.get(one.name)
        return known is not None and (known.key, known.here) == (one.key, one.number)

    async def _remove_ipsets(self, kept: Collection[str]) -> list[str]:
        gone = [name for name in self._ipsets if name not in kept]
        if not gone:
            return []
        for name in gone:
            del self._ipsets[name]
        # Those that are made of others are the last, and go first.
        gone.reverse()
        return _refusals(await self._ask(unset=gone), "unset", [f"ipset {name}" for name in gone])

    async def _change_tables(self, tables: Sequence[nftables.Table]) -> list[str]:
        """Change all tables in one transaction; where the guest refuses it, one by one."""
        for table in tables:
            self._warn(table.left_out)
        found = {(table.family, table.name): table for table in tables}
        gone = [which for which in self._tables if which not in found]
        new = [table for which, table in found.items() if self._tables.get(which) != table.key]
        if not await self._commit(gone, new):
            return []
        refused = []
        for which in gone:
            refused += await self._commit([which], [])
        for table in new:
            if reasons := await self._commit([], [table]):
                # Only bridges of the guest's own would pass it; none is of the namespace.
                if table.family in _OF_BRIDGES:
                    self._warn(reasons[:1])
                else:
                    refused += reasons[:1]
        return refused

    async def _commit(
        self, gone: Sequence[tuple[int, str]], new: Sequence[nftables.Table]
    ) -> list[str]:
        changes = [change for which in gone for change in nftables.removal(*which)]
        changes += [change for table in new for change in nftables.replacement(table)]
        if not changes:
            return []
        for table in new:
            self._tables.pop((table.family, table.name), None)
        touched = [*gone, *((table.family, table.name) for table in new)]
        before = [[*which, self._handles.get(which, 0)] for which in touched]
        reply = await self._ask(nftables=_packed(nfnetlink.packed(changes)), before=before)
        self._warn(
            f"what a container has put into tables of the namespace's, which have changed: {reason}"
            for reason in _refusals(reply, "own", [])
        )
        if refused := _refusals(reply, "nftables", [change.description for change in changes]):
            return refused
        for which in gone:
            del self._tables[which]
            self._handles.pop(which, None)
        for table in new:
            self._tables[table.family, table.name] = table.key
            self._handles[table.family, table.name] = table.handles
            if table.has_devices:
                self._with_devices.add((table.family, table.name))
        return []

    async def _change_legacy(self, tables: Sequence[xtables.Table]) -> list[str]:
        """Change the legacy tables; those that no program has touched are as in the guest."""
        found = {(table.family, table.name): table for table in tables}
        new = [
            table
            for which, table in found.items()
            if (which in self._legacy or not table.is_untouched)
            and self._legacy.get(which) != table.key
        ]
        refused = []
        for table in new:
            self._legacy.pop((table.family, table.name), None)
            item = {
                **{key: getattr(table, key) for key in ("family", "name", "hooks", "number")},
                "entries": _packed(table.entries),
                "counters": _packed(table.counters),
            }
            reasons = _refusals(await self._ask(tables=[item]), "tables", [str(table)])
            if not reasons:
                self._legacy[table.family, table.name] = table.key
            refused += reasons
        return refused

    def _read_services(self) -> dict[Service, dict[Server, Server]]:
        """The services of IPVS, each with its servers by their place."""
        with _reading(), netns.entered(self._path):
            if not packet_rules.balances():
                return {}
            with ipvs.Ipvs() as table:
                return {
                    service._replace(counters=()): {
                        Server(server.address, server.port): _settled(server)
                        for server in table.servers(service)
                    }
                    for service in table.services()
                }

    async def _change_services(self, found: Mapping[Service, Mapping[Server, Server]]) -> None:
        """Change the IPVS services. They guard nothing, so a guest that can't have them goes
        without."""
        changes = list(service_changes(self._services, found))
        if len(changes) > _MOST_SERVICES:
            raise NetworkError(
                f"IPVS in the network namespace has {len(changes)} services and servers to be "
                f"carried, more than {_MOST_SERVICES}"
            )
        if not changes:
            return
        self._services = {service: dict(servers) for service, servers in found.items()}
        descriptions = [
            f"{verb} {_place(service, server)} of IPVS" for verb, service, server in changes
        ]
        self._warn(_refusals(await self._ask(services=changes), "services", descriptions))

    async def _ask(self, **parts: Any) -> dict[str, Any]:
        size = sum(len(part) for part in _texts(parts))
        if size > _MOST_BYTES:
            raise NetworkError(
                f"the packet rules of the network namespace have {size} bytes when packed, more "
                f"than {_MOST_BYTES}"
            )
        return await self._agent.call(requests.set_rulesets(**parts), _AGENT_SECONDS)

    def _warn(self, reasons: Iterable[str]) -> None:
        """Log each reason once, however often the rules are read."""
        for reason in reasons:
            if reason not in self._left_out and len(self._left_out) < _MOST_REASONS:
                self._left_out.add(reason)
                _log.warning("not among the guest's packet rules: %s", reason)


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise NetworkError(
            f"the packet rules of the network namespace can't be read: {error.args[-1]}"
        ) from None


def _settled(server: Server) -> Server:
    """The server without what the kernel counts."""
    return server._replace(active=0, inactive=0, persistent=0, counters=())


def _place(service: Service, server: Server | None) -> str:
    one = server or service
    mark = "" if server or not service.mark else f"fwmark {service.mark}"
    return f"{'server' if server else 'service'} {mark or f'{one.address} port {one.port}'}"


def _key(service: Service) -> Service:
    """The service as the kernel knows it."""
    return Service(service.protocol, service.address, service.port, mark=service.mark)


def service_changes(
    before: Mapping[Service, Mapping[Server, Server]],
    after: Mapping[Service, Mapping[Server, Server]],
) -> Iterator[tuple[str, Service, Server | None]]:
    """What makes one table of IPVS the other."""
    known = {_key(service): service for service in before}
    wanted = {_key(service): service for service in after}
    for key, service in known.items():
        if key not in wanted:
            yield "delete", service, None
    for key, service in wanted.items():
        had = before[known[key]] if key in known else {}
        if key not in known:
            yield "add", service, None
        elif known[key] != service:
            yield "edit", service, None
        for place, server in had.items():
            if place not in after[service]:
                yield "delete", service, server
        for place, server in after[service].items():
            if had.get(place) != server:
                yield "edit" if place in had else "add", service, server


def _packed(data: bytes) -> str:
    return binascii.b2a_base64(zlib.compress(data, 1), newline=False).decode()


def _texts(value: Any) -> Iterator[str]:
    """All that takes room in a request."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts(part)
    elif isinstance(value, Sequence):
        for part in value:
            yield from _texts(part)


def _indices(reply: Mapping[str, Any], what: str, end: int) -> dict[str, int]:
    """The indices below `end`: a guest may say anything."""
    found = reply.get(what)
    if not isinstance(found, dict):
        return {}
    return {name: n for name, n in found.items() if isinstance(n, int) and 0 <= n < end}


def _refusals(reply: Mapping[str, Any], kind: str, descriptions: Sequence[str]) -> list[str]:
    """Return what the guest refused, in words. `descriptions` are those of the requests."""
    found = reply.get("refused")
    words = []
    for refusal in found if isinstance(found, list) else ():
        if not isinstance(refusal, dict) or refusal.get("kind") != kind:
            continue
        number = refusal.get("number")
        what = "all of them"
        if isinstance(number, int) and 0 < number <= len(descriptions):
            what = descriptions[number - 1]
        words.append(f"{what}: {str(refusal.get('reason'))[:200]}")
    return words
