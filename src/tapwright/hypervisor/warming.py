"""Prepares a guest before it is saved as a template.

The guest does once what every sandbox will do, so that the first time is as fast as the second.
Then it frees what it no longer needs, so that the template is small.
"""

import asyncio
import binascii
import contextlib
import os
from collections.abc import AsyncIterator, Mapping

from tapwright.agent import inherited, protocol, requests
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.errors import AgentError
from tapwright.hypervisor.backends import Tap
from tapwright.hypervisor.machine import Machine, SavedMemory
from tapwright.hypervisor.qemu import Qemu
from tapwright.hypervisor.share import Share
from tapwright.linux import addresses, entries, libc, links, neighbours, netns, routes, tuntap
from tapwright.linux.addresses import Address
from tapwright.linux.files import closing
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.netlink import Netlink
from tapwright.linux.routes import Route

_COMMAND_SECONDS = 60.0

_WARM = "warm"
TAP, _MAC = "warm", "02:00:00:00:00:01"
_TAP_INDEX = 1 << 16  # an index that no later interface of the namespace gets
_RESOLV_CONF = "/etc/resolv.conf"
_GUEST, _HOST, _HOST6, _GUEST6 = "169.254.1.2", "169.254.1.1", "fd00::1", "fd00::2"

_INDEX = 1 << 16  # of the NIC, on the host's side
_FIRST_INDEX = 2
"""That of the first interface of most namespaces, behind loopback. A NIC with another one than its
interface passes through a namespace later."""
_WAYS = ("10.0.0.0/8", _HOST), ("fd01::/64", _HOST6)

# Fill free memory with zeros, which are not saved. The kernel's reserve is left out, and so is most
# of a large memory, which was never written to: the kernel allocates first what was freed last.
_SLIM = """
with open("/proc/sys/vm/drop_caches", "w") as file:
    file.write("3")
with open("/proc/meminfo") as file:
    free = next(int(line.split()[1]) for line in file if line.startswith("MemFree"))
bytearray(1) * min(max(0, free * 1024 - (12 << 20)), 256 << 20)
"""


@contextlib.asynccontextmanager
async def warmed(machine: Machine, memory: SavedMemory, boot_seconds: float) -> AsyncIterator[Qemu]:
    """Yield a guest that is ready to be saved, with its memory in `memory`. It ends with the block.

    The warming must not draw what a guest draws once and keeps: its boot id, the secret of its TCP
    sequence numbers. Raises HypervisorError, AgentError, OSError.
    """
    with closing(netns.nameless()) as fd:
        netns_path = f"/proc/self/fd/{fd}"
        qemu = await Qemu.start(machine, memory)
        agent = AgentClient(qemu.agent, is_new=True, process=qemu.pid)
        try:
            await agent.connect(boot_seconds)
            await _use(qemu, agent, netns_path)
            if qemu.share:
                await _use_share(qemu, qemu.share, agent)
                await _run(agent, "umount", protocol.SHARE)
                await qemu.unplug_share()
            await _run(agent, "/usr/bin/python3", "-I", "-S", "-c", _SLIM)
            await agent.close()
            yield qemu
        except AgentError as error:
            raise AgentError(f"{error}. The guest's last words: {qemu.last_words()}") from None
        finally:
            await agent.close()
            await qemu.kill()


async def nic_ahead(qemu: Qemu, agent: AgentClient, netns_path: str, mac: str) -> int:
    """Plug a NIC into a restored guest, and use it once, so that its later network is fast.
    Afterwards the NIC and its TAP are down, without addresses; the TAP is called `TAP`, in the
    namespace at that path. Return its slot. Raises HypervisorError, AgentError, OSError."""
    slot = await _plugged(qemu, netns_path, mac)
    await _exercise(agent, mac)
    quiet = [requests.set_interface(mac, "eth0", [], mtu=1500, up=False)]
    if qemu.share:
        # Programs of containers may care for indexes, and a NIC gets its while it is down.
        quiet.append(requests.set_interface(mac, "eth0", [], index=_FIRST_INDEX, up=False))
    await agent.call(requests.batch(*quiet))
    await _run(agent, "rm", _RESOLV_CONF)
    with netns.entered(netns_path), Netlink() as nl:
        link = links.named(nl, TAP)
        links.set_down(nl, link.index)
        for address in addresses.of(nl, link.index):
            addresses.remove(nl, link.index, address)
    return slot


