"""A node: namespaces (mount, network, UTS) in which containerd, a kubelet and a kube-proxy run."""

import json
import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tapwright.linux import cgroups
from tests.kubernetes import build, groups, networks, registry, sysctls
from tests.kubernetes.control import DNS, Control
from tests.kubernetes.networks import PODS, PODS6, WIRE
from tests.kubernetes.waiting import eventually
from tests.platforms import images

_RUNTIMES = 'plugins."io.containerd.grpc.v1.cri".containerd.runtimes'
IMAGE, PAUSE = "localhost/busybox:latest", "localhost/pause:latest"

_CONTAINERD = """\
version = 2
root = "{home}/root"
state = "/run/containerd"
disabled_plugins = [
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "/run/containerd/containerd.sock"
[plugins."io.containerd.internal.v1.opt"]
path = "{home}/opt"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
restrict_oom_score_adj = true
disable_apparmor = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{home}/registries"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{home}/plugins"
conf_dir = "{home}/cni"
"""
_HOLDER = """\
set -e
mount --make-rshared /
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/netns /run/tapwright /run/containerd /run/lock
for directory in /var/lib/kubelet /var/lib/cni /var/log /etc/containerd /opt /usr/local/sbin; do
    mkdir -p "$0$directory" $directory
    mount --bind "$0$directory" $directory
done
for file in $(cd "$0/sysctl" && find . -type f); do
    mount --bind "$0/sysctl/$file" /proc/sys/$file
done
[ -e /dev/kmsg ] || touch /dev/kmsg
mount --bind /dev/null /dev/kmsg
hostname "$1"
# sysfs shows the network namespace of who mounts it.
mkdir -p "$0/cgroup"
mount --rbind /sys/fs/cgroup "$0/cgroup"
mount -t sysfs sysfs /sys
mount --rbind "$0/cgroup" /sys/fs/cgroup
echo 1 >/proc/sys/net/ipv4/ip_forward
echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
ip link set lo up
echo ready
exec sleep infinity
"""


