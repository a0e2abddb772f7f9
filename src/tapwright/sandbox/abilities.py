"""What this host's kernel and processor can do for sandboxes. This module tries each ability in a
network namespace of its own. To try KVM, it boots a guest, at most once for each boot of the
host."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

from tapwright.config import Config
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.machine import Machine
from tapwright.linux import modules, trial
from tapwright.progress import Progress
from tapwright.sandbox.finding import OK, PROBLEM, WARNING, Finding

Attempt = Callable[[], OSError | None]

_PRIVILEGES = (
    "run it as root with CAP_SYS_ADMIN and CAP_NET_ADMIN, which a container has when it is "
    "privileged"
)
_NO_TUN = "this kernel has no driver 'tun', without which a VM has no NIC: it needs CONFIG_TUN"
_NO_VHOST = (
    "this kernel has no module 'vhost_net': set disable_vhost_net = true in [hypervisor.qemu]"
)
_NO_LIMITS = (
    "the kernel lacks sch_htb or ifb: set rx_rate_limiter_max_rate and tx_rate_limiter_max_rate in "
    "[hypervisor.qemu] to 0"
)
_VHOST = "/dev/vhost-net"
_MISC = Path("/sys/class/misc")
_CPUINFO = Path("/proc/cpuinfo")
_CGROUPS = Path("/sys/fs/cgroup")


def kvm(config: Config, files: tuple[Path, Path] | None, progress: Progress) -> Finding:
    """Whether the guest of these files (kernel, initrd) boots on KVM."""
    if config.qemu.accelerator == "tcg":
        return Finding("KVM", OK, "not wanted: accelerator is tcg")
    if os.geteuid() != 0:
        return Finding("KVM", WARNING, "unknown: only root can try", "run it with sudo")
    if files is None:
        return Finding("KVM", WARNING, "unknown without QEMU and guest image")
    machine = Machine(*files, accelerator="auto", qemu=config.qemu.path)
    chosen, reason = asyncio.run(accelerator.choose(machine, progress))
    if chosen == "kvm":
        return Finding("KVM", OK, f"works: {reason}")
    reason, advice = _without_kvm(reason)
    if config.qemu.accelerator == "kvm":
        other = 'set accelerator = "auto" in [hypervisor.qemu]'
        advice = f"{other}, or {advice}" if advice else other
        return Finding("KVM", PROBLEM, f"does not work: {reason}", advice)
    found = f"does not work, so guests are emulated, which is slower: {reason}"
    meant = 'if that is meant to be, set accelerator = "tcg" in [hypervisor.qemu]'
    return Finding("KVM", WARNING, found, advice or meant)


def _without_kvm(reason: str) -> tuple[str, str]:
    """(why KVM does not work, what to do about it)."""
    if reason.startswith(accelerator.CLOSED):
        return accelerator.CLOSED, f"run: {accelerator.TO_OPEN}"
    if os.path.exists("/dev/kvm"):
        return reason, ""
    if (_MISC / "kvm").exists():
        return "this system has no /dev/kvm, and its kernel has", "pass /dev/kvm in"
    flags = _CPUINFO.read_text().split()
    module = "kvm_intel" if "vmx" in flags else "kvm_amd" if "svm" in flags else ""
    if not module:
        advice = (
            "switch virtualization on in the machine's firmware or, if it is itself a virtual "
            "machine, nested virtualization on its host"
        )
        return f"{reason}, and the processor shows no virtualization", advice
    if modules.is_there(module):
        return reason, f"run: modprobe {module}"
    return f"{reason}, and the kernel has no module {module}", ""


def tap() -> Finding:
    return _tried(
        "TAP",
        trial.tap,
        lambda: _device("/dev/net/tun", "tun", "tun", "10 200") or _NO_TUN,
    )


def vhost(config: Config) -> Finding:
    name = "vhost-net"
    if config.qemu.disable_vhost_net:
        return Finding(name, OK, "not wanted: disable_vhost_net is set")
    try:
        os.close(os.open(_VHOST, os.O_RDWR | os.O_CLOEXEC))
    except PermissionError as error:
        if os.geteuid() != 0:
            return Finding(name, WARNING, "unknown: only root can try", "run it with sudo")
        why, advice = error.strerror, _PRIVILEGES
    except OSError as error:
        why, advice = error.strerror, _device(_VHOST, name, "vhost_net", "10 238")
    else:
        return Finding(name, OK, _VHOST)
    found = f"{_VHOST}: {why}; QEMU moves the frames, which is slower"
    return Finding(name, WARNING, found, advice or _NO_VHOST)


def joining(config: Config) -> list[Finding]:
    """Whether the kernel can join interfaces with NICs, and limit their rates."""
    model = config.runtime.internetworking_model
    limited = bool(config.qemu.rx_rate_limiter_max_rate or config.qemu.tx_rate_limiter_max_rate)
    unused = f"internetworking_model is {model}"
    return [
        _tried("tc", trial.redirection, lambda: _other("macvtap", trial.macvtap))
        if model == "tcfilter"
        else _not_needed("tc", trial.redirection, unused),
        _tried("macvtap", trial.macvtap, lambda: _other("tcfilter", trial.redirection))
        if model == "macvtap"
        else _not_needed("macvtap", trial.macvtap, unused),
        _tried("rate limits", trial.limits, lambda: _NO_LIMITS)
        if limited
        else _not_needed("rate limits", trial.limits, "there are none"),
    ]


def _other(model: str, attempt: Attempt) -> str:
    """What to do where the kernel lacks what an internetworking model needs."""
    if attempt() is None:
        return f'the kernel lacks the modules: set internetworking_model = "{model}" in [runtime]'
    return (
        "the kernel lacks macvtap, and cls_u32 or act_mirred: it needs CONFIG_NET_CLS_U32 and "
        "CONFIG_NET_ACT_MIRRED, or CONFIG_MACVTAP"
    )


def _device(path: str, name: str, module: str, numbers: str) -> str:
    """What to do where a driver's device file is missing; empty for no advice."""
    if (_MISC / name).exists():
        return f"run: mkdir -p {os.path.dirname(path)} && mknod {path} c {numbers}"
    if modules.is_there(module):
        return f"in a container, pass {path} in; elsewhere run: modprobe {module}"
    return ""


def cgroups() -> Finding:
    """The host's version of cgroups (cgroups(7)); platforms need one, sandboxes do not."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return Finding("cgroups", OK, "version 2")
    if (_CGROUPS / "unified" / "cgroup.controllers").exists():
        return Finding("cgroups", OK, "version 1, and version 2 beside it")
    if any(_CGROUPS.glob("*/cgroup.procs")):
        return Finding("cgroups", OK, "version 1")
    found = f"none at {_CGROUPS}: sandboxes start, platforms want them"
    return Finding("cgroups", WARNING, found, f"run: mount -t cgroup2 cgroup2 {_CGROUPS}")


def _tried(name: str, attempt: Attempt, advice: Callable[[], str]) -> Finding:
    if os.geteuid() != 0:
        return Finding(name, WARNING, "unknown: only root can try", "run it with sudo")
    error = attempt()
    if error is None:
        return Finding(name, OK, "works")
    remedy = _PRIVILEGES if error.errno in (errno.EPERM, errno.EACCES) else advice()
    return Finding(name, PROBLEM, f"does not work: {error}", remedy)


def _not_needed(name: str, attempt: Attempt, why: str) -> Finding:
    if os.geteuid() != 0 or attempt() is not None:
        return Finding(name, OK, f"not needed: {why}")
    return Finding(name, OK, "works")
