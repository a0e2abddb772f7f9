"""The exceptions that a caller of Tapwright can act on.

Each message is one sentence or two: what failed, why, and what to do. `tapwright.cni` has its
own, since it stands alone.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def shown(text: object) -> str:
    """A text that may come from a guest, a plugin or a program, made safe for a terminal and a log:
    on one line, and printable."""
    return printable("; ".join(line.strip() for line in str(text).splitlines() if line.strip()))


def printable(text: str) -> str:
    """The text without control characters for a terminal; unprintable characters are escaped as in
    Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class TapwrightError(Exception):
    """The base of all errors. `result` is an operation's result in spite of its failure; `sandbox`
    is the id of the sandbox, where a method of `tapwright.Sandbox` failed."""

    result: object = None
    sandbox: str | None = None


class UsageError(TapwrightError):
    """The request is impossible: a bad id, options that exclude each other."""


class ConfigError(TapwrightError):
    """The configuration file is invalid."""


class ImageError(TapwrightError):
    """The guest image is missing or can't be built."""


class HypervisorError(TapwrightError):
    """QEMU is missing, did not start, or refused a command."""


class AgentError(TapwrightError):
    """The agent in the guest does not answer, or fails."""


class AgentRefusedError(AgentError):
    """The agent refused a request; the message says why."""


class ContainerError(AgentRefusedError):
    """A container in the guest can't be made or changed."""


class ContainerNotFoundError(ContainerError):
    """The guest has no container of that id."""


class ContainerExistsError(ContainerError):
    """The guest has a container of that id already."""


class ContainerStateError(ContainerError):
    """The container's state does not allow the operation."""


class CommandError(TapwrightError):
    """A command in a guest ended with an exit `status` that is not 0. `argv` is the command,
    `stdout` and `stderr` are its output, str or bytes as the caller chose."""

    def __init__(
        self, argv: "Sequence[str]", status: int, stdout: "str | bytes", stderr: "str | bytes"
    ) -> None:
        self.argv, self.status = tuple(argv), status
        self.stdout, self.stderr = stdout, stderr
        text = stderr if isinstance(stderr, str) else stderr.decode(errors="replace")
        said = f": {shown(text)}" if text.strip() else ""
        super().__init__(f"{shown(' '.join(argv))} ended with status {status}{said}")


class CommandTimeoutError(TapwrightError, TimeoutError):
    """A command in a guest still ran after `timeout` seconds. `stdout` and `stderr` are its output
    until then."""

    def __init__(
        self,
        argv: "Sequence[str]",
        timeout: float,
        stdout: "str | bytes" = b"",
        stderr: "str | bytes" = b"",
    ) -> None:
        self.argv, self.timeout = tuple(argv), timeout
        self.stdout, self.stderr = stdout, stderr
        super().__init__(f"{shown(' '.join(argv))} was not done after {timeout:g} s")


class GuestFileError(TapwrightError):
    """A file in a guest can't be read or written; `path` is its path there."""

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{shown(path)} in the guest: {shown(reason)}")


class NetworkError(TapwrightError):
    """A network could not be set up or taken down."""


class SandboxNotFoundError(TapwrightError):
    """No sandbox has that id."""


class SandboxExistsError(TapwrightError):
    """A sandbox of that id exists already."""


class SandboxStateError(TapwrightError):
    """The sandbox's state does not allow the operation."""


class NewerRecordError(SandboxStateError):
    """A newer version of Tapwright wrote the sandbox's record."""


class UnknownRequestError(TapwrightError):
    """A running sandbox does not know a request, or an argument of it: its supervisor is of another
    version of Tapwright."""


class BundleError(TapwrightError):
    """A bundle can't be run: it has a mistake, or asks for something impossible."""


def named(name: object, default: type[TapwrightError] = TapwrightError) -> type[TapwrightError]:
    """Return the exception class of this name, which one process sends to another."""
    found = globals().get(name) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, TapwrightError) else default
