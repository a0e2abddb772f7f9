"""The guest's routes, as `kata-network` changes and lists them. Runs in the supervisor.

These are the routes of the main table, without the kernel's link-local routes, which every NIC has.
"""

from collections.abc import Iterable
from typing import Any

from tapwright.agent.client import AgentClient
from tapwright.agent.requests import change_routes
from tapwright.linux.routes import RTPROT_KERNEL, TABLE_MAIN
from tapwright.nics.request import RouteRequest

Route = dict[str, Any]


async def listing(agent: AgentClient) -> list[Route]:
    """The guest's routes, as the agent lists them. Raises AgentError."""
    return [
        route
        for route in await agent.listing("routes")
        if route["table"] == TABLE_MAIN
        and not (route["protocol"] == RTPROT_KERNEL and route["destination"] == "fe80::/64")
    ]


async def add(agent: AgentClient, wanted: Iterable[RouteRequest]) -> None:
    """Add all, or after a failure none. Raises AgentError."""
    await agent.call(change_routes(add=[route.guest_route() for route in wanted]))


async def remove(agent: AgentClient, patterns: Iterable[RouteRequest]) -> None:
    """Remove every route that one of the patterns fits. Raises AgentError."""
    found = list(patterns)
    matching = [
        route for route in await listing(agent) if any(pattern.matches(route) for pattern in found)
    ]
    await agent.call(change_routes(remove=matching))


async def update(agent: AgentClient, wanted: Iterable[RouteRequest]) -> list[Route]:
    """Replace all routes but the kernel's by the wanted ones; return the routes afterwards.

    After a failure the routes are as before. Raises AgentError.
    """
    present = [r for r in await listing(agent) if r["protocol"] != RTPROT_KERNEL]
    new = [route.guest_route() for route in wanted]
    await agent.call(change_routes(remove=present, add=new))
    return await listing(agent)
