"""A CNI runtime: runs network plugins as the specification (version 1.1.0) says.

Imports nothing else of tapwright and is useful alone:

    from tapwright.cni import Attachment, Runtime, find_network

    network = find_network("/etc/cni/net.d", "mynet")
    runtime = Runtime()
    attachment = Attachment("web", "eth0", "/run/netns/web")
    result = runtime.add(network, attachment)
    runtime.delete(network, attachment)

`network` reads a configuration, `directory` all of a directory, `watch` follows it; `strictjson`
reads their JSON, `names` says what may be a name. `runtime` runs the operations, by a `chain` of
plugins; `invoke` runs one plugin (`pluginpath` finds it), with the input of a `request`, in a
`process`. `cache` remembers attachments as libcni does, `locks` keeps operations apart,
`namespaces` notices that a path leads to another namespace. `results` knows the results of all
`versions`, `negotiation` chooses one; `errors` is what is raised. `plugin` is for writing plugins.

"Section" in this package means one of the specification (SPEC.md of containernetworking/cni).
"""

from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.cni.cache import Entry
    from tapwright.cni.directory import find_network, load_network, load_networks
    from tapwright.cni.errors import CniError, ConfigurationError, PluginError
    from tapwright.cni.invoke import Run
    from tapwright.cni.names import is_interface_name
    from tapwright.cni.network import Network, parse_network
    from tapwright.cni.pluginpath import find_plugin
    from tapwright.cni.request import Attachment
    from tapwright.cni.runtime import Runtime
    from tapwright.cni.watch import NetworkWatcher

__all__ = [
    "Attachment",
    "CniError",
    "ConfigurationError",
    "Entry",
    "Network",
    "NetworkWatcher",
    "PluginError",
    "Run",
    "Runtime",
    "find_network",
    "find_plugin",
    "is_interface_name",
    "load_network",
    "load_networks",
    "parse_network",
]

_MODULES = {
    "Attachment": "request",
    "Entry": "cache",
    "Network": "network",
    "NetworkWatcher": "watch",
    "Run": "invoke",
    "Runtime": "runtime",
    "find_network": "directory",
    "find_plugin": "pluginpath",
    "is_interface_name": "names",
    "load_network": "directory",
    "load_networks": "directory",
    "parse_network": "network",
}


def __getattr__(name: str) -> object:
    """Import on first use: a plugin needs a small part, and must start fast."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
