"""Chooses KVM or TCG, by booting a guest.

On some hosts /dev/kvm can be opened, and QEMU starts on it, but an ordinary guest kernel hangs:
some cloud machines have a KVM built for paravirtual guests only. So the real guest is booted once
under a deadline. The verdict is kept for this boot of the host, its kernel, this QEMU and this
guest.
"""

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from tapwright.errors import AgentError, ConfigError, HypervisorError
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.process import qemu_may_open_kvm
from tapwright.linux import files
from tapwright.progress import Progress

CHOICES = ("auto", "kvm", "tcg")
_VERDICT = Path("/run/tapwright/accelerator.json")  # /run is empty after each boot of the host
_DEADLINE = 6.0

CLOSED = "/dev/kvm is not open to QEMU's user, which is not root"
TO_OPEN = "groupadd -f kvm && chgrp kvm /dev/kvm && chmod 660 /dev/kvm"


def known(machine: Machine) -> tuple[str, str] | None:
    """Return the accelerator for a machine that wants `machine.accelerator`, and the reason; None
    if a guest must be booted to find out.

    Raises ConfigError for an unknown value.
    """
    wanted = machine.accelerator
    if wanted not in CHOICES:
        raise ConfigError(f"accelerator: {wanted!r} is none of {', '.join(CHOICES)}")
    if wanted != "auto":
        return wanted, "configured"
    if not os.path.exists("/dev/kvm"):
        return "tcg", "there is no /dev/kvm"
    try:
        verdict = json.loads(_VERDICT.read_text())
        if verdict["conditions"] == _conditions(machine):
            return verdict["accelerator"], verdict["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


async def choose(machine: Machine, progress: Progress) -> tuple[str, str]:
    """Return the verdict for a machine; boot a guest if the verdict is not known. Raises
    ConfigError."""
    if verdict := known(machine):
        return verdict
    import asyncio

    try:
        _VERDICT.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        opened = _VERDICT.with_suffix(".lock").open("w")
    except OSError:  # a full disk costs the time of a guest's boot, but no sandbox
        return await _probed(machine, progress)
    with opened as lock:
        # In a thread, because the holder of the lock may be booting a guest.
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        return known(machine) or await _probed(machine, progress)


async def _probed(machine: Machine, progress: Progress) -> tuple[str, str]:
    # Read before the boot: a change while the guest boots makes the verdict outdated.
    conditions = _conditions(machine)
    accelerator, reason = await _probe(machine, progress)
    verdict = {"accelerator": accelerator, "reason": reason, "conditions": conditions}
    with contextlib.suppress(OSError):
        files.replace(_VERDICT, json.dumps(verdict), synced=False, mode=0o666)
    return accelerator, reason


async def _probe(machine: Machine, progress: Progress) -> tuple[str, str]:
    if not qemu_may_open_kvm():
        return "tcg", f"{CLOSED}: {TO_OPEN}"
    import asyncio  # slow to load, and most often not needed

    from tapwright.agent.client import AgentClient
    from tapwright.hypervisor.qemu import Qemu

    progress("see whether KVM boots the guest (once for this boot of the host)")
    # The machine is as plain as possible: a fault of this particular machine says nothing about
    # KVM.
    trial = Machine(machine.kernel, machine.initrd, "kvm", qemu=machine.qemu)
    try:
        async with asyncio.timeout(_DEADLINE):
            qemu = await Qemu.start(trial)
    except (HypervisorError, TimeoutError) as error:
        return "tcg", f"KVM does not start: {error}"
    agent = AgentClient(qemu.agent, is_new=True, process=qemu.pid)
    try:
        await agent.connect(_DEADLINE)
    except AgentError:
        return "tcg", f"a guest on KVM did not boot within {_DEADLINE:g} s"
    finally:
        await agent.close()
        await qemu.kill()
    return "kvm", "a guest booted on it"


def _conditions(machine: Machine) -> list[str]:
    """Return everything on which the verdict depends and which can change while the host runs."""
    found = [os.uname().release]
    with contextlib.suppress(OSError):
        kvm = os.stat("/dev/kvm")
        found.append(f"/dev/kvm {kvm.st_uid} {kvm.st_gid} {kvm.st_mode:o}")
    for path in (shutil.which(machine.qemu) or machine.qemu, machine.kernel, machine.initrd):
        try:
            status = os.stat(path)
            found.append(f"{path} {status.st_size} {status.st_mtime_ns}")
        except OSError:
            found.append(f"{path} missing")
    return found
