"""What all tests stand on: a private network namespace as their "host", and a snapshot of it.

The whole session runs in a namespace of its own, so whatever a test makes, and whatever fails,
the machine's own network is never touched and everything ends with the session.
"""

import asyncio
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tapwright.hypervisor import accelerator
from tapwright.hypervisor.machine import Machine
from tapwright.image import store
from tapwright.linux import libc, links
from tapwright.linux.netlink import Netlink
from tests.host import Host
from tests.sandboxes import Networks, Tapwright

_MACHINE_NETNS = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    if os.geteuid() != 0:
        raise pytest.UsageError("the tests make namespaces, TAPs and virtual machines: run as root")
    # While the package archive can still be reached.
    store.ensure(store.DIRECTORY, print)
    config.stash[_MACHINE_NETNS] = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    libc.unshare(libc.CLONE_NEWNET)
    with Netlink() as nl:
        links.set_up(nl, 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Platforms last: what their engines do to firewall and settings of the namespace, which is the
    host of all other tests, outlasts them."""
    items.sort(key=lambda item: "platforms" in item.path.parts)


@pytest.fixture(scope="session")
def machine_netns(pytestconfig: pytest.Config) -> str:
    """The machine's own namespace, for what must reach the package archive."""
    return f"/proc/self/fd/{pytestconfig.stash[_MACHINE_NETNS]}"


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
    wanted = Machine(image.kernel, image.initrd, accelerator="auto")
    chosen, _ = asyncio.run(accelerator.choose(wanted, print))
    return replace(wanted, accelerator=chosen)


@pytest.fixture(scope="session")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Networks:
    """The CNI networks that tests attach to, used once so that bridges and chains are there."""
    return Networks(tmp_path_factory.mktemp("net"))


@pytest.fixture(scope="session")
def tapwright(tmp_path_factory: pytest.TempPathFactory, networks: Networks) -> Iterator[Tapwright]:
    """The command, with a root and a configuration of its own."""
    command = Tapwright(tmp_path_factory.mktemp("tapwright"), networks)
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
