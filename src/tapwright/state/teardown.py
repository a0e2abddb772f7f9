"""Undoes what a sandbox holds on the host, entry by entry of its journal, the last one first.

Each step may find its work done already: by an earlier try, by the end of the namespace, by hand.
"""

from pathlib import Path
from typing import Any

from tapwright import cni, shapes
from tapwright.cni import namespaces
from tapwright.endpoint import kinds
from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.linux import boot, netns
from tapwright.state import control_group, entries, ownership, plugin_runs
from tapwright.state.entries import (
    Attachment,
    ControlGroup,
    Entry,
    HostTap,
    Netns,
    NetnsUsed,
    Port,
    TemplateDraft,
)
from tapwright.state.record import Journal

_OF_NETWORKS = "attachment", "tcfilter"


def take_back(journal: Journal) -> list[str]:
    """Undo all entries; return what failed, in words. Failed entries stay, for another try."""
    failures = []
    with plugin_runs.noted(journal.directory.parent.parent) as trace:
        for entry in reversed(list(journal.record.held)):
            failures += _taken_back(journal, entry, trace)
    if failures:
        journal.save_if_possible()  # otherwise the directory goes
    return failures


def take_back_networks(journal: Journal) -> list[str]:
    """Undo the last entries, as long as they are of CNI networks and of their joins, which need not
    wait for QEMU's end; return what failed, in words, and was the last of them."""
    with plugin_runs.noted(journal.directory.parent.parent) as trace:
        for entry in reversed(list(journal.record.held)):
            if entry["kind"] not in _OF_NETWORKS:
                break
            if failures := _taken_back(journal, entry, trace):
                return failures
    return []


def _taken_back(journal: Journal, entry: dict[str, Any], trace: plugin_runs.Trace) -> list[str]:
    """Undo an entry, and strike it; or return what failed, in words."""
    is_over = journal.record.boot not in ("", boot.current())
    try:
        _check(entry)
        if not (is_over and _ended_with_the_kernel(entry)):
            undo(entry, trace)
    except (OSError, cni.CniError, TapwrightError) as error:
        return [str(error)]
    except KeyError as error:
        return [f"{entry['kind']}: the journal does not say {error} of it"]
    except ExceptionGroup as group:
        return [str(error) for error in group.exceptions]
    if entry["kind"] == "attachment":
        # Some plugins do not tolerate a second DEL.
        journal.release(entry)
    else:
        journal.strike(entry)
    return []


def undo(entry: dict[str, Any], trace: plugin_runs.Trace | None = None) -> None:
    """Undo one entry, which stays in the journal; `trace` gets each run of a CNI plugin. Raises
    OSError, CniError, ExceptionGroup, SandboxStateError for an entry of another version, KeyError
    if something is missing."""
    if kinds.is_endpoint(entry):
        # The path may lead to another namespace by now.
        if ownership.is_still_there(entry):
            kinds.of_entry(entry).detach()
    elif entry["kind"] == kinds.HOST_DEVICE:
        from tapwright.endpoint import host_device  # it loads much, and few journals need it

        host_device.of_entry(entry).move_back()
    elif known := entries.read(entry):
        _undo(known, trace)
    else:
        raise SandboxStateError(
            f"what the journal calls {entry['kind']!r} can't be undone by this version of "
            "Tapwright: use the one that made the sandbox"
        )


def _check(entry: dict[str, Any]) -> None:
    """Raises SandboxStateError for a damaged entry: its undoing relies on its types."""
    kind = entry["kind"]
    shape: dict[str, Any] = {}
    if kinds.is_endpoint(entry):
        shape = kinds.shape(kind)
    elif kind == kinds.HOST_DEVICE:
        from tapwright.endpoint import host_device

        shape = host_device.SHAPE
    if mistake := shapes.mistake(entry, shape):
        raise SandboxStateError(f"{kind}: the journal is damaged: {mistake}")
    entries.read(entry)


def _ended_with_the_kernel(entry: dict[str, Any]) -> bool:
    """Whether everything of an entry ended with the kernel in which it was made. A thing with the
    same place or number is another sandbox's by now. The database of Open vSwitch lasts, and so do
    leases."""
    match entries.read(entry):
        case Netns(path=path):
            # A file may be left of it, if /run outlasts the kernel.
            return namespaces.at(path) is not None
        case Port(ovs=ovs):
            return not ovs
        case ControlGroup():
            return True
        case _:
            return entry["kind"] == kinds.HOST_DEVICE or kinds.is_endpoint(entry)


def _undo(entry: Entry, trace: plugin_runs.Trace | None) -> None:
    match entry:
        case NetnsUsed():
            pass
        case Netns(path=path):
            # The namespace may have been removed, and its name may belong to another one by now.
            if namespaces.at(path) is None or ownership.is_still(entry.namespace, path):
                netns.remove(path)
        case Attachment():
            _detach(entry, trace)
        case HostTap():
            from tapwright.endpoint import host_tap

            host_tap.remove(entry.device, entry.mark)
        case Port():
            from tapwright.endpoint import host_tap

            host_tap.disconnect(entry.device, entry.index, entry.bridge, entry.ovs, entry.mark)
        case TemplateDraft():
            from tapwright.hypervisor.template_store import Store  # hardly ever needed

            Store(Path(entry.directory)).clear()
        case ControlGroup():
            control_group.remove(entry.path)


def _detach(entry: Attachment, trace: plugin_runs.Trace | None) -> None:
    network = cni.parse_network(entry.config.encode(), entry.source, any_version=True)
    attachment = cni.Attachment(
        container_id=entry.container_id,
        ifname=entry.ifname,
        netns=entry.netns if ownership.is_still(entry.namespace, entry.netns) else "",
        capability_args=entry.capability_args,
    )
    cni.Runtime(entry.plugin_path, entry.cache, trace=trace).delete(network, attachment)
