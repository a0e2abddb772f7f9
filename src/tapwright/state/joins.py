"""How a sandbox's NICs are joined with interfaces of the host, by its journal."""

from dataclasses import dataclass
from typing import Any

from tapwright.endpoint import kinds
from tapwright.state.record import Nic, Record


@dataclass(frozen=True)
class Join:
    """The endpoint of a NIC, of a `kind` (`endpoint.kinds`), on the interface with this `index` in
    the namespace at `netns`; a vhost-user socket has neither."""

    kind: str
    netns: str
    index: int


def of_nic(record: Record, nic: Nic) -> Join | None:
    """Return the join of a NIC, None if the journal has none."""
    for entry in held_for(record, nic):
        if kinds.is_endpoint(entry):
            return Join(entry["kind"], entry.get("netns", ""), entry.get("index", 0))
    return None


def held_for(record: Record, nic: Nic) -> list[dict[str, Any]]:
    """Return the entries of the journal that are a NIC's."""
    return [
        entry
        for entry in record.held
        # The interface of one that follows may be about to change its name with another.
        if entry.get("follows", 0) == nic.index and (nic.index or entry.get("nic") == nic.name)
    ]
