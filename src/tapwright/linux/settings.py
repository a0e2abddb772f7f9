"""Settings of a namespace's network (/proc/sys/net) that differ from the kernel's defaults
(Documentation/networking/ip-sysctl.rst).

Settings of interfaces (`conf`) come with each interface in the kernel's list of interfaces. The
others are read from their files.
"""

import contextlib
import json
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from tapwright.linux import files, netlink, netns
from tapwright.linux.files import closing

ROOT = "/proc/sys/net"
_DEFAULTS_FILE = Path("/run/tapwright/network-defaults.json")
_MOST_BYTES = 4096
_AF_INET, _AF_INET6 = 2, 10
_IFLA_INET_CONF, _IFLA_INET6_CONF = 1, 2


class _Conf(NamedTuple):
    """The settings of interfaces of one protocol, in the order of the kernel's list, with their
    defaults; None for a setting that this module ignores. The kernel lists those in `seconds` in
    milliseconds."""

    protocol: str
    family: int
    attribute: int
    names: tuple[tuple[str, int] | None, ...]
    seconds: frozenset[str] = frozenset()
    of_all: Mapping[str, int] = {}
    """The settings whose default in `conf/all` differs from that in `conf/default`."""


def _named(text: str, others: Mapping[str, int]) -> tuple[tuple[str, int] | None, ...]:
    return tuple(
        None if name == "-" else (name, others.get(name, 0))
        for name in " ".join(text.split()).split()
    )


# enum in include/uapi/linux/ip.h; ipv4_devconf_dflt in net/ipv4/devinet.c
_IPV4 = _Conf(
    "ipv4",
    _AF_INET,
    _IFLA_INET_CONF,
    _named(
        """forwarding - proxy_arp accept_redirects secure_redirects send_redirects shared_media
        rp_filter accept_source_route bootp_relay log_martians tag arp_filter medium_id disable_xfrm
        disable_policy force_igmp_version arp_announce arp_ignore promote_secondaries arp_accept
        arp_notify accept_local src_valid_mark proxy_arp_pvlan route_localnet
        igmpv2_unsolicited_report_interval igmpv3_unsolicited_report_interval
        ignore_routes_with_linkdown drop_unicast_in_l2_multicast drop_gratuitous_arp bc_forwarding
        arp_evict_nocarrier""",
        {
            "accept_redirects": 1,
            "secure_redirects": 1,
            "send_redirects": 1,
            "shared_media": 1,
            "accept_source_route": 1,
            "igmpv2_unsolicited_report_interval": 10000,
            "igmpv3_unsolicited_report_interval": 1000,
            "arp_evict_nocarrier": 1,
        },
    ),
    of_all={"accept_source_route": 0},
)

# enum in include/uapi/linux/ipv6.h; ipv6_devconf_dflt in net/ipv6/addrconf.c. The MTU is the
# link's. The guest does not wait for the detection of duplicates, because its addresses are the
# host's.
_IPV6 = _Conf(
    "ipv6",
    _AF_INET6,
    _IFLA_INET6_CONF,
    _named(
        """forwarding hop_limit - accept_ra accept_redirects autoconf dad_transmits
        router_solicitations router_solicitation_interval router_solicitation_delay use_tempaddr
        temp_valid_lft temp_prefered_lft regen_max_retry max_desync_factor max_addresses
        force_mld_version accept_ra_defrtr accept_ra_pinfo accept_ra_rtr_pref router_probe_interval
        accept_ra_rt_info_max_plen proxy_ndp optimistic_dad accept_source_route - disable_ipv6 -
        force_tllao ndisc_notify mldv1_unsolicited_report_interval mldv2_unsolicited_report_interval
        suppress_frag_ndisc accept_ra_from_local use_optimistic accept_ra_mtu - use_oif_addrs_only
        accept_ra_min_hop_limit ignore_routes_with_linkdown drop_unicast_in_l2_multicast
        drop_unsolicited_na keep_addr_on_down router_solicitation_max_interval seg6_enabled
        seg6_require_hmac enhanced_dad addr_gen_mode disable_policy accept_ra_rt_info_min_plen
        ndisc_tclass rpl_seg_enabled ra_defrtr_metric ioam6_enabled ioam6_id ioam6_id_wide
        ndisc_evict_nocarrier accept_untracked_na accept_ra_min_lft force_forwarding""",
        {
            "hop_limit": 64,
            "accept_ra": 1,
            "accept_redirects": 1,
            "autoconf": 1,
            "dad_transmits": 1,
            "router_solicitations": -1,
            "router_solicitation_interval": 4,
            "router_solicitation_delay": 1,
            "temp_valid_lft": 604800,
            "temp_prefered_lft": 86400,
            "regen_max_retry": 3,
            "max_desync_factor": 600,
            "max_addresses": 16,
            "accept_ra_defrtr": 1,
            "accept_ra_pinfo": 1,
            "accept_ra_rtr_pref": 1,
            "router_probe_interval": 60,
            "mldv1_unsolicited_report_interval": 10000,
            "mldv2_unsolicited_report_interval": 1000,
            "suppress_frag_ndisc": 1,
            "accept_ra_mtu": 1,
            "accept_ra_min_hop_limit": 1,
            "router_solicitation_max_interval": 3600,
            "enhanced_dad": 1,
            "ra_defrtr_metric": 1024,
            "ioam6_id": 0xFFFF,
            "ioam6_id_wide": 0xFFFFFFFF,
            "ndisc_evict_nocarrier": 1,
        },
    ),
    seconds=frozenset(
        (
            "router_solicitation_interval",
            "router_solicitation_delay",
            "router_probe_interval",
            "router_solicitation_max_interval",
        )
    ),
)
_CONFS = _IPV4, _IPV6
IPV6_OFF, ADDRESS_GENERATION = "ipv6/disable_ipv6", "ipv6/addr_gen_mode"
NO_ADDRESS, BY_SECRET = "1", ("2", "3")
"""enum in6_addr_gen_mode, include/uapi/linux/if_link.h."""

