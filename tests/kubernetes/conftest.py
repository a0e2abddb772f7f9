"""One cluster for all tests. They run when scripts/kubernetes asks for them, and not in the suite:
Kubernetes is to be built first, which takes minutes."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.kubernetes import build
from tests.kubernetes.cluster import RUNTIMES, Cluster
from tests.kubernetes.dns import NameServer
from tests.kubernetes.registry import Registry
from tests.platforms import images
from tests.platforms.runtime import executable

WANTED = "TAPWRIGHT_KUBERNETES"
"""The number of nodes."""

collect_ignore_glob = [] if WANTED in os.environ else ["test_*.py"]


@pytest.fixture(scope="session")
def home() -> Iterator[Path]:
    """Not one of pytest's, of which another session removes the old ones."""
    with tempfile.TemporaryDirectory(prefix="twkube-") as directory:
        yield Path(directory)


@pytest.fixture(scope="session")
def cluster(private_host: str, home: Path) -> Iterator[Cluster]:
    config = home / "configuration.toml"
    config.write_text("[netmon]\nenable_netmon = true\n")
    runtime = executable(home / "tapwright", config, Path("/run/tapwright"))
    layer = images.rootfs(home)
    size = int(os.environ[WANTED])
    cluster = Cluster(build.directory(), home, runtime, layer, size)
    names = NameServer(cluster.control)
    try:
        cluster.start()
        names.start()
        yield cluster
        cluster.delete("pod", "--all", wait=True)
    finally:
        names.stop()
        cluster.stop()


@pytest.fixture(scope="session")
def registry(cluster: Cluster, home: Path) -> Iterator[Registry]:
    place = home / "registry"
    place.mkdir()
    registry = Registry(cluster.control.programs, place)
    yield registry
    registry.stop()


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """The runtime that a row is of; runc is the comparison."""
    return str(request.param)
