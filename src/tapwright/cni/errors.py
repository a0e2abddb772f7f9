"""What can go wrong with networks and their plugins."""


class CniError(Exception):
    """The root of this package's exceptions."""


class ConfigurationError(CniError):
    """A network configuration that can't be used; the message names the file and the place."""


class PluginError(CniError):
    """A plugin failed.

    `network`, `plugin` and `command` tell which run it was; `code`, `message` and `details` are
    the plugin's own words (specification, "Error"), with code 0 where it gave none; `stderr` is
    what else it said.
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
        super().__init__(
            f"network {network!r}: plugin {plugin!r} failed to {command}: {message}{more}{number}"
        )