async def share_ahead(qemu: Qemu, agent: AgentClient) -> None:
    """Give a restored guest the device of its share, and run a container from it once. Raises
    HypervisorError, AgentError, OSError."""
    if qemu.share:
        await _use_share(qemu, qemu.share, agent)
        await _run_container(agent, f"{protocol.SHARE}/{_WARM}/{_WARM}")
        qemu.share.detach(_WARM)


async def _use(qemu: Qemu, agent: AgentClient, netns_path: str) -> None:
    await agent.call(inherited.request())
    slot = await _plugged(qemu, netns_path, _MAC)
    await _exercise(agent, _MAC)
    await qemu.nics.unplug(slot)
    await _run(agent, "rm", _RESOLV_CONF)


async def _plugged(qemu: Qemu, netns_path: str, mac: str) -> int:
    """Plug in a NIC on a TAP in a namespace; return its slot."""
    with closing(_tap(netns_path)) as fd:
        return await qemu.nics.plug(Tap([fd]), mac)


async def _exercise(agent: AgentClient, mac: str) -> None:
    answer = await agent.call(_configuration(mac))
    try:
        found = answer["replies"][1]
        has_ipv6, indexes = not found.get("refused"), {_INDEX: int(found["index"])}
    except (KeyError, IndexError, TypeError, ValueError, AttributeError):
        raise AgentError("the agent's answer has no proper list of replies") from None
    await agent.call(requests.replay(_entries(indexes)))
    await agent.call(requests.list_network())
    await _follow_listeners(agent)
    await _load_probe(agent)
    await _run(agent, "ping", "-c", "1", "-W", "5", _HOST)
    if has_ipv6:  # the guest's command line may turn it off
        await _run(agent, "ping6", "-c", "1", "-W", "5", _HOST6)


async def _use_share(qemu: Qemu, shared: Share, agent: AgentClient) -> None:
    """Mount the share and run a program from it. A guest with shared files will have containers."""
    with closing(libc.detached_mount("tmpfs", size="16m")) as scratch:
        shared.attach(_WARM, {_WARM: scratch})
    await qemu.plug_share()
    await agent.call(requests.mount_share())
    program = f"{protocol.SHARE}/{_WARM}/{_WARM}/busybox"
    await _run(agent, "cp", "/bin/busybox", program)
    await _run(agent, program, "true")
    # There is no such container. With its first request about a container, the agent loads the
    # modules for containers.
    await agent.call(requests.delete_container(_WARM))


def _configuration(mac: str) -> requests.Request:
    addressed = [
        {"address": _GUEST, "prefix_length": 30},
        {"address": _GUEST6, "prefix_length": 64},
    ]
    route = {"destination": "0.0.0.0/0", "device": "eth0", "gateway": _HOST}
    return requests.batch(
        requests.set_hostname("(none)"),  # as it is after booting
        requests.set_interface(mac, "eth0", addressed, mtu=1400, as_far_as_possible=True),
        requests.change_routes(add=[route]),
        requests.set_dns({"nameservers": [_HOST]}),
    )


def _entries(indexes: Mapping[int, int]) -> str:
    """Return entries for tables, as `replay` takes them."""
    neighbour = neighbours.encoded(Neighbour("169.254.1.3", _MAC, _INDEX))
    ways = [routes.encoded(Route(to, _INDEX, via)) for to, via in _WAYS]
    found = [entry for entry in (entries.neighbour(neighbour), *map(entries.route, ways)) if entry]
    messages = [entries.message(e, n, indexes, remove=False) for n, e in enumerate(found)]
    return binascii.b2a_base64(b"".join(messages), newline=False).decode()


