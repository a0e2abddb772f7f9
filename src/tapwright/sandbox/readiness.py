"""Can this host run a sandbox with this configuration? What there is, what is missing, what to do.

Nothing is changed: what the kernel can do is tried in a namespace of its own, and whether KVM works
is asked of the verdict that sandboxes go by, which boots the guest once where there is none yet.
"""

import asyncio
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tapwright import cni
from tapwright.config import Config
from tapwright.errors import HypervisorError, NetworkError
from tapwright.hypervisor import accelerator, virtiofsd
from tapwright.hypervisor.machine import Machine, check_hugepages
from tapwright.image import store
from tapwright.linux import trial
from tapwright.sandbox import planning

Progress = Callable[[str], None]

OK, WARNING, PROBLEM = "ok", "warning", "problem"

_VERSION_SECONDS = 10.0


@dataclass(frozen=True)
class Finding:
    """Something the host has or lacks. A `problem` keeps every sandbox from starting; a `warning`
    makes it slower, or keeps it off a network. `advice` says what to do."""

    name: str
    state: str
    found: str
    advice: str = ""


def findings(config: Config, progress: Progress) -> list[Finding]:
    """All there is to say of the host. Booting a guest to try KVM takes up to 6 s, once."""
    qemu, guest = _qemu(config), _guest(config)
    usable = PROBLEM not in (qemu.state, guest.state)
    return [
        _root(),
        qemu,
        guest,
        _kvm(config, progress) if usable else _kvm_unknown(config, "unknown without QEMU or guest"),
        *_memory(config),
        *_kernel(config),
        _vhost(config),
        *_monitor(config),
        _share(config),
        _firewall(),
        *_plugins(config),
        *_networks(config),
    ]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", OK, "yes")
    advice = "run it with sudo: sandboxes need network namespaces and TAP devices"
    return Finding("root", PROBLEM, "no", advice)


def _qemu(config: Config) -> Finding:
    wanted = config.qemu.path
    advice = "install qemu-system-x86, or set path in [hypervisor.qemu]"
    path = shutil.which(wanted)
    if path is None:
        return Finding("QEMU", PROBLEM, f"{wanted} is not installed", advice)
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_VERSION_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("QEMU", PROBLEM, f"{path} does not run: {error}", advice)
    first = done.stdout.partition("\n")[0]
    if done.returncode or "QEMU" not in first:
        return Finding("QEMU", PROBLEM, f"{path} is no QEMU that runs", advice)
    return Finding("QEMU", OK, f"{path}: {first}")


def _guest(config: Config) -> Finding:
    qemu = config.qemu
    for file in filter(None, (qemu.kernel, qemu.initrd)):
        if not os.path.exists(file):
            advice = "name another in [hypervisor.qemu], or none: Tapwright builds its own"
            return Finding("guest image", PROBLEM, f"{file} is missing", advice)
    files = _guest_files(config)
    if files is None:
        advice = "tapwright image build (the first sandbox does it too)"
        return Finding("guest image", WARNING, "not built yet", advice)
    return Finding("guest image", OK, " and ".join(map(str, files)))


def _guest_files(config: Config) -> tuple[Path, Path] | None:
    """Kernel and initrd; None where our image is wanted and not built."""
    kernel, initrd = config.qemu.kernel, config.qemu.initrd
    if kernel and initrd:
        return Path(kernel), Path(initrd)
    image = store.find(Path(config.image.store))
    if image is None:
        return None
    return Path(kernel) if kernel else image.kernel, Path(initrd) if initrd else image.initrd


def _kvm(config: Config, progress: Progress) -> Finding:
    if config.qemu.accelerator == "tcg":
        return Finding("KVM", OK, "not wanted: accelerator is tcg")
    if os.geteuid() != 0:
        return _kvm_unknown(config, "unknown: only root can try")
    files = _guest_files(config)
    if files is None:
        return _kvm_unknown(
            config, "unknown until the guest image is built", "tapwright image build"
        )
    machine = Machine(*files, accelerator="auto", path=config.qemu.path)
    chosen, reason = asyncio.run(accelerator.choose(machine, progress))
    if chosen == "kvm":
        return Finding("KVM", OK, f"works: {reason}")
    if config.qemu.accelerator == "kvm":
        advice = 'set accelerator = "auto" in [hypervisor.qemu]'
        return Finding("KVM", PROBLEM, f"does not work: {reason}", advice)
    return Finding("KVM", WARNING, f"does not work, software emulation does: {reason}")


def _kvm_unknown(config: Config, why: str, advice: str = "") -> Finding:
    wanted = config.qemu.accelerator != "tcg"
    return Finding("KVM", WARNING if wanted else OK, why if wanted else "not wanted", advice)


def _memory(config: Config) -> Iterator[Finding]:
    directory = config.qemu.file_mem_backend
    if directory and not os.path.isdir(directory):
        advice = "make it, or name another in [hypervisor.qemu]"
        yield Finding("memory", PROBLEM, f"file_mem_backend {directory} is no directory", advice)
    if config.qemu.enable_hugepages:
        try:
            check_hugepages(config.qemu.default_memory)
        except HypervisorError as error:
            yield Finding("huge pages", PROBLEM, str(error))
        else:
            yield Finding("huge pages", OK, "enough are free")


