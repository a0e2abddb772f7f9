"""Runs whole networks: the plugins of a chain in their order, each with its predecessor's result
(specification, section 3)."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tapwright.cni import cache, locks
from tapwright.cni.config import Network
from tapwright.cni.errors import CniError
from tapwright.cni.invoke import DEFAULT_PATH, Invocation

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_WITH_PREVIOUS_RESULT = ("0.4.0", "1.0.0", "1.1.0")

Result = dict[str, Any]


@dataclass(frozen=True)
class Attachment:
    """A container's interface on a network. `args` become CNI_ARGS; `capability_args` go to the
    plugins that have the capability (portMappings, bandwidth, …)."""

    container_id: str
    ifname: str
    netns: str
    args: tuple[tuple[str, str], ...] = ()
    capability_args: dict[str, Any] = field(default_factory=dict)


class Runtime:
    """Runs plugins found in `plugin_path`, remembering attachments under `cache_directory`.

    `timeout` bounds each plugin's run, in seconds. Safe to use from several threads.
    """

    def __init__(
        self,
        plugin_path: Sequence[str] = DEFAULT_PATH,
        cache_directory: str = cache.DEFAULT_DIRECTORY,
        timeout: float = 60.0,
    ) -> None:
        self.plugin_path = tuple(plugin_path)
        self.cache_directory = cache_directory
        self.timeout = timeout

    def add(self, network: Network, attachment: Attachment) -> Result:
        """Run the chain's ADD; return the last result. Raises PluginError, CniError.

        After a failure call `delete`: the plugins that ran may have left something.
        """
        _check(attachment)
        result: Result | None = None
        with locks.container(self.cache_directory, attachment.container_id, self.timeout) as lock:
            for plugin in network.plugins:
                run = Invocation(network.name, plugin["type"], "ADD")
                config = _config(network, plugin, attachment, result)
                answer = run.run(
                    self.plugin_path, _variables(attachment), config, self.timeout, [lock]
                )
                if answer is None:
                    raise run.error("it printed no result")
                result = answer
            assert result is not None  # noqa: S101 - a network has at least one plugin
            cache.write(
                self._cache_path(network, attachment),
                _entry(network, attachment, result),
                network.raw,
            )
        return result

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Run the chain's DEL in reverse, with the remembered result where there is one.

        A plugin that fails does not keep the others from running. Raises an ExceptionGroup of
        the failures; the attachment stays remembered then, so that it can be tried again.
        """
        _check(attachment)
        path = self._cache_path(network, attachment)
        with locks.container(self.cache_directory, attachment.container_id, self.timeout) as lock:
            remembered = cache.read(path)
            result = None
            if remembered and network.cni_version in _WITH_PREVIOUS_RESULT:
                result = remembered.get("result")
            failures: list[Exception] = []
            for plugin in reversed(network.plugins):
                run = Invocation(network.name, plugin["type"], "DEL")
                config = _config(network, plugin, attachment, result)
                try:
                    run.run(self.plugin_path, _variables(attachment), config, self.timeout, [lock])
                except CniError as failure:
                    failures.append(failure)
            if failures:
                raise ExceptionGroup(f"network {network.name!r} was not fully taken down", failures)
            cache.remove(path)

    def _cache_path(self, network: Network, attachment: Attachment) -> Any:
        return cache.path_of(
            self.cache_directory, network.name, attachment.container_id, attachment.ifname
        )


def _check(attachment: Attachment) -> None:
    if not _CONTAINER_ID.fullmatch(attachment.container_id):
        raise CniError(f"{attachment.container_id!r} is not a container id")
    name = attachment.ifname
    if not 0 < len(name) < 16 or name in (".", "..") or re.search(r"[/:\s]", name):
        raise CniError(f"{name!r} is not an interface name")


def _config(
    network: Network, plugin: dict[str, Any], attachment: Attachment, result: Result | None
) -> dict[str, Any]:
    """What a plugin gets on stdin (specification, "Deriving execution configuration")."""
    config = {**plugin, "name": network.name, "cniVersion": network.cni_version}
    for reserved in ("runtimeConfig", "prevResult"):
        config.pop(reserved, None)
    capabilities = config.pop("capabilities", {})
    told = {
        name: value for name, value in attachment.capability_args.items() if capabilities.get(name)
    }
    if told:
        config["runtimeConfig"] = told
    if result is not None:
        config["prevResult"] = result
    return config


def _variables(attachment: Attachment) -> dict[str, str]:
    return {
        "CNI_CONTAINERID": attachment.container_id,
        "CNI_NETNS": attachment.netns,
        "CNI_IFNAME": attachment.ifname,
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
    }


def _entry(network: Network, attachment: Attachment, result: Result) -> dict[str, Any]:
    entry = {
        "containerId": attachment.container_id,
        "ifName": attachment.ifname,
        "networkName": network.name,
        "netns": attachment.netns,
        "cniArgs": [list(pair) for pair in attachment.args],
        "capabilityArgs": attachment.capability_args,
        "result": result,
    }
    return {key: value for key, value in entry.items() if value}
