"""deploy/kubernetes without a cluster: what node.sh does to containerd's configuration, and that
the chart is the manifests."""

import os
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.platforms.chart import rendered

pytestmark = pytest.mark.unit
SCRIPT = Path(__file__).parents[2] / "deploy/kubernetes/node.sh"
RUNC = 'runtime_type = "io.containerd.runc.v2"\n'
OLD, NEW = "io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"


def configure(file: Path, what: str) -> None:
    environment = {**os.environ, "CONTAINERD": str(file), "PREFIX": "/opt/tw"}
    subprocess.run(["sh", SCRIPT, "configure", what], check=True, env=environment)


def runtimes(file: Path, plugin: str) -> Any:
    return tomllib.loads(file.read_text())["plugins"][plugin]["containerd"]["runtimes"]


@pytest.mark.parametrize(
    ("before", "plugin"),
    [
        ('version = 2\n[plugins."io.containerd.grpc.v1.cri"]\nsandbox_image = "one"\n', OLD),
        (f'version = 2\n[plugins."{OLD}".containerd.runtimes.runc]\n{RUNC}', OLD),
        (f'version = 3\n[plugins."{NEW}".containerd.runtimes.runc]\n{RUNC}', NEW),
        ("version = 3\n", NEW),
    ],
)
def test_there_and_back(tmp_path: Path, before: str, plugin: str) -> None:
    file = tmp_path / "config.toml"
    file.write_text(before)
    for _ in range(2):
        configure(file, "install")
        found = runtimes(file, plugin)
        assert found["tapwright"]["options"] == {"BinaryName": "/opt/tw/tapwright"}
        assert found["runc"] == {"runtime_type": "io.containerd.runc.v2"}
        assert tomllib.loads(file.read_text())["version"] == int(before[10])
    configure(file, "remove")
    assert file.read_text() == before
    assert os.listdir(tmp_path) == ["config.toml"]


def test_without_a_configuration(tmp_path: Path) -> None:
    """As containerd of a distribution that ships none: it is version 2 then, which each reads."""
    file = tmp_path / "containerd/config.toml"
    configure(file, "install")
    assert tomllib.loads(file.read_text())["version"] == 2
    assert set(runtimes(file, OLD)) == {"runc", "tapwright"}


def test_the_chart_is_the_manifests() -> None:
    """But for the namespace, which Helm makes, and when an image is pulled, which it says."""
    manifests = SCRIPT.parent
    whole = (manifests / "install.yaml").read_text()
    pulled = "          imagePullPolicy: IfNotPresent\n"
    chart = rendered("install.yaml", image="IMAGE").replace(pulled, "")
    assert whole.partition("name: tapwright\n---\n")[2] == chart
    runtime = (manifests / "runtimeclass.yaml").read_text()
    assert runtime[runtime.index("apiVersion") :] == rendered("runtimeclass.yaml")
