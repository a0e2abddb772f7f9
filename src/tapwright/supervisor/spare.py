"""A spare: a supervisor that waits for a sandbox. Its guest was restored ahead, has a NIC, and has
answered. When a sandbox takes the spare, it becomes that sandbox's supervisor.

A spare is made at low priority, at which its guest also waits, in no control group, and is the
first process that the host's kernel kills for want of memory. It ends when no sandbox takes it for
a while, and when the template or the configuration has changed. All that it holds ends with it,
except its directory.
"""

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from tapwright.errors import ConfigError
from tapwright.linux import cgroups, links, netns, unixsocket
from tapwright.linux.netlink import Netlink
from tapwright.sandbox import spares
from tapwright.sandbox.report import Caller, Order
from tapwright.state.record import Spec

if TYPE_CHECKING:
    from tapwright.supervisor.prepared import Prepared

_NICE = 19
_FIRST_TO_GO = "1000"  # proc(5), oom_score_adj
_ANSWER_SECONDS = 30.0  # of an agent, at low priority
_PREPARE_SECONDS = 180.0
_MESSAGE_SECONDS = 30.0
_LOOK_SECONDS = 5.0
_IDLE_SECONDS, _IDLE_PAUSE = 60.0, 0.2
_LEFT_MIB = 256

Taker = tuple[Caller, Order]


def main(spec: Spec, root: str, at_once: bool) -> None:
    """Prepare a guest, and wait for the sandbox that takes it."""
    usual = os.getpriority(os.PRIO_PROCESS, 0)
    if not at_once:
        _set_priority(_NICE, [os.getpid()], _FIRST_TO_GO)
    entered = spares.enter(root, spec)
    if entered is None:
        return
    directory, alive = entered
    with contextlib.ExitStack() as held:
        # Closed as soon as a sandbox takes the spare, and else at the end.
        leaving = held.enter_context(contextlib.ExitStack())
        leaving.callback(spares.leave, directory, alive)
        if not (at_once or _has_room(spec)):
            return
        gc.disable()
        from tapwright.supervisor import main as supervisor

        supervisor.limit_files()
        supervisor.load_rest()
        runner = held.enter_context(asyncio.Runner())
        try:
            prepared = runner.run(_prepared_in_time(spec, directory))
        except Exception as error:  # no process waits for it; a later command may show it
            spares.note_failure(root, f"{type(error).__name__}: {error}")
            return
        if prepared is None:
            return
        held.callback(lambda: prepared.qemu.has_ended or runner.run(prepared.stop()))
        _set_priority(_NICE, prepared.qemu.pids(), _FIRST_TO_GO)
        # It takes no time while it waits, and has to answer in time on a host that is busy.
        _set_priority(usual, [os.getpid()], _FIRST_TO_GO)
        taker = runner.run(_Waiting(spec, directory, prepared).taker())
        leaving.close()
        if taker:
            caller, order = taker
            _set_priority(order.nice, [os.getpid(), *prepared.qemu.pids()])
            supervisor.supervise(order, caller, prepared, runner)
            if prepared.qemu.has_ended:
                os._exit(0)  # a deletion waits: closing the event loop would take longer


def _set_priority(nice: int, pids: Sequence[int], oom_score: str = "") -> None:
    """Set the priority of processes, with all their threads; that of this one for its session
    too."""
    for pid in pids:
        with contextlib.suppress(OSError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), nice)
    if os.getpid() in pids:
        with contextlib.suppress(OSError):
            # Where the kernel shares out processors between sessions first (sched(7)).
            Path("/proc/self/autogroup").write_text(str(nice))
    for pid in pids if oom_score else ():
        with contextlib.suppress(OSError):
            Path(f"/proc/{pid}/oom_score_adj").write_text(oom_score)


def _has_room(spec: Spec) -> bool:
    """Wait until half a processor is idle, and no sandbox starts; return whether it is in time,
    with memory to spare."""
    from tapwright.supervisor import starts

    deadline = time.monotonic() + _IDLE_SECONDS
    while time.monotonic() < deadline:
        before, start = _idle_seconds(), time.monotonic()
        time.sleep(_IDLE_PAUSE)  # no event reports it
        is_idle = (_idle_seconds() - before) / (time.monotonic() - start) > 0.5
        if is_idle and not starts.are_on_their_way():
            return _available_mib() > 2 * spec.machine.memory_mib + _LEFT_MIB
    return False


def _idle_seconds() -> float:
    """The idle time of all processors together (proc(5), /proc/stat)."""
    with open("/proc/stat") as file:
        fields = file.readline().split()
    return (int(fields[4]) + int(fields[5])) / os.sysconf("SC_CLK_TCK")


def _available_mib() -> int:
    with open("/proc/meminfo") as file:
        return next(int(line.split()[1]) >> 10 for line in file if line.startswith("MemAvailable"))


class _Holders:
    """`prelude.Holders` that remembers the memory, for the sandbox that takes the spare."""

    def __init__(self, directory: Path) -> None:
        from tapwright.supervisor.prelude import Holders

        self._holders = Holders(directory)
        self.paths = self._holders.paths
        self.memory: int | None = None

    def enter(self, fd: int) -> None:
        self.memory = fd
        self._holders.enter(fd)


async def _prepared_in_time(spec: Spec, directory: Path) -> "Prepared | None":
    """Raises TimeoutError; then all that was made ends with this process."""
    async with asyncio.timeout(_PREPARE_SECONDS):
        return await _prepared(spec, directory)


