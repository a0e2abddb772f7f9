"""Runs the plugins of one network, one after the other (section 3)."""

import contextlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tapwright.cni import namespaces, results, versions
from tapwright.cni.errors import CniError, NotRunError, PluginError
from tapwright.cni.invoke import Invocation, Trace
from tapwright.cni.network import Network, Plugin
from tapwright.cni.request import Attachment, attachment_variables, derive, runtime_config

Result = dict[str, Any]


class Chain(NamedTuple):
    """A network under one version. Plugins inherit `keep_fds`."""

    network: Network
    version: str
    directories: Sequence[str]
    timeout: float
    trace: Trace | None
    keep_fds: Sequence[int] = ()

    def add(self, attachment: Attachment) -> Iterator[Result]:
        """Run ADD of each plugin; yield the result after each. Raises PluginError."""
        result: Result | None = None
        for plugin in self.network.plugins:
            more = runtime_config(plugin, attachment)
            if result is not None:
                more["prevResult"] = result
            run, answer = self._run(plugin, "ADD", attachment_variables(attachment), more)
            if answer is None:
                raise run.error("it printed no result")
            try:
                result = results.check(answer, self.version)
            except ValueError as error:
                raise run.error(f"its result can't be used: {error}") from None
            # What the network's version can't express goes on as it is, as in libcni.
            with contextlib.suppress(ValueError):
                result = results.convert(result, self.version)
            yield result

    def delete(
        self,
        attachment: Attachment,
        result: Result | None,
        added: int | None = None,
        deleted: Container[int] = (),
    ) -> dict[int, list[CniError]]:
        """Run DEL of all plugins but the `deleted` ones in reverse; return the failures by plugin.
        Plugins are numbers, from 0 in the network's order.

        `added` is for an ADD that failed: how many plugins it may have run. The others hold
        nothing, so it is no failure when one of them can't be started (it may be why ADD failed).
        When DEL fails, too, the arguments may be why; so this calls the plugin again without them.

        libcni stops at the first failure, and then nothing releases what the other plugins hold.
        When the namespace is gone and a plugin insists on one (sbr does, and sbr 1.1 on the
        interface, too), this calls the plugin again with a new namespace, which contains only an
        interface of that name.
        """
        failures = {}
        for number, plugin in reversed(list(enumerate(self.network.plugins))):
            if number in deleted:
                continue
            more = runtime_config(plugin, attachment)
            if result is not None and versions.at_least(self.version, versions.DEL_WITH_RESULT):
                more["prevResult"] = result
            failed = self._attempt(plugin, "DEL", attachment_variables(attachment), more)
            if failed and not attachment.netns:
                failed = self._delete_in_stand_in(plugin, attachment, more) and failed
            if failed and added is not None:
                failed = self._delete_of_failed_add(plugin, attachment, more, failed)
                if number >= added:
                    failed = [error for error in failed if not isinstance(error, NotRunError)]
            if failed:
                failures[number] = failed
        return failures

    def _delete_of_failed_add(
        self,
        plugin: Plugin,
        attachment: Attachment,
        more: dict[str, Any],
        failed: list[CniError],
    ) -> list[CniError]:
        if not attachment.args and "runtimeConfig" not in more:
            return failed
        variables = attachment_variables(attachment._replace(args=()))
        rest = {key: value for key, value in more.items() if key != "runtimeConfig"}
        return self._attempt(plugin, "DEL", variables, rest) and failed

    def _delete_in_stand_in(
        self, plugin: Plugin, attachment: Attachment, more: dict[str, Any]
    ) -> list[CniError]:
        try:
            with namespaces.stand_in(attachment.ifname) as path:
                variables = attachment_variables(attachment._replace(netns=path))
                return self._attempt(plugin, "DEL", variables, more)
        except OSError as error:
            return [CniError(f"no namespace can be made: {error}")]

    def check(self, attachment: Attachment, result: Result) -> None:
        """Run CHECK, up to the first failure. Raises PluginError."""
        for plugin in self.network.plugins:
            more = {**runtime_config(plugin, attachment), "prevResult": result}
            self._run(plugin, "CHECK", attachment_variables(attachment), more)

    def gc(self, valid: list[tuple[str, str]]) -> list[CniError]:
        """Run GC of all plugins; return the failures. `valid` has container ids and interface
        names."""
        named = [{"containerID": container, "ifname": ifname} for container, ifname in valid]
        # Under both keys: the specification had the second one first (libcni/api.go).
        more = {"cni.dev/valid-attachments": named, "cni.dev/attachments": named}
        return [
            failure
            for plugin in self.network.plugins
            for failure in self._attempt(plugin, "GC", {}, more)
        ]

    def status(self) -> None:
        """Run STATUS, up to the first failure. Raises PluginError."""
        for plugin in self.network.plugins:
            self._run(plugin, "STATUS", {}, {})

    def find_all(self, command: str) -> None:
        """Look for all executables. Raises PluginError for the first missing one."""
        for plugin in self.network.plugins:
            self._invocation(plugin, command).find()

    def _run(
        self, plugin: Plugin, command: str, variables: Mapping[str, str], more: dict[str, Any]
    ) -> tuple[Invocation, Result | None]:
        run = self._invocation(plugin, command)
        config = derive(self.network, self.version, plugin, **more)
        return run, run.run(config, variables, self.keep_fds)

    def _attempt(
        self, plugin: Plugin, command: str, variables: Mapping[str, str], more: dict[str, Any]
    ) -> list[CniError]:
        try:
            self._run(plugin, command, variables, more)
        except PluginError as failure:
            return [failure]
        return []

    def _invocation(self, plugin: Plugin, command: str) -> Invocation:
        return Invocation(
            self.network.name, plugin["type"], command, self.directories, self.timeout, self.trace
        )
