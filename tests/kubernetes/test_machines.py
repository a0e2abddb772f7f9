"""docs/kubernetes.md from its beginning: two bare machines, which nothing but its lines makes a
cluster.

Where the tests type other lines, `_REPLACED` has them. Beside these, the machines find a mirror of
the registries of images in /etc/containerd/certs.d: it has those of kubeadm, and a page for nginx.
"""

import json
import platform
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.linux import netns
from tests.kubernetes import archive, build, page
from tests.kubernetes.machines import GATEWAY, PACKAGES, Machine, Network, ensure
from tests.kubernetes.registry import Registry
from tests.platforms.images import PAGE, SERVE

HERE = Path(__file__).parents[2]
ADDRESS = f"{GATEWAY}:5000"
_OWN_ARCHIVE = f"echo 'deb [trusted=yes] file:{PACKAGES} ./' "
_REPLACED = {
    # Kubernetes' own archive can't be reached: the packages are made of the programs of this run.
    r"curl -fsSL https://pkgs.k8s.io.*\n.*gpg --dearmor.*\n": "",
    r"echo 'deb \[signed-by=.*\\\n.*pkgs.k8s.io\S* /' ": _OWN_ARCHIVE,
    # No program here may lower what the kernel kills last.
    r"(sandbox_image = .*\n)": r"\1restrict_oom_score_adj = true\n",
    # The same range of pods, and what this machine's namespaces and control groups, which are of
    # version 1, ask for.
    r"kubeadm init --pod-network-cidr 10.244.0.0/16": "kubeadm init --config kubeadm.json",
    r"(kubeadm join .*)": r"\1 --ignore-preflight-errors SystemVerification",
}


@pytest.fixture
def machines(machine_netns: str, home: Path) -> Iterator[list[Machine]]:
    """Two, with a registry at ADDRESS."""
    programs = build.directory()
    if not (programs / "kubeadm").exists():
        pytest.skip("kubeadm is not among the programs of KUBERNETES")
    with netns.entered(machine_netns):
        ensure()
    place = home / "machines"
    packages = place / "packages"
    packages.mkdir(parents=True)
    archive.write(programs, packages)
    network = Network(machine_netns, place)
    two = [Machine(name, number, place, network) for number, name in enumerate(("first", "second"))]
    try:
        for machine in two:
            machine.start(packages)
            _mirror(machine)
        yield two
    finally:
        for machine in two:
            machine.stop()
        network.stop()


@pytest.fixture
def images(machines: list[Machine], home: Path) -> Iterator[Registry]:
    """Those of kubeadm, and a page in the place of nginx."""
    place = home / "machines/registry"
    place.mkdir()
    within = machines[0].network.within
    registry = Registry(build.directory(), place, ADDRESS, within)
    try:
        archive.fill(registry, build.directory(), home / "machines/images")
        registry.add("library/nginx", f"CMD {json.dumps(SERVE)}")
        yield registry
    finally:
        registry.stop()


def test_page(machines: list[Machine], images: Registry, tmp_path: Path) -> None:
    """docs/kubernetes.md from two bare machines: a cluster, a pod on a service, an upgrade"""
    first, second = machines
    make_cluster(first, second)
    words = {"REGISTRY": ADDRESS, "BASE": images.base, "NODE": second.name}
    image, install, pod, upgrade, remove = (
        page.filled(text, words) for text in page.blocks("Onto the nodes")
    )
    checkout = tmp_path / "checkout"
    shutil.copytree(HERE / "deploy", checkout / "deploy")
    shutil.copytree(HERE / "deploy", first.root / "root/deploy")

    def build_image(wheel: Path) -> None:
        done = subprocess.run(
            ["sh", "-ec", image],
            check=False,
            cwd=checkout,
            env=page.workplace(checkout, images, wheel),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    build_image(page.wheel())
    assert not (second.root / "usr/bin/qemu-system-x86_64").exists()
    ready = first.typed(install).splitlines()
    assert any(line.startswith("second ") and line.endswith("ready") for line in ready)
    *_, kernel, served = first.typed(pod).splitlines()
    assert kernel != platform.release()
    assert served == PAGE.strip()

    wheel, version = page.later(page.wheel(), tmp_path)
    build_image(wheel)
    first.typed(upgrade)
    assert version in second.typed("/opt/tapwright/venv/bin/pip show tapwright")
    ask = 'curl -sS "http://$(kubectl get service web --output jsonpath={.spec.clusterIP})/"'
    assert first.typed(ask) == PAGE
    assert first.typed("kubectl exec web -- uname -r").strip() == kernel
    restarts = "jsonpath={.status.containerStatuses[0].restartCount}"
    assert first.typed(f"kubectl get pod web --output {restarts}") == "0"
    first.typed(remove)
    second.typed("test ! -e /opt/tapwright")


def make_cluster(first: Machine, second: Machine) -> None:
    """The first part of the page."""
    here, archived, control, join, ranges, network, wait = page.blocks("From two bare")
    for machine in (first, second):
        machine.typed(_replaced(here))
        machine.typed(_replaced(archived))
    (first.root / "root/kubeadm.json").write_text(_configuration())
    line = first.typed(_replaced(control)).splitlines()[-1].strip()
    words = {"FIRST": re.escape(first.address), "TOKEN": r"\S+", "HASH": r"\S+"}
    assert re.fullmatch(page.filled(join, words).strip(), line)
    second.typed(_replaced(line))
    listed = dict(line.split() for line in first.typed(ranges).splitlines()[1:])
    assert listed == {"first": "10.244.0.0/24", "second": "10.244.1.0/24"}
    for own, other in ((first, second), (second, first)):
        words = {"OWN": listed[own.name], "OTHER": listed[other.name], "PEER": other.address}
        own.typed(page.filled(network, words))
    first.typed(wait)


def _replaced(text: str) -> str:
    for line, own in _REPLACED.items():
        text = re.sub(line, own, text)
    return text


def _configuration() -> str:
    """What takes the place of kubeadm's options."""
    kubeadm = "kubeadm.k8s.io/v1beta4"
    version = f"v{build.version(build.directory())}"
    documents = [
        {
            "apiVersion": kubeadm,
            "kind": "InitConfiguration",
            # Control groups of version 1.
            "nodeRegistration": {"ignorePreflightErrors": ["SystemVerification"]},
            # There is no image of CoreDNS.
            "skipPhases": ["addon/coredns"],
        },
        {
            "apiVersion": kubeadm,
            "kind": "ClusterConfiguration",
            # Which kubeadm would ask a server for.
            "kubernetesVersion": version,
            "networking": {"podSubnet": "10.244.0.0/16"},
        },
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "failCgroupV1": False,
            "oomScoreAdj": 0,
            # The disk is this machine's, and full to a degree that is not theirs.
            "evictionHard": {"memory.available": "100Mi"},
            # As the other tests have it.
            "runtimeRequestTimeout": "10m",
        },
        {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            # Settings of the machine.
            "conntrack": {
                "maxPerCore": 0,
                "tcpEstablishedTimeout": "0s",
                "tcpCloseWaitTimeout": "0s",
            },
        },
    ]
    return "\n---\n".join(map(json.dumps, documents))


def _mirror(machine: Machine) -> None:
    for source in (archive.SOURCE, "docker.io", ADDRESS):
        hosts = machine.root / "etc/containerd/certs.d" / source / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        # containerd 1.7 takes no file without a table.
        hosts.write_text(f'server = "http://{ADDRESS}"\n[host."http://{ADDRESS}"]\n')
