"""A CNI runtime: runs network plugins as the specification (version 1.1.0) says.

Imports nothing else of tapwright and is useful alone:

    from tapwright.cni import Attachment, Runtime, find_network

    network = find_network("/etc/cni/net.d", "mynet")
    runtime = Runtime()
    attachment = Attachment("web", "eth0", "/run/netns/web")
    result = runtime.add(network, attachment)
    runtime.delete(network, attachment)

`config` reads networks, `invoke` runs one plugin, `runtime` whole chains, `cache` remembers
attachments as libcni does, `locks` keeps operations on one container apart.
"""

from tapwright.cni.config import Network, find_network, load_networks, parse_network
from tapwright.cni.errors import CniError, ConfigurationError, PluginError
from tapwright.cni.invoke import find_plugin
from tapwright.cni.runtime import Attachment, Runtime

__all__ = [
    "Attachment",
    "CniError",
    "ConfigurationError",
    "Network",
    "PluginError",
    "Runtime",
    "find_network",
    "find_plugin",
    "load_networks",
    "parse_network",
]
