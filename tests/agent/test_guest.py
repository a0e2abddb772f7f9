"""The agent in a real guest, spoken to directly: what it does, and what it survives."""

import asyncio
import binascii
import errno
import json
import os
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame
from tapwright.agent.requests import of
from tapwright.errors import AgentError, HypervisorError
from tapwright.hypervisor import nics, qmp
from tapwright.hypervisor.machine import Machine
from tapwright.hypervisor.qemu import Qemu
from tapwright.linux import entries, neighbours, routes
from tapwright.linux.entries import Entry
from tapwright.linux.neighbours import Neighbour
from tapwright.linux.routes import Route
from tests.guests import MAC, interface, plugged, run, running, tell
from tests.hostile import Hostile

BOOT_ID = "/proc/sys/kernel/random/boot_id"


def test_network(machine: Machine, session_templates: Path) -> None:
    async def interface_is_what_was_asked(qemu: Qemu, agent: AgentClient) -> None:
        await plugged(qemu, "twt0", MAC)
        request: dict[str, Any] = {
            "mac": MAC.upper(),
            "name": "lan0",
            "mtu": 1400,
            "addresses": [
                {"address": "10.1.0.2", "prefix_length": 24},
                {"address": "fd00::2", "prefix_length": 64, "field of a newer version": 1},
            ],
        }
        for _ in range(2):
            await agent.call(of("set_interface", **request))
            found = interface(await agent.call(of("list_network")), MAC)
            assert (found["name"], found["mtu"], found["up"]) == ("lan0", 1400, True)
            shown = {a["address"] for a in found["addresses"] if a["address"][:4] != "fe80"}
            assert shown == {"10.1.0.2", "fd00::2"}
        request["addresses"] = [{"address": "10.1.0.3", "prefix_length": 24}]
        await agent.call(of("set_interface", **request))
        found = interface(await agent.call(of("list_network")), MAC)
        shown = {a["address"] for a in found["addresses"] if a["address"][:4] != "fe80"}
        assert shown == {"10.1.0.3"}

    async def routes_are_changed(qemu: Qemu, agent: AgentClient) -> None:
        default = {"destination": "0.0.0.0/0", "device": "lan0", "gateway": "169.254.1.1"}
        link = {"destination": "169.254.1.1/32", "device": "lan0", "scope": 253}
        other = {
            "destination": "10.9.0.0/16",
            "device": "lan0",
            "gateway": "10.1.0.1",
            "source": "10.1.0.3",
            "metric": 50,
            "table": 100,
        }
        await agent.call(of("change_routes", add=[default, link, other]))
        listed = (await agent.call(of("list_network")))["routes"]
        for route in (default, link, other):
            assert any(route.items() <= entry.items() for entry in listed), route
        await agent.call(of("change_routes", remove=[default, other]))
        listed = [
            entry["destination"] for entry in (await agent.call(of("list_network")))["routes"]
        ]
        assert "0.0.0.0/0" not in listed
        assert "169.254.1.1/32" in listed

    async def dns(qemu: Qemu, agent: AgentClient) -> None:
        await agent.call(
            of("set_dns", nameservers=["10.0.0.1", "fd00::1"], domain="a.b", options=["ndots:2"])
        )
        _, content = await run(agent, "cat", "/etc/resolv.conf")
        assert content == b"nameserver 10.0.0.1\nnameserver fd00::1\ndomain a.b\noptions ndots:2\n"

    async def refusals_say_why(qemu: Qemu, agent: AgentClient) -> None:
        refused: list[tuple[str, dict[str, Any], str]] = [
            ("nonsense", {}, "unknown request 'nonsense'"),
            ("set_interface", {}, "mac"),
            ("change_routes", {"add": [{"destination": "0.0.0.0/0", "device": "no"}]}, "'no'"),
            ("change_routes", {"add": "x"}, "change_routes: add must be a list"),
            (
                "set_interface",
                {"mac": MAC, "addresses": [{"address": "10.1.0.2", "prefix_length": 99}]},
                "10.1.0.2/99",
            ),
            ("batch", {"requests": [{"op": "nonsense"}]}, "unknown request 'nonsense'"),
            ("batch", {"requests": [{"op": "set_clock"}]}, "set_clock: seconds is missing"),
            ("set_clock", {"seconds": "now"}, "set_clock: seconds must be a number"),
            ("exec", {"argv": ["a\0b"]}, "no word a NUL"),
            # A mistake of ours, which ends no agent.
            ("set_clock", {"seconds": 1e300}, "unexpected OverflowError"),
        ]
        for op, arguments, reason in refused:
            with pytest.raises(AgentError, match=reason):
                await agent.call(of(op, **arguments))
        with pytest.raises(AgentError, match="found the NIC 02:99:00:00:00:01 in time"):
            await agent.call(of("set_interface", mac="02:99:00:00:00:01"), 0.1)

    async def a_nic_may_come_later(qemu: Qemu, agent: AgentClient) -> None:
        mac = "02:00:00:00:00:5b"
        asked = asyncio.create_task(agent.call(of("set_interface", mac=mac, name="late0")))
        await agent.call(of("list_network"))
        assert not asked.done()
        await plugged(qemu, "twt1", mac)
        assert (await asked)["name"] == "late0"

    async def a_name_in_use(qemu: Qemu, agent: AgentClient) -> None:
        with pytest.raises(AgentError, match="lan0 is taken"):
            await agent.call(of("set_interface", mac="02:00:00:00:00:5b", name="lan0"))

    async def unplugged(qemu: Qemu, agent: AgentClient) -> None:
        await qemu.nics.unplug(1)
        listed = await agent.call(of("list_network"))
        assert "late0" not in [entry["name"] for entry in listed["interfaces"]]

    tell(
        machine,
        interface_is_what_was_asked,
        routes_are_changed,
        dns,
        refusals_say_why,
        a_nic_may_come_later,
        a_name_in_use,
        unplugged,
        templates=session_templates,
    )