def _kernel(config: Config) -> Iterator[Finding]:
    model = config.runtime.internetworking_model
    limited = bool(config.qemu.rx_rate_limiter_max_rate or config.qemu.tx_rate_limiter_max_rate)
    advice = "load the module 'tun'; in a container, pass /dev/net/tun in"
    yield _tried("TAP", trial.tap, "", advice)
    for name, attempt, unneeded, advice in (
        (
            "tc",
            trial.redirection,
            "" if model == "tcfilter" else f"internetworking_model is {model}",
            'the kernel lacks cls_u32 or act_mirred: set internetworking_model = "macvtap"',
        ),
        (
            "macvtap",
            trial.macvtap,
            "" if model == "macvtap" else f"internetworking_model is {model}",
            'the kernel lacks macvtap: set internetworking_model = "tcfilter"',
        ),
        (
            "rate limits",
            trial.limits,
            "" if limited else "there are none",
            "the kernel lacks sch_htb or ifb: set the limits in [hypervisor.qemu] to 0",
        ),
    ):
        yield _tried(name, attempt, unneeded, advice)


def _tried(name: str, attempt: Callable[[], OSError | None], unneeded: str, advice: str) -> Finding:
    """`unneeded` says why it does not matter; empty where it does."""
    if os.geteuid() != 0:
        return Finding(name, WARNING, "unknown: only root can try")
    error = attempt()
    if error is None:
        return Finding(name, OK, "works")
    if unneeded:
        return Finding(name, OK, f"does not work, and is not needed: {unneeded}")
    return Finding(name, PROBLEM, f"does not work: {error}", advice)


def _vhost(config: Config) -> Finding:
    if config.qemu.disable_vhost_net:
        return Finding("vhost-net", OK, "not wanted: disable_vhost_net is set")
    if os.path.exists("/dev/vhost-net"):
        return Finding("vhost-net", OK, "/dev/vhost-net")
    found = "there is no /dev/vhost-net: QEMU moves the frames, which is slower"
    return Finding("vhost-net", WARNING, found, "load the module 'vhost_net'")


def _monitor(config: Config) -> Iterator[Finding]:
    try:
        command = planning.monitor(config)
    except NetworkError as error:
        yield Finding("monitor", PROBLEM, str(error))
    else:
        if command:
            yield Finding("monitor", OK, config.netmon.path or "our own")


def _share(config: Config) -> Finding:
    configured = config.qemu.virtio_fs_daemon
    path = virtiofsd.find(configured)
    if path is None:
        found = "no virtiofsd: containers of platforms can't start"
        advice = "install virtiofsd (on Debian 12: qemu-system-common)"
        return Finding("file share", WARNING, found, advice)
    if configured and path != configured:
        found = f"{configured} is not there; {path} is used"
        advice = "change virtio_fs_daemon in [hypervisor.qemu]"
        return Finding("file share", WARNING, found, advice)
    return Finding("file share", OK, path)


def _firewall() -> Finding:
    found = [name for name in ("nft", "iptables") if shutil.which(name)]
    if found:
        return Finding("firewall", OK, ", ".join(found))
    advice = "install nftables or iptables, for plugins that masquerade or publish ports"
    return Finding("firewall", WARNING, "neither nft nor iptables", advice)


def _plugins(config: Config) -> list[Finding]:
    found = {directory: _executables(directory) for directory in config.cni.bin_dirs}
    if not any(found.values()):
        where = ", ".join(found) or "no directory"
        advice = "install containernetworking-plugins, or set bin_dirs in [cni]"
        return [Finding("plugins", WARNING, f"none in {where}", advice)]
    return [
        Finding("plugins", OK, f"{directory}: {', '.join(names) or 'none'}")
        for directory, names in found.items()
    ]


def _executables(directory: str) -> list[str]:
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return []
    return [name for name in names if cni.find_plugin(name, [directory])]


def _networks(config: Config) -> list[Finding]:
    networks, problems = cni.load_networks(config.cni.conf_dir)
    found = [_network(network, config) for network in networks]
    advice = "mend the file, and see with: tapwright cni validate"
    found += [Finding("network", WARNING, str(problem), advice) for problem in problems]
    if found:
        return found
    advice = "write one (docs/cni.md), or set conf_dir in [cni]"
    return [Finding("network", WARNING, f"none in {config.cni.conf_dir}", advice)]


def _network(network: cni.Network, config: Config) -> Finding:
    kinds = [str(plugin["type"]) for plugin in network.plugins]
    what = f"{network.name} ({network.source}): {', '.join(kinds)}"
    missing = [kind for kind in kinds if cni.find_plugin(kind, config.cni.bin_dirs) is None]
    if not missing:
        return Finding("network", OK, what)
    advice = "install it, or name its directory in bin_dirs of [cni]"
    return Finding("network", WARNING, f"{what}; missing: {', '.join(missing)}", advice)
