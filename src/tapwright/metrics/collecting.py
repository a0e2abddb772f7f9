"""Collects all metrics of a root: from records and journals, the kernel's tables, /proc, and the
guests, which are all asked at the same time, with one deadline.

Of a guest's answer, only numbers that a kernel can count are used, and never in a name or a label:
a guest that lies makes only its own numbers wrong.
"""

import contextlib
import os
import time
from pathlib import Path
from typing import Any

from tapwright import __version__
from tapwright.agent.protocol import TCP_STATES
from tapwright.hypervisor.template_store import Store
from tapwright.linux.counted import Counters
from tapwright.metrics import labels, processes
from tapwright.metrics.asking import Asking
from tapwright.metrics.exposition import COUNTER, GAUGE, HISTOGRAM, INFO, Family
from tapwright.metrics.places import Counted, Host
from tapwright.oci import state as containers
from tapwright.sandbox import spares
from tapwright.state import plugin_runs, registry, supervisors
from tapwright.state.record import CREATING, RUNNING, Record
from tapwright.state.registry import DEAD, Remembered, Sandbox

_GUEST_SECONDS = 1.0
"""The time for a guest to answer, and for all of them together."""

_MOST = (1 << 64) - 1
_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_FAMILIES = {"ipv4": "", "ipv6": "6"}

Labels = dict[str, str]
Json = dict[str, Any]


def collect(
    root: str | Path,
    templates: str | Path = "",
    records: Remembered | None = None,
) -> list[Family]:
    """Return all families, of the sandboxes in `root`, and of the `templates` in a directory, empty
    for none. A caller that collects often passes `records`, which remembers them.

    Raises OSError when the kernel's tables can't be read.
    """
    began = time.monotonic()
    sandboxes = records.listing(root) if records else registry.listing(root)
    running = [sandbox for sandbox in sandboxes if sandbox.status == RUNNING]
    asking = Asking(running, {"op": "totals", "seconds": _GUEST_SECONDS})
    deadline = time.monotonic() + _GUEST_SECONDS
    found = _Families()
    text = "The version of Tapwright that answers."
    found.add("tapwright", INFO, text, {"version": __version__})
    of_platform = labels.of_sandboxes(known := containers.listing(str(root)))
    named = {
        sandbox.id: {
            "sandbox": sandbox.id,
            **of_platform.get(sandbox.id, dict.fromkeys(("pod", "namespace", "container"), "")),
        }
        for sandbox in sandboxes
    }
    with contextlib.closing(Host()) as host:
        for sandbox in sandboxes:
            _add_sandbox(found, sandbox, named[sandbox.id])
            if sandbox.record:
                _add_nics(found, sandbox.record, host, named[sandbox.id])
    for container in known:
        one = {"sandbox": container.sandbox, "id": container.id, **labels.of_container(container)}
        text = "A container, and the sandbox in which it is."
        found.add("tapwright_container", INFO, text, one)
    _add_host(found, root, templates)
    answers = asking.answers(deadline)
    for sandbox in running:
        _add_totals(found, sandbox, answers.get(sandbox.id, {}), named[sandbox.id])
    took = time.monotonic() - began
    found.add("tapwright_scrape_duration_seconds", GAUGE, "How long collecting took.", {}, took)
    return list(found.families.values())


class _Families:
    def __init__(self) -> None:
        self.families: dict[str, Family] = {}

    def family(self, name: str, kind: str, text: str) -> Family:
        return self.families.setdefault(name, Family(name, kind, text))

    def add(self, name: str, kind: str, text: str, named: Labels, value: float = 1) -> None:
        self.family(name, kind, text).add(named, value)


def _add_sandbox(found: _Families, sandbox: Sandbox, named: Labels) -> None:
    def gauge(name: str, text: str, value: float, more: Labels | None = None) -> None:
        found.add(f"tapwright_sandbox_{name}", GAUGE, text, named | (more or {}), value)

    for state in (CREATING, RUNNING, DEAD):
        text = "1 for the state that the sandbox is in, 0 for the others."
        gauge("state", text, int(sandbox.status == state), {"state": state})
    record = sandbox.record
    if record is None:
        return
    more = {"accelerator": record.accelerator, "netns": record.netns}
    found.add("tapwright_sandbox", INFO, "What the sandbox is made of.", named | more)
    created = record.created
    gauge("created_timestamp_seconds", "When the sandbox was made, since the epoch.", created)
    gauge("age_seconds", "How long ago the sandbox was made.", time.time() - created)
    memory = (record.memory_mib or record.spec.machine.memory_mib) << 20
    gauge("memory_bytes", "The memory of the guest, as configured or grown.", memory)
    gauge("vcpus", "The processors of the guest.", record.vcpus or record.spec.machine.vcpus)
    phases: dict[str, float] = {}
    for phase in record.phases:
        phases[phase.name] = phases.get(phase.name, 0) + phase.duration_ms / 1e3
    for name, seconds in phases.items():
        text = "How long each step of the start took; steps go on side by side."
        gauge("start_phase_seconds", text, seconds, {"phase": name})
    if record.phases:
        end = max(phase.start_ms + phase.duration_ms for phase in record.phases)
        gauge("start_seconds", "How long the start took, from the caller's on.", end / 1e3)
    supervisor = supervisors.pid_of(sandbox.directory)
    if sandbox.status != DEAD and supervisor:
        for usage in processes.of_supervisor(supervisor):
            _add_usage(found, usage, named)


def _add_usage(found: _Families, usage: processes.Usage, named: Labels) -> None:
    more = named | {"process": usage.process}
    text = "Processor time of the sandbox's processes on the host."
    found.add("tapwright_process_cpu_seconds", COUNTER, text, more, usage.cpu_seconds)
    text = "Memory of the sandbox's processes, with what they share."
    found.add("tapwright_process_resident_memory_bytes", GAUGE, text, more, usage.resident_bytes)
    text = "Open descriptors of the sandbox's processes."
    found.add("tapwright_process_open_fds", GAUGE, text, more, usage.descriptors)


