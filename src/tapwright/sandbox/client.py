"""A running sandbox, asked from here over its control socket: the library behind `kata-network`.

Plain blocking calls. Each raises SandboxStateError when the sandbox does not run or answer, and
what the supervisor raised.
"""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from tapwright import errors
from tapwright.agent import protocol
from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.sandbox import wire
from tapwright.state.record import RUNNING
from tapwright.state.registry import Sandbox

_SECONDS = 120.0

Json = dict[str, Any]


def add_interface(sandbox: Sandbox, interface: Json) -> Json:
    """Plug an existing device into the VM; return the interface with its `pciAddr`.

    The fields are those of `kata-network add-iface` (docs/tap-networking.md).
    """
    added: Json = call(sandbox, "add_interface", interface=interface)
    return added


def remove_interface(sandbox: Sandbox, interface: Json) -> None:
    """Take out the NIC of that `name`. A failure's `result` is the interface that is left."""
    call(sandbox, "remove_interface", interface=interface)


def update_interface(sandbox: Sandbox, interface: Json) -> Json:
    """Make the `IPAddresses` those of the NIC of that `name`; return the interface."""
    updated: Json = call(sandbox, "update_interface", interface=interface)
    return updated


def list_interfaces(sandbox: Sandbox) -> list[Json]:
    """The guest's NICs: name, mac, ip (ADDRESS/PREFIX), mtu; of a sandbox that was made with
    `enable_compat_old_cni = false` the fields of `add_interface`."""
    found: list[Json] = call(sandbox, "list_interfaces")
    return found


def add_routes(sandbox: Sandbox, routes: list[Json] | Json) -> list[Json]:
    """Add all of the routes, or none; return them. One can be given by itself."""
    added: list[Json] = call(sandbox, "add_routes", routes=routes)
    return added


def remove_routes(sandbox: Sandbox, routes: list[Json] | Json) -> list[Json]:
    """Remove all routes that match one of these by `dest` and, where given, `gateway` and
    `device`; return the routes as given."""
    removed: list[Json] = call(sandbox, "remove_routes", routes=routes)
    return removed


def update_routes(sandbox: Sandbox, routes: list[Json]) -> list[Json]:
    """Make these the guest's routes, beside those of the kernel; return what there is then."""
    found: list[Json] = call(sandbox, "update_routes", routes=routes)
    return found


def list_routes(sandbox: Sandbox) -> list[Json]:
    """The guest's routes: dest, gateway, device, source, scope, metric, where they are not
    empty or zero."""
    found: list[Json] = call(sandbox, "list_routes")
    return found


def look(sandbox: Sandbox) -> Json:
    """What guest and QEMU say of the network at this moment (`control.looking`): an answer within a
    few seconds, also when neither answers."""
    seen: Json = call(sandbox, "look")
    return seen


def share(
    sandbox: Sandbox,
    container: str,
    mounts: Mapping[str, int],
    apart: Sequence[str] = (),
    followed: Sequence[str] = (),
) -> dict[str, str]:
    """Show detached mounts (`linux.mounts.clone`) to the guest, by name, as
    `/run/tapwright/share/CONTAINER/NAME`, beside those that it sees there; all, or none.

    Return the path of each in the guest: what a container was shown before has not its place again,
    and a file or directory that is shown already has its own, unless it is to be `apart`. Of those
    `followed` the guest is told when the host changes them; one that the kubelet fills is a copy
    there, which follows it. The descriptors stay the caller's, and are of no more use. Raises
    SandboxStateError, HypervisorError, AgentError and UsageError.
    """
    paths: dict[str, str] = call(
        sandbox,
        "share",
        list(mounts.values()),
        container=container,
        names=list(mounts),
        apart=list(apart),
        followed=list(followed),
    )
    return paths


def unshare(sandbox: Sandbox, container: str) -> None:
    """Take back all that was shared for a container, but for what others have too; nothing happens
    when there is nothing."""
    call(sandbox, "unshare", container=container)


def call(sandbox: Sandbox, op: str, fds: Sequence[int] = (), **arguments: Any) -> Any:
    """Have the supervisor do something, with these descriptors; return its answer. The error raised
    for a refusal may carry a `result`; each says which `sandbox` it was."""
    try:
        return _asked(sandbox, op, fds, arguments)
    except TapwrightError as error:
        error.sandbox = sandbox.id
        raise


def _asked(sandbox: Sandbox, op: str, fds: Sequence[int], arguments: Json) -> Any:
    with connect(sandbox) as connection:
        connection.settimeout(_SECONDS)
        try:
            wire.send(connection, {"op": op, **arguments}, fds)
            answer = wire.answer(connection)
            if answer is None:
                raise ConnectionError("it hung up")
        except OSError as error:
            raise SandboxStateError(f"sandbox {sandbox.id!r} did not answer: {error}") from None
    kind, content = answer
    if kind == protocol.REPLY:
        return content["result"]
    refusal = errors.named(wire.kind_of(content))(content["message"])
    refusal.result = content.get("result")
    raise refusal


def connect(sandbox: Sandbox) -> socket.socket:
    """The control socket. Raises SandboxStateError."""
    if sandbox.status != RUNNING:
        reason = f" ({sandbox.problem})" if sandbox.problem else ""
        raise SandboxStateError(f"sandbox {sandbox.id!r} is {sandbox.status}{reason}, not running")
    try:
        return wire.connected(sandbox.directory)
    except OSError as error:
        raise SandboxStateError(
            f"sandbox {sandbox.id!r} does not answer: {error.strerror}"
        ) from None
