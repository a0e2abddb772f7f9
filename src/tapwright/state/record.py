"""A sandbox on disk: its specification, its state, and all that it holds.

The list `held` is the journal: the supervisor enters everything that outlives its process before
making it, so that `teardown` can undo it after a kill at any moment.
"""

import contextlib
import enum
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tapwright import shapes
from tapwright.dataclass import dataclass, field
from tapwright.errors import NewerRecordError, SandboxStateError
from tapwright.hypervisor.machine import Daemon, Machine
from tapwright.linux import files

if TYPE_CHECKING:
    from tapwright.state.entries import Entry

FILE = "record.json"
LOG = "log"

CREATING, RUNNING = "creating", "running"

FORMAT = 1
"""The format of records; format 0 had no number. New information gets a new field, or a new kind of
entry, which other versions keep as they found it. The number grows when older versions would
misunderstand a record: they then refuse the record."""
_FORMAT, _UNKNOWN = "format", "_unknown"

_LAST_SECOND = 1 << 36

_T = TypeVar("_T")


@dataclass
class NetworkRequest:
    """A network to attach to. It has the whole configuration, because the file may go or change.
    `remembered` is what libcni would keep of it, if that is less (`cni.Network.raw`)."""

    name: str
    ifname: str
    config: str
    source: str
    capability_args: dict[str, Any] = field(default_factory=dict)
    remembered: str = ""


@dataclass
class TapRequest:
    """A TAP of the host's namespace, and the NIC on it. The TAP is made if it does not exist, and
    connected to a Linux bridge or an Open vSwitch bridge if one is named. Addresses are
    ADDRESS/PREFIX; an MTU of 0 means the TAP's."""

    device: str
    name: str
    mac: str
    bridge: str = ""
    ovs: str = ""
    mtu: int = 0
    addresses: list[str] = field(default_factory=list)


class Place(enum.Enum):
    """Which network namespace the sandbox uses."""

    MADE = "one that the sandbox makes; it goes with the sandbox"
    GIVEN = "the caller's, by the caller's path"
    BOUND = "the caller's, by a path of the sandbox's own, for the caller's ends with a process"
    HOST = "none of its own: its TAPs are in the host's"


@dataclass
class Spec:
    """What a caller asks for.

    `netns` is the path of the caller's network namespace, empty for another `Place`; with
    `in_host_netns` the place is HOST. `most_starts` sandboxes of the host start at once, 0 for any
    number. `dns` (as in a CNI result) replaces that of the networks.
    `rx_limit` and `tx_limit` are in bits a second. `netmon` is the network monitor's command, empty
    for no monitor. `rulesets` says whether the guest must have the namespace's packet rules
    (`nics.rulesets`). `short_listing` is the form in which `list-ifaces` prints.

    `template` is the directory of templates to start from, empty to boot the guest; together
    templates may take `template_limit` MiB, 0 for any. `spares` guests like this one wait for later
    sandboxes, each for `spare_seconds` at most, as long as the file `configuration` stays the same.

    `cgroup` is the path of the control group (`linux.cgroups`) of all the sandbox's processes,
    empty for none. With `cgroup_of_its_own` the sandbox makes its group below `cgroup`, with
    `cgroup_limits` (`memory`, `cpu_quota`, `cpu_period`, `pids` of `cgroups.Limits`).
    `oom_score_adj` is that of the processes (proc(5)).

    The VM may grow for containers (`supervisor.vm_size`). `first` is the container for which it
    starts; with `is_pod` that one stands for a pod, which may use `pod_memory` bytes and
    `pod_cpus`, 0 for any. A container without a limit counts as `default_memory_mib`. With
    `bounds_host` the group `cgroup` gets the limits of all containers, and the overhead
    (`overhead_memory` in MiB, `overhead_cpu` in hundredths of a CPU).
    """

    machine: Machine
    boot_timeout: float = 60.0
    most_starts: int = 0
    netns: str = ""
    in_host_netns: bool = False
    networks: list[NetworkRequest] = field(default_factory=list)
    taps: list[TapRequest] = field(default_factory=list)
    plugin_path: list[str] = field(default_factory=list)
    cni_cache: str = ""
    dns: dict[str, Any] | None = None
    model: str = "tcfilter"
    rx_limit: int = 0
    tx_limit: int = 0
    netmon: list[str] = field(default_factory=list)
    rulesets: str = "required"
    short_listing: bool = True
    template: str = ""
    template_limit: int = 0
    spares: int = 0
    spare_seconds: int = 600
    configuration: str = ""
    cgroup: str = ""
    cgroup_of_its_own: bool = False
    cgroup_limits: dict[str, int] = field(default_factory=dict)
    oom_score_adj: int = 0
    default_memory_mib: int = 0
    first: str = ""
    is_pod: bool = False
    pod_memory: int = 0
    pod_cpus: float = 0.0
    bounds_host: bool = False
    overhead_memory: int = 0
    overhead_cpu: int = 0


