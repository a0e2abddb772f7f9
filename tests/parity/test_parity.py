"""Each network is made in the namespace of one running sandbox, which follows; `ip` and /proc show
the same in the namespace and in the guest."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tapwright.image import release
from tapwright.linux import links
from tapwright.sandbox import client
from tapwright.state import registry
from tests.namespaces import give_ip, namespace
from tests.parity import behaviour, comparison, probe, tried
from tests.parity.behaviour import Others
from tests.parity.networked import (
    Json,
    Networked,
    host_side,
    probed,
    unexplained,
    why_not,
)
from tests.parity.networks import ROWS, Row
from tests.parity.tried import CASES, Case, Nobody
from tests.sandboxes import Tapwright

VM = "parity"
LOOK = ["python3", "-I", "-S", "-c", Path(probe.__file__).read_text()]
DOCUMENT = Path(__file__).parents[2] / "docs" / "parity.md"
GUEST_IP = ["/host/ld-linux-x86-64.so.2", "--library-path", "/host", "/host/ip"]

Result = dict[str, list[str]] | str


class Machine:
    """The guest of a running sandbox, where one probe answers for all networks: the interpreter
    would take longer to start than to look."""

    def __init__(self, tapwright: Tapwright) -> None:
        self._tapwright = tapwright
        self._sandbox = registry.find(tapwright.root, VM)
        command = tapwright.command("sandbox", "exec", VM, "--", *LOOK)
        pipe = subprocess.PIPE
        self._probe = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def sync(self) -> None:
        client.of(self._sandbox).call("sync", at_once=True)

    def probe(self, wanted: Json) -> Json:
        assert self._probe.stdin
        assert self._probe.stdout
        print(json.dumps({**wanted, "ip": GUEST_IP}), file=self._probe.stdin, flush=True)
        return json.loads(self._probe.stdout.readline())

    def log(self) -> str:
        return (self._tapwright.root / "sandboxes" / VM / "log").read_text()[-2000:]

    def close(self) -> None:
        self._probe.communicate()


@pytest.fixture(scope="module")
def networked(
    tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Networked]:
    with host_side():
        done = tapwright.run("sandbox", "run", VM)
        assert done.returncode == 0, done.stderr
        give_ip(tapwright, VM)
        path = str(tapwright.json("sandbox", "inspect", VM)["netns"])
        with closing(Machine(tapwright)) as machine:
            yield Networked(path, machine, tmp_path_factory.mktemp("parity"))
        tapwright.delete(VM)


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return {}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_row(row: Row, networked: Networked, results: dict[str, Result]) -> None:
    if why := why_not(row):
        results[row.name] = why
        pytest.skip(why)
    found = networked.tried(row)
    results[row.name] = found
    assert not unexplained(found), "\n".join([*unexplained(found), networked.guest.log()])


def test_indexes_are_those_of_the_namespace(networked: Networked) -> None:
    """Whatever the guest's kernel would have given to its next NICs."""
    row = Row("indexes", ("eth0", "eth1"), ip=("address add 10.70.0.9/24 dev eth1",))
    wanted: dict[str, list[str]] = {"interfaces": [], "settings": []}
    try:
        networked.make(row)
        networked.guest.sync()
        here = {one["ifname"]: one["ifindex"] for one in probed(networked.path, wanted)["links"]}
        links = networked.guest.probe(wanted)["links"]
        there = {one["ifname"]: one["ifindex"] for one in links}
        assert {name: there.get(name) for name in row.interfaces} == {
            name: here[name] for name in row.interfaces
        }, networked.guest.log()
    finally:
        networked.clear()


def test_what_an_interface_receives(networked: Networked, tapwright: Tapwright) -> None:
    """What the plugin `tuning` sets (promisc, allmulti) is set in the guest; what the guest's own
    programs set stays. The NIC has the speed of a veth, which bonds and exporters ask for."""

    def there() -> list[str]:
        networked.guest.sync()
        probe = "cd /sys/class/net/eth0; cat speed duplex flags"
        *speed, flags = tapwright.exec(VM, "sh", "-c", probe).split()
        wanted = int(flags, 16)
        named = {"promisc": links.IFF_PROMISC, "allmulti": links.IFF_ALLMULTI}
        return speed + [name for name, flag in named.items() if wanted & flag]

    veth = ["10000", "full"]
    try:
        networked.make(Row("receives", ip=("link set eth0 promisc on",)))
        assert there() == [*veth, "promisc"]
        networked.run("link set eth0 promisc off")
        assert there() == veth
        tapwright.exec(VM, "ip", "link", "set", "eth0", "promisc", "on")
        networked.run("address add 10.70.0.9/24 dev eth0")
        assert there() == [*veth, "promisc"]
        networked.clear()
        networked.make(Row("receives", ip=("link set eth0 allmulticast on",)))
        assert there() == [*veth, "allmulti"]
    finally:
        networked.clear()


