"""The operations on networks, each under its lock and remembered in the cache (section 3)."""

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tapwright.cni import cache, locks, namespaces, results, versions
from tapwright.cni.chain import Chain, Result
from tapwright.cni.errors import CniError, ConfigurationError, NotRunError
from tapwright.cni.invoke import Trace
from tapwright.cni.negotiation import Negotiation
from tapwright.cni.network import Network, parse_network
from tapwright.cni.pluginpath import DEFAULT_PATH
from tapwright.cni.request import Attachment, check_attachment


class Collected(NamedTuple):
    """The attachments that GC deleted, and the files of the cache that it skipped, with reasons."""

    deleted: list[cache.Entry]
    problems: list[str]


class Runtime:
    """Runs the plugins in `plugin_path`, and remembers attachments in `cache_directory`.

    `timeout` is the limit, in seconds, for each plugin's run, and for each wait for other
    operations on the same container. `trace` is called after each run of a plugin. Several threads
    and processes may use a runtime at once.
    """

    def __init__(
        self,
        plugin_path: Sequence[str] = DEFAULT_PATH,
        cache_directory: str = cache.DEFAULT_DIRECTORY,
        timeout: float = locks.PLUGIN_SECONDS,
        trace: Trace | None = None,
    ) -> None:
        self.plugin_path = tuple(plugin_path)
        self.cache_directory = cache_directory
        self.timeout = timeout
        self.trace = trace
        self._negotiation = Negotiation(self.plugin_path, timeout, trace)

    def add(self, network: Network, attachment: Attachment) -> Result:
        """Run the chain's ADD; return the last plugin's result, of the network's version.

        When a plugin fails, the chain's DEL runs before this raises the failure ("Lifecycle &
        Ordering"). If DEL fails, too, its failures become notes of the error, and the attachment
        stays remembered for `delete` and `gc`. Raises PluginError and CniError.
        """
        check_attachment(attachment)
        if not attachment.netns:
            raise CniError("ADD needs the path of a network namespace, and got none")
        path = self._path(network, attachment)
        with self._container(attachment) as fds:
            chain = self._chain(network, fds)
            chain.find_all("ADD")
            self._make_way(network, attachment, path, fds)
            namespace = namespaces.at(attachment.netns)
            entry = cache.Entry(
                network.name, attachment, network.raw, None, namespace, network.whole
            )
            cache.write(path, entry)
            result, done = None, 0
            try:
                for result in chain.add(attachment):  # noqa: B007 - the last one counts
                    done += 1
                cache.write(path, entry._replace(result=result))
            except BaseException as failure:
                added = done if isinstance(failure, NotRunError) else done + 1
                leftovers = chain.delete(attachment, result, added)
                for leftover in _flat(leftovers):
                    failure.add_note(f"and then, in undoing it: {leftover}")
                if leftovers:
                    _keep(path, entry, network, leftovers)
                else:
                    cache.remove(path)
                raise
        assert result is not None  # noqa: S101 - a network has at least one plugin
        return result

    def delete(self, network: Network, attachment: Attachment) -> None:
        """Run the chain's DEL in reverse, with the remembered result if there is one.

        Without `args` or `capability_args`, those of the ADD are used. When the path leads to
        another namespace than at ADD, or to none, plugins get no namespace, and so leave that one
        alone. When a plugin fails, the others still run. The network's version may be unknown.
        Raises an ExceptionGroup of PluginErrors; then the attachment stays remembered, and DEL can
        be tried again: it runs only the plugins that have failed, because some (host-device) fail
        when they are asked twice.
        """
        check_attachment(attachment)
        path = self._path(network, attachment)
        with self._container(attachment) as fds:
            try:
                entry = _read(path, network, attachment)
            except CniError:
                # Damaged: DEL runs without a result, as after a lost cache, and removes the file.
                entry = None
            self._delete(self._chain(network, fds, any_version=True), attachment, entry)

    def check(self, network: Network, attachment: Attachment) -> bool:
        """Run the chain's CHECK with the result of its ADD.

        Return False, and run nothing, when the network has `disableCheck`. Raises PluginError for
        the first plugin that fails, CniError when the attachment is not remembered.
        """
        check_attachment(attachment)
        path = self._path(network, attachment)
        with self._container(attachment) as fds:
            chain = self._chain(network, fds)
            if not versions.at_least(chain.version, versions.CHECK):
                raise CniError(
                    f"network {network.name!r} has version {chain.version}, and CHECK needs at "
                    f"least {versions.CHECK}"
                )
            if network.disable_check:
                return False
            entry = _read(path, network, attachment)
            if entry is None or entry.result is None or not _is_of(entry, network, attachment):
                raise CniError(
                    f"{_described(attachment)} is not attached to network {network.name!r}, so "
                    "there is nothing to check"
                )
            _expect_namespace(attachment, entry)
            try:
                result = results.as_version(entry.result, chain.version)
            except ValueError as error:
                raise CniError(f"the result remembered in {path} can't be used: {error}") from None
            chain.check(_completed(attachment, entry), result)
        return True

    def gc(self, network: Network, valid: Iterable[tuple[str, str]] | None = None) -> Collected:
        """Delete all attachments except the `valid` ones (pairs of container id and interface
        name): run DEL for each remembered one, then the chain's GC.

        Without `valid`, remembered attachments are valid if their namespace still exists, or is
        unknown. Do nothing when the network has `disableGC`. Failures do not stop this; it raises
        them at the end as an ExceptionGroup.
        """
        if network.disable_gc:
            return Collected([], [])
        deleted: list[cache.Entry] = []
        failures: list[CniError] = []
        with locks.everything(self.cache_directory, self.timeout) as fds:
            chain = self._chain(network, fds)
            entries, problems = cache.entries(self.cache_directory)
            entries = [entry for entry in entries if entry.network == network.name]
            keep = {_pair(e) for e in entries if _is_alive(e)} if valid is None else set(valid)
            for entry in entries:
                if _pair(entry) not in keep:
                    failed = self._delete_stale(network, entry, fds)
                    for failure in failed:
                        failure.add_note(f"in deleting {_described(entry.attachment)}")
                    failures += failed
                    deleted += [] if failed else [entry]
            if versions.at_least(chain.version, versions.GC):
                failures += chain.gc(sorted(keep))
        if failures:
            raise ExceptionGroup(f"network {network.name!r}: not all was cleaned up", failures)
        return Collected(deleted, problems)

    def status(self, network: Network) -> bool:
        """Ask the chain's plugins for their STATUS.

        Return False, and ask none, when the network's version lacks STATUS, which came with 1.1.0.
        Raises PluginError for the first plugin that can't serve ADD, with code 50, or 51 when
        existing containers have limited connectivity, too.
        """
        chain = self._chain(network)
        if not versions.at_least(chain.version, versions.STATUS):
            return False
        chain.status()
        return True

    def version(self, kind: str) -> tuple[str, ...]:
        """The versions that a plugin supports. Raises PluginError."""
        return self._negotiation.supported(kind)

    def validate(self, network: Network) -> list[str]:
        """Say what would keep the network from working: plugins that are missing or do not know its
        version, reserved keys, which the runtime does not pass on, and oddities in the results of
        its attachments."""
        entries, _ = self.attachments()
        odd = [
            f"network {network.name!r}: the result of {_described(entry.attachment)}: {remark}"
            for entry in entries
            if entry.network == network.name
            for remark in results.remarks(entry.result or {})
        ]
        return self._negotiation.problems(network) + odd

    def attachments(self) -> tuple[list[cache.Entry], list[str]]:
        """(all remembered attachments; what is wrong with other files of the cache)."""
        return cache.entries(self.cache_directory)

    def _path(self, network: Network, attachment: Attachment) -> str:
        return cache.path_of(self.cache_directory, network.name, attachment)

    def _container(self, attachment: Attachment) -> Any:
        return locks.container(self.cache_directory, attachment.container_id, self.timeout)

    def _chain(self, network: Network, fds: Sequence[int] = (), any_version: bool = False) -> Chain:
        version = self._negotiation.choose(network)
        if version not in versions.VERSIONS and not any_version:
            raise CniError(
                f"network {network.name!r} has version {version}, which is unknown here (known: "
                f"{', '.join(versions.VERSIONS)}); only DEL is possible"
            )
        return Chain(network, version, self.plugin_path, self.timeout, self.trace, fds)

    def _delete(self, chain: Chain, attachment: Attachment, entry: cache.Entry | None) -> None:
        network, result = chain.network, None
        is_ours = entry is None or _is_of(entry, network, attachment)
        if entry is not None and is_ours:
            attachment = _completed(attachment, entry)
            attachment = attachment._replace(netns=_own_path(attachment, entry))
            if entry.result is not None:
                # Like libcni, go on without a result that no longer fits the network.
                with contextlib.suppress(ValueError):
                    result = results.as_version(entry.result, chain.version)
        is_half = entry is not None and is_ours and entry.result is None
        failures = chain.delete(
            attachment,
            result,
            len(network.plugins) if is_half else None,
            _deleted(network, entry) if entry is not None and is_ours else (),
        )
        if failures:
            if entry is not None and is_ours:
                _keep(self._path(network, attachment), entry, network, failures)
            raise ExceptionGroup(
                f"network {network.name!r} was not fully taken down", _flat(failures)
            )
        if is_ours:
            cache.remove(self._path(network, attachment))

    def _make_way(
        self, network: Network, attachment: Attachment, path: str, fds: Sequence[int]
    ) -> None:
        """Make sure that an ADD finds nothing of an earlier one. If the remembered attachment's
        namespace is gone, for example after a reboot, and this ADD is not for the same namespace at
        another path, run DEL for it first. If an earlier ADD failed or was killed, run its DEL
        first, too; when that fails again, plugins find out whether anything is in their way. Like
        libcni's ADD, ignore a file that a loss of power has emptied or cut. Raises CniError."""
        try:
            entry = cache.read(path)
        except cache.TornError:
            return
        is_ours = entry is not None and _is_of(entry, network, attachment)
        if entry and is_ours and entry.result is None:
            self._delete_stale(network, entry, fds)
            return
        if (
            entry
            and is_ours
            and entry.namespace
            and not _is_alive(entry)
            and not namespaces.leads_to(attachment.netns, entry.namespace)
        ):
            for failure in self._delete_stale(network, entry, fds):
                raise failure
            entry = None
        _expect_none(entry, network, attachment, path)

    def _delete_stale(
        self, network: Network, entry: cache.Entry, fds: Sequence[int]
    ) -> list[CniError]:
        """Run DEL with the configuration of the ADD; with the present one if that can't be read."""
        with contextlib.suppress(ConfigurationError):
            network = parse_network(entry.whole, network.source, any_version=True)
        try:
            chain = self._chain(network, fds, any_version=True)
            self._delete(chain, entry.attachment, entry)
        except ExceptionGroup as group:
            return [error for error in group.exceptions if isinstance(error, CniError)]
        return []


