"""The CNI networks of a sandbox: runs their chains while the rest of the start goes on."""

import threading
from collections.abc import Callable
from typing import Any

from tapwright import cni
from tapwright.errors import NetworkError
from tapwright.state import ownership, plugin_runs
from tapwright.state.entries import Attachment
from tapwright.state.record import Journal, NetworkRequest

Result = dict[str, Any]


class Attaching:
    """Runs the chains of a sandbox's networks, one after another, in a thread, after a `first` step
    of the caller's. Each attachment is in the journal before it is made."""

    def __init__(self, journal: Journal, first: Callable[[], None] = lambda: None) -> None:
        self._journal = journal
        self._first = first
        self._results: list[Result] = []
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def results(self) -> list[Result]:
        """The results of all networks, in their order. Waits for them; raises NetworkError, and
        what the first step raises."""
        self.wait()
        if self._failure:
            raise self._failure
        return self._results

    def wait(self) -> None:
        self._thread.join()

    def _run(self) -> None:
        try:
            self._first()
            for request in self._journal.record.spec.networks:
                self._results.append(self._attach(request))
        except BaseException as error:
            self._failure = error

    def _attach(self, request: NetworkRequest) -> Result:
        record = self._journal.record
        spec = record.spec
        entry = self._journal.enter(
            Attachment(
                network=request.name,
                ifname=request.ifname,
                container_id=record.id,
                netns=record.netns,
                namespace=ownership.namespace_of(record.netns),
                config=request.config,
                source=request.source,
                capability_args=request.capability_args,
                plugin_path=spec.plugin_path,
                cache=spec.cni_cache,
            )
        )
        attachment = cni.Attachment(
            container_id=record.id,
            ifname=request.ifname,
            netns=record.netns,
            capability_args=request.capability_args,
        )
        root = self._journal.directory.parent.parent
        try:
            with plugin_runs.noted(root) as trace, self._journal.phase(f"network {request.name}"):
                network = cni.parse_network(request.config.encode(), request.source)
                if request.remembered:
                    network = network._replace(raw=request.remembered.encode())
                runtime = cni.Runtime(spec.plugin_path, spec.cni_cache, trace=trace)
                return runtime.add(network, attachment)
        except cni.CniError as error:
            leftovers = getattr(error, "__notes__", [])
            if not leftovers:
                # The chain's DEL has run, and some plugins fail when it runs twice.
                self._journal.release(entry)
            raise NetworkError("; ".join([str(error), *leftovers])) from None


def dns(results: list[Result]) -> dict[str, Any]:
    """One resolver configuration from those of all networks, without duplicates."""
    found: dict[str, Any] = {}
    for result in results:
        dns = result.get("dns") or {}
        for key in ("nameservers", "search", "options"):
            merged = found.get(key, []) + (dns.get(key) or [])
            if merged:
                found[key] = list(dict.fromkeys(merged))
        if dns.get("domain"):
            found.setdefault("domain", dns["domain"])
    return found
