"""The exceptions that a caller of Tapwright can act on.

Each message is one sentence or two: what failed, why, and what to do. `tapwright.cni` has its
own, since it stands alone.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def shown(text: object) -> str:
    """A text that may contain words of a guest, a plugin or a program, made safe for a terminal and
    a log: on one line, and printable."""
    return printable("; ".join(line.strip() for line in str(text).splitlines() if line.strip()))


def printable(text: str) -> str:
    """The text without control characters for a terminal; unprintable characters are escaped as in
    Python."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class TapwrightError(Exception):
    """The root of them all. `result` is what an operation that failed has to show all the same;
    `sandbox` the id of the sandbox that it was asked of, where `tapwright.Sandbox` was."""

    result: object = None
    sandbox: str | None = None


class UsageError(TapwrightError):
    """The caller asked for something that can't be: a bad id, an impossible option."""


class ConfigError(TapwrightError):
    """A configuration file that can't be used."""


class ImageError(TapwrightError):
    """The guest image is missing or can't be built."""


class HypervisorError(TapwrightError):
    """QEMU is missing, did not start, or refused a command."""


class AgentError(TapwrightError):
    """The agent in the guest does not answer, or does not do what it was asked."""


class AgentRefusedError(AgentError):
    """The agent answered, and said why it does not do what it was asked."""


class ContainerError(AgentRefusedError):
    """A container in the guest can't be made or changed as was asked."""


class ContainerNotFoundError(ContainerError):
    """The guest has no container of that id."""


class ContainerExistsError(ContainerError):
    """The guest has a container of that id already."""


class ContainerStateError(ContainerError):
    """The container is not in a state in which that can be done."""


class CommandError(TapwrightError):
    """A command in a guest ended with an exit `status` that is not 0. `argv` is the command,
    `stdout` and `stderr` (str or bytes, as was asked for) what it wrote."""

    def __init__(
        self, argv: "Sequence[str]", status: int, stdout: "str | bytes", stderr: "str | bytes"
    ) -> None:
        self.argv, self.status = tuple(argv), status
        self.stdout, self.stderr = stdout, stderr
        text = stderr if isinstance(stderr, str) else stderr.decode(errors="replace")
        said = f": {shown(text)}" if text.strip() else ""
        super().__init__(f"{shown(' '.join(argv))} ended with status {status}{said}")


class CommandTimeoutError(TapwrightError, TimeoutError):
    """A command in a guest was not done after `timeout` seconds. `stdout` and `stderr` are what
    it had written by then."""

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
    """A sandbox of that id is there already."""


class SandboxStateError(TapwrightError):
    """The sandbox is not in a state in which that can be done."""


class NewerRecordError(SandboxStateError):
    """A newer version of Tapwright wrote what is known of the sandbox."""


class UnknownRequestError(TapwrightError):
    """A running sandbox does not know a request, or an argument of it: its supervisor is of another
    version of Tapwright."""


class BundleError(TapwrightError):
    """A bundle that can't be run, by a mistake in it or for what it asks for."""


def named(name: object, default: type[TapwrightError] = TapwrightError) -> type[TapwrightError]:
    """Return the exception class of this name, which one process sends to another."""
    found = globals().get(name) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, TapwrightError) else default
