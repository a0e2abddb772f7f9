"""What is known of a sandbox, on disk: its specification, its state, and all that it holds.

The list `held` is the journal: whatever outlives the supervisor's process is entered before it is
made, so that `teardown` can take it back after a kill at any instant.
"""

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tapwright.errors import SandboxStateError

FILE = "record.json"
LOG = "log"

CREATING, RUNNING = "creating", "running"


@dataclass
class NetworkRequest:
    """A network to attach to: the whole configuration, so that its file may go or change."""

    name: str
    ifname: str
    config: str
    source: str
    capability_args: dict[str, Any] = field(default_factory=dict)


@dataclass
class TapRequest:
    """A TAP of the host's namespace, made where there is none, and connected to a Linux bridge or
    a bridge of Open vSwitch where one is named; the NIC on it. Addresses as ADDRESS/PREFIX; an MTU
    of 0 is the TAP's."""

    device: str
    name: str
    mac: str
    bridge: str = ""
    ovs: str = ""
    mtu: int = 0
    addresses: list[str] = field(default_factory=list)


@dataclass
class Spec:
    """What was asked for. `netns` is empty where the sandbox makes its own, or has none
    (`in_host_netns`). `netmon` is the monitor's command, empty for none; limits in bits a second;
    `template` the directory of the templates to start from, empty for a guest that is booted. With
    `share` the guest can be shown files of the host, by the daemon `share_daemon` (empty for the
    first that is installed), which is told how to cache and more `share_arguments`.
    """

    kernel: str
    initrd: str
    netns: str = ""
    networks: list[NetworkRequest] = field(default_factory=list)
    plugin_path: list[str] = field(default_factory=list)
    cni_cache: str = ""
    qemu: str = "qemu-system-x86_64"
    accelerator: str = "auto"
    kernel_params: str = ""
    memory_mib: int = 256
    vcpus: int = 1
    boot_timeout: float = 60.0
    memory_directory: str = ""
    slots: int = 8
    machine_type: str = "q35"
    hugepages: bool = False
    vhost: bool = True
    debug: bool = False
    model: str = "tcfilter"
    rx_limit: int = 0
    tx_limit: int = 0
    netmon: list[str] = field(default_factory=list)
    in_host_netns: bool = False
    template: str = ""
    taps: list[TapRequest] = field(default_factory=list)
    share: bool = False
    share_daemon: str = ""
    share_cache: str = "auto"
    share_arguments: list[str] = field(default_factory=list)


@dataclass
class Interface:
    """A NIC of the guest; addresses as ADDRESS/PREFIX. `device` is the host's interface that it
    is joined with; `network` the CNI network that made that one, empty for another's. `index` is
    that of the namespace's interface which it follows, 0 when it was plugged by request."""

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


@dataclass
class Phase:
    """A step of bringing the sandbox up; milliseconds, counted from the caller's start."""

    name: str
    start_ms: float
    duration_ms: float


@dataclass
class Record:
    """All of it. `created` in seconds since the epoch, `started` on the monotonic clock."""

    id: str
    spec: Spec
    created: float
    started: float
    netns: str
    status: str = CREATING
    accelerator: str = ""
    accelerator_reason: str = ""
    interfaces: list[Interface] = field(default_factory=list)
    phases: list[Phase] = field(default_factory=list)
    failure: str = ""
    held: list[dict[str, Any]] = field(default_factory=list)


def load(directory: Path) -> Record:
    """Raises FileNotFoundError when the sandbox is gone, SandboxStateError for a broken file."""
    try:
        content = json.loads((directory / FILE).read_text())
        spec = content["spec"]
        spec["networks"] = [NetworkRequest(**item) for item in spec["networks"]]
        spec["taps"] = [TapRequest(**item) for item in spec["taps"]]
        content["spec"] = Spec(**spec)
        content["interfaces"] = [Interface(**item) for item in content["interfaces"]]
        content["phases"] = [Phase(**item) for item in content["phases"]]
        return Record(**content)
    except (ValueError, KeyError, TypeError) as error:
        raise SandboxStateError(f"{directory / FILE} is damaged: {error}") from None


def save(record: Record, directory: Path) -> None:
    """Write the record; it is there whole, or as it was before."""
    temporary = directory / f".{FILE}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w") as file:
        json.dump(dataclasses.asdict(record), file)
        file.flush()
        os.fsync(fd)
    temporary.rename(directory / FILE)


class Journal:
    """The record in the hands of the one process that may change it; any of its threads may."""

    def __init__(self, directory: Path, record: Record) -> None:
        self.directory = directory
        self.record = record
        self._lock = threading.Lock()

    def save(self) -> None:
        with self._lock:
            save(self.record, self.directory)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Note in the record how long the block takes, also when it fails."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.note_phase(name, start)

    def note_phase(self, name: str, start: float) -> None:
        """Note one that has ended; `start` on the monotonic clock."""
        took = time.monotonic() - start
        since = start - self.record.started
        self.record.phases.append(Phase(name, round(since * 1e3, 1), round(took * 1e3, 1)))

    def hold(self, kind: str, **what: Any) -> dict[str, Any]:
        """Enter something that is about to be made; return the entry, for `release`.

        Raises OSError when it can't be written: then it must not be made.
        """
        entry = {"kind": kind, **what}
        with self._lock:
            self.record.held.append(entry)
            try:
                save(self.record, self.directory)
            except BaseException:
                self.record.held.remove(entry)
                raise
        return entry

    def release(self, entry: dict[str, Any]) -> None:
        """Strike out something that is not, or no longer, there."""
        with self._lock:
            self.record.held.remove(entry)
            save(self.record, self.directory)
