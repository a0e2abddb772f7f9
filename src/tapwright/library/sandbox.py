"""A sandbox as an object: make, find, use, delete it. Blocking calls, from any thread."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, overload

from tapwright import command, config
from tapwright.config import Config
from tapwright.errors import SandboxNotFoundError, TapwrightError
from tapwright.progress import Progress
from tapwright.sandbox import lifecycle
from tapwright.sandbox.launching import Launch, Waiting, ahead
from tapwright.sandbox.planning import Wish, parse_published, plan
from tapwright.state import ids, registry
from tapwright.state.record import Record

if TYPE_CHECKING:  # not needed by programs that only start sandboxes
    from tapwright.library.files import Files
    from tapwright.library.nics import Address, Nics, Routes
    from tapwright.sandbox.execution import Completed, Process
    from tapwright.sandbox.taps import TapWish

P = ParamSpec("P")
T = TypeVar("T")


def _silent(said: object) -> None:
    """Ignore progress."""


def _named(method: Callable[P, T]) -> Callable[P, T]:
    """Add the sandbox's id to the errors of a method."""

    @functools.wraps(method)
    def calling(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return method(*args, **kwargs)
        except TapwrightError as error:
            error.sandbox = args[0].id  # type: ignore[attr-defined]
            raise

    return calling


class Described:
    """A sandbox as its files describe it; each property reads them anew."""

    def __init__(self, sandbox_id: str, root: str | Path | None = None) -> None:
        """The sandbox of that id, which need not exist. `root` is the directory of the state, by
        default the command's (`$TAPWRIGHT_ROOT`, /var/lib/tapwright)."""
        self.id = sandbox_id
        self.root = Path(root or command.root())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id!r}>"

    @property
    def status(self) -> str:
        """`creating`, `running`, `dead` (its supervisor has ended), or `deleted`."""
        found = self._look()
        return found.status if found else "deleted"

    @property
    def problem(self) -> str:
        """Why the sandbox is dead, or why its record can't be read; empty for no problem."""
        found = self._look()
        return found.problem if found else ""

    @property
    def record(self) -> Record:
        """The sandbox's record on disk. Raises SandboxNotFoundError, SandboxStateError for a record
        that can't be read."""
        return self._find().readable_record()

    @property
    def addresses(self) -> "list[Address]":
        """The addresses of the guest's NICs, in their order. Raises as `record` does."""
        import ipaddress

        return [
            ipaddress.ip_interface(address)
            for nic in self.record.interfaces
            for address in nic.addresses
        ]

    @property
    def netns(self) -> str:
        """The path of the network namespace; empty where the sandbox has none. Raises as `record`
        does."""
        return self.record.netns

    @property
    def warnings(self) -> list[str]:
        """Where the guest differs from the request. Raises as `record` does."""
        return self.record.warnings

    def _look(self) -> registry.Sandbox | None:
        return registry.look_at(registry.directory_of(self.root) / self.id)

    def _find(self) -> registry.Sandbox:
        found = self._look()
        if found is None:
            error = SandboxNotFoundError(f"there is no sandbox {self.id!r} in {self.root}")
            error.sandbox = self.id
            raise error
        return found


