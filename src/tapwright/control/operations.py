"""The verbs of `kata-network` in a running sandbox, and `sync`; one at a time.

Runs in the supervisor. Arguments are JSON from outside; this module checks them.
"""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.control import guest_routes, kata
from tapwright.errors import AgentError, HypervisorError, NetworkError, SandboxStateError
from tapwright.nics.following import Following
from tapwright.nics.interfaces import Interfaces
from tapwright.nics.net_devices import NetDevices
from tapwright.nics.resolvers import Resolvers
from tapwright.state.record import Nic, Spec

_TURN_SECONDS, _OPERATION_SECONDS = 45.0, 60.0

Operation = Callable[..., Coroutine[Any, Any, Any]]


class Operations:
    """Each method raises TapwrightError, UsageError for invalid arguments."""

    def __init__(
        self,
        interfaces: Interfaces,
        following: Following,
        resolvers: Resolvers,
        devices: NetDevices,
        agent: AgentClient,
        spec: Spec,
    ) -> None:
        self._interfaces = interfaces
        self._following = following
        self._resolvers = resolvers
        self._devices = devices
        self._agent = agent
        self._spec = spec
        self._turn = asyncio.Lock()

    def by_name(self) -> dict[str, Operation]:
        return {
            operation.__name__: self._in_turn(operation)
            for operation in (
                self.add_interface,
                self.remove_interface,
                self.update_interface,
                self.list_interfaces,
                self.add_routes,
                self.remove_routes,
                self.update_routes,
                self.list_routes,
                self.sync,
                self.take_devices,
            )
        }

    async def add_interface(self, interface: Any) -> Any:
        return self._written(await self._interfaces.add(kata.read_interface(interface)))

    async def remove_interface(self, interface: Any) -> None:
        nic = self._interfaces.leaving(*kata.read_leaving(interface))
        if nic.index:
            # Even if the guest releases it only after this request has failed.
            self._following.dismiss(nic.index)
        try:
            await self._interfaces.remove(nic)
        except HypervisorError as stuck:
            stuck.result = self._written(nic)
            raise

    async def update_interface(self, interface: Any) -> Any:
        name, addresses = kata.read_update(interface)
        nic = self._interfaces.named(name)
        await self._interfaces.set_addresses(nic, addresses)
        answer = self._written(nic)
        if nic.index and addresses:
            self._following.doubt(nic.index)
            await self.sync()
        return answer

    async def list_interfaces(self) -> Any:
        found = await self._interfaces.listing()
        if self._spec.short_listing:
            return [kata.written_short(listed) for listed in found]
        try:
            return [
                kata.written_listing(listed, self._spec.machine.machine_type) for listed in found
            ]
        except ValueError:
            raise AgentError("the guest lists an invalid address") from None

    async def add_routes(self, routes: Any) -> Any:
        wanted = kata.read_routes(routes, one=True)
        await guest_routes.add(self._agent, wanted)
        return [kata.written_route(route.guest_route()) for route in wanted]

    async def remove_routes(self, routes: Any) -> Any:
        patterns = kata.read_routes(routes, as_patterns=True, one=True)
        await guest_routes.remove(self._agent, patterns)
        return [routes] if isinstance(routes, dict) else routes

    async def update_routes(self, routes: Any) -> Any:
        found = await guest_routes.update(self._agent, kata.read_table(routes))
        return [kata.written_route(route) for route in found]

    async def list_routes(self) -> Any:
        return [kata.written_route(route) for route in await guest_routes.listing(self._agent)]

    async def sync(self, at_once: Any = False) -> Any:
        """Make the guest's network equal to the namespace's; return the seconds until the caller
        must ask again."""
        try:
            again = await self._following.sync(bool(at_once))
            await self._resolvers.look()
            return again
        except OSError as error:
            raise NetworkError(
                f"the sandbox's network namespace can't be looked at: {error.strerror}"
            ) from None

    async def take_devices(self, devices: Any) -> None:
        """Give the sandbox interfaces of the host."""
        try:
            await self._devices.take(devices)
        except OSError as error:
            raise NetworkError(f"the interfaces can't be moved: {error.strerror}") from None

    def _written(self, nic: Nic) -> dict[str, Any]:
        return kata.written_interface(nic, self._spec.machine.machine_type)

    def _in_turn(self, operation: Operation) -> Operation:
        """Wait for earlier requests, then for the operation; bound the time that the caller waits.

        A request that QEMU does not answer keeps its turn, because QEMU may still carry it out;
        only its caller stops waiting.
        """

        @functools.wraps(operation)
        async def in_turn(**arguments: Any) -> Any:
            try:
                async with asyncio.timeout(_TURN_SECONDS):
                    await self._turn.acquire()
            except TimeoutError:
                raise SandboxStateError(
                    f"another request is not done after {_TURN_SECONDS:g} s; try again later"
                ) from None
            going_on = asyncio.create_task(operation(**arguments))
            going_on.add_done_callback(lambda _: self._turn.release())
            try:
                async with asyncio.timeout(_OPERATION_SECONDS):
                    return await asyncio.shield(going_on)
            except TimeoutError:
                raise SandboxStateError(
                    f"QEMU has not answered for {_OPERATION_SECONDS:g} s. The request is still "
                    "going on; list-ifaces will show its result"
                ) from None

        return in_turn
