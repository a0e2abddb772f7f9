"""deploy/kubernetes on the cluster, used as docs/kubernetes.md says."""

import json
import platform
import shlex
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kubernetes import page
from tests.kubernetes.cluster import SECONDS, Cluster
from tests.kubernetes.node import Node
from tests.kubernetes.registry import ADDRESS, Registry, executable
from tests.platforms.chart import rendered
from tests.platforms.images import PAGE, SERVE

HERE = Path(__file__).parents[2]
DEPLOY = HERE / "deploy/kubernetes"


@contextmanager
def systemd(node: Node) -> Iterator[None]:
    """While it lasts, containerd is what `systemctl restart containerd` on the node restarts."""
    config = Path("/etc/containerd/config.toml")
    ended = threading.Event()

    def serve() -> None:
        while not ended.wait(0.2):
            if node.asked.exists():
                assert node.asked.read_text() == "restart containerd\n"
                node.kill("containerd")
                node.start_containerd(config)
                node.asked.unlink()

    node.kill("containerd")
    node.start_containerd(config)
    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        node.kill("containerd")
        node.start_containerd()


def test_page(cluster: Cluster, registry: Registry, tmp_path: Path) -> None:
    """docs/kubernetes.md, line by line: install, a pod that answers on a service, remove"""
    node, control = cluster.nodes[0], cluster.control
    shutil.copytree(HERE / "deploy", tmp_path / "deploy")
    deploy = tmp_path / "deploy/kubernetes"
    for name in ("install.yaml", "remove.yaml"):
        text = (deploy / name).read_text()
        # The nodes are namespaces of one machine, so the first process is another for each.
        assert 'value: "1"' in text
        (deploy / name).write_text(text.replace('value: "1"', f'value: "{node.process}"'))
    registry.add("web", f"CMD {json.dumps(SERVE)}")
    environment = page.workplace(tmp_path, registry, page.wheel())
    programs = tmp_path / "programs"
    kubectl, curl = control.command(), node.command("/usr/bin/curl", "-sS")
    executable(programs / "kubectl", f'exec {shlex.join(kubectl)} "$@"')
    executable(programs / "curl", f'exec {shlex.join(curl)} "$@"')
    words = {
        "REGISTRY": ADDRESS,
        "BASE": registry.base,
        "NODE": node.name,
        "nginx": f"{ADDRESS}/web",
    }
    before = node.without_tapwright()
    config = node.write_containerd(before)
    control.output("delete", "runtimeclass", "tapwright")

    def typed(text: str) -> str:
        text = page.filled(text, words)
        done = subprocess.run(
            ["sh", "-ec", text],
            check=False,
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=4 * SECONDS,
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}{told(cluster)}"
        return done.stdout

    try:
        with systemd(node):
            image, install, pod, upgrade, remove = page.blocks("Onto the nodes")
            typed(image)
            ready = typed(install).splitlines()
            assert any(line.startswith(node.name) and line.endswith("ready") for line in ready)
            *_, kernel, served = typed(pod).splitlines()
            assert kernel != platform.release()
            assert served == PAGE.strip()
            typed(upgrade)
            typed(remove)
            assert not labelled(cluster, node.name)
            assert config.read_text() == before
            node.output("test", "!", "-e", "/opt/tapwright")
    finally:
        cluster.add_classes()


def labelled(cluster: Cluster, node: str) -> bool:
    return "tapwright/runtime" in cluster.control.get("node", node)["metadata"]["labels"]


def told(cluster: Cluster) -> str:
    """What the pods of the DaemonSets say."""
    words = "-n", "tapwright", "-l", "app in (tapwright-install, tapwright-remove)"
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