@dataclass
class Nic:
    """A NIC of the guest; addresses are ADDRESS/PREFIX. It is joined with the host's interface
    `device`, which the CNI `network` made, if that is set. It follows the namespace's interface
    with this `index`, 0 for a NIC that was plugged by request. `permanent` is the MAC address that
    QEMU gave the NIC, if that is not `mac`: a spare's, or one beside another NIC with this `mac`.
    """

    name: str
    device: str
    mac: str
    mtu: int
    addresses: list[str]
    network: str = ""
    slot: int = 0
    queues: int = 0
    vhost_user_socket: str = ""
    index: int = 0
    permanent: str = ""

    @property
    def identity(self) -> str:
        """The MAC address by which the agent finds it, whatever the guest's programs have given
        it."""
        return self.permanent or self.mac


@dataclass
class Phase:
    """A step of the sandbox's start, in milliseconds from the caller's start."""

    name: str
    start_ms: float
    duration_ms: float


@dataclass
class Record:
    """The whole record. `netns` is the path of the network namespace (`place`), empty for the
    host's. `created` is in seconds since the epoch, `started` on the monotonic clock of the host's
    boot `boot`. `warnings` say in words where the guest differs from the request. `cgroup` is the
    path of the sandbox's control group. The guest has `memory_mib` and `vcpus` at present, 0 for
    those with which it started."""

    id: str
    spec: Spec
    created: float
    started: float
    netns: str
    status: str = CREATING
    accelerator: str = ""
    accelerator_reason: str = ""
    interfaces: list[Nic] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    failure: str = ""
    warnings: list[str] = field(default_factory=list)
    cgroup: str = ""
    memory_mib: int = 0
    vcpus: int = 0
    held: list[dict[str, Any]] = field(default_factory=list)
    boot: str = ""

    @property
    def place(self) -> Place:
        if not self.netns:
            return Place.HOST
        if not self.spec.netns:
            return Place.MADE
        return Place.GIVEN if self.spec.netns == self.netns else Place.BOUND


_KINDS = NetworkRequest, TapRequest, Spec, Nic, Phase, Record

# The fields that consist of other records, or of lists of them.
_INNER: dict[tuple[type, str], Any] = {
    (Spec, "networks"): [NetworkRequest],
    (Spec, "taps"): [TapRequest],
    (Record, "spec"): Spec,
    (Record, "interfaces"): [Nic],
    (Record, "phases"): [Phase],
}


def load(directory: Path) -> Record:
    """Raises FileNotFoundError when the sandbox is gone, NewerRecordError for one that a newer
    version made, SandboxStateError for a broken file, or one that can't be read."""
    path = directory / FILE
    content = _read(path)
    number = content.pop(_FORMAT, 0)
    if not isinstance(number, int) or number > FORMAT:
        raise NewerRecordError(
            f"{path} was written by a newer Tapwright (format {number}; this one knows {FORMAT}): "
            "use that one"
        )
    try:
        record = _made(Record, content)
    except (ValueError, TypeError) as error:  # a field is missing, or has another shape
        raise SandboxStateError(f"{path} is damaged: {error}") from None
    if not 0 <= record.created < _LAST_SECOND:
        raise SandboxStateError(f"{path} is damaged: created: must be seconds since the epoch")
    if not all(map(_is_entry, record.held)):
        raise SandboxStateError(f"{path} is damaged: held: must be a list of what is held")
    return record


def held(directory: Path) -> list[dict[str, Any]]:
    """Return the journal, even of a record whose other fields are invalid. Raises
    FileNotFoundError, and SandboxStateError for a file that has none, or can't be read."""
    found = _read(directory / FILE).get("held")
    if not isinstance(found, list) or not all(map(_is_entry, found)):
        raise SandboxStateError(f"{directory / FILE} is damaged: it has no journal")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise
    except OSError as error:
        raise SandboxStateError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise SandboxStateError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise SandboxStateError(f"{path} is damaged: it is no JSON object")
    return content


def _is_entry(entry: object) -> bool:
    return isinstance(entry, dict) and isinstance(entry.get("kind"), str)


def _made(kind: type[_T], content: Any) -> _T:
    """Make a dataclass from the output of `_plain`. Fields that this version does not know are kept
    for the next one. Raises ValueError, and TypeError if a field is missing."""
    if not isinstance(content, dict):
        raise ValueError(f"{kind.__name__} must be an object")
    known: dict[str, Any] = {"machine": _read_machine(content)} if kind is Spec else {}
    for name, shape in kind.__annotations__.items():
        if name in content:
            value = content.pop(name)
            inner = _INNER.get((kind, name))
            if isinstance(inner, list):
                if not isinstance(value, list):
                    raise ValueError(f"{name} must be a list")
                value = [_made(inner[0], one) for one in value]
            elif inner:
                value = _made(inner, value)
            elif mistake := shapes.mistake({name: value}, {name: shape}):
                raise ValueError(mistake)
            known[name] = value
    made = kind(**known)
    if content:
        vars(made)[_UNKNOWN] = content
    return made


