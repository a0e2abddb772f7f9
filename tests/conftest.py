"""What tests stand on: a private network namespace as their "host", and a snapshot of it.

The tests run in a namespace of the session's own, so whatever a test makes, and whatever fails, the
machine's own network is never touched and everything ends with the session. Only those marked
`unit` do not: they need neither root, nor an image, nor a machine of a certain kind.
"""

import asyncio
import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tapwright.hypervisor import accelerator
from tapwright.hypervisor.machine import Machine
from tapwright.image import store
from tapwright.linux import libc, links
from tapwright.linux.netlink import Netlink
from tests import forked
from tests.host import Host
from tests.sandboxes import Networks, Tapwright
from tests.templates import Templates

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

PLATFORMS = "tests/platforms/", "tests/bench/", "tests/cni/test_example.py"
LONGEST = (
    *PLATFORMS,
    "tests/programs/",
    "tests/sandbox/test_template.py",
    "tests/parity/test_parity.py",
    "tests/sandbox/test_kata_network.py",
    "tests/sandbox/test_netmon.py",
    "tests/oci/",
    "tests/sandbox/test_kata_ipvs.py",
    "tests/sandbox/test_spares.py",
    "tests/image/",
    "tests/hypervisor/test_template.py",
    "tests/torture/",
    "tests/sandbox/",
    "tests/diagnosis/",
    "tests/agent/",
)
"""What takes its time, the longest first, so that all workers come to their end together."""


def pytest_configure() -> None:
    # A shell has what it starts in the background ignore it, and so would all that tests start.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker has a file; all platforms have one worker, with the benchmarks, which use a platform
    themselves: control groups are the machine's, and each looks for what it leaves of them."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            path = nodeid.partition("::")[0]
            return PLATFORMS[0] if path.startswith(PLATFORMS) else path

    return ByFile(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and not item.get_closest_marker("unit"):
            item.fixturenames.insert(0, "private_host")
    if hasattr(config, "workerinput"):
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    """The place of its file in LONGEST."""
    ranks = (rank for rank, start in enumerate(LONGEST) if item.nodeid.startswith(start))
    return next(ranks, len(LONGEST))


@pytest.fixture(scope="session")
def private_host() -> str:
    """A network namespace of the session's own, as the host of its tests, and an image for their
    guests; the path of the machine's own namespace. All tests use it, except those marked
    `unit`."""
    if os.geteuid() != 0:
        pytest.fail("this test makes namespaces, TAPs or virtual machines: run it as root")
    # While the package archive can still be reached.
    store.ensure(store.DIRECTORY, print)
    machine = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    libc.unshare(libc.CLONE_NEWNET)
    with Netlink() as nl:
        links.set_up(nl, 1)
    forked.server()  # in this namespace, and no test's leavings
    return f"/proc/self/fd/{machine}"


@pytest.fixture(scope="module", autouse=True)
def unchanged() -> Iterator[None]:
    """Fails when a file's tests leave this process with other limits, groups or namespaces than it
    had: those of the next file would start their commands with these, and slowly."""
    servers = forked.server.cache_info().currsize  # `private_host` makes one in its namespace
    before = forked.inherited(os.environ)
    yield
    if servers == forked.server.cache_info().currsize:
        assert forked.inherited(os.environ) == before


@pytest.fixture(scope="session")
def machine_netns(private_host: str) -> str:
    """The machine's own namespace, for what must reach the package archive."""
    return private_host


@pytest.fixture
def scratch_netns() -> Iterator[str]:
    """A fresh namespace, made by `ip netns`; its path."""
    name = f"twtest-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield f"/run/netns/{name}"
    subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


@pytest.fixture(scope="session")
def machine() -> Machine:
    """A virtual machine of our image, as fast as this host can run it."""
    image = store.ensure(store.DIRECTORY, print)
    wanted = Machine(image.kernel, image.initrd, accelerator="auto", disk=image.disk)
    chosen, _ = asyncio.run(accelerator.choose(wanted, print))
    return replace(wanted, accelerator=chosen)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The CNI networks that tests attach to, used once so that bridges and chains are there."""
    return Networks(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="session")
def templates_of_session(tmp_path_factory: pytest.TempPathFactory) -> Templates:
    """Those that all tests start guests from, kept where all workers find them."""
    directory = tmp_path_factory.getbasetemp()
    of_all = directory.parent if "PYTEST_XDIST_WORKER" in os.environ else directory
    return Templates(tmp_path_factory.mktemp("template"), of_all / "templates")


@pytest.fixture(scope="session")
def session_templates(templates_of_session: Templates) -> Path:
    """Where they are."""
    return templates_of_session.path


@pytest.fixture(autouse=True)
def templates_renewed(request: pytest.FixtureRequest) -> Iterator[None]:
    """A template that went with a guest which a test killed is there again for the next one."""
    yield
    if "session_templates" in request.fixturenames:
        request.getfixturevalue("templates_of_session").renew()


@pytest.fixture(scope="session")
def tapwright(
    tmp_path_factory: pytest.TempPathFactory, networks: Networks, session_templates: Path
) -> Iterator[Tapwright]:
    """The command, with a root and a configuration of its own."""
    command = Tapwright(tmp_path_factory.mktemp("tapwright"), networks, session_templates)
    yield command
    command.delete_all()


@pytest.fixture
def host(tapwright: Tapwright, networks: Networks) -> Host:
    """The host as the snapshot sees it."""
    return Host([tapwright.root, tapwright.cache, networks.leases, Path("/run/tapwright")])


@pytest.fixture
def nothing_left(host: Host, tapwright: Tapwright) -> Iterator[None]:
    """Fails when the test leaves anything on the host that was not there before."""
    sandboxes = tapwright.names()
    before = host.snapshot()
    yield
    try:
        host.assert_same(before)
    finally:
        # So that the fault of one test is not that of all which follow.
        for name in tapwright.names() - sandboxes:
            tapwright.delete(name)