def _read(path: str, network: Network, attachment: Attachment) -> cache.Entry | None:
    """What is remembered of this attachment. Raises CniError, as `cache.read` does; but for what
    libcni before 0.8 remembered: then it is taken to be the attachment that is asked for."""
    try:
        return cache.read(path)
    except cache.LegacyError as legacy:
        return cache.Entry(network.name, attachment, network.raw, legacy.result)


def _flat(failures: dict[int, list[CniError]]) -> list[CniError]:
    return [failure for failed in failures.values() for failure in failed]


def _deleted(network: Network, entry: cache.Entry) -> set[int]:
    """The plugins that an earlier DEL has deleted, if they are still the network's."""
    kinds = dict(enumerate(plugin["type"] for plugin in network.plugins))
    return {number for number, kind in entry.deleted if kinds.get(number) == kind}


def _keep(
    path: str, entry: cache.Entry, network: Network, failures: dict[int, list[CniError]]
) -> None:
    """Remember which plugins DEL has deleted. On a full disk each is asked again."""
    deleted = tuple(
        (number, plugin["type"])
        for number, plugin in enumerate(network.plugins)
        if number not in failures
    )
    with contextlib.suppress(CniError):
        cache.write(path, entry._replace(deleted=deleted))


def _pair(entry: cache.Entry) -> tuple[str, str]:
    return entry.attachment.container_id, entry.attachment.ifname


