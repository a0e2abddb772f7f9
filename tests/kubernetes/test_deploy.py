"""deploy/kubernetes on the cluster: a DaemonSet installs Tapwright on a node, and removes it."""

import os
import platform
import subprocess
import tarfile
from pathlib import Path

import pytest

from tests.kubernetes.cluster import SECONDS, Cluster, container, pod
from tests.kubernetes.waiting import eventually
from tests.platforms import images
from tests.platforms.chart import rendered
from tests.sandboxes import COMMAND

HERE = Path(__file__).parents[2]
DEPLOY = HERE / "deploy/kubernetes"
INSTALLER = "localhost/tapwright-install:latest"


@pytest.fixture(scope="module")
def image(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with busybox, the wheel, the guest image and the two scripts at /tapwright, on the
    first node; the directory that it was made in."""
    home = tmp_path_factory.mktemp("deploy")
    layer = images.rootfs(home)
    (wheel,) = Path(os.environ["WHEELS"]).glob("tapwright-*.whl")
    guest = home / "guest-image"
    subprocess.run([COMMAND, "image", "export", str(guest)], check=True)
    with tarfile.open(layer, "a") as archive:
        for file in (DEPLOY / "node.sh", DEPLOY / "pod.sh", guest, wheel):
            archive.add(file, f"tapwright/{file.name}")
    archived = images.oci_archive(layer, {INSTALLER: ["sh"]})
    node = cluster.nodes[0]
    node.output("ctr", "--namespace", "k8s.io", "image", "import", str(archived))
    return home


def manifest(name: str, home: Path, process: int) -> str:
    """With this image, and places of the test's own: the nodes share the machine's files."""
    text = (DEPLOY / name).read_text()
    for written, own in (
        ("image: IMAGE", f"image: {INSTALLER}\n          imagePullPolicy: Never"),
        ("/opt/tapwright", f"{home}/prefix"),
        ("/etc/containerd/config.toml", f"{home}/containerd.toml"),
        ('value: "1"', f'value: "{process}"'),
        ("systemctl restart containerd", f"touch {home}/restart"),
    ):
        assert written in text
        text = text.replace(written, own)
    return text


def test_daemon_set(cluster: Cluster, image: Path) -> None:
    """deploy/kubernetes: a DaemonSet installs Tapwright, a pod runs by it, another removes it"""
    node, control = cluster.nodes[0], cluster.control
    config, restart, prefix = (image / name for name in ("containerd.toml", "restart", "prefix"))
    before = node.without_tapwright()
    config.write_text(before)
    control.output("delete", "runtimeclass", "tapwright")
    control.output("apply", "-f", str(DEPLOY / "runtimeclass.yaml"))
    control.output("label", "node", node.name, "tapwright/install=yes")
    try:
        node.kill("containerd")
        node.start_containerd(config)
        control.output("apply", "-f", "-", input=manifest("install.yaml", image, node.process))
        assert eventually(restart.exists, 300), told(cluster, "install")
        restart.unlink()
        node.kill("containerd")
        node.start_containerd(config)
        assert eventually(lambda: labelled(cluster, node.name), SECONDS), told(cluster, "install")
        with cluster.running(pod("deployed", "tapwright", [container("one", "sleep", "10000")])):
            kernel = cluster.said("deployed", "one", "uname", "-r").strip()
            assert kernel != platform.release()
        # What runs by it keeps it on the node.
        cluster.delete("pod", "deployed", wait=True)
        control.output("delete", "-f", "-", input=manifest("install.yaml", image, node.process))
        control.output("apply", "-f", "-", input=manifest("remove.yaml", image, node.process))
        assert eventually(lambda: not prefix.exists(), SECONDS), told(cluster, "remove")
        assert not labelled(cluster, node.name)
        assert config.read_text() == before
        control.output("delete", "-f", "-", input=manifest("remove.yaml", image, node.process))
    finally:
        cluster.add_classes()
        node.kill("containerd")
        node.start_containerd()


def labelled(cluster: Cluster, node: str) -> bool:
    labels = cluster.control.get("node", node)["metadata"]["labels"]
    return bool(labels.get("tapwright/runtime") == "ready")


def told(cluster: Cluster, what: str) -> str:
    words = "-n", "tapwright", "-l", f"app=tapwright-{what}"
    log = cluster.control.kubectl("logs", *words)
    return log.stdout + log.stderr + cluster.control.kubectl("describe", "pod", *words).stdout


def test_manifests(cluster: Cluster) -> None:
    """deploy/kubernetes: the API server accepts the manifests and the chart's templates"""
    control = cluster.control
    control.output("create", "namespace", "tapwright")
    texts = [(DEPLOY / name).read_text() for name in ("install.yaml", "remove.yaml")]
    texts += rendered("install.yaml", image="IMAGE"), rendered("runtimeclass.yaml")
    control.output("delete", "runtimeclass", "tapwright")
    for text in texts:
        control.output("apply", "--dry-run=server", "-f", "-", input=text)
    cluster.add_classes()
    control.output("delete", "namespace", "tapwright")
