"""What reads documents of others: each takes one that is almost right, and raises nothing but the
errors that it is documented to raise. A seed, hypothesis, or by way of that atheris draws it."""

import asyncio
import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tapwright import cni, config
from tapwright.agent import protocol
from tapwright.agent.client import AgentClient
from tapwright.agent.protocol import Frame, ProtocolError
from tapwright.cli import sandbox as sandbox_commands
from tapwright.cni import cache, results
from tapwright.control import containers, guest_routes, kata, looking
from tapwright.diagnosis import collecting, probes
from tapwright.errors import AgentError, TapwrightError, shown
from tapwright.hypervisor.machine import Machine
from tapwright.linux import entries
from tapwright.linux.conntrack import Connection, Way
from tapwright.linux.ipvs import Server, Service
from tapwright.nics import carried_rules, forwarding, guest_settings, guest_table
from tapwright.oci import (
    annotations,
    bundle,
    cgroup,
    guest,
    memory,
    mounts,
    net_devices,
    pods,
    reports,
    seccomp,
    size,
    state,
    statistics,
    sysctls,
)
from tapwright.oci.log import Log
from tapwright.sandbox import balancing, ipvsadm, lifecycle
from tapwright.state import record, registry
from tapwright.state.record import FILE, Record, Spec
from tapwright.supervisor import bringup, vm_size
from tapwright.supervisor.host_kernel import HostKernel
from tests.oci.bundles import configuration
from tests.torture.mutation import Choose, Make, mutated, one_of

Json = Any

Target = Callable[..., None]

TARGETS: dict[str, tuple[Target, tuple[Make, ...]]] = {}
"""Each with what makes its input, by name."""


def attempt(name: str, choose: Choose) -> None:
    """One input."""
    function, makers = TARGETS[name]
    inputs = [make(choose) for make in makers]
    try:
        function(*inputs)
    except Exception as error:
        error.add_note(f"{name}: {inputs!r}")
        raise


def test_of(name: str) -> Any:
    """A hypothesis test of a target, without settings."""

    @st.composite
    def made(draw: st.DrawFn, make: Make) -> Any:
        return make(lambda below: draw(st.integers(0, below - 1)))

    function, makers = TARGETS[name]
    return given(*map(made, makers))(function)


def _reads(*makers: Make) -> Callable[[Target], Target]:
    def note(function: Target) -> Target:
        TARGETS[function.__name__] = function, makers
        return function

    return note


_PLACE = Path(tempfile.mkdtemp(prefix="tapwright-torture-"))
_RECORD = Path(__file__).parents[1] / "sandbox" / "records" / "format-0.json"


def _bundle() -> Json:
    prefix = "io.katacontainers.config."
    return configuration(
        "sh",
        "-c",
        "true",
        process={
            "rlimits": [{"type": "RLIMIT_STACK", "hard": 1 << 23, "soft": 1 << 23}],
            "consoleSize": {"height": 24, "width": 80},
            "oomScoreAdj": 5,
        },
        annotations={
            "io.kubernetes.cri.container-type": "sandbox",
            "io.kubernetes.cri.sandbox-memory": "1073741824",
            "io.kubernetes.cri.sandbox-cpu-quota": "20000",
            "io.kubernetes.cri.sandbox-cpu-period": "10000",
            f"{prefix}hypervisor.default_memory": "512",
            f"{prefix}runtime.disable_guest_seccomp": "true",
            "com.github.containers.virtcontainers.sandbox_cpu": "1.5",
            "com.github.containers.virtcontainers.sandbox_dns": '{"Servers": ["10.0.0.1"]}',
        },
        hooks={"prestart": [{"path": "/bin/true", "args": ["true"], "env": [], "timeout": 5}]},
        mounts=[
            {"destination": "/data", "type": "bind", "source": "/tmp", "options": ["rbind", "ro"]},
            {"destination": "/dev/shm", "type": "tmpfs", "options": ["size=65536k", "mode=1777"]},
        ],
        linux={
            "devices": [{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}],
            "cgroupsPath": "/kubepods/x",
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5"},
            "netDevices": {"eth7": {"name": "eth1"}},
            "resources": {
                "memory": {"limit": 1 << 30, "reservation": 1 << 20, "swap": -1},
                "cpu": {"shares": 5, "quota": 1000, "period": 100, "cpus": "0", "mems": "0"},
                "pids": {"limit": 100},
                "unified": {"memory.high": "5"},
                "blockIO": {"weight": 5},
            },
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
            "maskedPaths": ["/proc/kcore"],
            "readonlyPaths": ["/proc/sys"],
            "rootfsPropagation": "rslave",
        },
    )


_DEFAULT = config.load(os.devnull)