async def _prepared(spec: Spec, directory: Path) -> "Prepared | None":
    """None where there is no template."""
    from tapwright.agent import inherited
    from tapwright.agent.client import AgentClient
    from tapwright.endpoint.companion import Waiting
    from tapwright.errors import AgentError
    from tapwright.hypervisor import accelerator, restoring, template, warming
    from tapwright.hypervisor.template_store import Store
    from tapwright.nics.interfaces import WaitingNic
    from tapwright.nics.request import any_mac
    from tapwright.supervisor.host_kernel import HostKernel
    from tapwright.supervisor.prepared import Prepared

    wanted = spec.machine
    verdict = accelerator.known(wanted)
    if verdict is None:
        return None
    netns_fd = netns.nameless()
    path = f"/proc/self/fd/{netns_fd}"
    with netns.entered(path), Netlink() as nl:
        links.set_up(nl, 1)  # loopback, as in a namespace with a name
    machine = replace(wanted, accelerator=verdict[0])
    found = Store(Path(spec.template)).find_for(machine)
    if found is None:
        return None
    holders = _Holders(directory)
    with contextlib.closing(found):
        begun = restoring.begin(machine, found, holders)
        qemu = await template.restored(machine, begun)
    agent = AgentClient(qemu.agent, session=begun.session, process=qemu.pid)
    try:
        await agent.connect(_ANSWER_SECONDS)
        if agent.facts.get("reseeded") is not True:
            raise AgentError("its random numbers would be those of other guests")
        mac = any_mac()
        slot = await warming.nic_ahead(qemu, agent, path, mac)
        await warming.share_ahead(qemu, agent)
        host_kernel = HostKernel(agent)
        await host_kernel.carry()
        # The sandbox gives it these once more; ahead, they load a module.
        await agent.call(inherited.request())
    except BaseException:
        await agent.close()
        await qemu.kill()
        raise
    nic = WaitingNic(slot, mac, Waiting(warming.TAP, netns_fd))
    return Prepared(machine, verdict[1], qemu, agent, host_kernel, nic, netns_fd, holders.memory)


class _Waiting:
    """A prepared guest, until a sandbox takes it."""

    def __init__(self, spec: Spec, directory: Path, prepared: "Prepared") -> None:
        self._spec = spec
        self._directory = directory
        self._prepared = prepared
        self._template = self._key()
        self._configuration = _configuration(spec.configuration)

    async def taker(self) -> Taker | None:
        """Wait for the caller that takes the spare, and for its message. None when the spare must
        end."""
        loop = asyncio.get_running_loop()
        taken = asyncio.create_task(self._taken())
        ended = asyncio.create_task(self._prepared.qemu.wait())
        ended.add_done_callback(lambda _: taken.cancel())
        loop.add_signal_handler(signal.SIGTERM, taken.cancel)
        try:
            async with asyncio.timeout(self._spec.spare_seconds):
                connection = await taken
        except (TimeoutError, asyncio.CancelledError):
            return None
        finally:
            loop.remove_signal_handler(signal.SIGTERM)
            for task in (taken, ended):
                task.cancel()
            await asyncio.gather(taken, ended, return_exceptions=True)
        if connection is None:
            return None
        # While the caller enters its sandbox in the journal.
        threading.Thread(target=cgroups.prepare_moves).start()
        return await _read_taker(connection)

    async def _taken(self) -> socket.socket | None:
        """The connection of the first caller; None when the guest is of no use any more."""
        loop = asyncio.get_running_loop()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with listener:
            with unixsocket.address(self._directory / f".{spares.SOCKET}") as path:
                listener.bind(path)
            listener.listen(socket.SOMAXCONN)
            listener.setblocking(False)
            # Only now can it be seen.
            (self._directory / f".{spares.SOCKET}").rename(self._directory / spares.SOCKET)
            while self._is_sound():
                try:
                    async with asyncio.timeout(_LOOK_SECONDS):
                        connection, _ = await loop.sock_accept(listener)
                except TimeoutError:
                    continue
                # Closing the listener refuses all other callers.
                if self._is_sound() and _greeted(connection):
                    return connection
                connection.close()
        return None

    def _is_sound(self) -> bool:
        from tapwright.hypervisor.template_store import Store

        return (
            not self._prepared.qemu.has_ended
            and not self._prepared.agent.has_broken_rules.is_set()
            and self._key() == self._template
            and Store(Path(self._spec.template)).has(self._template)
            and _configuration(self._spec.configuration) == self._configuration
            and self._directory.exists()
        )

    def _key(self) -> str:
        from tapwright.errors import HypervisorError
        from tapwright.hypervisor import template_store

        try:
            return template_store.key_of(template_store.describe(self._prepared.machine))
        except HypervisorError:
            return ""


def _greeted(connection: socket.socket) -> bool:
    """Tell the caller that the spare is its own; return whether the caller still lives."""
    try:
        return connection.send(spares.YOURS) == len(spares.YOURS)
    except OSError:
        return False


async def _read_taker(connection: socket.socket) -> Taker | None:
    """The message of the caller that takes the spare; None when the caller has hung up."""
    from tapwright.control.stdio import ready

    try:
        async with asyncio.timeout(_MESSAGE_SECONDS):
            await ready(connection.fileno())
    except TimeoutError:
        connection.close()
        return None
    connection.setblocking(True)
    caller = Caller(connection)
    order = caller.order()
    return (caller, order) if order else None


def _configuration(path: str) -> list[list[int]]:
    """The identities of the configuration's file and of its drop-ins."""
    from tapwright import config

    try:
        return [_identity(each) for each in (path, *(config.drop_ins(path) if path else ()))]
    except ConfigError:
        return []


def _identity(path: str) -> list[int]:
    """Numbers that change when the file changes; empty for no file."""
    try:
        status = os.stat(path)
    except OSError:
        return []
    return [status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns]
