"""Chooses the version for a network: the highest that its configuration, its plugins and this
package know (section 1, "Version considerations")."""

import os
from collections.abc import Sequence

from tapwright.cni import versions
from tapwright.cni.errors import PluginError
from tapwright.cni.invoke import Invocation, Trace
from tapwright.cni.network import Network, Plugin, ipam_type, is_reserved, member


class Negotiation:
    """Asks plugins for their VERSION, each executable once."""

    def __init__(self, directories: Sequence[str], timeout: float, trace: Trace | None) -> None:
        self._directories = directories
        self._timeout = timeout
        self._trace = trace
        self._known: dict[tuple[str, int, int], tuple[str, ...]] = {}

    def supported(self, kind: str, network: str = "") -> tuple[str, ...]:
        """The versions that a plugin supports, by its own answer. Raises PluginError."""
        run = Invocation(network, kind, "VERSION", self._directories, self._timeout, self._trace)
        file = os.stat(run.find())
        key = (kind, file.st_ino, file.st_mtime_ns)
        if key not in self._known:
            self._known[key] = _ask(run)
        return self._known[key]

    def choose(self, network: Network) -> str:
        """The version for a network. This asks the plugins only if the configuration leaves a
        choice, because it makes an operation slower."""
        choice = network.versions
        if len(choice) == 1:
            return choice[0]
        for kind in (kind for plugin in network.plugins for kind in _kinds(plugin)):
            try:
                known = self.supported(kind, network.name)
            except PluginError:
                continue  # the operation itself will fail, and report this
            choice = tuple(version for version in choice if version in known) or choice
        return choice[-1]

    def problems(self, network: Network) -> list[str]:
        """Say what would keep the network from working: plugins that are missing or do not know its
        version, and reserved keys, which the runtime does not pass on."""
        problems = []
        for number, plugin in enumerate(network.plugins):
            for key in sorted(filter(is_reserved, plugin)):
                problems.append(
                    f"{network.source}: key 'plugins[{number}].{key}': reserved for the runtime, "
                    "and not passed on; leave it out"
                )
            for kind in _kinds(plugin):
                problems += self._kind_problems(network, kind)
        return problems

    def _kind_problems(self, network: Network, kind: str) -> list[str]:
        try:
            known = self.supported(kind, network.name)
        except PluginError as error:
            return [str(error)]
        if set(known) & set(network.versions):
            return []
        return [
            f"network {network.name!r}: plugin {kind!r} knows the versions {', '.join(known)}, but "
            f"the network has {', '.join(network.versions)}; change its key 'cniVersion'"
        ]


def _ask(run: Invocation) -> tuple[str, ...]:
    # Plugins older than VERSION insist on the parameters of ADD (libcni, pkg/invoke/exec.go).
    dummies = {"CNI_CONTAINERID": "dummy", "CNI_NETNS": "dummy", "CNI_IFNAME": "dummy"}
    try:
        answer = run.run({"cniVersion": versions.CURRENT}, dummies)
    except PluginError as error:
        if error.message == "unknown CNI_COMMAND: VERSION":
            return versions.VERSIONS[:1]
        raise
    if not answer:
        raise run.error("it printed no answer")
    version = member(answer, "cniVersion")
    # Plugins of version 0.2.0 may name no versions (libcni, pkg/version/plugin.go, Decode).
    alone = ["0.1.0", "0.2.0"] if version == "0.2.0" else [version]
    supported = member(answer, "supportedVersions") or alone
    if not isinstance(supported, list) or not all(isinstance(v, str) for v in supported):
        raise run.error(f"key 'supportedVersions' of its answer is not a list: {supported!r}")
    return tuple(supported)


def _kinds(plugin: Plugin) -> list[str]:
    """The plugin and its delegate."""
    ipam = ipam_type(plugin)
    return [plugin["type"], ipam] if ipam else [plugin["type"]]