def test_what_kernels_tell(machine: Machine, session_templates: Path) -> None:
    async def entries_are_replayed(qemu: Qemu, agent: AgentClient) -> None:
        await plugged(qemu, "twt0", MAC)
        addresses = [{"address": "10.1.0.2", "prefix_length": 24}]
        found = await agent.call(of("set_interface", mac=MAC, name="lan0", addresses=addresses))
        indexes = {77: found["index"]}
        entry = entries.neighbour(
            neighbours.encoded(Neighbour("10.1.0.1", "02:00:00:00:00:01", 77))
        )
        assert entry
        bad = entries.route(routes.encoded(Route("10.8.0.0/16", 77, "9.9.9.9")))

        async def replayed(*steps: tuple[Entry, bool]) -> list[Any]:
            messages = [
                entries.message(one, number, indexes, remove)
                for number, (one, remove) in enumerate(steps)
            ]
            text = binascii.b2a_base64(b"".join(messages)).decode()
            return list((await agent.call(of("replay", messages=text)))["refused"])

        assert await replayed((bad, False), (entry, False)) == [
            [0, errno.ENETUNREACH, "Nexthop has invalid gateway"]
        ]
        (listed,) = (await agent.call(of("list_network")))["neighbours"]
        assert (listed["address"], listed["device"]) == ("10.1.0.1", "lan0")
        assert await replayed((entry, True)) == []
        assert (await agent.call(of("list_network")))["neighbours"] == []

    async def settings_are_changed(qemu: Qemu, agent: AgentClient) -> None:
        answer = await agent.call(
            of(
                "change_settings",
                settings=[
                    ["core/somaxconn", "77"],
                    ["core/none", "1"],
                    ["ipv4/ip_default_ttl", "x"],
                ],
            )
        )
        assert answer["refused"] == [
            "net/core/none = '1': No such file or directory",
            "net/ipv4/ip_default_ttl = 'x': Invalid argument",
        ]
        _, content = await run(agent, "cat", "/proc/sys/net/core/somaxconn")
        assert content == b"77\n"

    tell(machine, entries_are_replayed, settings_are_changed, templates=session_templates)


