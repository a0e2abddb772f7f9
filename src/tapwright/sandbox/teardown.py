"""Takes back what a sandbox holds on the host, entry by entry of its journal, last one first.

Every undoing is one that may find its work done: by an earlier try, by a kill of the namespace,
by somebody's hands.
"""

from typing import Any

from tapwright import cni
from tapwright.endpoint import host_tap, kinds
from tapwright.linux import netns
from tapwright.sandbox import ownership
from tapwright.sandbox.record import Journal


def take_back(journal: Journal) -> list[str]:
    """Undo all entries; return what failed, in words. Those entries stay, for another try."""
    failures = []
    for entry in reversed(list(journal.record.held)):
        try:
            undo(entry)
        except (OSError, cni.CniError) as error:
            failures.append(str(error))
        except ExceptionGroup as group:
            failures.extend(str(error) for error in group.exceptions)
        else:
            journal.release(entry)
    return failures


def undo(entry: dict[str, Any]) -> None:
    """Undo one entry, which stays in the journal. Raises OSError, CniError, ExceptionGroup."""
    if kinds.is_endpoint(entry):
        _undo_endpoint(entry)
    else:
        _UNDO[entry["kind"]](entry)


def _undo_netns(entry: dict[str, Any]) -> None:
    netns.remove(entry["path"])


def _undo_attachment(entry: dict[str, Any]) -> None:
    network = cni.parse_network(entry["config"].encode(), entry["source"])
    path = entry["netns"] if netns.exists(entry["netns"]) else ""
    attachment = cni.Attachment(
        container_id=entry["container_id"],
        ifname=entry["ifname"],
        netns=path,
        capability_args=entry["capability_args"],
    )
    cni.Runtime(entry["plugin_path"], entry["cache"]).delete(network, attachment)


def _undo_endpoint(entry: dict[str, Any]) -> None:
    # Another namespace may be at the path by now.
    if ownership.is_still_there(entry):
        kinds.of_entry(entry).detach()


def _undo_host_tap(entry: dict[str, Any]) -> None:
    host_tap.remove(entry["device"], entry["mark"])


def _undo_port(entry: dict[str, Any]) -> None:
    host_tap.disconnect(*(entry[key] for key in ("device", "index", "bridge", "ovs", "mark")))


def _leave(entry: dict[str, Any]) -> None:
    """A namespace of somebody else."""


_UNDO = {
    "netns_used": _leave,
    "netns": _undo_netns,
    "attachment": _undo_attachment,
    "host_tap": _undo_host_tap,
    "port": _undo_port,
}