def _tap(netns_path: str) -> int:
    """Make a TAP with the addresses of the guest's neighbour; return its descriptor."""
    with netns.entered(netns_path), Netlink() as nl:
        fd = tuntap.create(TAP, _TAP_INDEX)
        try:
            link = links.named(nl, TAP)
            for address, length in ((_HOST, 30), (_HOST6, 64)):
                addresses.add(nl, link.index, Address(address, length))
            links.set_up(nl, link.index)
        except BaseException:
            os.close(fd)
            raise
    return fd


async def _follow_listeners(agent: AgentClient) -> None:
    """Let the agent prepare to follow listeners, which takes longer than the following itself."""
    first: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def take(frame: Frame) -> None:
        if not first.done():
            first.set_result(frame)

    stream = await agent.open(requests.follow_listeners(), take)
    try:
        frame = await asyncio.wait_for(first, _COMMAND_SECONDS)
    except TimeoutError:
        raise AgentError(f"no list of listeners within {_COMMAND_SECONDS:g} s") from None
    finally:
        agent.close_stream(stream, cancel=True)
    if frame.kind != protocol.STDOUT:
        raise AgentError(f"listeners can't be followed: {frame.payload[:200]!r}")


async def _load_probe(agent: AgentClient) -> None:
    """Let the agent load what it needs to send packets for `explain`."""
    stream = await agent.open(requests.probe(), lambda frame: None)
    agent.close_stream(stream, cancel=True)


async def _run_container(agent: AgentClient, root: str) -> None:
    """Run busybox from a root filesystem, in a container, and as a further process of that. Raises
    AgentError."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Frame] = loop.create_future()
    over: asyncio.Future[Frame] = loop.create_future()

    def take(frame: Frame) -> None:
        if not made.done():
            made.set_result(frame)
        if frame.kind in (protocol.REPLY, protocol.ERROR) and not over.done():
            over.set_result(frame)

    process = {"args": ["/busybox", "true"], "cwd": "/", "env": ["PATH=/"]}
    namespaces = [{"type": kind} for kind in ("pid", "mount", "ipc", "uts", "cgroup")]
    configuration = {
        "ociVersion": "1.0.2",
        "hostname": _WARM,
        "process": process,
        "root": {"path": root},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
        ],
        "linux": {"namespaces": namespaces},
    }
    stream = await agent.open(requests.create_container(_WARM, configuration), take)
    try:
        async with asyncio.timeout(_COMMAND_SECONDS):
            if (await made).kind == protocol.STARTED:
                further = requests.exec_container(_WARM, process)
                await _succeeded(agent, further, "a process in a container")
                await agent.call(requests.start_container(_WARM))
            frame = await over
    except TimeoutError:
        raise AgentError(f"a container did not end within {_COMMAND_SECONDS:g} s") from None
    finally:
        agent.close_stream(stream, cancel=not over.done())
    if protocol.read_json(frame.payload).get("status") != 0:
        raise AgentError(f"a container failed in the guest: {frame.payload[:200]!r}")
    await agent.call(requests.delete_container(_WARM))


async def _run(agent: AgentClient, *argv: str) -> None:
    """Run a command in the guest. Raises AgentError also when the command fails."""
    await _succeeded(agent, requests.execute(argv), argv[0])


async def _succeeded(agent: AgentClient, request: requests.Request, what: str) -> None:
    """Run a program, and wait for its end. Raises AgentError also when the program fails."""
    over: asyncio.Future[Frame] = asyncio.get_running_loop().create_future()

    def take(frame: Frame) -> None:
        if frame.kind in (protocol.REPLY, protocol.ERROR) and not over.done():
            over.set_result(frame)

    stream = await agent.open(request, take)
    try:
        frame = await asyncio.wait_for(over, _COMMAND_SECONDS)
    except TimeoutError:
        raise AgentError(f"{what} did not end within {_COMMAND_SECONDS:g} s") from None
    finally:
        agent.close_stream(stream, cancel=not over.done())
    if protocol.read_json(frame.payload).get("status") != 0:
        raise AgentError(f"{what} failed in the guest: {frame.payload[:200]!r}")
