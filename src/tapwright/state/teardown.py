"""Takes back what a sandbox holds on the host, entry by entry of its journal, last one first.

Every undoing is one that may find its work done: by an earlier try, by a kill of the namespace,
by somebody's hands.
"""

from pathlib import Path
from typing import Any

from tapwright import cni, shapes
from tapwright.cni import namespaces
from tapwright.endpoint import host_device, host_tap, kinds
from tapwright.errors import SandboxStateError, TapwrightError
from tapwright.linux import boot, netns
from tapwright.state import control_group, ownership
from tapwright.state.record import Journal


def take_back(journal: Journal) -> list[str]:
    """Undo all entries; return what failed, in words. Those entries stay, for another try."""
    failures = []
    is_over = journal.record.boot not in ("", boot.current())
    for entry in reversed(list(journal.record.held)):
        try:
            _check(entry)
            if not (is_over and _ended_with_the_kernel(entry)):
                undo(entry)
        except (OSError, cni.CniError, TapwrightError) as error:
            failures.append(str(error))
        except KeyError as error:
            failures.append(f"{entry['kind']}: the journal does not say {error} of it")
        except ExceptionGroup as group:
            failures.extend(str(error) for error in group.exceptions)
        else:
            if entry["kind"] == "attachment":
                # Some plugins do not bear to be told twice.
                journal.release(entry)
            else:
                journal.strike(entry)
    if failures:
        journal.save_if_possible()  # else the directory goes
    return failures


def undo(entry: dict[str, Any]) -> None:
    """Undo one entry, which stays in the journal. Raises OSError, CniError, ExceptionGroup,
    SandboxStateError for one that another version made, KeyError where something is missing."""
    if kinds.is_endpoint(entry):
        _undo_endpoint(entry)
    elif undoing := _UNDO.get(entry["kind"]):
        undoing(entry)
    else:
        raise SandboxStateError(
            f"what the journal calls {entry['kind']!r} can't be undone by this version of "
            "Tapwright: use the one that made the sandbox"
        )


def _check(entry: dict[str, Any]) -> None:
    """Raises SandboxStateError for one that is damaged: who undoes it relies on its types."""
    kind = entry["kind"]
    shape = kinds.shape(kind) if kinds.is_endpoint(entry) else _SHAPES.get(kind, {})
    if mistake := shapes.mistake(entry, shape):
        raise SandboxStateError(f"{kind}: the journal is damaged: {mistake}")


def _ended_with_the_kernel(entry: dict[str, Any]) -> bool:
    """Whether the kernel that it was made in had all of it. What has its place by now, and its
    numbers, is somebody else's. The database of Open vSwitch lasts, and so do leases."""
    kind = entry["kind"]
    if kind == "netns":
        # A file may be left of it, where /run outlasts the kernel.
        return namespaces.at(entry["path"]) is not None
    own = kind in ("net_device", "cgroup") or (kind == "port" and not entry["ovs"])
    return own or kinds.is_endpoint(entry)


def _undo_netns(entry: dict[str, Any]) -> None:
    # Somebody may have removed it, and another one may have taken its name.
    if namespaces.at(entry["path"]) is None or ownership.is_still_its(entry, entry["path"]):
        netns.remove(entry["path"])


def _undo_attachment(entry: dict[str, Any]) -> None:
    network = cni.parse_network(entry["config"].encode(), entry["source"], any_version=True)
    path = entry["netns"] if ownership.is_still_its(entry, entry["netns"]) else ""
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


def _undo_template_draft(entry: dict[str, Any]) -> None:
    from tapwright.hypervisor.template_store import Store  # hardly ever needed

    Store(Path(entry["directory"])).clear()


def _undo_net_device(entry: dict[str, Any]) -> None:
    host_device.of_entry(entry).move_back()


def _undo_cgroup(entry: dict[str, Any]) -> None:
    control_group.remove(entry["path"])


def _leave(entry: dict[str, Any]) -> None:
    """A namespace of somebody else."""


_SHAPES: dict[str, dict[str, Any]] = {
    "netns": {"path": str},
    "attachment": {
        **dict.fromkeys(("ifname", "container_id", "netns", "config", "source", "cache"), str),
        "capability_args": dict,
        "plugin_path": list[str],
    },
    "host_tap": {"device": str, "mark": str},
    "port": {"index": int, **dict.fromkeys(("device", "bridge", "ovs", "mark"), str)},
    "template_draft": {"directory": str},
    "net_device": host_device.SHAPE,
    "cgroup": {"path": str},
}

_UNDO = {
    "netns_used": _leave,
    "netns": _undo_netns,
    "attachment": _undo_attachment,
    "host_tap": _undo_host_tap,
    "port": _undo_port,
    "template_draft": _undo_template_draft,
    "net_device": _undo_net_device,
    "cgroup": _undo_cgroup,
}
