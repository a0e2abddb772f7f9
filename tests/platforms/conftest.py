"""Each platform as its package installs it, started with directories and sockets of its own.

A platform's fixture runs a container with an ordinary runtime first: that shows the platform to be
sound on this machine, and makes the bridges and chains that plugins keep for good.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from tapwright.linux import netns
from tests.platforms import images
from tests.platforms.containerd import IMAGE, Containerd
from tests.platforms.cri import Cri
from tests.platforms.docker import Docker
from tests.platforms.podman import Podman
from tests.platforms.remains import PlatformHost, cgroups, sweep
from tests.platforms.runtime import Runtime
from tests.sandboxes import Tapwright

STATE = Path("/run/tapwright"), Path("/var/lib/cni/results")


@pytest.fixture(scope="package")
def own_host(tapwright: Tapwright) -> Iterator[None]:
    """A namespace of the platforms' own: what their engines do to firewall and settings of the one
    where they run outlasts them, and other tests run in this process afterwards."""
    path = netns.path_of(f"twtest-platforms-{os.getpid()}")
    netns.create(path)
    try:
        with netns.entered(path):
            yield
    finally:
        netns.remove(path)


@pytest.fixture(scope="package")
def rootfs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's root filesystem, a tar archive."""
    return images.rootfs(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="package")
def runtime(
    own_host: None, tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory
) -> Runtime:
    return Runtime(tapwright, tmp_path_factory.mktemp("runtime"))


@pytest.fixture(scope="package")
def podman(
    runtime: Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Podman]:
    before = cgroups()
    home = tmp_path_factory.mktemp("pod")  # its run root may have 50 characters
    podman = Podman(home, runtime.path)
    try:
        podman.output("import", str(rootfs), "busybox")
        for network in ("podman", "web", "second"):
            ordinary = (
                "run",
                "--rm",
                "--network",
                network,
                "-p",
                "8079:79",
                "busybox",
                "ip",
                "route",
            )
            assert "default via" in podman.output(*ordinary, runtime="runc")
        yield podman
    finally:
        podman.remove_all()
        sweep(home, before)


@pytest.fixture(scope="module")
def podman_leaves_nothing(podman: Podman, runtime: Runtime) -> Iterator[None]:
    """Fails when the tests of a module leave anything that was not there before."""
    with unchanged(podman.home, runtime, podman.remove_all):
        yield


@pytest.fixture(scope="module")
def containerd_leaves_nothing(containerd: Containerd, runtime: Runtime) -> Iterator[None]:
    with unchanged(containerd.home, runtime, containerd.remove_all):
        yield


@pytest.fixture(scope="module")
def docker_leaves_nothing(docker: Docker, runtime: Runtime) -> Iterator[None]:
    with unchanged(docker.home, runtime, docker.remove_all):
        yield


@contextmanager
def unchanged(home: Path, runtime: Runtime, remove_all: Callable[[], None]) -> Iterator[None]:
    state = [home / "leases", *runtime.directories, *STATE]
    host = PlatformHost(runtime.session, home, state)
    before = host.snapshot()
    try:
        yield
        host.assert_same(before)
    finally:
        # So that the fault of one is not that of all which follow.
        remove_all()
        runtime.delete_all()


Daemon = TypeVar("Daemon", Containerd, Docker)


@contextmanager
def ended(daemon: Daemon) -> Iterator[Daemon]:
    try:
        yield daemon
    finally:
        daemon.stop()


@pytest.fixture(scope="package")
def containerd(
    runtime: Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Containerd]:
    before = cgroups()
    home = tmp_path_factory.mktemp("containerd")
    try:
        with ended(Containerd(home, runtime.path, rootfs)) as containerd:
            ordinary = "run", "--rm", "--cni", IMAGE, "ordinary", "ip", "route"
            assert "default via" in containerd.output(*ordinary)
            yield containerd
    finally:
        sweep(home, before)


@pytest.fixture(scope="package")
def cri(containerd: Containerd) -> Iterator[Cri]:
    logs = containerd.home / "logs"
    logs.mkdir()
    with closing(Cri(containerd.socket, logs)) as cri:
        try:
            pod = cri.run_sandbox("ordinary", "runc", {8078: 78})
            container = cri.run(pod, "one", "sleep", "1000")
            assert cri.exec(container, "hostname") == ("ordinary\n", "", 0)
            cri.remove_sandbox(pod)
            yield cri
        finally:
            cri.remove_all()


@pytest.fixture(scope="package")
def docker(
    runtime: Runtime, rootfs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    before = cgroups()
    home = tmp_path_factory.mktemp("docker")
    try:
        runtimes = {"tapwright": runtime.path, "tapwright-host": runtime.in_host}
        with ended(Docker(home, runtimes, rootfs)) as docker:
            ordinary = "run", "--rm", "-p", "8077:77", "busybox", "ip", "route"
            assert "default via" in docker.output(*ordinary)
            try:
                yield docker
            finally:
                docker.remove_all()
    finally:
        sweep(home, before)
