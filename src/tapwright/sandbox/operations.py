"""What a running sandbox does when it is asked: the verbs of `kata-network`, one at a time.

Runs in the supervisor. Arguments are JSON as it came, and are checked here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.sandbox import guest_routes, kata
from tapwright.sandbox.interfaces import Interfaces

Operation = Callable[..., Awaitable[Any]]


class Operations:
    """Each method raises TapwrightError, UsageError for arguments that can't be."""

    def __init__(self, interfaces: Interfaces, agent: AgentClient) -> None:
        self._interfaces = interfaces
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
            )
        }

    async def add_interface(self, interface: Any) -> Any:
        return await self._interfaces.add(kata.read_interface(interface))

    async def remove_interface(self, interface: Any) -> None:
        await self._interfaces.remove(kata.read_name(interface))

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

    def _in_turn(self, operation: Operation) -> Operation:
        async def served(**arguments: Any) -> Any:
            async with self._turn:
                return await operation(**arguments)

        return served
