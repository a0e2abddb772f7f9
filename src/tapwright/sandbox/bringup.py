"""How a sandbox gets onto its networks: namespace, QEMU beside the CNI chain, NICs, guest.

Runs in the supervisor. What is made is entered in the journal first; after a failure the caller
stops QEMU and calls `teardown`.
"""

import asyncio
import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tapwright import cni
from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery
from tapwright.errors import AgentError, NetworkError
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.qemu import Machine, Qemu
from tapwright.linux import netns
from tapwright.sandbox import ownership, socket_nics
from tapwright.sandbox.following import Following
from tapwright.sandbox.interfaces import Interfaces
from tapwright.sandbox.record import Journal, NetworkRequest, Phase

Progress = Callable[[str], None]
Result = dict[str, Any]


@dataclass
class Guest:
    """A running VM and the way to talk to it."""

    qemu: Qemu
    agent: AgentClient
    interfaces: Interfaces
    following: Following

    async def stop(self) -> None:
        await self.agent.close()
        await self.qemu.stop()


class Bringup:
    """Brings up the sandbox of a journal. `guest` is there as soon as QEMU runs."""

    def __init__(self, journal: Journal, progress: Progress) -> None:
        self._journal = journal
        self._record = journal.record
        self._progress = progress
        self.guest: Guest | None = None

    async def run(self) -> Guest:
        """All of it. Raises NetworkError, HypervisorError, AgentError, ConfigError."""
        with self._phase("accelerator"):
            machine = await self._machine()
        if self._record.netns:
            with self._phase("namespace"):
                self._make_netns()
        results = await self._network_while_booting(machine)
        assert self.guest is not None  # noqa: S101 - set by the boot that has ended
        with self._phase("join"):
            networks = {request.ifname: request.name for request in self._record.spec.networks}
            requests = await self.guest.following.begin(networks) if self._record.netns else []
            requests += await self._plug_others(self.guest.interfaces, results)
        with self._phase("guest"):
            await self._configure(self.guest.agent, requests, results)
            await self.guest.following.fill_tables()
        return self.guest

    async def _machine(self) -> Machine:
        spec = self._record.spec
        machine = Machine(
            kernel=Path(spec.kernel),
            initrd=Path(spec.initrd),
            accelerator=spec.accelerator,
            path=spec.qemu,
            memory_mib=spec.memory_mib,
            vcpus=spec.vcpus,
            kernel_parameters=spec.kernel_params,
            memory_directory=spec.memory_directory,
            slots=spec.slots,
            machine_type=spec.machine_type,
            hugepages=spec.hugepages,
            vhost=spec.vhost,
            debug=spec.debug,
            netns=self._record.netns or None,
        )
        chosen, reason = await accelerator.choose(machine, self._progress)
        self._record.accelerator, self._record.accelerator_reason = chosen, reason
        return dataclasses.replace(machine, accelerator=chosen)

    def _make_netns(self) -> None:
        path = self._record.netns
        if self._record.spec.netns:
            if not netns.exists(path):
                raise NetworkError(f"there is no network namespace at {path}")
            ownership.claim_netns(self._journal, path)
            return
        if os.path.exists(path):
            raise NetworkError(f"{path} exists, and is not this sandbox's; choose another id")
        entry = self._journal.hold("netns", path=path)
        try:
            netns.create(path)
        except OSError as error:
            self._journal.release(entry)
            raise NetworkError(f"no network namespace at {path}: {error.strerror}") from None

    async def _network_while_booting(self, machine: Machine) -> list[Result]:
        """Neither needs the other, and both take their time. The first failure ends it; a
        plugin that runs then is waited for at the end of the event loop."""
        booting = asyncio.create_task(self._boot(machine))
        attaching = asyncio.create_task(asyncio.to_thread(self._attach_all))
        try:
            await asyncio.gather(booting, attaching)
        except BaseException:
            booting.cancel()
            await asyncio.gather(booting, return_exceptions=True)
            raise
        return attaching.result()

    async def _boot(self, machine: Machine) -> None:
        with self._phase("qemu"):
            qemu = await Qemu.start(machine)
        agent = AgentClient(qemu.agent)
        interfaces = Interfaces(self._journal, qemu, agent)
        following = Following(self._record.netns, interfaces, agent)
        self.guest = Guest(qemu, agent, interfaces, following)
        with self._phase("boot"):
            await self._agent_answers(self.guest)

    async def _agent_answers(self, guest: Guest) -> None:
        answered = asyncio.create_task(guest.agent.connect(self._record.spec.boot_timeout))
        ended = asyncio.create_task(guest.qemu.wait())
        try:
            await asyncio.wait((answered, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise AgentError(f"QEMU ended while booting: {guest.qemu.last_words()}")
            await answered
        except AgentError as error:
            raise AgentError(
                f"the guest did not come up: {error}. Its last words: {guest.qemu.last_words()}"
            ) from None
        finally:
            for task in (answered, ended):
                task.cancel()
            await asyncio.gather(answered, ended, return_exceptions=True)

    def _attach_all(self) -> list[Result]:
        return [self._attach(request) for request in self._record.spec.networks]

    def _attach(self, request: NetworkRequest) -> Result:
        spec, record = self._record.spec, self._record
        entry = self._journal.hold(
            "attachment",
            network=request.name,
            ifname=request.ifname,
            container_id=record.id,
            netns=record.netns,
            config=request.config,
            source=request.source,
            capability_args=request.capability_args,
            plugin_path=spec.plugin_path,
            cache=spec.cni_cache,
        )
        attachment = cni.Attachment(
            container_id=record.id,
            ifname=request.ifname,
            netns=record.netns,
            capability_args=request.capability_args,
        )
        try:
            with self._phase(f"network {request.name}"):
                network = cni.parse_network(request.config.encode(), request.source)
                return cni.Runtime(spec.plugin_path, spec.cni_cache).add(network, attachment)
        except cni.CniError as error:
            leftovers = getattr(error, "__notes__", [])
            if not leftovers:
                # The chain's DEL has run; to run it twice is more than some plugins bear.
                self._journal.release(entry)
            raise NetworkError("; ".join([str(error), *leftovers])) from None

    async def _plug_others(
        self, interfaces: Interfaces, results: list[Result]
    ) -> list[discovery.Request]:
        """NICs that no interface of the namespace stands for; return the agent's requests."""
        requests = []
        routes = []
        for network, result in zip(self._record.spec.networks, results, strict=True):
            for nic in socket_nics.of(result, self._record.netns):
                _, configuration = await interfaces.plug(nic.request, network.name)
                requests.append(configuration)
                routes += nic.routes
        for tap in self._record.spec.taps:
            requests.append(await interfaces.add_host_tap(tap))
        return [*requests, {"op": "change_routes", "add": routes}] if routes else requests

    async def _configure(
        self, agent: AgentClient, requests: list[discovery.Request], results: list[Result]
    ) -> None:
        of_the_system = [
            {"op": "set_hostname", "hostname": self._record.id},
            {"op": "set_clock", "seconds": time.time()},
        ]
        dns = _dns(results)
        of_dns = [{"op": "set_dns", **dns}] if dns else []
        await agent.call("batch", requests=[*of_the_system, *requests, *of_dns])

    @contextlib.contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            took = time.monotonic() - start
            since = start - self._record.started
            self._record.phases.append(Phase(name, round(since * 1e3, 1), round(took * 1e3, 1)))


def _dns(results: list[Result]) -> dict[str, Any]:
    """One resolver configuration out of those of all networks, each thing once."""
    found: dict[str, Any] = {}
    for result in results:
        dns = result.get("dns") or {}
        for key in ("nameservers", "search", "options"):
            merged = found.get(key, []) + (dns.get(key) or [])
            if merged:
                found[key] = list(dict.fromkeys(merged))
        if dns.get("domain"):
            found.setdefault("domain", dns["domain"])
    return found