def _add_nics(found: _Families, record: Record, host: Host, named: Labels) -> None:
    try:
        counted = host.counted(record)
    except OSError:  # it is being deleted, or dead
        return
    for one in counted:
        _add_counters(found, one, named)


def _add_counters(found: _Families, counted: Counted, named: Labels) -> None:
    where = {"nic": counted.nic, "point": counted.point, "device": counted.device}
    for way, word in (("rx", "receive"), ("tx", "transmit")):
        for what, name in (
            *(("bytes", "bytes"), ("packets", "packets")),
            *(("errors", "errors"), ("dropped", "drops")),
        ):
            text = f"{name.capitalize()} of each NIC's interfaces ({word}), as each counts itself."
            value = getattr(counted.counters, f"{way}_{what}")
            found.add(f"tapwright_nic_{word}_{name}", COUNTER, text, named | where, value)


def _add_host(found: _Families, root: str | Path, templates: str | Path) -> None:
    waiting = {"ready": 0, "making": 0}
    for spare in spares.listing(root):
        waiting["ready" if spare.is_ready else "making"] += 1
    for state, count in waiting.items():
        text = "Guests that wait for a sandbox, or are being made to."
        found.add("tapwright_spares", GAUGE, text, {"state": state}, count)
    sizes = []
    with contextlib.suppress(OSError):
        sizes = Store(Path(templates)).sizes() if templates and os.path.isdir(templates) else []
    found.add("tapwright_templates", GAUGE, "Saved guests on disk.", {}, len(sizes))
    text = "Disk that the saved guests take."
    found.add("tapwright_templates_size_bytes", GAUGE, text, {}, sum(sizes))
    text = "How long each run of a CNI plugin took, for sandboxes, since the root was made."
    family = found.family("tapwright_cni_plugin_duration_seconds", HISTOGRAM, text)
    for runs in plugin_runs.read(root):
        which = {"plugin": runs.plugin, "command": runs.command, "result": runs.result}
        family.add_histogram(which, runs.cumulative, runs.seconds)


def _add_totals(found: _Families, sandbox: Sandbox, answer: Json, named: Labels) -> None:
    monitor = answer.get("monitor")
    if monitor and sandbox.record and sandbox.record.spec.netmon:
        for key, name, text in (
            ("syncs", "syncs", "How often the network monitor had the guest follow."),
            ("failures", "sync_failures", "How often that failed."),
            ("seconds", "sync_seconds", "How long that took."),
            ("restarts", "restarts", "How often the network monitor was started again."),
        ):
            found.add(f"tapwright_monitor_{name}", COUNTER, text, named, monitor[key])
    guest = answer.get("guest") or {}
    text = "Whether the guest's agent answered in time."
    found.add("tapwright_guest_up", GAUGE, text, named, int(bool(guest)))
    if guest and sandbox.record:
        _Guest(found, guest, named).add(sandbox.record)


class _Guest:
    """The answer of a guest. The guest is hostile: only numbers are taken, by known names."""

    def __init__(self, found: _Families, said: Json, named: Labels) -> None:
        self._found = found
        self._said = said
        self._named = named

    def add(self, record: Record) -> None:
        for mode in _CPU_MODES:
            text = "What the guest's processors did, by mode."
            self._add("cpu_seconds", COUNTER, text, ("cpu", mode), {"mode": mode}, 1e-3)
        for key in ("size", "free", "available"):
            text = f"Memory of the guest: {key}, as its kernel has it."
            self._add(f"memory_{key}_bytes", GAUGE, text, ("memory", key))
        for key in ("sent", "received", "retransmitted"):
            text = f"Segments of TCP that the guest has {key}."
            self._add(f"tcp_segments_{key}", COUNTER, text, ("segments", key))
        for family, digit in _FAMILIES.items():
            tcp, udp, more = f"tcp{digit}", f"udp{digit}", {"family": family}
            for state in TCP_STATES:
                text = "The guest's TCP sockets, by state."
                self._add("tcp_sockets", GAUGE, text, (tcp, state), more | {"state": state})
            self._add("udp_sockets", GAUGE, "The guest's UDP sockets.", (udp, "listen"), more)
            text = "Datagrams that the guest's present UDP sockets have dropped."
            self._add("udp_sockets_drops", GAUGE, text, (udp, "dropped"), more)
            for key, way in (("rx_queued", "receive"), ("tx_queued", "transmit")):
                text = "What waits in the queues of the guest's UDP sockets."
                self._add(
                    "udp_sockets_queued_bytes", GAUGE, text, (udp, key), more | {"queue": way}
                )
        for nic in record.interfaces:
            values = {key: self._number("interfaces", nic.name, key) for key in Counters._fields}
            known = {key: value for key, value in values.items() if value is not None}
            if len(known) == len(values):
                counted = Counted(nic.name, "guest", nic.name, Counters(**known))
                _add_counters(self._found, counted, self._named)

    def _add(
        self,
        name: str,
        kind: str,
        text: str,
        where: tuple[str, ...],
        more: Labels | None = None,
        factor: float = 0,
    ) -> None:
        value = self._number(*where)
        if value is not None:
            scaled = value * factor if factor else value
            self._found.add(
                f"tapwright_guest_{name}", kind, text, self._named | (more or {}), scaled
            )

    def _number(self, *where: str) -> int | None:
        found: Any = self._said
        for key in where:
            found = found.get(key) if isinstance(found, dict) else None
        return found if type(found) is int and 0 <= found <= _MOST else None