def _plain(value: Any) -> Any:
    """Return a value that JSON can represent."""
    if isinstance(value, list):
        return [_plain(one) for one in value]
    if not isinstance(value, _KINDS):
        return value
    plain = {name: _plain(getattr(value, name)) for name in type(value).__annotations__}
    if isinstance(value, Spec):
        plain |= written_machine(plain.pop("machine"))
    return plain | vars(value).get(_UNKNOWN, {})


# The fields of a machine are among those of its specification, and so are those of its daemon.
_MACHINE: dict[str, Any] = {
    **Machine.__annotations__,
    "kernel": str,
    "initrd": str,
    "disk": str,
    "share": bool,
    "share_daemon": str,
    "share_cache": str,
    "share_arguments": list[str],
}


def _read_machine(spec: dict[str, Any]) -> Machine:
    """Take the fields of a machine out of those of a specification. Raises ValueError, and
    TypeError if a field is missing."""
    found = {name: spec.pop(name) for name in _MACHINE if name in spec}
    if mistake := shapes.mistake(found, {name: _MACHINE[name] for name in found}):
        raise ValueError(mistake)
    path, cache = found.pop("share_daemon", ""), found.pop("share_cache", "auto")
    daemon = Daemon(path, cache, tuple(found.pop("share_arguments", ())))
    found["share"] = daemon if found.get("share") else None
    for name in ("kernel", "initrd", "disk"):
        if name in found:
            found[name] = Path(found[name]) if found[name] else None
    return Machine(**found)


def written_machine(machine: Machine) -> dict[str, Any]:
    """Return the machine's fields as they are in a record, in JSON."""
    share = machine.share or Daemon()
    return vars(machine) | {
        "kernel": str(machine.kernel),
        "initrd": str(machine.initrd),
        "disk": str(machine.disk or ""),
        "share": machine.share is not None,
        "share_daemon": share.path,
        "share_cache": share.cache,
        "share_arguments": list(share.extra),
    }


def written_spec(spec: Spec) -> dict[str, Any]:
    """Return a specification for another process, in JSON."""
    plain: dict[str, Any] = _plain(spec)
    return plain


def read_spec(content: dict[str, Any]) -> Spec:
    """Return the specification that `written_spec` wrote."""
    return _made(Spec, content)


def save(record: Record, directory: Path, kept: bool = False) -> None:
    """Write the record. After a loss of power the file has this record or the one before; with
    `kept`, this one. Raises SandboxStateError."""
    try:
        content = json.dumps({_FORMAT: FORMAT} | _plain(record))
        files.replace(directory / FILE, content, kept=kept)
    except OSError as error:
        raise SandboxStateError(
            f"{directory / FILE} can't be written: {error.strerror}; {files.remedy(error)}"
        ) from None


class Journal:
    """The record, for the one process that may change it, from any of its threads."""

    def __init__(self, directory: Path, record: Record) -> None:
        self.directory = directory
        self.record = record
        self._lock = threading.Lock()

    def save(self) -> None:
        """Raises SandboxStateError."""
        with self._lock:
            save(self.record, self.directory)

    def save_if_possible(self) -> None:
        """Save what has happened in any case; a failure is only logged."""
        try:
            self.save()
        except SandboxStateError as error:
            import logging  # as much to load as all of this

            logging.getLogger(__name__).error("%s", error)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note in the record how long the block takes, also when it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.note_phase(name, start)

    def note_phase(self, name: str, start: float) -> None:
        """Note a phase that has ended; `start` is on the monotonic clock."""
        took = time.monotonic() - start
        since = start - self.record.started
        self.record.phases.append(Phase(name, round(since * 1e3, 1), round(took * 1e3, 1)))

    def enter(self, entry: "Entry") -> dict[str, Any]:
        """Enter something before it is made; return the entry, for `release`.

        Raises SandboxStateError when the journal can't be written: then the thing must not be made.
        """
        from tapwright.state import entries  # read-only commands do not need it

        kind, fields = entries.written(entry)
        return self.hold(kind, **fields)

    def hold(self, kind: str, **what: Any) -> dict[str, Any]:
        """Enter something of a kind that another room defines: an endpoint, a network device."""
        entry = {"kind": kind, **what}
        with self._lock:
            self.record.held.append(entry)
            try:
                save(self.record, self.directory, kept=True)
            except BaseException:
                self.record.held.remove(entry)
                raise
        return entry

    def release(self, entry: dict[str, Any]) -> None:
        """Remove the entry of something that does not exist, or no longer. On a full disk the entry
        stays in the file, and a later teardown undoes it again, which does no harm."""
        self.strike(entry)
        self.save_if_possible()

    def strike(self, entry: dict[str, Any]) -> None:
        """Remove an entry in memory only: it may be undone twice, and the record is saved or
        removed soon."""
        with self._lock:
            self.record.held.remove(entry)