@_reads(mutated([_bundle()]))
def bundles(content: Json) -> None:
    """config.json: read, planned, and made the guest's. TapwrightError."""
    directory = _PLACE / "bundle"
    (directory / "rootfs").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    log = Log("", "text")
    try:
        found = bundle.load(str(directory))
        owner = pods.owner_of(str(_PLACE), found)
        configured = annotations.configured(_DEFAULT, found.annotations, log)
        annotations.dns(found.annotations)
        _, bound = mounts.plan(found, "c1", log)
        bound += annotations.resolv_conf_mount(found.annotations, bound)
        joined = pods.joined_namespaces(str(_PLACE), found, owner)
        profile = seccomp.of_bundle(found)
        of_runtime = profile.of_runtime if profile else None
        of_guest = guest.configuration(found, "c1", "/rootfs", bound, joined, of_runtime, log)
        if profile:
            profile.program()
        size.memory_mib(found, configured.qemu.default_memory, memory.asked_for(of_guest["mounts"]))
        size.vcpus(found, configured.qemu.default_vcpus, range(2))
        sysctls.of_network(found)
        net_devices.wanted(found)
        container = state.Container(
            id="c1", bundle="/b", sandbox="c1", owns=True, annotations=found.annotations
        )
        cgroup.limits(container, cgroup._resources(found))
        cgroup.allow_for(container, found, 512)
    except TapwrightError as error:
        shown(error).encode()


_RESULTS: list[Json] = [
    {
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "mtu": 5, "sandbox": "/x"}],
        "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 5, "table": 5, "scope": 0}],
        "dns": {"nameservers": ["10.1.0.1"], "domain": "x", "search": ["y"], "options": ["z"]},
    },
    {
        "cniVersion": "0.2.0",
        "ip4": {"ip": "10.0.0.2/24", "gateway": "10.0.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
        "ip6": {"ip": "fd00::2/64", "routes": [{"dst": "::/0", "gw": "fd00::1"}]},
        "dns": {},
    },
]


@_reads(mutated(_RESULTS), one_of(cni.versions.VERSIONS))
def cni_results(content: Json, version: str) -> None:
    """What a plugin prints after ADD. ValueError."""
    try:
        result = results.as_version(content, version)
    except ValueError:
        return
    list(results.remarks(result))
    assert results.as_version(result, version)["cniVersion"] == version


_NETWORKS: list[Json] = [
    {
        "cniVersion": "1.0.0",
        "cniVersions": ["0.4.0", "1.0.0"],
        "name": "net",
        "disableCheck": False,
        "plugins": [
            {"type": "bridge", "ipam": {"type": "host-local"}, "capabilities": {"x": True}}
        ],
    },
    {"cniVersion": "0.4.0", "name": "net", "type": "bridge", "ipam": {"type": "host-local"}},
]


@_reads(mutated(_NETWORKS))
def cni_networks(content: Json) -> None:
    """A network's configuration. CniError."""
    try:
        found = cni.parse_network(json.dumps(content).encode(), "net.conflist")
        list(found.capabilities)
    except cni.CniError:
        pass


_CACHED: Json = {
    "kind": "cniCacheV1",
    "containerId": "c",
    "config": "e30=",
    "ifName": "eth0",
    "networkName": "net",
    "netns": "/x",
    "cniArgs": [["a", "b"]],
    "capabilityArgs": {"portMappings": []},
    "result": _RESULTS[0],
    "tapwright": {"whole": "{}", "namespace": {"device": 1, "inode": 2, "boot": "b", "cookie": 3}},
}


@_reads(mutated([_CACHED]))
def cni_cache(content: Json) -> None:
    """What is remembered of an attachment. CniError."""
    path = _PLACE / "net-c-eth0"
    path.write_text(json.dumps(content))
    with contextlib.suppress(cni.CniError):
        cache.read(str(path))


def _before() -> Json:
    return json.loads(_RECORD.read_text())


@_reads(mutated([_before(), {**_before(), "format": 1}]))
def records(content: Json) -> None:
    """A sandbox's record: found, listed and written again. TapwrightError."""
    directory = registry.directory_of(_PLACE) / "web"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / FILE).write_text(json.dumps(content))
    for found in registry.listing(_PLACE):
        json.dumps(sandbox_commands._described(found))
        sandbox_commands._created(found)
    try:
        record.save(record.load(directory), directory)
        record.held(directory)
    except TapwrightError:
        pass


# No texts: a path that is undone is removed. So they stay what they are, in directories that are
# not there, or are exchanged.
_TYPES: tuple[Json, ...] = (None, True, 0, -1, 1 << 64, 0.5, [], {}, [None], {"a": 1})