def test_conversation(machine: Machine, session_templates: Path) -> None:
    async def garbage(qemu: Qemu, agent: AgentClient) -> None:
        loop = asyncio.get_running_loop()
        for data in (os.urandom(100_000), b"TWRT\x01\x02\0\0" * 1000, protocol.PREAMBLE):
            await loop.sock_sendall(qemu.agent, data)
        assert "interfaces" in await agent.call(of("list_network"))

    async def other_end_restarts(qemu: Qemu, agent: AgentClient) -> None:
        """A client that died in the middle of a frame, with a command running."""
        await agent.open({"op": "exec", "argv": ["sleep", "86399"]}, lambda frame: None)
        half = protocol.message(protocol.REQUEST, 1, 1, {"op": "x" * 5000})[:3000]
        await asyncio.get_running_loop().sock_sendall(qemu.agent, half)
        copy = socket.socket(fileno=os.dup(qemu.agent.fileno()))
        await agent.close()
        again = AgentClient(copy)
        await again.connect(60)
        _, listed = await run(again, "ps", "-o", "args")
        assert b"sleep 86399" not in listed
        await again.close()
        copy.close()

    async def agent_restarts(qemu: Qemu, agent: AgentClient) -> None:
        copy = socket.socket(fileno=os.dup(qemu.agent.fileno()))
        client = AgentClient(copy)
        assert (await client.connect(60))["reseeded"] is True
        before = await run(client, "cat", BOOT_ID)
        reply, _ = await run(client, "sh", "-c", "kill -9 $PPID")
        assert reply["message"] == "the agent in the guest restarted"
        assert (await client.connect(60))["reseeded"] is True
        assert await run(client, "cat", BOOT_ID) == before
        assert "interfaces" in await client.call(of("list_network"))
        await client.close()
        copy.close()

    async def probe_is_apart(qemu: Qemu, agent: AgentClient) -> None:
        """It is a copy of the agent that has nothing of the agent's, and ends with its stream."""
        children = "sh", "-c", "cat /proc/$PPID/task/$PPID/children; echo $$"
        frames: asyncio.Queue[Frame] = asyncio.Queue()
        stream = await agent.open(of("probe"), frames.put_nowait)
        request = {"target": "127.0.0.1", "port": 0, "udp": False, "token": "ab" * 8}
        await agent.send(stream, protocol.STDIN, json.dumps(request).encode() + b"\n")
        while (frame := await asyncio.wait_for(frames.get(), 60)).kind != protocol.STDOUT:
            assert frame.kind == protocol.CREDIT
        assert frame.payload.startswith(b'{"facts":')
        _, listed = await run(agent, *children)
        *others, shell = listed.split()
        (probe,) = set(others) - {shell}
        each = f"for fd in /proc/{int(probe)}/fd/*; do readlink $fd; done"
        _, held = await run(agent, "sh", "-c", each)
        kinds = sorted(line.partition(b":")[0] for line in held.splitlines())
        assert kinds == [b"pipe", b"pipe", b"pipe", b"socket"]
        agent.close_stream(stream, cancel=True)
        while probe in (await run(agent, *children))[1].split():
            pass

        stream = await agent.open(of("probe"), frames.put_nowait)
        await agent.send(stream, protocol.STDIN, b"no JSON\n")
        said = b""
        while (frame := await asyncio.wait_for(frames.get(), 60)).kind != protocol.REPLY:
            said += frame.payload if frame.kind == protocol.STDERR else b""
        assert said.startswith(b"JSONDecodeError: ")
        assert protocol.read_json(frame.payload) == {"status": 1}

    stories = garbage, probe_is_apart, other_end_restarts, agent_restarts
    tell(machine, *stories, templates=session_templates)


@pytest.mark.unit
def test_hostile_answers_are_refused() -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        long_reason = json.dumps({"message": "x" * 9999}).encode()
        refused = [
            (protocol.REPLY, b"{", 0, "not JSON"),
            (protocol.REPLY, b"[]", 0, "not a JSON object"),
            (protocol.ERROR, long_reason, 0, "x{1000}$"),
            (protocol.REPLY, bytes(32768), protocol.MORE, "without end"),
        ]
        for stream, (kind, payload, flags, reason) in enumerate(refused, 1):
            answering = asyncio.create_task(guest.answers(stream, kind, payload, flags))
            with pytest.raises(AgentError, match=reason):
                await guest.agent.call(of("anything"))
            await answering
        for stream, content in enumerate(
            (
                {},
                {"interfaces": 5},
                {"interfaces": [5]},
                {"interfaces": [{"mac": 5}]},
                {"interfaces": [{"name": "a", "mac": "b", "mtu": "1", "addresses": []}]},
                {"interfaces": [{"name": "a", "mac": "b", "mtu": 1, "addresses": [1]}]},
            ),
            5,
        ):
            payload = json.dumps(content).encode()
            answering = asyncio.create_task(guest.answers(stream, protocol.REPLY, payload))
            with pytest.raises(AgentError, match="no proper list of interfaces"):
                await guest.agent.listing("interfaces")
            await answering
        await guest.close()

    asyncio.run(story())