class Node:
    """The `number`th of a cluster, from 1; its address is the last part of that on the wire."""

    def __init__(
        self, number: int, home: Path, control: Control, runtime: Path, layer: Path
    ) -> None:
        self.number = number
        self.name = f"node{number}"
        self.address = f"{WIRE}.{10 + number}"
        self.pods = f"{PODS}.{number}.0/24"
        self._home = home / self.name
        self.asked = self._home / "systemctl"
        """What is asked of systemd, until it is done."""
        self._control = control
        self._runtime = runtime
        self._layer = layer
        self._wire = f"wire{number}"
        self._group = groups.fresh(str(number))
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._holder: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self._write()
        self._boot()
        archive = images.oci_archive(self._layer, {IMAGE: ["sh"], PAUSE: ["sleep", "infinity"]})
        self.output("ctr", "--namespace", "k8s.io", "image", "import", str(archive))
        self.start_kubelet()
        self.start_proxy()

    def reboot(self, others: Sequence["Node"]) -> None:
        """As when the power goes and comes back: no process gets a signal before, and the disk
        stays."""
        assert self._holder
        for program in [*self._running]:
            self.kill(program)
        assert eventually(lambda: groups.end(self._group))
        mine = os.readlink(f"/proc/{self._holder.pid}/ns/mnt")
        assert eventually(lambda: not _kill_within(mine))
        self._holder.wait()
        wire = f"/sys/class/net/{self._wire}"
        assert eventually(lambda: not os.path.exists(wire))
        self._boot()
        for other in others:
            self.route_to(other)
        self.start_kubelet()
        self.start_proxy()

    def _boot(self) -> None:
        # The root of all that this kubelet makes.
        cgroups.make(self._group)
        self._hold()
        self.join()
        networks.begin(self)
        self.start_containerd()

    def join(self) -> None:
        """Put a cable between the node and the bridge of the cluster."""
        assert self._holder
        outer, pid = self._wire, str(self._holder.pid)
        peer = ("type", "veth", "peer", "name", "eth0", "netns", pid)
        _run("ip", "link", "add", outer, *peer)
        _run("ip", "link", "set", outer, "master", "wire", "up")
        self.output("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        self.output("ip", "link", "set", "eth0", "up")
        self.output("ip", "route", "add", "default", "via", f"{WIRE}.1")
        six = f"{networks.WIRE6}:{10 + self.number}/64"
        self.output("ip", "address", "add", six, "dev", "eth0", "nodad")
        _run("ip", "route", "replace", self.pods, "via", self.address)

    def route_to(self, other: "Node") -> None:
        """Have its pods reach those of another node."""
        networks.lead(self, other)

    def start_containerd(self, config: Path | None = None) -> None:
        config = config or self._home / "containerd.toml"
        self._start("containerd", "containerd", "--config", str(config))
        assert eventually(lambda: self.run("ctr", "version").returncode == 0), self.log(
            "containerd"
        )

    def start_kubelet(self, *gates: str) -> None:
        """With features that are off by default."""
        socket = "unix:///run/containerd/containerd.sock"
        old = self._control.version < (1, 24)
        self._start(
            "kubelet",
            str(self._control.programs / "kubelet"),
            f"--config={self._home}/kubelet.json",
            f"--kubeconfig={self._control.kubeconfig(self.name)}",
            f"--hostname-override={self.name}",
            f"--node-ip={self.address}",
            f"--cert-dir={self._home}/pki",
            *(["--container-runtime=remote"] if old else []),
            f"--container-runtime-endpoint={socket}",
            *(f"--feature-gates={gate}=true" for gate in gates),
            "--v=2",
        )

    def start_proxy(self, mode: str = "iptables") -> None:
        self._start(
            "kube-proxy",
            str(self._control.programs / "kube-proxy"),
            f"--kubeconfig={self._control.kubeconfig('proxy')}",
            f"--hostname-override={self.name}",
            f"--proxy-mode={mode}",
            f"--cluster-cidr={PODS}.0.0/16,{PODS6}:/48",
            *self._control.gates,
            # Settings of the machine.
            "--conntrack-max-per-core=0",
            "--conntrack-tcp-timeout-established=0",
            "--conntrack-tcp-timeout-close-wait=0",
            "--oom-score-adj=0",
        )

    @property
    def process(self) -> int:
        """One in its namespaces."""
        assert self._holder
        return self._holder.pid

    def taken(self) -> set[str]:
        """The addresses of pods that are in use, as the node's plugin for addresses knows it."""
        kept = self._home / "var/lib/cni/networks/pods"
        return {one.name for one in kept.glob("10.*")}

    def without_tapwright(self) -> str:
        """containerd's configuration as it is before Tapwright is on the node."""
        whole = (self._home / "containerd.toml").read_text()
        return whole[: whole.index(f"[{_RUNTIMES}.tapwright]")]

    def write_containerd(self, text: str) -> Path:
        """Into /etc/containerd/config.toml of the node; where the tests see that."""
        file = self._home / "etc/containerd/config.toml"
        file.write_text(text)
        return file

    def kill(self, program: str) -> None:
        """`containerd`, `kubelet` or `kube-proxy`, without a word."""
        process = self._running.pop(program)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
            env=build.environment(self._control.programs),
        )

    def output(self, *words: str) -> str:
        """Run a program on the node, insist on success, return its stdout."""
        done = self.run(*words)
        assert done.returncode == 0, f"{self.name}: {words}: {done.stderr}"
        return done.stdout

    def command(self, *words: str) -> list[str]:
        assert self._holder
        return ["nsenter", f"--target={self._holder.pid}", "--mount", "--net", "--uts", *words]

    def log(self, program: str) -> str:
        return (self._home / f"{program}.log").read_text(errors="replace")

    def stop(self) -> None:
        for process in reversed(self._running.values()):
            process.terminate()
        for process in self._running.values():
            process.wait(30)
        assert eventually(lambda: groups.end(self._group))
        if self._holder:
            self._holder.kill()
            self._holder.wait()

    def _start(self, name: str, *words: str) -> None:
        with (self._home / f"{name}.log").open("ab") as log:
            self._running[name] = subprocess.Popen(
                self.command(*words),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=build.environment(self._control.programs),
            )

    def _hold(self) -> None:
        words = ["unshare", "--mount", "--net", "--uts", "sh", "-c", _HOLDER]
        self._holder = subprocess.Popen(
            [*words, str(self._home), self.name], stdout=subprocess.PIPE, text=True
        )
        assert self._holder.stdout
        assert self._holder.stdout.readline() == "ready\n"

    def _write(self) -> None:
        (self._home / "cni").mkdir(parents=True)
        # What restarts containerd on a node with systemd tells the tests, who do it.
        systemctl = self._home / "usr/local/sbin/systemctl"
        systemctl.parent.mkdir(parents=True)
        wait = f"while [ -e {self.asked} ]; do sleep 0.2; done"
        systemctl.write_text(f'#!/bin/sh\necho "$@" >{self.asked}\n{wait}\n')
        systemctl.chmod(0o755)
        sysctls.write(self._home / "sysctl")
        hosts = self._home / "registries" / registry.ADDRESS / "hosts.toml"
        hosts.parent.mkdir(parents=True)
        url = f"http://{registry.ADDRESS}"
        # containerd 1.6 takes no file without a table.
        hosts.write_text(f'server = "{url}"\n[host."{url}"]\n')
        text = _CONTAINERD.format(home=self._home, pause=PAUSE)
        text += f'[{_RUNTIMES}.runc]\nruntime_type = "io.containerd.runc.v2"\n'
        text += self._handler("tapwright", self._runtime)
        for network in networks.OTHERS:
            directory = f'cni_conf_dir = "{self._home}/{network}"\n'
            text += self._handler(f"{network}-runc", "runc", directory)
            text += self._handler(f"{network}-tapwright", self._runtime, directory)
        (self._home / "containerd.toml").write_text(text)
        (self._home / "resolv.conf").write_text(f"nameserver {WIRE}.1\n")
        (self._home / "kubelet.json").write_text(json.dumps(self._kubelet()))
        networks.write(self._home, self.number)

    def _handler(self, name: str, command: str | Path, more: str = "") -> str:
        head = f'[{_RUNTIMES}.{name}]\nruntime_type = "io.containerd.runc.v2"\n{more}'
        return f'{head}[{_RUNTIMES}.{name}.options]\nBinaryName = "{command}"\n'

    def _kubelet(self) -> dict[str, object]:
        authority = str(self._control.certificates.authority)
        return {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "authentication": {
                "x509": {"clientCAFile": authority},
                "anonymous": {"enabled": False},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._group,
            "clusterDNS": [DNS],
            "clusterDomain": "cluster.local",
            "configMapAndSecretChangeDetectionStrategy": "Watch",
            # The machine's disk and what is on it are others'.
            "evictionHard": {"memory.available": "100Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "failSwapOn": False,
            # Without CAP_SYS_RESOURCE it can't be lowered.
            "oomScoreAdj": 0,
            "maxPods": 60,
            "resolvConf": str(self._home / "resolv.conf"),
            "syncFrequency": "5s",
            # Its two minutes, of which a pod gets twice as many, are none for twenty guests at once
            # on two emulated processors.
            "runtimeRequestTimeout": "10m",
            # How soon a volume that is too big is seen.
            "volumeStatsAggPeriod": "5s",
            **({"featureGates": {"IPv6DualStack": True}} if self._control.gates else {}),
            "volumePluginDir": str(self._home / "plugins"),
            **({"failCgroupV1": False} if self._control.version >= (1, 31) else {}),
        }


def _kill_within(mounts: str) -> bool:
    """Kill the processes of a mount namespace; whether there were some."""
    found = False
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.readlink(f"/proc/{pid}/ns/mnt") == mounts:
                os.kill(int(pid), signal.SIGKILL)
                found = True
    return found


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{words}: {done.stderr}"