def _entries() -> list[Json]:
    text = json.dumps(_before()["held"])
    for place in ("/run/netns", "/opt/cni/bin", "/var/lib/cni"):
        text = text.replace(place, f"{_PLACE}/nowhere")
    held = json.loads(text)
    return [
        *held,
        {"kind": "cgroup", "path": "/tapwright-torture-nowhere"},
        {"kind": "template_draft", "directory": f"{_PLACE}/nowhere"},
    ]


@_reads(mutated(_entries(), _TYPES))
def journals(entry: Json) -> None:
    """An entry of a journal that is damaged: `delete` says what can't be undone, or gives it up."""
    if not record._is_entry(entry):
        return
    directory = registry.directory_of(_PLACE) / "undone"
    directory.mkdir(parents=True, exist_ok=True)
    record.save(Record("undone", Spec(Machine(Path(), Path())), 0, 0, "", held=[entry]), directory)
    with contextlib.suppress(TapwrightError):
        lifecycle.delete(_PLACE, "undone")
    lifecycle.delete(_PLACE, "undone", force=True)
    assert not directory.exists()


def _container() -> Json:
    made = state.Container(
        id="c1",
        bundle="/b",
        sandbox="c1",
        owns=True,
        pid=1 << 22,
        pid_started=5,
        hooks={"poststop": [{"path": "/bin/true"}]},
        annotations={"a": "b"},
        boot=state.boot(),
    )
    return vars(made)


@_reads(mutated([_container()]))
def states(content: Json) -> None:
    """A container's state: loaded, printed, listed. TapwrightError."""
    directory = Path(state.directory_of(str(_PLACE), "c1"))
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "state.json").write_text(json.dumps(content))
    try:
        found = state.load(str(_PLACE), "c1")
        json.dumps(reports.described(str(_PLACE), found))
        cgroup.limits(found, {"memory": {"limit": 1 << 30}, "pids": {"limit": 5}})
        found.hooks.get("poststop")
    except TapwrightError:
        pass
    reports.listing(str(_PLACE))


_INTERFACE = {
    "device": "tap0",
    "name": "eth9",
    "IPAddresses": [{"Family": 2, "address": "172.16.0.3", "mask": "16"}],
    "hwAddr": "02:42:20:6f:a3:69",
    "mtu": 1500,
    "queues": 2,
    "vhostUserSocket": "/run/s",
    "linkType": "tap",
}
_ROUTE = {
    "dest": "10.0.0.0/8",
    "gateway": "172.16.0.1",
    "device": "eth9",
    "source": "172.16.0.3",
    "scope": 0,
    "metric": 5,
}


@_reads(mutated([_INTERFACE, [_ROUTE], _ROUTE, {"name": "eth9", "IPAddresses": []}]))
def katas_json(content: Json) -> None:
    """Interfaces and routes of kata-network. UsageError."""
    readers: list[Callable[[Json], object]] = [
        kata.read_interface,
        kata.read_update,
        kata.read_leaving,
        kata.read_routes,
        kata.read_table,
        lambda routes: kata.read_routes(routes, as_patterns=True, one=True),
        lambda routes: [route.guest_route() for route in kata.read_routes(routes, one=True)],
    ]
    for read in readers:
        try:
            read(content)
        except TapwrightError as error:
            shown(error).encode()


class _Answering(AgentClient):
    """An agent that has one answer to all."""

    def __init__(self, answer: Json) -> None:
        self._answer = answer

    async def call(self, request: Json, timeout: float = 0) -> dict[str, Any]:
        found: dict[str, Any] = self._answer
        return found


_ANSWERS: list[Json] = [
    {
        "interfaces": [
            {
                "name": "eth0",
                "mac": "02:00:00:00:00:01",
                "mtu": 1500,
                "up": True,
                "addresses": [{"address": "10.0.0.1", "prefix_length": 8}],
            }
        ],
        "routes": [
            {
                "destination": "0.0.0.0/0",
                "device": "eth0",
                "gateway": "10.0.0.1",
                "source": None,
                "scope": 0,
                "metric": 0,
                "table": 254,
                "protocol": 3,
            }
        ],
        "refused": ["x"],
    },
    {
        "processes": [
            {
                "pid": 1,
                "ppid": 0,
                "uid": 0,
                "gid": 0,
                "state": "S",
                "started": 0.5,
                "cpu": 1,
                "command": ["sh"],
            }
        ]
    },
    {"status": "running", "pid": 5},
    {
        "cpu": {"usage_usec": 5, "user_usec": 1, "system_usec": 1},
        "memory": {"current": 5, "max": None, "stat": {"file": 1}, "events": {"oom_kill": 0}},
        "pids": {"current": 1, "max": None},
        "io": {"8:0": {"rbytes": 5}},
        "interfaces": {"eth0": {"rx_bytes": 5}},
        "tcp": {"listen": 1},
    },
    {"replies": [{"refused": ["x"], "index": 2}, {}], "seconds": 5.5, "memory": 1 << 20},
    {"refused": [[0, 17, "File exists"], [2, 95, ""]]},
    {"refused": [{"kind": "services", "number": 1, "reason": "x"}]},
    {"listeners": [[4, 80], [6, 8080]], "left_out": 0},
    {
        "interfaces": [
            {
                "name": "eth0",
                "mac": "02:00:00:00:00:01",
                "kind": "",
                "mtu": 1500,
                "up": True,
                "carrier": True,
                "loopback": False,
                "addresses": ["10.0.0.1/8"],
                "counters": dict.fromkeys(looking._COUNTERS, 5),
            }
        ],
        "routes": [
            {"destination": "", "gateway": "10.0.0.1", "device": "eth0", "metric": 0, "table": 254}
        ],
        "neighbours": [{"address": "10.0.0.1", "mac": "", "device": "eth0", "state": "stale"}],
        "cut": ["routes"],
    },
]


