"""The exceptions that a caller of Tapwright can act on.

Each message is one sentence or two: what failed, why, and what to do. `tapwright.cni` has its
own, since it stands alone.
"""


class TapwrightError(Exception):
    """The root of them all. `result` is what an operation that failed has to show all the same."""

    result: object = None


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


class NetworkError(TapwrightError):
    """A network could not be set up or taken down."""


class SandboxNotFoundError(TapwrightError):
    """No sandbox has that id."""


class SandboxExistsError(TapwrightError):
    """A sandbox of that id is there already."""


class SandboxStateError(TapwrightError):
    """The sandbox is not in a state in which that can be done."""


class BundleError(TapwrightError):
    """A bundle that can't be run, by a mistake in it or for what it asks for."""


def named(name: object, default: type[TapwrightError] = TapwrightError) -> type[TapwrightError]:
    """The exception of that name, by which one process tells another which it was."""
    found = globals().get(name) if isinstance(name, str) else None
    return found if isinstance(found, type) and issubclass(found, TapwrightError) else default
