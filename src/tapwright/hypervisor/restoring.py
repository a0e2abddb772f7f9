"""Restores a guest from a template: its memory, and a QEMU that has all commands from the
beginning.

The module does not need asyncio, so QEMU restores the guest while the supervisor loads asyncio.
"""

import fcntl
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from tapwright.agent import protocol
from tapwright.hypervisor import process
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.process import Spawned
from tapwright.hypervisor.qmp_wire import Command
from tapwright.hypervisor.template_store import Template
from tapwright.linux import memfd

CAPABILITIES = [
    {"capability": "x-ignore-shared", "state": True},  # the supervisor has the memory already
    {"capability": "events", "state": True},
]


class Holders(Protocol):
    """Finds other processes that hold a template's memory in a memfd, and registers this
    process."""

    def paths(self) -> Iterable[str]:
        """Return the paths of possible memory, as /proc/PID/fd/N."""

    def enter(self, fd: int) -> None:
        """Register this process's memory for others, as long as the process has it."""


@dataclass
class Restoring:
    """A QEMU that reads a guest from a template and runs it, and the session in which the guest's
    agent is greeted."""

    template: Template
    spawned: Spawned
    session: int


def begin(machine: Machine, template: Template, holders: Holders) -> Restoring:
    """Start a guest from a template. The guest runs as soon as QEMU has read the state, and then
    finds the greeting for its agent. A QEMU that can't read the state ends.

    Raises DamagedError, HypervisorError, OSError.
    """
    memory = memory_of(machine, template, holders)
    state = template.stream()
    try:
        spawned = process.spawn(
            machine,
            memory,
            [
                Command("migrate-set-capabilities", {"capabilities": CAPABILITIES}),
                Command("getfd", {"fdname": "state"}, state),
                Command("migrate-incoming", {"uri": "fd:state"}),
            ],
        )
    finally:
        os.close(state)
        if memory.is_own:
            os.close(memory.fd)
    session, greeting = protocol.opening()
    spawned.agent.sendall(greeting)
    return Restoring(template, spawned, session)


def memory_of(machine: Machine, template: Template, holders: Holders) -> SavedMemory:
    """Return the memory from which QEMU restores a guest. Raises DamagedError, OSError."""
    if machine.has_private_memory:
        return SavedMemory(_sealed(template, holders), is_complete=True)
    return SavedMemory(_copied(machine, template), is_complete=True, is_own=True)


def _sealed(template: Template, holders: Holders) -> int:
    """Return a sealed memfd with the memory of a template: that of another process, or a new
    one."""
    fd = _taken_over(template, holders)
    if fd is None:
        # One process fills it, and the others find it then.
        fcntl.flock(template.directory, fcntl.LOCK_EX)
        try:
            fd = _taken_over(template, holders)
            if fd is None:
                fd = template.fill()
            holders.enter(fd)
        finally:
            fcntl.flock(template.directory, fcntl.LOCK_UN)
        return fd
    holders.enter(fd)
    return fd


def _copied(machine: Machine, template: Template) -> int:
    """Make memory of the kind that the machine would boot with, and copy a template's pages to
    it."""
    fd = process.own_memory(machine, template.memory_size)
    try:
        template.copy_to(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _taken_over(template: Template, holders: Holders) -> int | None:
    for path in holders.paths():
        fd = memfd.open_sealed(path, template.memory_name, template.memory_size)
        if fd is not None:
            return fd
    return None
