"""The entries of a journal by their kinds: written, and read again.

Endpoints and network devices are entries, too, and dataclasses of the room `endpoint`. A record
keeps an entry as it was written, with fields and kinds that only another version knows.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

from tapwright import shapes
from tapwright.errors import SandboxStateError


@dataclass
class NetnsUsed:
    """A network namespace that the sandbox uses, and did not make."""

    path: str = ""


@dataclass
class Netns:
    """A name of a network namespace, which ends with the sandbox. `namespace` says to which one it
    leads (`ownership.namespace_of`), None as long as that is not known."""

    path: str
    namespace: Any = None


@dataclass
class Attachment:
    """An attachment to a CNI network, with everything that DEL needs."""

    ifname: str
    container_id: str
    netns: str
    config: str
    source: str
    cache: str
    capability_args: dict[str, Any]
    plugin_path: list[str]
    namespace: Any = None
    network: str = ""


@dataclass
class HostTap:
    """A TAP that was made in the host's namespace; `mark` says for which sandbox. The entries of a
    NIC have its name as `nic`, and the index of the interface that it `follows`, 0 for none."""

    device: str
    mark: str
    nic: str = ""
    follows: int = 0


@dataclass
class Port:
    """A port of a Linux bridge, or of a bridge of Open vSwitch."""

    device: str
    mark: str
    index: int
    bridge: str
    ovs: str
    nic: str = ""
    follows: int = 0


@dataclass
class TemplateDraft:
    """A template that is being made in a directory of templates."""

    directory: str


@dataclass
class ControlGroup:
    """A control group of the sandbox's own."""

    path: str


Entry = NetnsUsed | Netns | Attachment | HostTap | Port | TemplateDraft | ControlGroup
_KINDS: dict[str, type[Entry]] = {
    "netns_used": NetnsUsed,
    "netns": Netns,
    "attachment": Attachment,
    "host_tap": HostTap,
    "port": Port,
    "template_draft": TemplateDraft,
    "cgroup": ControlGroup,
}


def written(entry: Entry) -> tuple[str, dict[str, Any]]:
    """Return (kind, fields) for the journal."""
    kind = next(name for name, cls in _KINDS.items() if type(entry) is cls)
    return kind, dataclasses.asdict(entry)


def read(content: dict[str, Any]) -> Entry | None:
    """Return the entry that was written; None for an endpoint, a network device, and a kind of
    another version. Raises SandboxStateError for a damaged one."""
    cls = _KINDS.get(content["kind"])
    if cls is None:
        return None
    fields = dataclasses.fields(cls)
    needed = {each.name: each.type for each in fields if each.default is dataclasses.MISSING}
    if mistake := shapes.mistake(content, needed):
        raise SandboxStateError(f"{content['kind']}: the journal is damaged: {mistake}")
    known = {each.name: content[each.name] for each in fields if each.name in content}
    return cls(**known)
