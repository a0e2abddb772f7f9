"""An attachment, and the input of a plugin's run for it (sections 2 and 3)."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from tapwright.cni.errors import CniError
from tapwright.cni.names import is_interface_name, is_name
from tapwright.cni.network import Network, Plugin, capabilities_of, is_reserved

_EMPTY: Mapping[str, Any] = {}


class Attachment(NamedTuple):
    """A container's interface on a network.

    `netns` is the path of its namespace; empty when it is gone, which only DEL allows. `args`
    become CNI_ARGS. `capability_args` (portMappings, bandwidth, …) go to the plugins that have
    the capability.
    """

    container_id: str
    ifname: str
    netns: str
    args: tuple[tuple[str, str], ...] = ()
    capability_args: Mapping[str, Any] = _EMPTY


def check_attachment(attachment: Attachment) -> None:
    """Raises CniError for a name that breaks the rules of section 2, "Parameters", or of the kernel
    (libcni, pkg/utils/utils.go)."""
    if not is_name(attachment.container_id):
        raise CniError(
            f"{attachment.container_id!r} is not a container id: it has letters, digits, '_', '.' "
            "and '-', the first a letter or digit"
        )
    if not is_interface_name(attachment.ifname):
        raise CniError(
            f"{attachment.ifname!r} is not an interface name: it has 1 to 15 bytes, without '/', "
            "':' and white space"
        )
    for key, value in attachment.args:
        if not key or re.search(r"[=;\x00]", key) or re.search(r"[;\x00]", value):
            raise CniError(f"the argument {key!r}={value!r} can't be put into CNI_ARGS")
    if "\x00" in attachment.netns:
        raise CniError(f"{attachment.netns!r} is not a path")


def attachment_variables(attachment: Attachment) -> dict[str, str]:
    """The environment parameters of ADD, DEL and CHECK."""
    return {
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
    }


def derive(network: Network, version: str, plugin: Plugin, **more: Any) -> dict[str, Any]:
    """A plugin's request (section 3, "Deriving request configuration from plugin configuration").

    `more` are keys that only some operations have.
    """
    kept = {
        key: value
        for key, value in plugin.items()
        if key.lower() != "capabilities" and not is_reserved(key)
    }
    return {**kept, "cniVersion": version, "name": network.name, **more}


def runtime_config(plugin: Plugin, attachment: Attachment) -> dict[str, Any]:
    """`runtimeConfig` for `derive`: the arguments for the plugin's capabilities; empty without
    any."""
    capabilities = capabilities_of(plugin)
    arguments = {
        name: value for name, value in attachment.capability_args.items() if capabilities.get(name)
    }
    return {"runtimeConfig": arguments} if arguments else {}
