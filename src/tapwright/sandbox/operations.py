"""What a running sandbox does when it is asked: the verbs of `kata-network`, one at a time.

Runs in the supervisor. Arguments are JSON as it came, and are checked here.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.errors import NetworkError, SandboxStateError
from tapwright.sandbox import guest_routes, kata
from tapwright.sandbox.following import Following
from tapwright.sandbox.interfaces import Interfaces
from tapwright.sandbox.resolvers import Resolvers

_TURN_SECONDS, _OPERATION_SECONDS = 45.0, 60.0

Operation = Callable[..., Coroutine[Any, Any, Any]]


class Operations:
    """Each method raises TapwrightError, UsageError for arguments that can't be."""

    def __init__(
        self,
        interfaces: Interfaces,
        following: Following,
        resolvers: Resolvers,
        agent: AgentClient,
    ) -> None:
        self._interfaces = interfaces
        self._following = following
        self._resolvers = resolvers
        self._agent = agent
        self._turn = asyncio.Lock()

    def by_name(self) -> dict[str, Operation]:
        return {
            operation.__name__: self._in_turn(operation)
            for operation in (
                self.add_interface,
                self.remove_interface,
                self.list_interfaces,
                self.add_routes,
                self.remove_routes,
                self.update_routes,
                self.list_routes,
                self.sync,
            )
        }

    async def add_interface(self, interface: Any) -> Any:
        return await self._interfaces.add(kata.read_interface(interface))

    async def remove_interface(self, interface: Any) -> None:
        nic = self._interfaces.named(kata.read_name(interface))
        if nic.index:
            # Also when it goes too late for an answer.
            self._following.dismiss(nic.index)
        await self._interfaces.remove(nic)

    async def list_interfaces(self) -> Any:
        return await self._interfaces.listing()

    async def add_routes(self, routes: Any) -> Any:
        wanted = kata.read_routes(routes)
        await guest_routes.add(self._agent, wanted)
        return [kata.written_route(route.guest_route()) for route in wanted]

    async def remove_routes(self, routes: Any) -> Any:
        await guest_routes.remove(self._agent, kata.read_routes(routes, as_patterns=True))
        return routes

    async def update_routes(self, routes: Any) -> Any:
        return await guest_routes.update(self._agent, kata.read_routes(routes))

    async def list_routes(self) -> Any:
        return await guest_routes.listing(self._agent)

    async def sync(self, at_once: Any = False) -> Any:
        """Bring the guest to what the namespace is; seconds until that is to be asked for again."""
        try:
            again = await self._following.sync(bool(at_once))
            await self._resolvers.look()
            return again
        except OSError as error:
            raise NetworkError(
                f"the sandbox's network namespace can't be looked at: {error.strerror}"
            ) from None

    def _in_turn(self, operation: Operation) -> Operation:
        """The operation when the ones before it are done, and nobody waiting for it in vain.

        What QEMU does not answer is not given up, for QEMU may do it yet: it goes on in its turn,
        and only its caller is told not to wait any longer.
        """

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
                    f"QEMU has not answered for {_OPERATION_SECONDS:g} s. What was asked is still "
                    "going on; list-ifaces will tell"
                ) from None

        return in_turn
