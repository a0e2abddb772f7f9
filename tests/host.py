"""A full snapshot of what a sandbox could leave on a host."""

import gc
import json
import os
import subprocess
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Snapshot = dict[str, list[str]]
_SETTLE_SECONDS = 60.0
_UID_BASE = 0x70000000  # of QEMU, in hypervisor/qemu.py


class Host:
    """The machine, seen from the caller's network namespace. `directories` hold state."""

    def __init__(self, directories: Iterable[Path]) -> None:
        self._directories = list(directories)

    def snapshot(self) -> Snapshot:
        """Everything by its kind, each thing a line."""
        qdiscs = _tc("qdisc")
        links = _links()
        routes = [line for family in ("-4", "-6") for line in _routes_and_rules(family)]
        return {
            "links": [_line(link, "ifname", "link_type", "mtu", "master") for link in links],
            "addresses": [
                f"{link['ifname']} {address['local']}/{address['prefixlen']}"
                for link in links
                for address in link["addr_info"]
                if address["scope"] != "link"
            ],
            # Those of the kernel follow from links and addresses, and in its own time.
            "routes": [line for line in routes if "proto kernel" not in line],
            "namespaces": sorted(name for name in os.listdir("/run/netns") if _is_ours(name)),
            "qdiscs": [_line(qdisc, "dev", "kind", "handle") for qdisc in qdiscs],
            "filters": [
                line
                for qdisc in qdiscs
                if qdisc["kind"] in ("ingress", "clsact")
                for line in _filters(qdisc["dev"])
            ],
            "iptables": _rules("iptables-save"),
            "ip6tables": _rules("ip6tables-save"),
            "nft": _run("nft", "list", "tables"),
            "processes": sorted(processes()),
            "mounts": sorted(_mounts()),
            "files": sorted(
                str(path)
                for directory in self._directories
                for path in directory.rglob("*")
                if not path.is_dir() and not _is_kept(path)
            ),
        }

    def assert_same(self, before: Snapshot) -> None:
        """Fail with what is new or missing. What the kernel takes away in its own time (links of
        a namespace that has ended) is waited for; a process that was about to end may have."""
        changes: list[str] = []

        def is_same() -> bool:
            changes[:] = self._changes(before)
            return not changes

        assert eventually(is_same, _SETTLE_SECONDS), "\n".join(changes)

    def _changes(self, before: Snapshot) -> list[str]:
        now = self.snapshot()
        return [
            f"{kind}: {sign} {line}"
            for kind in before
            for sign, ours, theirs in (("new", now, before), ("gone", before, now))
            for line in ours[kind]
            if line not in theirs[kind] and (kind, sign) != ("processes", "gone")
        ]


def _is_ours(namespace: str) -> bool:
    """Other namespaces come and go, also those of tests."""
    return namespace.startswith("tapwright-")


def _mounts() -> Iterable[str]:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        path = line.split(" ")[4]
        # One that is covered is the machine's, and goes when its sandbox does.
        if "tapwright" in path and os.path.lexists(path):
            yield path


def _is_kept(path: Path) -> bool:
    """host-local keeps these for good beside its leases, and we the verdict on KVM and what a fresh
    namespace is set to, which the first sandbox since the machine's start writes, how long plugins
    took, and the file by which starts wait for each other."""
    if path.parent.name.startswith(".new-"):  # the draft of a killed process goes with the next
        return True
    ours = "accelerator.", "network-defaults.", "plugin-runs.", "starts"
    return path.name == "lock" or path.name.lstrip(".").startswith(("last_reserved_ip", *ours))


def eventually(condition: Callable[[], bool], seconds: float = 60.0) -> bool:
    """Whether the condition comes true within the time; for what sends no event. The time is long,
    for a machine may be busy, and only a failure takes it. Between two looks it waits for as
    long as one takes, so that looking does not keep the machine from what is looked for."""
    begun = time.monotonic()
    deadline = begun + seconds
    while not (true := condition()) and (now := time.monotonic()) < deadline:
        time.sleep(min(max(now - begun, 0.02), 0.5))
        begun = time.monotonic()
    return true


def open_files() -> list[str]:
    """The descriptors of this process, without those that other tests have left to the collector of
    garbage, which may come at any time."""
    gc.collect()
    return os.listdir("/proc/self/fd")


def answers_ping(address: str, *options: str) -> bool:
    """Whether a machine answers, sooner or later. One packet may be lost: the kernel drops it when
    a neighbour has not said for three seconds who it is, as a guest that has no processor."""
    command = one_ping(address, *options)
    return eventually(
        lambda: subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


def one_ping(address: str, *options: str) -> tuple[str, ...]:
    """The command that succeeds if one packet is answered; for iputils and busybox."""
    return ("ping", "-c", "1", "-W", "5", *options, address)


def processes() -> Iterable[str]:
    """Those of ours: in this session's namespace, or a QEMU of a supervisor's."""
    here = os.stat("/proc/self/ns/net").st_ino
    for process in map(Path("/proc").joinpath, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ours = (process / "ns/net").stat().st_ino == here or process.stat().st_uid >= _UID_BASE
        except OSError:
            continue
        if ours and any(
            word in command for word in ("qemu-system", "virtiofsd", "tapwright", "/cni/")
        ):
            # Not the pid: the same sandbox before and after must look the same.
            yield command[:120]


def _filters(device: str) -> list[str]:
    return _run("tc", "filter", "show", "dev", device, "parent", "ffff:")


def _rules(command: str) -> list[str]:
    counters = str.maketrans("", "", "0123456789[]:")
    return [
        line.translate(counters) if line.startswith(":") else line
        for line in _run(command)
        if not line.startswith("#")
    ]


def _links() -> list[dict[str, Any]]:
    """With their addresses."""
    found: list[dict[str, Any]] = json.loads(_output("ip", "-details", "-json", "address"))
    return [entry for entry in found if entry]


def _routes_and_rules(family: str) -> list[str]:
    asked = "route show table all\nrule show\n"
    found = _output("ip", family, "-batch", "-", input=asked)
    return [f"{family} {line}" for line in found.splitlines()]


def _tc(what: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(_output("tc", "-json", what, "show") or "[]")
    return found


def _line(entry: dict[str, Any], *keys: str) -> str:
    return " ".join(str(entry.get(key, "-")) for key in keys)


def _run(*command: str) -> list[str]:
    return _output(*command).splitlines()


def _output(*command: str, input: str = "") -> str:  # noqa: A002 - as subprocess has it
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    return str(subprocess.run(command, input=input, **options).stdout)