def test_sizes_of_loopback(networked: Networked, tapwright: Tapwright) -> None:
    probe = "cd /sys/class/net/lo; cat mtu tx_queue_len"
    try:
        networked.run("link set lo mtu 1500 txqueuelen 7")
        networked.guest.sync()
        assert tapwright.exec(VM, "sh", "-c", probe).split() == ["1500", "7"]
    finally:
        networked.run("link set lo mtu 65536 txqueuelen 1000")
        networked.clear()
    assert tapwright.exec(VM, "sh", "-c", probe).split() == ["65536", "1000"]


def test_by_runc_the_same_is_seen(networked: Networked, tmp_path: Path) -> None:
    """So the namespace can be looked at without it, which is quicker."""
    (row,) = (row for row in ROWS if row.name == "dual-stack")
    try:
        networked.make(row)
        wanted = {"interfaces": networked.interfaces(), "settings": ["core/somaxconn"]}
        command = tried.by_runc(networked.path, tmp_path, *LOOK)
        asked = json.dumps({**wanted, "ip": ["ip"]})
        done = subprocess.run(command, capture_output=True, text=True, check=False, input=asked)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == probed(networked.path, wanted)
    finally:
        networked.clear()


@pytest.fixture(scope="module")
def others(networked: Networked) -> Iterator[Others]:
    with behaviour.others() as found:
        yield found


@pytest.fixture(scope="module")
def plain(networked: Networked) -> Iterator[Networked]:
    """A namespace that no sandbox has joined."""
    with namespace("twtest-plain") as place:
        place.ip("link set lo up")
        yield Networked(place.path, Nobody(), networked.directory)


@pytest.fixture(scope="module")
def behaviours() -> dict[str, Result]:
    return {}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.row.name)
def test_behaviour(
    case: Case,
    networked: Networked,
    plain: Networked,
    others: Others,
    behaviours: dict[str, Result],
    tapwright: Tapwright,
    tmp_path: Path,
) -> None:
    """What works in the namespace works in the guest, and nothing else does."""
    if why := why_not(case.row):
        behaviours[case.row.name] = why
        pytest.skip(why)
    command = tapwright.command("sandbox", "exec", VM, "--")
    here, there = tried.compared(case, plain, networked, command, others, tmp_path)
    assert any(not behaviour.is_silent(answer) for answer in here.values()), here
    found = behaviour.differences(here, there)
    behaviours[case.row.name] = found
    assert not unexplained(found), "\n".join(unexplained(found))


def test_document(results: dict[str, Result], behaviours: dict[str, Result]) -> None:
    """docs/parity.md says what was found on Debian 12. A row that was not tried here may have been
    elsewhere, and parts of other releases may differ in less: newer plugins make interfaces with
    queues."""
    if len(results) < len(ROWS) or len(behaviours) < len(CASES):
        pytest.skip("only some of the rows were compared")
    found = comparison.written(
        [(row.name, results[row.name]) for row in ROWS],
        [(case.row.name, behaviours[case.row.name]) for case in CASES],
        behaviour.COLUMNS,
    )
    if os.environ.get("TAPWRIGHT_WRITE_PARITY"):
        DOCUMENT.write_text(found)
    told = DOCUMENT.read_text().splitlines()
    for line in found.splitlines():
        if line.startswith("| ") and "not tried" not in line and line not in told:
            name, *cells = line.split(" | ")
            written = [one.split(" | ")[1:] for one in told if one.startswith(f"{name} | ")]
            assert any(
                documented[0].startswith("not tried")
                or (release.host() != "bookworm" and _differs_in_less(cells, documented))
                for documented in written
            ), line


def _differs_in_less(cells: list[str], documented: list[str]) -> bool:
    return len(cells) == len(documented) and all(
        here == there or (there.startswith("differs") and here.count("(") < there.count("("))
        for here, there in zip(cells, documented, strict=True)
    )
