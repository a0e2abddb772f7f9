"""How a sandbox gets onto its networks: namespace, QEMU beside the CNI chain, NICs, guest.

Runs in the supervisor. What is made is entered in the journal first; after a failure the caller
stops QEMU and calls `teardown`.
"""

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from tapwright import cni
from tapwright.agent.client import AgentClient
from tapwright.endpoint import discovery
from tapwright.errors import NetworkError
from tapwright.hypervisor import accelerator
from tapwright.hypervisor.qemu import Machine
from tapwright.linux import netns
from tapwright.sandbox import ownership, socket_nics
from tapwright.sandbox.guest import Guest, Starter, machine_of
from tapwright.sandbox.interfaces import Interfaces
from tapwright.sandbox.record import Journal, NetworkRequest, Phase

Progress = Callable[[str], None]
Result = dict[str, Any]


class Bringup:
    """Brings up the sandbox of a journal."""

    def __init__(self, journal: Journal, progress: Progress) -> None:
        self._journal = journal
        self._record = journal.record
        self._progress = progress
        self._starter = Starter(journal, progress, self._phase)

    @property
    def guest(self) -> Guest | None:
        """There as soon as QEMU runs."""
        return self._starter.guest

    async def run(self) -> Guest:
        """All of it. Raises NetworkError, HypervisorError, AgentError, ConfigError."""
        with self._phase("accelerator"):
            machine = await self._machine()
        if self._record.netns:
            with self._phase("namespace"):
                self._make_netns()
        guest, results = await self._network_while_starting(machine)
        with self._phase("join"):
            networks = {request.ifname: request.name for request in self._record.spec.networks}
            requests = await guest.following.begin(networks) if self._record.netns else []
            requests += await self._plug_others(guest.interfaces, results)
        with self._phase("guest"):
            await self._configure(guest.agent, requests, results)
            await guest.following.fill_tables()
        return guest

    async def _machine(self) -> Machine:
        wanted = machine_of(self._record.spec)
        chosen, reason = await accelerator.choose(wanted, self._progress)
        self._record.accelerator, self._record.accelerator_reason = chosen, reason
        return replace(wanted, accelerator=chosen, netns=self._record.netns or None)

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

    async def _network_while_starting(self, machine: Machine) -> tuple[Guest, list[Result]]:
        """Neither needs the other, and both take their time. The first failure ends it; a
        plugin that runs then is waited for at the end of the event loop."""
        starting = asyncio.create_task(self._starter.start(machine))
        attaching = asyncio.create_task(asyncio.to_thread(self._attach_all))
        try:
            await asyncio.gather(starting, attaching)
        except BaseException:
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            raise
        return starting.result(), attaching.result()

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
        of_files = [{"op": "mount_share"}] if self._record.spec.share else []
        await agent.call("batch", requests=[*of_the_system, *requests, *of_dns, *of_files])

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