@pytest.mark.unit
def test_flood_of_output_ends_its_command() -> None:
    """Its window was not opened again."""

    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        got: list[Frame] = []
        stream = await guest.agent.open({"op": "exec"}, got.append)
        flood = protocol.encode(Frame(protocol.STDOUT, guest.session, stream, bytes(32768)))
        await guest.send(flood * 16)
        await asyncio.wait_for(_until(lambda: got[-1:] and got[-1].kind == protocol.ERROR), 60)
        assert sum(len(f.payload) for f in got if f.kind == protocol.STDOUT) <= protocol.WINDOW
        await guest.close()

    asyncio.run(story())


@pytest.mark.unit
def test_flood_of_greetings_costs_nothing() -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        greeting = protocol.encode(Frame(protocol.HELLO, 0, 0, b"{}"))
        await guest.send(greeting * 20_000)
        # It reads none of the answers. All else goes on, and little is kept.
        await asyncio.wait_for(asyncio.sleep(0), 60)
        assert len(asyncio.all_tasks()) < 10
        await guest.close()

    asyncio.run(story())


@pytest.mark.unit
def test_guest_that_reads_nothing_is_not_waited_for() -> None:
    async def story() -> None:
        guest = Hostile()
        await guest.connect()
        large = "x" * 900_000
        with pytest.raises(AgentError, match="did not answer anything within"):
            await asyncio.wait_for(guest.agent.call(of("anything", text=large), timeout=0.3), 60)
        # When it reads again it understands what comes next.
        asking = asyncio.create_task(guest.agent.call(of("anything"), timeout=60))
        found: list[Frame] = []
        while not any(frame.kind == protocol.REQUEST and frame.stream == 2 for frame in found):
            found += await guest.frames()
        await guest.send(protocol.message(protocol.REPLY, guest.session, 2, {"fine": True}))
        assert await asking == {"fine": True}
        await guest.close()

    asyncio.run(story())


def test_hypervisor_that_says_nothing(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(qmp, "_GREETING_SECONDS", 0.3)
    for path in (tmp_path, *tmp_path.parents[:-2]):  # all in /tmp
        path.chmod(0o755)  # for QEMU's user
    script = tmp_path / "qemu"
    script.write_text("#!/bin/sh\nexec sleep 1000\n")
    script.chmod(0o755)
    with pytest.raises(HypervisorError, match="did not greet within"):
        asyncio.run(Qemu.start(replace(machine, qemu=str(script))))


async def _until(condition: Callable[[], Any]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_qemu_is_confined(machine: Machine) -> None:
    """An unprivileged user of its own, no capabilities, no way to new ones, a seccomp filter."""

    async def story() -> None:
        async with running(machine) as (qemu, _):
            with open(f"/proc/{qemu._process.pid}/status") as file:
                status = dict(line.rstrip("\n").split(":\t", 1) for line in file)
            assert set(status["Uid"].split()) == {str(qemu.uid)}
            assert int(status["Uid"].split()[0]) > 1000
            assert status["CapEff"] == status["CapPrm"] == "0000000000000000"
            assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")

    asyncio.run(story())


def test_guest_that_does_not_let_go(
    machine: Machine, session_templates: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The NIC stays, and so does what is known of it, until the guest runs again."""
    monkeypatch.setattr(nics, "UNPLUG_SECONDS", 0.3)

    async def story(qemu: Qemu, agent: AgentClient) -> None:
        gone: list[int] = []
        qemu.nics.on_gone = gone.append
        slot = await plugged(qemu, "twt0", MAC)
        await agent.call(of("set_interface", mac=MAC, name="lan0"))
        await qemu.qmp.execute("stop")
        for _ in range(2):
            with pytest.raises(HypervisorError, match="did not release the NIC within"):
                await qemu.nics.unplug(slot)
        assert gone == []
        assert await plugged(qemu, "twt1", "02:00:00:00:00:5b") != slot
        await qemu.qmp.execute("cont")
        await asyncio.wait_for(_until(lambda: gone), 60)
        assert gone == [slot]
        assert await plugged(qemu, "twt2", "02:00:00:00:00:5c") == slot

    tell(machine, story, templates=session_templates)


def test_slots_run_out(machine: Machine) -> None:
    async def story(qemu: Qemu, agent: AgentClient) -> None:
        for number in range(2):
            await plugged(qemu, f"twt{number}", f"02:00:00:00:00:0{number}")
        with pytest.raises(HypervisorError, match="all 2 slots for NICs are taken"):
            await plugged(qemu, "twt2", "02:00:00:00:00:02")
        await qemu.nics.unplug(0)
        await plugged(qemu, "twt3", "02:00:00:00:00:03")

    tell(replace(machine, slots=2), story)
