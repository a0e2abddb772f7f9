"""Makes a specification from a caller's wish: finds networks, chooses names, builds the image, and
reports every mistake that it can find, before anything is made."""

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from tapwright import cni, command
from tapwright.config import Config
from tapwright.config.sections import LEAST_MEMORY, Qemu, Runtime
from tapwright.errors import HypervisorError, NetworkError, UsageError
from tapwright.hypervisor.machine import Daemon, Machine
from tapwright.hypervisor.ports import MOST
from tapwright.image import store
from tapwright.linux import cgroups, links, netns
from tapwright.linux.netlink import Netlink
from tapwright.progress import Progress
from tapwright.state.record import NetworkRequest, Spec, TapRequest

if TYPE_CHECKING:
    from tapwright.sandbox.taps import TapWish


def our_monitor() -> list[str]:
    """The command of Tapwright's own monitor, by its own name, so that ps shows it."""
    beside = os.path.join(os.path.dirname(command.path()), "tapwright-netmon")
    if os.access(beside, os.X_OK):
        return [beside]
    return [sys.executable, "-P", "-m", "tapwright.netmon"]


_PUBLISH = re.compile(
    r"(?:(?P<ip>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<host>\d+):(?P<container>\d+)"
    r"(?:/(?P<protocol>tcp|udp|sctp))?"
)
_PORTS = range(1, 65536)
_SLOTS_AT_ONCE = 8
_STARTS_EACH = 2
"""Sandboxes that start at once, for each CPU: a start does not only compute."""
_ADDRESSABLE_MIB = 512 << 10
"""QEMU's own processor reaches 1 TiB (`-cpu max`), of which devices and alignment take some."""


class Wish(NamedTuple):
    """The caller's request. `networks` are (name, ifname), ifname empty for eth0, eth1, …;
    `published` are portMappings entries (CNI conventions, "port mappings"). With `share` the guest
    can see files of the host. `cgroup` is the control group to join: None for one of the sandbox's
    own, empty for none. The VM may grow for the container `first` and for others beside it."""

    networks: Sequence[tuple[str, str]] = ()
    published: Sequence[dict[str, Any]] = ()
    taps: "Sequence[TapWish]" = ()
    netns: str = ""
    memory_mib: int = 0
    vcpus: int = 0
    share: bool = False
    cgroup: str | None = None
    first: str = ""


def plan(config: Config, wish: Wish, progress: Progress) -> Spec:
    """The specification for `lifecycle.run`. Builds the guest image where there is none.

    Raises UsageError, NetworkError, HypervisorError, ImageError.
    """
    _check_netns(config, wish)
    _check_taps(wish.taps)
    of_its_own = wish.cgroup is None and bool(config.runtime.sandbox_cgroup)
    names = _ifnames([*(ifname for _, ifname in wish.networks), *(tap.name for tap in wish.taps)])
    networks = _networks(config, wish, names[: len(wish.networks)])
    qemu = config.qemu
    memory = wish.memory_mib or qemu.default_memory
    if memory < LEAST_MEMORY:
        raise UsageError(
            f"{memory} MiB of memory are too little: a guest needs {LEAST_MEMORY} (--memory, "
            "default_memory)"
        )
    if qemu.file_mem_backend and not Path(qemu.file_mem_backend).is_dir():
        raise HypervisorError(
            f"[hypervisor.qemu] file_mem_backend: {qemu.file_mem_backend} is no directory"
        )
    for file in filter(None, (qemu.kernel, qemu.initrd)):
        if not Path(file).exists():
            raise HypervisorError(f"{file} is missing; build an image or name another one")
    if not _is_program(qemu.path):
        raise HypervisorError(
            f"QEMU ({qemu.path}) is not installed: install qemu-system-x86, or set path in "
            "[hypervisor.qemu]"
        )
    daemon = Daemon(qemu.virtio_fs_daemon, qemu.virtio_fs_cache, qemu.virtio_fs_extra_args)
    kernel, initrd, disk = _guest(config, progress)
    machine = Machine(
        kernel=Path(kernel),
        initrd=Path(initrd),
        disk=Path(disk) if disk else None,
        accelerator=qemu.accelerator,
        qemu=qemu.path,
        memory_mib=memory,
        vcpus=wish.vcpus or qemu.default_vcpus,
        most_memory_mib=most_memory_mib(qemu) if wish.first else 0,
        memory_slots=qemu.memory_slots if wish.first else 0,
        most_vcpus=qemu.default_maxvcpus or cpus() if wish.first else 0,
        machine_type=qemu.machine_type,
        slots=_slots(config, wish),
        memory_directory=qemu.file_mem_backend,
        hugepages=qemu.enable_hugepages,
        vhost=not qemu.disable_vhost_net,
        debug=qemu.enable_debug,
        share=daemon if wish.share else None,
        kernel_params=qemu.kernel_params,
    )
    return Spec(
        machine=machine,
        netns=wish.netns,
        networks=networks,
        plugin_path=list(config.cni.bin_dirs),
        cni_cache=config.cni.cache_dir,
        boot_timeout=qemu.boot_timeout,
        most_starts=_most_starts(config.runtime),
        model=config.runtime.internetworking_model,
        rx_limit=qemu.rx_rate_limiter_max_rate,
        tx_limit=qemu.tx_rate_limiter_max_rate,
        netmon=monitor(config),
        in_host_netns=config.runtime.disable_new_netns,
        rulesets=config.runtime.netns_rulesets,
        template=config.factory.template_path if config.factory.enable_template else "",
        template_limit=config.factory.template_limit,
        spares=config.factory.vm_cache_number if config.factory.enable_template else 0,
        spare_seconds=config.factory.spare_seconds,
        configuration=os.path.abspath(config.source) if config.source else "",
        cgroup=_group_above(config) if of_its_own else wish.cgroup or "",
        cgroup_of_its_own=of_its_own,
        cgroup_limits=_limits(config.runtime) if of_its_own else {},
        default_memory_mib=qemu.default_memory,
        first=wish.first,
        overhead_memory=config.runtime.overhead_memory,
        overhead_cpu=config.runtime.overhead_cpu,
        short_listing=config.runtime.enable_compat_old_cni,
        taps=_taps(wish.taps, names[len(wish.networks) :]),
    )


