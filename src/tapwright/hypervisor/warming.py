"""What is done with a guest before it is saved as a template.

It goes once through what every sandbox will do, so that the first time is as quick as the second;
and what it does not need any more goes, so that little is to be read and kept.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.errors import AgentError
from tapwright.hypervisor.backends import Tap
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.share import Share
from tapwright.linux import addresses, libc, links, netns, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.netlink import Netlink

_COMMAND_SECONDS = 60.0

_WARM = "warm"
_TAP, _MAC = "warm", "02:00:00:00:00:01"
_GUEST, _HOST, _HOST6, _GUEST6 = "169.254.1.2", "169.254.1.1", "fd00::1", "fd00::2"

# Fill what is free with zeros, which need not be kept. The kernel's reserve is left, and most of a
# large memory, which was never written to: what was freed last is given out first.
_SLIM = """
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("3")
with open("/proc/meminfo") as file:
    free = next(int(line.split()[1]) for line in file if line.startswith("MemFree"))
bytearray(1) * min(max(0, free * 1024 - (12 << 20)), 256 << 20)
"""


@contextlib.asynccontextmanager
async def warmed(machine: Machine, memory: SavedMemory, boot_seconds: float) -> AsyncIterator[Qemu]:
    """A guest as it is to be saved, its memory in `memory`. With the block it ends.

    Nothing in here may draw what a guest draws once and keeps: its boot id, the secret of its TCP
    sequence numbers. Raises HypervisorError, AgentError, OSError.
    """
    with _throwaway_netns() as netns_path:
        qemu = await Qemu.start(replace(machine, netns=netns_path), memory)
        agent = AgentClient(qemu.agent, is_new=True)
        try:
            await agent.connect(boot_seconds)
            await _use(qemu, agent, netns_path)
            if qemu.share:
                await _use_share(qemu, qemu.share, agent)
            await _run(agent, "/usr/bin/python3", "-I", "-S", "-c", _SLIM)
            await agent.close()
            yield qemu
        except AgentError as error:
            raise AgentError(f"{error}. The guest's last words: {qemu.last_words()}") from None
        finally:
            await agent.close()
            await qemu.stop()


async def _use(qemu: Qemu, agent: AgentClient, netns_path: str) -> None:
    fd = _tap(netns_path)
    try:
        slot = await qemu.nics.plug(Tap([fd]), _MAC)
    finally:
        os.close(fd)
    await agent.call("batch", requests=_configuration())
    await agent.call("list_network")
    await _run(agent, "ping", "-c", "1", "-W", "5", _HOST)
    await _run(agent, "ping6", "-c", "1", "-W", "5", _HOST6)
    await qemu.nics.unplug(slot)
    await _run(agent, "rm", "/etc/resolv.conf")


async def _use_share(qemu: Qemu, shared: Share, agent: AgentClient) -> None:
    """Mount it and run something from it; a guest that has the device can't be saved. Where files
    are shared there will be containers."""
    scratch = libc.detached_mount("tmpfs", size="16m")
    try:
        shared.attach(_WARM, {_WARM: scratch})
    finally:
        os.close(scratch)
    await qemu.plug_share()
    await agent.call("mount_share")
    program = f"{protocol.SHARE}/{_WARM}/{_WARM}/busybox"
    await _run(agent, "cp", "/bin/busybox", program)
    await _run(agent, program, "true")
    await _run(agent, "umount", protocol.SHARE)
    await qemu.unplug_share()
    # There is none. With the first request about a container the agent loads what these need.
    await agent.call("delete_container", id=_WARM)


def _configuration() -> list[dict[str, object]]:
    addressed = [
        {"address": _GUEST, "prefix_length": 30},
        {"address": _GUEST6, "prefix_length": 64},
    ]
    routes = [
        {"destination": "0.0.0.0/0", "device": "eth0", "gateway": _HOST},
        {"destination": "::/0", "device": "eth0", "gateway": _HOST6},
    ]
    neighbour = {"address": "169.254.1.3", "device": "eth0", "mac": _MAC}
    return [
        {"op": "set_hostname", "hostname": "(none)"},  # as it is after booting
        {"op": "set_interface", "mac": _MAC, "name": "eth0", "mtu": 1400, "addresses": addressed},
        {"op": "change_neighbours", "add": [neighbour]},
        {"op": "change_routes", "add": routes},
        {"op": "set_dns", "nameservers": [_HOST]},
    ]


@contextlib.contextmanager
def _throwaway_netns() -> Iterator[str]:
    fd = netns.nameless()
    try:
        yield f"/proc/self/fd/{fd}"
    finally:
        os.close(fd)


def _tap(netns_path: str) -> int:
    """A TAP with the addresses of the guest's neighbour."""
    with netns.entered(netns_path), Netlink() as nl:
        fd = tuntap.create(_TAP)
        try:
            link = links.named(nl, _TAP)
            for address, length in ((_HOST, 30), (_HOST6, 64)):
                addresses.add(nl, link.index, Address(address, length))
            links.set_up(nl, link.index)
        except BaseException:
            os.close(fd)
            raise
    return fd


async def _run(agent: AgentClient, *argv: str) -> None:
    """Run a command in the guest. Raises AgentError also when it fails."""
    over: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def take(frame: Frame) -> None:
        if frame.kind in (protocol.REPLY, protocol.ERROR) and not over.done():
            over.set_result(frame)

    stream = await agent.open({"op": "exec", "argv": list(argv)}, take)
    try:
        frame = await asyncio.wait_for(over, _COMMAND_SECONDS)
    except TimeoutError:
        raise AgentError(f"{argv[0]} did not end within {_COMMAND_SECONDS:g} s") from None
    finally:
        agent.close_stream(stream, cancel=not over.done())
    if protocol.read_json(frame.payload).get("status") != 0:
        raise AgentError(f"{argv[0]} failed in the guest: {frame.payload[:200]!r}")
