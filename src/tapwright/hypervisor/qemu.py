"""One running virtual machine: QEMU, driven over QMP; a pidfd reports its end."""

import asyncio
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from dataclasses import dataclass

from tapwright.errors import HypervisorError
from tapwright.hypervisor import nics, process
from tapwright.hypervisor.growth import Growth
from tapwright.hypervisor.jail import Jail
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.process import Spawned
from tapwright.hypervisor.qmp import Qmp, QmpError
from tapwright.hypervisor.share import Share
from tapwright.hypervisor.share_device import ShareDevice
from tapwright.linux.process import ended

_LINGERING_SECONDS = 2.0
_PLUG_SECONDS = 10.0  # for a daemon to answer QEMU, which does nothing else meanwhile
_TAIL_BYTES = 16 * 1024
_PANIC = re.compile(rb"^thread '[^'\n]*' (?:\(\d+\) )?panicked at ", re.MULTILINE)


@dataclass
class Qemu:
    """A started QEMU. `agent` is the host's end of the agent's port. `share` is what the guest can
    see of the host's files, if the machine has a share, once `plug_share` is done."""

    qmp: Qmp
    nics: nics.Nics
    growth: Growth
    agent: socket.socket
    uid: int
    share: Share | None
    _jail: Jail
    _share_device: ShareDevice
    _resumed: asyncio.Event
    _process: subprocess.Popen[bytes]
    _console: "Tail"
    _stderr: "Tail"
    _daemon: "Tail | None"
    _exited: asyncio.Future[None]
    _share_is_in_use: bool = False
    _share_is_lost: bool = False

    @classmethod
    async def start(cls, machine: Machine, saved: SavedMemory | None = None) -> "Qemu":
        """Start QEMU and wait until it takes commands. Raises HypervisorError."""
        return await cls.of(machine, process.spawn(machine, saved))

    @classmethod
    async def of(cls, machine: Machine, spawned: Spawned) -> "Qemu":
        """Return a spawned QEMU once it takes commands and has done those that were written to it.
        From then on it sees no files of the host. Raises HypervisorError, and QmpError for a
        command that QEMU refused; then QEMU has ended."""
        qmp = Qmp(spawned.qmp, spawned.commands)
        resumed = asyncio.Event()
        qmp.on_event("RESUME", lambda data: resumed.set())
        qemu = cls(
            qmp,
            nics.Nics(qmp, machine.ports, kvm=machine.accelerator == "kvm", vhost=machine.vhost),
            Growth(qmp, machine, spawned.process.pid),
            spawned.agent,
            spawned.uid,
            spawned.share,
            spawned.jail,
            ShareDevice(qmp, machine.ports),
            resumed,
            spawned.process,
            Tail(spawned.console),
            Tail(spawned.stderr),
            Tail(spawned.share.stderr) if spawned.share else None,
            ended(spawned.process),
        )
        try:
            await qmp.connect(spawned.process.pid)
            qemu._seal()
        except QmpError:
            await qemu.kill()
            raise
        except HypervisorError as error:
            await qemu.kill()
            raise HypervisorError(
                f"QEMU did not start: {error}. Its last words: {qemu.last_words()}"
            ) from None
        except asyncio.CancelledError:
            await qemu.kill()
            raise
        return qemu

    async def resumed(self) -> None:
        """Wait until a restored guest runs, and NICs can be plugged in.

        Raises HypervisorError if QEMU ends before.
        """
        running = asyncio.create_task(self._resumed.wait())
        try:
            await asyncio.wait((running, self._exited), return_when=asyncio.FIRST_COMPLETED)
        finally:
            running.cancel()
        if not self._resumed.is_set():
            raise HypervisorError(f"QEMU ended: {self.last_words()}")

    async def plug_share(self) -> None:
        """Give the guest the device of its share, if the machine has one. Call this once, while the
        guest runs or before it starts. From then on, QEMU ends when the share's daemon ends. Raises
        HypervisorError."""
        share, daemon = self.share, self._daemon
        if share is None or daemon is None:
            return
        try:
            try:
                async with asyncio.timeout(_PLUG_SECONDS):
                    await self._share_device.plug(share.connection)
            except TimeoutError:
                raise HypervisorError(f"it has not answered within {_PLUG_SECONDS:g} s") from None
            # QEMU has the connection; the daemon ends when QEMU closes it.
            share.connection.close()
            share.seal()
        except HypervisorError as error:
            words = daemon.last_words() or "it said nothing"
            raise HypervisorError(
                f"the guest can't have the host's files: {error}. virtiofsd's last words: {words}"
            ) from None
        self._share_is_in_use = True
        self._watch_share(share, daemon)

    async def unplug_share(self) -> None:
        """Remove the device; the daemon then ends. Raises HypervisorError."""
        self._share_is_in_use = False
        await self._share_device.unplug()

    @property
    def has_ended(self) -> bool:
        return self._exited.done()

    @property
    def pid(self) -> int:
        return self._process.pid

    def pids(self) -> list[int]:
        """Return the machine's processes, as far as this process started them."""
        return [self._process.pid, *([self.share.process.pid] if self.share else [])]

    async def wait(self) -> int:
        """Wait for QEMU's end; return its exit status, negative for a signal."""
        await asyncio.shield(self._exited)
        return self._process.wait()

    def end(self) -> None:
        """Kill the machine at once, as a loss of power does: it has nothing to clean up."""
        if not self._exited.done():
            self._process.send_signal(signal.SIGKILL)

    async def kill(self) -> None:
        """Kill the machine, wait for its end, and close its descriptors."""
        self.end()
        await self.wait()
        await self.qmp.close()
        self.agent.close()
        self._console.close()
        self._stderr.close()
        self._jail.close()
        if self._daemon:
            self._daemon.close()
        if self.share:
            self.share.kill()

    def _seal(self) -> None:
        """Raises HypervisorError."""
        try:
            self._jail.seal()
        except OSError as error:
            raise HypervisorError(f"its jail can't be sealed: {error}") from None

    def _watch_share(self, share: Share, daemon: "Tail") -> None:
        """End QEMU when the daemon has ended; the daemon itself ends with QEMU. End the daemon when
        one of its threads has panicked: the others go on, and the guest would wait for ever. (A
        program of the guest can do that to virtiofsd 1.13, by an extended attribute's name that is
        no UTF-8.)"""
        loop = asyncio.get_running_loop()

        def end() -> None:
            if self._share_is_in_use and not self._exited.done():
                self._share_is_lost = True
                self._process.send_signal(signal.SIGKILL)

        def look(_: asyncio.Future[None]) -> None:
            loop.call_later(_LINGERING_SECONDS if share.process.returncode == 0 else 0, end)

        ended(share.process).add_done_callback(look)
        daemon.watch(_PANIC, share.process.kill)

    def last_words(self) -> str:
        """Return the last output of QEMU, or else of the guest's console, for error messages."""
        if self._share_is_lost:
            said = self._daemon.last_words() if self._daemon else ""
            why = "it was ended, because the daemon that opens the host's files had ended"
            return f"{why}: {said}" if said else why
        for tail in (self._stderr, self._console):
            if said := tail.last_words():
                return said
        return "it said nothing"


class Tail:
    """Reads a descriptor so that its writer never blocks, and keeps only the end of the output: the
    guest decides how much it writes to its console."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._kept = bytearray()
        self._watched: tuple[re.Pattern[bytes], Callable[[], object]] | None = None
        asyncio.get_running_loop().add_reader(fd, self._read)

    def watch(self, pattern: re.Pattern[bytes], act: Callable[[], object]) -> None:
        """Call `act` at each new output while the kept output has the pattern."""
        self._watched = pattern, act

    def last_words(self) -> str:
        """Return the last three lines of the output, empty if there is none."""
        self._read()
        return " / ".join(self.lines()[-3:])

    def _read(self) -> None:
        try:
            while self._fd >= 0 and (data := os.read(self._fd, 4096)):
                self._kept += data
                del self._kept[:-_TAIL_BYTES]
                if self._watched and self._watched[0].search(self._kept):
                    self._watched[1]()
        except BlockingIOError:
            return
        except OSError:
            pass
        self.close()

    def lines(self) -> list[str]:
        text = self._kept.decode(errors="replace")
        printable = "".join(c for c in text if c.isprintable() or c == "\n")
        return [line.strip() for line in printable.splitlines() if line.strip()]

    def close(self) -> None:
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
