"""The errors of networks and plugins, and the specification's error codes."""

# Section 5, "Error"; the last two are libcni's own (pkg/types/types.go).
INCOMPATIBLE_VERSION = 1
UNSUPPORTED_FIELD = 2
UNKNOWN_CONTAINER = 3
INVALID_ENVIRONMENT = 4
IO_FAILURE = 5
DECODING_FAILURE = 6
INVALID_CONFIGURATION = 7
TRY_AGAIN_LATER = 11
NOT_AVAILABLE = 50
LIMITED_CONNECTIVITY = 51
INVALID_NETNS = 8
INTERNAL = 999


class CniError(Exception):
    """The base of this package's exceptions."""


class ConfigurationError(CniError):
    """An invalid network configuration.

    `source` is the file (or the caller's name for it), `line` counts from 1 and is 0 if unknown,
    `key` is the key at fault or empty, `reason` says what is wrong.
    """

    def __init__(self, source: str, reason: str, key: str = "", line: int = 0) -> None:
        self.source = source
        self.reason = reason
        self.key = key
        self.line = line
        place = f"{source}, line {line}" if line else source
        super().__init__(f"{place}: key '{key}': {reason}" if key else f"{place}: {reason}")


class PluginError(CniError):
    """A plugin failed.

    `network` (empty for none), `plugin` and `command` name the run. `code`, `message` and `details`
    are the plugin's own words (section 5, "Error"), with code 0 if it gave none. `stderr` is its
    other output.
    """

    def __init__(
        self,
        network: str,
        plugin: str,
        command: str,
        message: str,
        code: int = 0,
        details: str = "",
        stderr: str = "",
    ) -> None:
        self.network = network
        self.plugin = plugin
        self.command = command
        self.code = code
        self.message = message
        self.details = details
        self.stderr = stderr
        number = f" (code {code})" if code else ""
        more = f": {details}" if details else ""
        of = f"network {network!r}: " if network else ""
        super().__init__(f"{of}plugin {plugin!r} failed to {command}: {message}{more}{number}")


class NotRunError(PluginError):
    """A plugin's executable exists, but the kernel does not start it."""