def _is_alive(entry: cache.Entry) -> bool:
    """Whether the attachment's namespace exists. Its path may lead to another namespace by now, or
    be the empty file that `ip netns` leaves."""
    if not entry.attachment.netns:
        return True
    if entry.namespace:
        return namespaces.leads_to(entry.attachment.netns, entry.namespace)
    try:
        return os.stat(entry.attachment.netns).st_dev == os.stat("/proc/self/ns/net").st_dev
    except OSError:
        return False


def _expect_none(
    entry: cache.Entry | None, network: Network, attachment: Attachment, path: str
) -> None:
    """Refuse a second ADD without a DEL (section 2, "ADD"): it would fail, and its DEL would delete
    the first attachment."""
    if entry is None:
        return
    if not _is_of(entry, network, attachment):
        raise CniError(
            f"{path} is the file of another attachment, of {_described(entry.attachment)} to "
            f"network {entry.network!r}; choose another container id or interface name"
        )
    raise CniError(
        f"{_described(attachment)} is attached to network {network.name!r}; run DEL before another "
        "ADD"
    )


def _is_of(entry: cache.Entry, network: Network, attachment: Attachment) -> bool:
    """Whether the file is this attachment's: names with hyphens can share a file name."""
    kept = entry.attachment
    return (entry.network, kept.container_id, kept.ifname) == (
        network.name,
        attachment.container_id,
        attachment.ifname,
    )


def _own_path(attachment: Attachment, entry: cache.Entry) -> str:
    """A path that leads to the attachment's namespace; empty if none does any more."""
    if entry.namespace is None:
        return attachment.netns
    for path in filter(None, (attachment.netns, entry.attachment.netns)):
        if namespaces.leads_to(path, entry.namespace):
            return path
    return ""


def _expect_namespace(attachment: Attachment, entry: cache.Entry) -> None:
    if entry.namespace and not namespaces.leads_to(attachment.netns, entry.namespace):
        raise CniError(
            f"{attachment.netns} does not lead to the namespace that {_described(attachment)} was "
            "made in; run DEL, which gives back what it holds"
        )


def _completed(attachment: Attachment, entry: cache.Entry) -> Attachment:
    """The attachment; without arguments of its own, it gets those of its ADD."""
    kept = entry.attachment
    return attachment._replace(
        args=attachment.args or kept.args,
        capability_args=attachment.capability_args or kept.capability_args,
    )


def _described(attachment: Attachment) -> str:
    return f"interface {attachment.ifname!r} of container {attachment.container_id!r}"