def _slots(config: Config, wish: Wish) -> int:
    """The number of NICs for which the machine has room: the configured one, or more when more are
    known before the start. Then in eights, because each number needs a template of its own."""
    qemu = config.qemu
    known = len(wish.networks) + len(wish.taps)
    if wish.netns:
        known += _interfaces(wish.netns)
    if known <= qemu.slots:
        return qemu.slots
    return min(-(-known // _SLOTS_AT_ONCE) * _SLOTS_AT_ONCE, MOST[qemu.machine_type])


def _interfaces(path: str) -> int:
    """How many interfaces of a namespace may become NICs; 0 when it can't be read, for which the
    start will report an error."""
    with contextlib.suppress(OSError), netns.entered(path), Netlink() as nl:
        found = (one for one in links.listing(nl) if one.is_ethernet and not one.is_loopback)
        return sum(not one.is_port and one.kind != "bridge" for one in found)
    return 0


def most_memory_mib(qemu: Qemu) -> int:
    """The most memory for a VM that grows: that of the configuration, but no more than the host
    has."""
    of_host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    return min(qemu.default_maxmemory or of_host, of_host, _ADDRESSABLE_MIB)


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def _most_starts(runtime: Runtime) -> int:
    most = runtime.max_concurrent_starts
    return most if most >= 0 else _STARTS_EACH * cpus()


def _group_above(config: Config) -> str:
    try:
        return cgroups.expanded(config.runtime.sandbox_cgroup)
    except ValueError as error:
        raise UsageError(f"[runtime] sandbox_cgroup: {error}") from None


def _limits(runtime: Runtime) -> dict[str, int]:
    """The `cgroups.Limits` of the configuration."""
    found: dict[str, int] = {}
    if runtime.cpu_max:
        found |= {
            "cpu_period": cgroups.PERIOD,
            "cpu_quota": runtime.cpu_max * cgroups.PERIOD // 100,
        }
    if runtime.memory_max:
        found["memory"] = runtime.memory_max << 20
    if runtime.pids_max:
        found["pids"] = runtime.pids_max
    return found


def parse_published(text: str) -> dict[str, Any]:
    """Read `[IP:]HOSTPORT:PORT[/PROTOCOL]`, an IPv6 address in brackets. Raises UsageError."""
    match = _PUBLISH.fullmatch(text)
    ports = [int(match["host"]), int(match["container"])] if match else []
    if match is None or any(port not in _PORTS for port in ports):
        raise UsageError(f"{text!r} is not a port to publish, [IP:]HOSTPORT:PORT[/tcp|udp|sctp]")
    mapping = {
        "hostPort": ports[0],
        "containerPort": ports[1],
        "protocol": match["protocol"] or "tcp",
    }
    if match["ip"]:
        mapping["hostIP"] = match["ip"].strip("[]")
    return mapping


def _check_netns(config: Config, wish: Wish) -> None:
    if config.runtime.disable_new_netns and (wish.networks or wish.netns):
        raise UsageError(
            "with disable_new_netns a sandbox has no network namespace, so neither --network nor "
            "--netns: give it TAPs of the host's (--tap), or set disable_new_netns = false"
        )


def monitor(config: Config) -> list[str]:
    """The network monitor's command; empty for no monitor. Raises NetworkError."""
    netmon = config.netmon
    if not netmon.enable_netmon:
        return []
    if netmon.path and not os.path.isabs(netmon.path):
        raise NetworkError(f"[netmon] path: {netmon.path} must be an absolute path")
    if netmon.path and not (os.path.isfile(netmon.path) and os.access(netmon.path, os.X_OK)):
        what = "not executable" if os.path.exists(netmon.path) else "missing"
        raise NetworkError(
            f"[netmon] path: {netmon.path} is {what}; name another monitor, leave path out for "
            "Tapwright's own, or set enable_netmon = false"
        )
    debug = ["-d"] if netmon.enable_debug else []
    return [*([netmon.path] if netmon.path else our_monitor()), *debug]


def _taps(taps: "Sequence[TapWish]", names: Sequence[str]) -> list[TapRequest]:
    if not taps:
        return []
    from tapwright.sandbox.taps import requested  # few have use for it

    return [requested(tap, name) for tap, name in zip(taps, names, strict=True)]


def _check_taps(taps: "Sequence[TapWish]") -> None:
    if not taps:
        return
    from tapwright.endpoint import host_tap

    devices = [tap.device for tap in taps]
    for tap in taps:
        if devices.count(tap.device) > 1:
            raise UsageError(f"--tap {tap.device}: two NICs can't have the same TAP")
        host_tap.is_connected(tap.device, tap.bridge, tap.ovs)


def _networks(config: Config, wish: Wish, ifnames: Sequence[str]) -> list[NetworkRequest]:
    published = list(wish.published)
    requests = []
    for (name, _), ifname in zip(wish.networks, ifnames, strict=True):
        try:
            network = cni.find_network(config.cni.conf_dir, name)
        except cni.ConfigurationError as error:
            raise NetworkError(str(error)) from None
        _check_plugins(network, config.cni.bin_dirs)
        capability_args = {}
        if published and "portMappings" in network.capabilities:
            # Only the first network that can, because a port of the host leads to one place.
            capability_args["portMappings"], published = published, []
        requests.append(
            NetworkRequest(
                name,
                ifname,
                network.whole.decode(errors="replace"),
                network.source,
                capability_args,
                network.raw.decode(errors="replace") if network.raw != network.whole else "",
            )
        )
    if published:
        raise UsageError(
            "a port can't be published: none of the networks has a plugin with the capability "
            "'portMappings' (the reference plugin is portmap)"
        )
    return requests


def _check_plugins(network: cni.Network, directories: Sequence[str]) -> None:
    """Raises NetworkError for a missing plugin: without it, DEL of the chain would fail, too."""
    for plugin in network.plugins:
        if cni.find_plugin(plugin["type"], directories) is None:
            raise NetworkError(
                f"network {network.name!r} needs the plugin {plugin['type']!r}, which is not in "
                f"{' or '.join(directories)}: install it, or name its directory with --plugin-dir"
            )


def _is_program(name: str) -> bool:
    """As shutil.which(), which loads decompressors."""
    places = (os.path.join(directory, name) for directory in os.get_exec_path())
    return any(os.path.isfile(place) and os.access(place, os.X_OK) for place in places)


def _ifnames(wanted: Sequence[str]) -> list[str]:
    for name in filter(None, wanted):
        if not cni.is_interface_name(name):
            raise UsageError(
                f"{name!r} is not an interface name: 1 to 15 bytes without '/', ':' and white space"
            )
    chosen = {name for name in wanted if name}
    if len(chosen) < sum(map(bool, wanted)):
        raise UsageError("two NICs can't have the same name")
    free = (name for name in (f"eth{n}" for n in range(len(wanted) + 1)) if name not in chosen)
    return [name or next(free) for name in wanted]


def _guest(config: Config, progress: Progress) -> tuple[str, str, str]:
    """(kernel, initrd, disk): the configured ones, or those of Tapwright's image. Only that image's
    initrd can use the disk."""
    qemu = config.qemu
    if qemu.kernel and qemu.initrd:
        return qemu.kernel, qemu.initrd, ""
    image = store.ensure(Path(config.image.store), progress)
    disk = "" if qemu.initrd else str(image.disk)
    return qemu.kernel or str(image.kernel), qemu.initrd or str(image.initrd), disk
