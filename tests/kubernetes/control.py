"""The control plane: etcd, API server, controllers, scheduler, and the bridge that joins nodes.

It lives in the network namespace of the caller, whose address on the bridge is that of all servers.
"""

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.kubernetes import build
from tests.kubernetes.certificates import Certificates
from tests.kubernetes.networks import WIRE, WIRE6
from tests.kubernetes.waiting import eventually

SERVICES = "10.96.0.0/16,fd00:96::/112"
DNS = "10.96.0.10"
_SERVER = f"https://{WIRE}.1:6443"
_CLIENTS = {
    "admin": ("admin", "system:masters"),
    "controllers": ("system:kube-controller-manager", ""),
    "scheduler": ("system:kube-scheduler", ""),
    "proxy": ("system:kube-proxy", ""),
}


class Control:
    """From its start to its end; `kubectl` is how tests speak with it."""

    def __init__(self, programs: Path, home: Path) -> None:
        self.programs = programs
        major, minor, *_ = build.version(programs).split(".")
        self.version = int(major), int(minor)
        # Both families of addresses, before they were a matter of course.
        self.gates = [] if self.version >= (1, 23) else ["--feature-gates=IPv6DualStack=true"]
        self.certificates = Certificates(home / "pki")
        self._home = home
        self._running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        _ip("link", "add", "wire", "type", "bridge")
        _ip("address", "add", f"{WIRE}.1/24", "dev", "wire")
        _ip("address", "add", f"{WIRE6}:1/64", "dev", "wire", "nodad")
        _ip("link", "set", "wire", "up")
        names = "kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"
        addresses = f"{WIRE}.1", "127.0.0.1", "10.96.0.1"
        hosts = [f"DNS:{name}" for name in names] + [f"IP:{address}" for address in addresses]
        self.certificates.sign("server", "kube-apiserver", hosts=hosts)
        for name, (user, group) in _CLIENTS.items():
            self._client(name, user, group)
        self._start_etcd()
        self._start_server()
        assert eventually(self._answers), self.log("kube-apiserver")
        self._start_controllers()

    def add_node(self, name: str) -> None:
        """Let a kubelet of this name in."""
        self._client(name, f"system:node:{name}", "system:nodes")

    def kubeconfig(self, name: str) -> Path:
        return self._home / f"{name}.conf"

    def log(self, program: str) -> str:
        return (self._home / f"{program}.log").read_text(errors="replace")[-4000:]

    def kubectl(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """To its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": 150, **options}
        return subprocess.run(self.command(*words), check=False, **options)

    def command(self, *words: str) -> list[str]:
        config = f"--kubeconfig={self.kubeconfig('admin')}"
        cache = f"--cache-dir={self._home}/cache"
        return [str(self.programs / "kubectl"), config, cache, *words]

    def output(self, *words: str, **options: Any) -> str:
        """Run kubectl, insist on success, return its stdout."""
        done = self.kubectl(*words, **options)
        assert done.returncode == 0, f"kubectl {words}: {done.stderr}"
        return str(done.stdout)

    def get(self, *words: str) -> Any:
        return json.loads(self.output("get", "-o", "json", *words))

    def apply(self, *objects: Mapping[str, Any]) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": objects}
        self.output("apply", "-f", "-", input=json.dumps(items))

    def stop(self) -> None:
        for process in reversed(self._running):
            # Nothing is kept, and an API server ends only when all who watch have gone.
            process.kill()
            process.wait()

    def _answers(self) -> bool:
        # RBAC's own roles come after the server has begun to answer.
        return self.kubectl("get", "--raw", "/readyz").stdout == "ok"

    def _client(self, name: str, user: str, group: str) -> None:
        self.certificates.sign(name, user, group)
        authority = {
            "server": _SERVER,
            "certificate-authority-data": _data(self.certificates.authority),
        }
        who = {
            "client-certificate-data": _data(self.certificates.certificate(name)),
            "client-key-data": _data(self.certificates.key(name)),
        }
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "tests", "cluster": authority}],
            "users": [{"name": name, "user": who}],
            "contexts": [{"name": "tests", "context": {"cluster": "tests", "user": name}}],
            "current-context": "tests",
        }
        self.kubeconfig(name).write_text(json.dumps(config))

    def _start_etcd(self) -> None:
        client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
        self._start(
            "etcd",
            f"--data-dir={self._home}/etcd",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )

    def _start_server(self) -> None:
        keys = self.certificates
        self._start(
            "kube-apiserver",
            f"--advertise-address={WIRE}.1",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged=true",
            f"--client-ca-file={keys.authority}",
            "--etcd-servers=http://127.0.0.1:2379",
            f"--kubelet-client-certificate={keys.certificate('admin')}",
            f"--kubelet-client-key={keys.key('admin')}",
            "--kubelet-preferred-address-types=InternalIP",
            "--secure-port=6443",
            f"--service-account-issuer={_SERVER}",
            f"--service-account-key-file={keys.certificate('tokens')}",
            f"--service-account-signing-key-file={keys.key('tokens')}",
            f"--service-cluster-ip-range={SERVICES}",
            f"--tls-cert-file={keys.certificate('server')}",
            f"--tls-private-key-file={keys.key('server')}",
            *self.gates,
        )

    def _start_controllers(self) -> None:
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={self.kubeconfig('controllers')}",
            f"--root-ca-file={self.certificates.authority}",
            f"--service-account-private-key-file={self.certificates.key('tokens')}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            # How soon a node that is gone is called so.
            "--node-monitor-grace-period=20s",
            *self.gates,
        )
        config = f"--kubeconfig={self.kubeconfig('scheduler')}"
        self._start("kube-scheduler", config, "--leader-elect=false")

    def _start(self, program: str, *words: str) -> None:
        with (self._home / f"{program}.log").open("ab") as log:
            self._running.append(
                subprocess.Popen(
                    [self.programs / program, *words],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=build.environment(self.programs),
                )
            )


def _data(file: Path) -> str:
    return base64.b64encode(file.read_bytes()).decode()


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"ip {words}: {done.stderr}"
