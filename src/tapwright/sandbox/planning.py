"""From what a caller asks for to a specification: networks found, names given, the image built,
and whatever can be known to be wrong said before anything is made."""

import os
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapwright import cni, command
from tapwright.config import Config
from tapwright.config.sections import LEAST_MEMORY
from tapwright.endpoint import host_tap
from tapwright.errors import HypervisorError, NetworkError, UsageError
from tapwright.image import store
from tapwright.sandbox.record import NetworkRequest, Spec
from tapwright.sandbox.taps import TapWish, requested

Progress = Callable[[str], None]


def our_monitor() -> list[str]:
    """The command of Tapwright's own monitor: by its name, under which it is found by ps."""
    beside = os.path.join(os.path.dirname(command.path()), "tapwright-netmon")
    if os.access(beside, os.X_OK):
        return [beside]
    return [sys.executable, "-P", "-m", "tapwright.netmon"]


_PUBLISH = re.compile(
    r"(?:(?P<ip>[0-9.]+|\[[0-9A-Fa-f:.]+\]):)?(?P<host>\d+):(?P<container>\d+)"
    r"(?:/(?P<protocol>tcp|udp|sctp))?"
)
_PORTS = range(1, 65536)


@dataclass(frozen=True)
class Wish:
    """What a caller asks for. `networks` are (name, ifname), ifname empty for eth0, eth1, …;
    `published` are portMappings entries (CNI conventions, "port mappings"). With `share`
    the guest can be shown files of the host."""

    networks: Sequence[tuple[str, str]] = ()
    published: Sequence[dict[str, Any]] = ()
    taps: Sequence[TapWish] = ()
    netns: str = ""
    memory_mib: int = 0
    vcpus: int = 0
    share: bool = False


def plan(config: Config, wish: Wish, progress: Progress) -> Spec:
    """The specification for `lifecycle.run`. Builds the guest image where there is none.

    Raises UsageError, NetworkError, HypervisorError, ImageError.
    """
    _check_netns(config, wish)
    _check_taps(wish.taps)
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
    if shutil.which(qemu.path) is None:
        raise HypervisorError(
            f"QEMU ({qemu.path}) is not installed: install qemu-system-x86, or set path in "
            "[hypervisor.qemu]"
        )
    kernel, initrd = _guest(config, progress)
    return Spec(
        kernel=kernel,
        initrd=initrd,
        netns=wish.netns,
        networks=networks,
        plugin_path=list(config.cni.bin_dirs),
        cni_cache=config.cni.cache_dir,
        qemu=qemu.path,
        accelerator=qemu.accelerator,
        kernel_params=qemu.kernel_params,
        memory_mib=memory,
        vcpus=wish.vcpus or qemu.default_vcpus,
        boot_timeout=qemu.boot_timeout,
        memory_directory=qemu.file_mem_backend,
        slots=qemu.slots,
        machine_type=qemu.machine_type,
        hugepages=qemu.enable_hugepages,
        vhost=not qemu.disable_vhost_net,
        debug=qemu.enable_debug,
        model=config.runtime.internetworking_model,
        rx_limit=qemu.rx_rate_limiter_max_rate,
        tx_limit=qemu.tx_rate_limiter_max_rate,
        netmon=monitor(config),
        in_host_netns=config.runtime.disable_new_netns,
        template=config.factory.template_path if config.factory.enable_template else "",
        share=wish.share,
        share_daemon=qemu.virtio_fs_daemon,
        share_cache=qemu.virtio_fs_cache,
        share_arguments=list(qemu.virtio_fs_extra_args),
        taps=[
            requested(tap, name)
            for tap, name in zip(wish.taps, names[len(wish.networks) :], strict=True)
        ],
    )


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
    """The network monitor's command, empty where there is to be none."""
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


def _check_taps(taps: Sequence[TapWish]) -> None:
    devices = [tap.device for tap in taps]
    for tap in taps:
        if devices.count(tap.device) > 1:
            raise UsageError(f"--tap {tap.device}: two NICs can't have the same TAP")
        host_tap.check(tap.device, tap.bridge, tap.ovs)


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
            # The first network that can: a port of the host leads to one place.
            capability_args["portMappings"], published = published, []
        requests.append(
            NetworkRequest(name, ifname, network.raw.decode(), network.source, capability_args)
        )
    if published:
        raise UsageError(
            "a port can't be published: none of the networks has a plugin with the capability "
            "'portMappings' (the reference plugin is portmap)"
        )
    return requests


def _check_plugins(network: cni.Network, directories: Sequence[str]) -> None:
    """A chain with a plugin missing could not be taken down again."""
    for plugin in network.plugins:
        if cni.find_plugin(plugin["type"], directories) is None:
            raise NetworkError(
                f"network {network.name!r} needs the plugin {plugin['type']!r}, which is not in "
                f"{' or '.join(directories)}: install it, or name its directory with --plugin-dir"
            )


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


def _guest(config: Config, progress: Progress) -> tuple[str, str]:
    """(kernel, initrd): the configured ones, or those of our image."""
    qemu = config.qemu
    if qemu.kernel and qemu.initrd:
        return qemu.kernel, qemu.initrd
    image = store.ensure(Path(config.image.store), progress)
    return qemu.kernel or str(image.kernel), qemu.initrd or str(image.initrd)