@_reads(mutated(_ANSWERS))
def guests_answers(content: Json) -> None:
    """What an agent answers that was taken over: as bytes, and understood. AgentError, and
    ProtocolError where it is no message."""
    try:
        content = protocol.read_json(json.dumps(content).encode())
    except ProtocolError:
        return
    agent = _Answering(content)
    operations = containers.Containers(agent, lambda container: None)
    pattern = kata.read_routes([_ROUTE], as_patterns=True)
    entry = entries.Entry(entries.RULE, bytes(12))

    async def counted() -> None:
        json.dumps(statistics.of_cgroup(await operations.container_statistics(id="c")))

    async def routes() -> None:
        json.dumps([kata.written_route(route) for route in await guest_routes.listing(agent)])

    async def ask() -> None:
        for question in (
            *(agent.listing("interfaces"), agent.listing("routes"), routes()),
            *(guest_routes.remove(agent, pattern), guest_routes.update(agent, [])),
            *(operations.container_processes(id="c"), counted()),
            HostKernel(agent, Path("/nowhere")).look(),
            guest_table.GuestTable(agent)._ask([(entry, False)] * 3, {}),
        ):
            with contextlib.suppress(TapwrightError):
                await question

    asyncio.run(ask())
    for read in (lambda: bringup._replies(content, 1), lambda: vm_size._count(content, "memory")):
        with contextlib.suppress(TapwrightError):
            read()
    guest_settings.tell_refused(content)
    carried_rules._refusals(content, "services", ["one"])
    if not looking._mistake(content):
        collecting._is_bounded(content)
    news = forwarding._News()
    news.take(Frame(protocol.STDOUT, 0, 0, json.dumps(content).encode()))
    with contextlib.suppress(ProtocolError):
        news.fetch()


_WAY = Way("10.0.0.1", "10.0.0.2", 1, 2)
_LINES: list[Json] = [
    [
        [Service(6, "10.0.0.1", 80, "rr", netmask=32), [Server("10.0.0.2", 8080)]],
        [Service(0, "", 0, "rr", mark=5), []],
        {"version": [66048, 4096], "seconds": [900, 120, 300]},
    ],
    [Connection(6, 100, 3, _WAY, _WAY, 0, 0, 1), {"done": True}],
    [{"refused": "there is a service already", "number": 3}],
    [
        {
            "target": "10.0.0.1",
            "asked": [{"server": "10.0.0.1", "name": "x"}],
            "probes": [],
            "neighbours": [],
            "trace": [],
            "seen": [],
            "path": {"device": "eth0"},
        }
    ],
]


@_reads(mutated(json.loads(json.dumps(_LINES))))
def guests_programs(lines: Json) -> None:
    """What a program in the guest prints for `kata-ipvs` and `explain`: lines of JSON.
    AgentError."""
    printed = [
        json.dumps(line).encode() for line in (lines if isinstance(lines, list) else [lines])
    ]
    with contextlib.suppress(AgentError):
        table, last = balancing._read(b"\n".join(printed))
        for read in (
            lambda: [balancing._number(last["seconds"][n]) for n in range(3)],
            lambda: [balancing._connection(line) for line in table],
        ):
            with contextlib.suppress(AgentError):
                balancing._checked(read)
        with contextlib.suppress(AgentError):
            found = balancing._checked(
                lambda: [balancing._entry(one, servers, 0) for one, servers in table]
            )
            "".join(ipvsadm.written(None, found, ipvsadm.Listing()))
        for look in (
            *(probes.checked_facts, probes.target_of, probes.probes_of, probes.asked_of),
            *(probes.neighbours_of, probes.steps_of, probes.seen_of, probes.path_of),
        ):
            with contextlib.suppress(AgentError):
                look(last)
