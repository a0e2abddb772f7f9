"""deploy/kubernetes on the cluster, used as docs/kubernetes.md says."""

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import textwrap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.kubernetes.cluster import SECONDS, Cluster
from tests.kubernetes.node import Node
from tests.kubernetes.registry import ADDRESS, BASE, Registry, executable
from tests.platforms.chart import rendered
from tests.platforms.images import PAGE, SERVE
from tests.sandboxes import COMMAND

HERE = Path(__file__).parents[2]
DEPLOY = HERE / "deploy/kubernetes"


def blocks(page: Path) -> list[str]:
    """What the page has people type, in the part about nodes, without what takes Helm."""
    part = page.read_text().partition("## Onto the nodes")[2].partition("\n## ")[0]
    found = re.findall(r"^( *)```sh\n(.*?)^ *```", part, re.DOTALL | re.MULTILINE)
    texts = [textwrap.dedent(text) for _, text in found]
    return [text for text in texts if not text.startswith("helm ")]


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
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/tapwright").symlink_to(COMMAND)
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "podman").symlink_to(registry.podman)
    kubectl, curl = control.command(), node.command("/usr/bin/curl", "-sS")
    executable(programs / "kubectl", f'exec {shlex.join(kubectl)} "$@"')
    executable(programs / "curl", f'exec {shlex.join(curl)} "$@"')
    # The script of this run has made it, while the registry of Python's packages could be reached.
    executable(programs / "pip", f"cp {os.environ['WHEELS']}/tapwright-*.whl {deploy}")
    words = {"REGISTRY": ADDRESS, "BASE": BASE, "NODE": node.name, "nginx": f"{ADDRESS}/web"}
    before = node.without_tapwright()
    config = node.write_containerd(before)
    control.output("delete", "runtimeclass", "tapwright")

    def typed(text: str) -> str:
        for word, own in words.items():
            text = re.sub(rf"\b{word}\b", own, text)
        done = subprocess.run(
            ["sh", "-ec", text],
            check=False,
            cwd=tmp_path,
            env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            timeout=4 * SECONDS,
        )
        assert done.returncode == 0, f"{text}{done.stdout}{done.stderr}{told(cluster)}"
        return done.stdout

    try:
        with systemd(node):
            image, install, pod, remove = blocks(HERE / "docs/kubernetes.md")
            typed(image)
            ready = typed(install).splitlines()
            assert any(line.startswith(node.name) and line.endswith("ready") for line in ready)
            *_, kernel, page = typed(pod).splitlines()
            assert kernel != platform.release()
            assert page == PAGE.strip()
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