class Sandbox(Described):
    """One virtual machine on its networks.

    `run` makes one; `find` and `tapwright.sandboxes()` find one. A `with` block deletes its sandbox
    at the end. Each property is read anew. The methods raise only `tapwright.Error`, with the
    `sandbox`'s id.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.delete()

    @functools.cached_property
    def nics(self) -> "Nics":
        from tapwright.library.nics import Nics

        return Nics(self._find)

    @functools.cached_property
    def routes(self) -> "Routes":
        from tapwright.library.nics import Routes

        return Routes(self._find)

    @functools.cached_property
    def files(self) -> "Files":
        from tapwright.library.files import Files

        return Files(self.popen)

    @classmethod
    def run(
        cls,
        sandbox_id: str | None = None,
        *,
        networks: Iterable[str] = (),
        publish: Iterable[str] = (),
        taps: "Iterable[str | TapWish]" = (),
        netns: str | Path = "",
        memory_mib: int = 0,
        vcpus: int = 0,
        config: Config | str | Path | None = None,
        root: str | Path | None = None,
        progress: Progress = _silent,
        warn: Progress = _silent,
        launch: Launch | None = None,
        started: float | None = None,
        waiting: Callable[[Waiting], None] = _silent,
    ) -> Self:
        """Start a virtual machine and attach it to CNI networks; return when its guest is on them.

        `networks` are NAME or NAME:IFNAME, `publish` [IP:]HOSTPORT:PORT[/PROTOCOL], `taps` as the
        command's `--tap` or `TapWish`. Without a `netns` the sandbox gets a new one, without an id
        a random one. Memory in MiB. `config` is a file or a `Config`, by default the command's.
        `progress` gets texts about each step, `warn` about each difference from the request.
        `launch` is a supervisor that was started before; the phases of the record count from
        `started` (monotonic clock); `waiting` gets each supervisor for which this call waits. After
        a failure, all that was made has been taken back.

        Raises UsageError, SandboxExistsError, ConfigError, ImageError, HypervisorError,
        NetworkError, AgentError, SandboxStateError.
        """
        started = time.monotonic() if started is None else started
        made = cls(f"box-{os.urandom(4).hex()}" if sandbox_id is None else sandbox_id, root)
        try:
            with launch or ahead(made.root) as supervisor:
                ids.check(made.id)
                wish = Wish(
                    networks=[_network(text) for text in networks],
                    published=[parse_published(text) for text in publish],
                    taps=_taps(taps),
                    netns=os.path.abspath(netns) if netns else "",
                    memory_mib=memory_mib,
                    vcpus=vcpus,
                )
                spec = plan(_configuration(config), wish, progress)
                lifecycle.run(
                    made.root, made.id, spec, progress, started, supervisor, warn, waiting
                )
        except TapwrightError as error:
            error.sandbox = made.id
            raise
        return made

    @classmethod
    def find(cls, sandbox_id: str, *, root: str | Path | None = None) -> Self:
        """The sandbox of that id, or the only sandbox whose id begins with it. Raises
        SandboxNotFoundError, UsageError when there are several."""
        return cls(registry.find(root or command.root(), sandbox_id).id, root)

    @overload
    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes = ...,
        timeout: float | None = ...,
        check: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: str = ...,
        encoding: str = ...,
    ) -> "Completed[str]": ...

    @overload
    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes = ...,
        timeout: float | None = ...,
        check: bool = ...,
        env: Mapping[str, str] | None = ...,
        cwd: str = ...,
        encoding: Literal[None],
    ) -> "Completed[bytes]": ...

    @_named
    def exec(
        self,
        argv: Sequence[str],
        *,
        stdin: str | bytes = b"",
        timeout: float | None = None,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
        encoding: str | None = "utf-8",
    ) -> "Completed[Any]":
        """Run a command in the guest to its end; return its `status`, `stdout` and `stderr`. These
        are text, with U+FFFD for undecodable bytes, or bytes with `encoding=None`.

        Raises CommandTimeoutError when the command takes longer than `timeout` seconds (this kills
        it); with `check`, CommandError when the status is not 0; AgentError, SandboxStateError,
        SandboxNotFoundError.
        """
        with self.popen(argv, stdin=bool(stdin), env=env, cwd=cwd) as process:
            return process.finish(stdin, timeout, check, encoding)

    @_named
    def popen(
        self,
        argv: Sequence[str],
        *,
        stdin: bool = False,
        terminal: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str = "/",
    ) -> "Process":
        """Start a command in the guest: with `stdin`, the program can write to it; with `terminal`
        it gets a terminal. Raises SandboxNotFoundError, SandboxStateError, UsageError."""
        from tapwright.sandbox.execution import Process

        return Process(
            self._find(),
            argv,
            stdin=stdin,
            terminal=terminal,
            environment=env,
            cwd=cwd,
        )

    @_named
    def delete(self, *, force: bool = False) -> list[str]:
        """End the sandbox and take back all that it holds; do nothing when it does not exist.

        Raises NetworkError when something could not be taken back; then the sandbox stays, dead.
        With `force` this removes it all the same, and returns in words what was left behind.
        """
        return lifecycle.delete(self.root, self.id, force)


def sandboxes(*, root: str | Path | None = None) -> list[Sandbox]:
    """All sandboxes, in the order of their ids, from files alone."""
    where = root or command.root()
    return [Sandbox(found.id, where) for found in registry.listing(where)]


def _taps(taps: "Iterable[str | TapWish]") -> "list[TapWish]":
    wanted = list(taps)
    if not wanted:
        return []
    from tapwright.sandbox.taps import parse

    return [parse(tap) if isinstance(tap, str) else tap for tap in wanted]


def _configuration(given: Config | str | Path | None) -> Config:
    if isinstance(given, Config):
        return given
    return config.load(None if given is None else str(given))


def _network(text: str) -> tuple[str, str]:
    name, _, ifname = text.partition(":")
    return name, ifname
