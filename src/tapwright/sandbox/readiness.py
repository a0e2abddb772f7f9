"""Can this host run a sandbox with this configuration? What it has, what is missing, what to do.

The check changes nothing. It tries abilities of the kernel in a namespace of its own. For KVM it
uses the verdict that sandboxes use; if there is none yet, it boots the guest once.
"""

import os
from collections.abc import Iterator

from tapwright import cni
from tapwright.config import Config
from tapwright.errors import NetworkError
from tapwright.linux import distribution
from tapwright.progress import Progress
from tapwright.sandbox import abilities, installed, planning, spares
from tapwright.sandbox.finding import OK, PROBLEM, WARNING, Finding


def findings(config: Config, progress: Progress, root: str = "") -> list[Finding]:
    """All findings about the host, and about spares in the state directory `root`. Booting a guest
    to try KVM takes up to 6 s, once."""
    system = distribution.this()
    qemu, guest = installed.qemu(config, system), installed.guest(config, system)
    firmware = list(installed.firmware(config, system)) if qemu.state == OK else []
    usable = PROBLEM not in {finding.state for finding in (qemu, guest, *firmware)}
    return [
        _root(),
        qemu,
        *firmware,
        guest,
        installed.users_of_qemu(),
        abilities.kvm(config, installed.guest_files(config) if usable else None, progress),
        installed.template(config),
        *_spares(config, root),
        *installed.memory(config),
        abilities.tap(),
        *abilities.joining(config),
        abilities.vhost(config),
        abilities.cgroups(),
        *_monitor(config),
        installed.share(config, system),
        installed.firewall(system),
        *installed.plugins(config, system),
        *_networks(config),
    ]


def _root() -> Finding:
    if os.geteuid() == 0:
        return Finding("root", OK, "yes")
    advice = "run it with sudo: sandboxes need network namespaces and TAP devices"
    return Finding("root", PROBLEM, "no", advice)


def _spares(config: Config, root: str) -> Iterator[Finding]:
    found = spares.listing(root) if root and os.geteuid() == 0 else []
    if found:
        held = sum(map(spares.held_mib, found))
        yield Finding("spares", OK, f"{len(found)} of {held} MiB (tapwright sandbox spares)")
    elif config.factory.enable_template and config.factory.vm_cache_number:
        yield Finding("spares", OK, "none so far: the first sandbox of each kind makes one")


def _monitor(config: Config) -> Iterator[Finding]:
    try:
        command = planning.monitor(config)
    except NetworkError as error:
        yield Finding("monitor", PROBLEM, str(error))
    else:
        if command:
            yield Finding("monitor", OK, config.netmon.path or "our own")


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
