"""Takes back what a sandbox holds on the host, entry by entry of its journal, last one first.

Every undoing is one that may find its work done: by an earlier try, by a kill of the namespace,
by somebody's hands.
"""

from typing import Any

from tapwright import cni
from tapwright.endpoint import tap, tcfilter, vhost_user
from tapwright.linux import links, netns, tuntap
from tapwright.linux.netlink import Netlink, record
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


def _undo_tcfilter(entry: dict[str, Any]) -> None:
    if not netns.exists(entry["netns"]):
        return
    with netns.entered(entry["netns"]), Netlink() as nl:
        link = links.find(nl, entry["device"])
        # Another one may bear the name by now, in another namespace of the same path.
        if link and link.index == entry["index"] and ownership.is_still_there(entry):
            tcfilter.detach(nl, link)


def _undo_tap(entry: dict[str, Any]) -> None:
    if ownership.is_still_there(entry):
        settings = tuntap.Tap(*entry["settings"])
        tap.detach(record(tap.Found, {**entry, "settings": settings}))


def _undo_vhost_user(entry: dict[str, Any]) -> None:
    vhost_user.detach(entry["socket"], entry["owner"])


def _leave(entry: dict[str, Any]) -> None:
    """A namespace of somebody else."""


_UNDO = {
    "netns_used": _leave,
    "netns": _undo_netns,
    "attachment": _undo_attachment,
    "tcfilter": _undo_tcfilter,
    "tap": _undo_tap,
    "vhost_user": _undo_vhost_user,
}