# Settings that the kernel makes itself, or that follow from another one.
_PASSED_OVER = frozenset(("ipv4/ip_forward", "ipv4/tcp_fastopen_key"))
_ROOMS_PASSED_OVER = ("netfilter/nf_log",)
# In ticks, which differ from kernel to kernel; another setting has the same in milliseconds.
_IN_TICKS = "retrans_time"
# The kernel's values for loopback.
_OF_LOOPBACK = {"ipv4/disable_xfrm": "1", "ipv4/disable_policy": "1", "ipv6/use_tempaddr": "-1"}


class OfInterface(NamedTuple):
    """The settings of one interface, as the kernel sends them; empty for a protocol that it
    lacks."""

    ipv4: bytes = b""
    ipv6: bytes = b""

    def values(self) -> dict[str, str]:
        """Return all settings, by PROTOCOL/NAME."""
        return {key: value for key, value, _ in self._all()}

    @property
    def makes_link_local(self) -> bool:
        """Whether the kernel gives the interface a link-local address made from its MAC address."""
        found = self.values()
        return found.get(IPV6_OFF) == "0" and found.get(ADDRESS_GENERATION) == "0"

    def special(self, is_loopback: bool = False) -> dict[str, str]:
        """Return the settings that differ from a new interface's. A kernel without IPv6 has none of
        it."""
        own = _OF_LOOPBACK if is_loopback else {}
        found = {
            key: value for key, value, default in self._all() if value != own.get(key, default)
        }
        if not self.ipv6:
            found[IPV6_OFF] = "1"
        return found

    def _all(self) -> Iterator[tuple[str, str, str]]:
        """Yield (key, value, default) of each setting."""
        for conf, data in ((_IPV4, self.ipv4), (_IPV6, self.ipv6)):
            known = min(len(data) // 4, len(conf.names))
            for entry, value in zip(
                conf.names, struct.unpack_from(f"={known}i", data), strict=False
            ):
                if entry is None:
                    continue
                name, default = entry
                if name in conf.seconds:
                    value //= 1000
                if default > 0x7FFFFFFF:
                    value &= 0xFFFFFFFF
                yield f"{conf.protocol}/{name}", str(value), str(default)


def of_interface(specific: bytes) -> OfInterface:
    """Read an IFLA_AF_SPEC attribute."""
    found = netlink.attributes(specific)
    ipv4 = netlink.attributes(found.get(_AF_INET, b"")).get(_IFLA_INET_CONF, b"")
    ipv6 = netlink.attributes(found.get(_AF_INET6, b"")).get(_IFLA_INET6_CONF, b"")
    return OfInterface(ipv4, ipv6)


class Defaults(NamedTuple):
    """The defaults of a new namespace of this host, by path below /proc/sys/net, without
    interfaces. `neigh` has those of an interface's neighbours by PROTOCOL/NAME; `rooms` are the
    directories that existed at the time."""

    values: dict[str, str]
    neigh: dict[str, str]
    rooms: list[str]


def defaults() -> Defaults:
    """Return the defaults. They are found out once after each boot of the host, and again when
    parts of the network were loaded since then. Never call this inside an entered namespace. Raises
    OSError."""
    rooms = _rooms()
    try:
        known = Defaults(**json.loads(_DEFAULTS_FILE.read_text()))
        if set(rooms) <= set(known.rooms):
            return known
    except (OSError, ValueError, TypeError):
        pass
    with closing(netns.nameless()) as fresh, netns.entered(f"/proc/self/fd/{fresh}"):
        found = _read_fresh()
    # A host has some that no new namespace has (`nf_conntrack_max`), and looks for its own.
    found = found._replace(rooms=sorted({*rooms, *found.rooms}))
    with contextlib.suppress(OSError):  # the next call finds them out again
        _DEFAULTS_FILE.parent.mkdir(mode=0o755, exist_ok=True)
        text = json.dumps(found._asdict())
        files.replace(_DEFAULTS_FILE, text, synced=False, is_shared=True)
    return found


def wide(known: Defaults) -> dict[str, str]:
    """Return the settings of this thread's namespace that differ, without those of interfaces: by
    path below /proc/sys/net, in the order in which to set them."""
    own = dict(_different(known.values))
    for conf in _CONFS:
        for scope in ("all", "default"):
            own |= _of_scope(conf, scope)
    return own


def of_neighbours(known: Defaults, interfaces: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the differing settings of interfaces' neighbours: by interface, and PROTOCOL/NAME."""
    found = {}
    for name in interfaces:
        paths = {f"{_neigh(key, name)}": key for key in known.neigh}
        wanted = {path: known.neigh[key] for path, key in paths.items()}
        if special := {paths[path]: value for path, value in _different(wanted)}:
            found[name] = special
    return found


def default_of(path: str, known: Defaults) -> str | None:
    """Return the default of a setting that is no interface's; None if it is not known."""
    if path in known.values:
        return known.values[path]
    for conf in _CONFS:
        for scope in ("all", "default"):
            if path.startswith(f"{conf.protocol}/conf/{scope}/"):
                return _begins_with(conf, scope).get(path)
    return None


def changed_defaults() -> list[list[str]]:
    """Return the settings of interfaces, [path below /proc/sys/net, value], that give this thread's
    new namespace the defaults of this module where its kernel has others: kernels have changed
    theirs (`temp_valid_lft`)."""
    found = []
    for conf in _CONFS:
        for scope, places in (("all", ("all",)), ("default", ("default", "lo"))):
            usual = _begins_with(conf, scope)
            found += [
                [path.replace(f"/{scope}/", f"/{place}/"), usual[path]]
                for path, _ in _different(usual)
                for place in places
            ]
    return found


def _begins_with(conf: _Conf, scope: str) -> dict[str, str]:
    others = conf.of_all if scope == "all" else {}
    return {
        f"{conf.protocol}/conf/{scope}/{name}": str(others.get(name, default))
        for name, default in filter(None, conf.names)
        # On `all`, it would apply to the present interfaces, and not to later ones.
        if not (scope == "all" and name == "addr_gen_mode")
    }


def _of_scope(conf: _Conf, scope: str) -> dict[str, str]:
    found = dict(_different(_begins_with(conf, scope)))
    if conf is _IPV6 and not os.path.isdir(f"{ROOT}/ipv6"):
        found[f"ipv6/conf/{scope}/disable_ipv6"] = "1"
    return found


def _neigh(key: str, name: str) -> str:
    protocol, _, setting = key.partition("/")
    return f"{protocol}/neigh/{name}/{setting}"


def _different(wanted: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for path, value in wanted.items():
        found = _read(path)
        if found is not None and found != value:
            yield path, found


def _read(path: str) -> str | None:
    """Return a file's content; None if it does not exist, or can't be read."""
    try:
        fd = os.open(f"{ROOT}/{path}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, _MOST_BYTES)
    except OSError:
        return None
    finally:
        os.close(fd)
    return None if len(data) == _MOST_BYTES else data.decode(errors="replace").strip()


def _rooms() -> list[str]:
    return sorted(os.listdir(ROOT))


def _read_fresh() -> Defaults:
    """Read all settings that can be read and written in this thread's namespace, which has only its
    loopback."""
    values, neigh = {}, {}
    for directory, below, names in os.walk(ROOT):
        room = directory.removeprefix(ROOT).strip("/")
        if room.endswith("/conf"):
            below.clear()
        for file in names:
            path = f"{room}/{file}"
            if path in _PASSED_OVER or room in _ROOMS_PASSED_OVER:
                continue
            is_usual = os.stat(f"{ROOT}/{path}").st_mode & 0o600 == 0o600
            value = _read(path) if is_usual else None
            if value is None:
                continue
            if "/neigh/" in path:
                if file != _IN_TICKS:
                    neigh[f"{room.split('/')[0]}/{file}"] = value
            else:
                values[path] = value
    return Defaults(values, neigh, _rooms())


def directories() -> list[str]:
    """Return the directories with settings of this thread's namespace, without those of
    interfaces."""
    return [directory for directory, _, files in os.walk(ROOT) if files]


def directories_of_interfaces() -> list[str]:
    """Return the directories of the namespace's interfaces, and of their neighbours."""
    found = []
    for conf in _CONFS:
        for place in ("conf", "neigh"):
            directory = f"{ROOT}/{conf.protocol}/{place}"
            with contextlib.suppress(FileNotFoundError):  # the kernel lacks this protocol
                found += [f"{directory}/{name}" for name in os.listdir(directory)]
    return found
