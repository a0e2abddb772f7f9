"""The client of a supervisor's control socket, for `kata-network`, the OCI runtime and the library.

Imports little, because each call of the runtime is a new process. An error of the supervisor is
raised here, with its `result` and the id of the `sandbox`.
"""

import json
import os
import socket

from tapwright import errors
from tapwright.errors import AgentError, SandboxStateError, TapwrightError
from tapwright.sandbox import wire

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import Any

    from tapwright.state.registry import Sandbox

    Json = dict[str, Any]

_LINE_BYTES = 64 * 1024


def of(sandbox: "Sandbox", seconds: float = 120.0) -> "Supervisor":
    """The supervisor of a sandbox. Raises SandboxStateError when the sandbox does not run."""
    sandbox.check_running()
    return Supervisor(sandbox.directory, seconds)


def named(root: str, sandbox_id: str, seconds: float = 120.0) -> "Supervisor":
    """The supervisor of the sandbox with this id. This looks at no file."""
    return Supervisor(directory_of(root, sandbox_id), seconds)


def directory_of(root: str, sandbox_id: str) -> str:
    """The same as `registry.directory_of`, which loads more modules."""
    return os.path.join(root, "sandboxes", sandbox_id)


class Supervisor:
    """The supervisor of the sandbox in a directory; it has so many `seconds` to answer.

    Blocking calls. Each raises SandboxStateError when the sandbox does not run or answer, and the
    errors of the supervisor.
    """

    def __init__(self, directory: "str | os.PathLike[str]", seconds: float = 120.0) -> None:
        self.id = os.path.basename(directory)
        self._directory = directory
        self._seconds = seconds

    def call(self, op: str, descriptors: "Sequence[int]" = (), **arguments: "Any") -> "Any":
        """Send a request with descriptors; return the answer."""
        try:
            return self._asked(op, descriptors, arguments)
        except TapwrightError as error:
            error.sandbox = self.id
            raise

    def _asked(self, op: str, descriptors: "Sequence[int]", arguments: "Json") -> "Any":
        from tapwright.agent import protocol

        with self.opened(op, descriptors, **arguments) as connection:
            try:
                answer = wire.answer(connection)
            except OSError as error:
                raise self._silent(error) from None
        if answer is None:
            raise SandboxStateError(f"sandbox {self.id!r} ended before it answered to {op}")
        kind, content = answer
        if kind == protocol.REPLY:
            return content["result"]
        raise _refusal(content)

    def call_if_known(self, op: str, warn: "Callable[[str], object]", **arguments: "Any") -> None:
        """Call an operation that the supervisor of an older version may lack: then only warn."""
        try:
            self.call(op, **arguments)
        except errors.UnknownRequestError as error:
            warn(str(error))

    def converse(
        self, op: str, descriptors: "Sequence[int]", **arguments: "Any"
    ) -> "tuple[socket.socket, Json]":
        """Begin a process in a container; return the connection, and the first line from it."""
        connection = self.opened(op, descriptors, **arguments)
        try:
            try:
                first = _refused(connection) or _line(connection)
            except (OSError, ValueError) as error:
                raise self._silent(error) from None
            if "failed" in first:
                raise _refusal({**first, "message": first["failed"]})
            if first.keys().isdisjoint(("created", "started")):
                raise AgentError(f"the guest's answer to {op} makes no sense")
        except BaseException:
            connection.close()
            raise
        connection.settimeout(None)
        return connection, first

    def opened(
        self, op: str, descriptors: "Sequence[int]" = (), **arguments: "Any"
    ) -> socket.socket:
        """A connection on which the request has been sent. Raises UsageError, too."""
        try:
            connection = wire.connected(self._directory, self._seconds)
        except OSError as error:
            raise SandboxStateError(f"sandbox {self.id!r} does not run: {error.strerror}") from None
        try:
            wire.send(connection, {"op": op, **arguments}, descriptors)
        except OSError as error:
            connection.close()
            raise self._silent(error) from None
        except BaseException:
            connection.close()
            raise
        return connection

    # The verbs of `kata-network`.

    def add_interface(self, interface: "Json") -> "Json":
        """Plug an existing device into the VM; return the interface with its `pciAddr`.

        The fields are those of `kata-network add-iface` (docs/tap-networking.md).
        """
        added: Json = self.call("add_interface", interface=interface)
        return added

    def remove_interface(self, interface: "Json") -> None:
        """Take out the NIC of that `name`. A failure's `result` is the interface that is left."""
        self.call("remove_interface", interface=interface)

    def update_interface(self, interface: "Json") -> "Json":
        """Make the `IPAddresses` those of the NIC of that `name`; return the interface."""
        updated: Json = self.call("update_interface", interface=interface)
        return updated

    def list_interfaces(self) -> "list[Json]":
        """The guest's NICs: name, mac, ip (ADDRESS/PREFIX), mtu. A sandbox that was made with
        `enable_compat_old_cni = false` has the fields of `add_interface` instead."""
        found: list[Json] = self.call("list_interfaces")
        return found

    def add_routes(self, routes: "list[Json] | Json") -> "list[Json]":
        """Add all of the routes, or none; return them. `routes` is a list, or a single route."""
        added: list[Json] = self.call("add_routes", routes=routes)
        return added

    def remove_routes(self, routes: "list[Json] | Json") -> "list[Json]":
        """Remove all routes that match one of these by `dest` and, where given, `gateway` and
        `device`; return the routes as given."""
        removed: list[Json] = self.call("remove_routes", routes=routes)
        return removed

    def update_routes(self, routes: "list[Json]") -> "list[Json]":
        """Replace the guest's routes, except the kernel's; return all routes."""
        found: list[Json] = self.call("update_routes", routes=routes)
        return found

    def list_routes(self) -> "list[Json]":
        """The guest's routes: dest, gateway, device, source, scope, metric; empty and zero fields
        are left out."""
        found: list[Json] = self.call("list_routes")
        return found

    def look(self, seconds: float | None = None) -> "Json":
        """The present state of the network in guest and QEMU (`control.looking`). The answer comes
        within a few seconds, even when neither answers; the guest has so many `seconds`."""
        more: Json = {} if seconds is None else {"seconds": seconds}
        seen: Json = self.call("look", **more)
        return seen

    # Files of the host.

    def share(
        self,
        container: str,
        mounts: "Mapping[str, int]",
        apart: "Sequence[str]" = (),
        followed: "Sequence[str]" = (),
    ) -> dict[str, str]:
        """Show detached mounts (`linux.mounts.clone`) to the guest, by name, as
        `/run/tapwright/share/CONTAINER/NAME`, beside those that it sees there; all, or none.

        Return the path of each in the guest. A place is never used twice; a file or directory that
        the guest already sees keeps its place, unless it must be `apart`. The guest learns of the
        host's changes in mounts that are `followed`; of a directory that the kubelet fills, the
        guest has a copy that follows it. The caller must still close the descriptors, but can't
        share them again. Raises HypervisorError, AgentError and UsageError, too.
        """
        paths: dict[str, str] = self.call(
            "share",
            list(mounts.values()),
            container=container,
            names=list(mounts),
            apart=list(apart),
            followed=list(followed),
        )
        return paths

    def carry_sockets(
        self, container: str, names: "Sequence[str]", kinds: "Sequence[str]", fds: "Sequence[int]"
    ) -> dict[str, str]:
        """Give the guest counterparts of sockets of the host, for a container: a name, a kind
        (`protocol.STREAM`, `DATAGRAM`) and a descriptor each, of O_PATH or a detached mount. Return
        the path of each in the guest. `unshare` takes them back. Raises AgentError, UsageError,
        too."""
        paths: dict[str, str] = self.call(
            "carry_sockets", fds, container=container, names=list(names), kinds=list(kinds)
        )
        return paths

    def unshare(self, container: str) -> None:
        """Take back the files that were shared for a container, except those that other containers
        use, too."""
        self.call("unshare", container=container)

    def _silent(self, error: Exception) -> SandboxStateError:
        return SandboxStateError(f"sandbox {self.id!r} did not answer: {error}")


def _refusal(content: "Json") -> TapwrightError:
    error = errors.named(wire.kind_of(content), AgentError)(content["message"])
    error.result = content.get("result")
    return error


def _refused(connection: socket.socket) -> "Json | None":
    """The supervisor's refusal of the request, which comes in frames; None when something else
    comes. Raises OSError."""
    if connection.recv(1, socket.MSG_PEEK) in (b"", b"{"):
        return None
    answer = wire.answer(connection)
    if answer is None:
        raise ConnectionError("it hung up")
    return {"failed": answer[1]["message"], "kind": answer[1].get("kind")}


def _line(connection: socket.socket) -> "Json":
    """The next line, and no byte more: the shim reads the rest. Raises OSError, ValueError."""
    line = b""
    while not line.endswith(b"\n"):
        ahead = connection.recv(_LINE_BYTES, socket.MSG_PEEK)
        if not ahead:
            raise ConnectionError("it hung up")
        line += connection.recv(ahead.find(b"\n") + 1 or len(ahead))
        if len(line) > _LINE_BYTES:
            raise ValueError("a line without end")
    content: Json = json.loads(line)
    if not isinstance(content, dict):
        raise ValueError("the answer is no object")
    return content
