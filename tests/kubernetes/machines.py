"""Bare Debian machines, for docs/kubernetes.md from its beginning, and the network that joins them.

A machine is a root filesystem of its own with systemd as its first process, in namespaces of every
kind but those of users. What the packages of Debian do there, they do as on any machine.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

from tapwright.linux import cgroups
from tests.kubernetes import build, groups, sysctls
from tests.kubernetes.waiting import eventually

SUITE = "trixie"
FIELD = "192.168.60"
GATEWAY = f"{FIELD}.1"
PACKAGES = "/srv/packages"
"""Where a machine sees the archive that takes the place of Kubernetes' own."""
# What Debian's installer puts on a machine beside the packages of the priority "important".
_INSTALLED = "dbus", "init", "systemd-sysv"
_DEVICES = "null", "zero", "full", "random", "urandom", "tty", "net/tun", "kvm", "fuse"
_ROUTER = """\
set -e
ip link set lo up
ip link add field type bridge
ip address add "$0/24" dev field
ip link set field up
echo 1 >/proc/sys/net/ipv4/ip_forward
iptables -t nat -A POSTROUTING -s "$0/24" ! -d "$0/24" -j MASQUERADE
echo ready
exec sleep infinity
"""
# Its arguments: the root, the machine's name, a directory with files for /proc/sys, one for
# /srv/packages, one that keeps what apt has fetched, and which devices there are.
_BOOT = """\
set -e
root=$0 name=$1 settings=$2 packages=$3 archives=$4 devices=$5
mount --bind "$root" "$root"
cd "$root"
hostname "$name"
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
while read -r _ _ _ _ place _; do
    case $place in /sys/fs/cgroup/*) ;; *) continue ;; esac
    controllers=${place##*/}
    mkdir -p "${place#/}"
    case $controllers in
    unified) mount -t cgroup2 cgroup2 "${place#/}" ;;
    systemd) mount -t cgroup -o none,name=systemd cgroup "${place#/}" ;;
    *) mount -t cgroup -o "$controllers" cgroup "${place#/}" ;;
    esac
done </proc/1/mountinfo
# Those settings of the kernel that are of namespaces are the machine's.
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount --bind proc/sys/net proc/sys/net
mount -o remount,bind,rw proc/sys/net
for file in $(cd "$settings" && find . -type f); do
    mount --bind "$settings/$file" "proc/sys/$file"
done
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/net dev/pts dev/shm
for device in $devices; do
    touch "dev/$device"
    mount --bind "/dev/$device" "dev/$device"
done
touch dev/kmsg
mount --bind /dev/null dev/kmsg
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p ./srv/packages
mount --bind "$packages" ./srv/packages
mount --bind "$archives" var/cache/apt/archives
mkdir run/old
pivot_root . run/old
umount --lazy /run/old
rmdir /run/old
mount --make-rshared /
# systemd refuses version 1 of control groups without this word, and reads it here in a container.
exec env -i container=other PATH=/usr/sbin:/usr/bin /usr/sbin/init \\
    SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1
"""


class Network:
    """A wire between machines, and a router at GATEWAY that has a way out of the machine `netns`,
    as scripts/on has."""

    def __init__(self, netns: str, home: Path) -> None:
        words = ["unshare", "--net", "sh", "-c", _ROUTER, GATEWAY]
        self._router = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self._router.stdout
        assert self._router.stdout.readline() == "ready\n"
        self.within = ["nsenter", f"--net=/proc/{self._router.pid}/ns/net"]
        ready, told = os.pipe()
        options = ["--configure", "--mtu=65520", "--disable-host-loopback", f"--ready-fd={told}"]
        where = ["--netns-type=path", f"/proc/{self._router.pid}/ns/net", "tap0"]
        outside = ["nsenter", f"--net={netns.replace('self', str(os.getpid()))}"]
        with (home / "slirp.log").open("w") as log:
            self._way = subprocess.Popen(
                [*outside, "slirp4netns", *options, *where],
                pass_fds=[told],
                stdout=log,
                stderr=log,
            )
        os.close(told)
        assert os.read(ready, 1), (home / "slirp.log").read_text()
        os.close(ready)

    def join(self, name: str, pid: int, address: str) -> None:
        """Put a cable between the wire and a machine."""
        peer = ("peer", "name", "eth0", "netns", str(pid))
        self._run("ip", "link", "add", name, "type", "veth", *peer)
        self._run("ip", "link", "set", name, "master", "field", "up")
        inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
        for words in (
            ("link", "set", "lo", "up"),
            ("address", "add", f"{address}/24", "dev", "eth0"),
            ("link", "set", "eth0", "up"),
            ("route", "add", "default", "via", GATEWAY),
        ):
            _run(*inside, *words)

    def stop(self) -> None:
        for process in (self._way, self._router):
            process.kill()
            process.wait()

    def _run(self, *words: str) -> None:
        _run(*self.within, *words)


class Machine:
    """One that has nothing but Debian; `number` makes its address."""

    def __init__(self, name: str, number: int, home: Path, network: Network) -> None:
        self.name = name
        self.address = f"{FIELD}.{10 + number}"
        self.root = home / name
        self._home = home
        self.network = network
        self._group = groups.fresh(name)
        self._process: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self, packages: Path) -> None:
        """With the packages of a directory at PACKAGES."""
        # Not an overlay: containerd makes overlays in it.
        _run("cp", "--archive", "--reflink=auto", str(ensure()), str(self.root))
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        (self.root / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {self.name}\n")
        settings = self._home / f"{self.name}.sysctl"
        sysctls.write(settings)
        archives = build.cache() / "archives"
        (archives / "partial").mkdir(parents=True, exist_ok=True)
        failures = cgroups.make(self._group)
        assert not failures, failures
        devices = " ".join(one for one in _DEVICES if Path("/dev", one).exists())
        words = [*map(str, (self.root, self.name, settings, packages, archives)), devices]
        kinds = [f"--{one}" for one in ("mount", "net", "uts", "ipc", "pid", "cgroup")]
        with (self._home / f"{self.name}.log").open("w") as log:
            self._process = subprocess.Popen(
                ["unshare", *kinds, "--fork", "--kill-child", "bash", "-c", _BOOT, *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # The namespace of groups begins where the process is.
                preexec_fn=lambda: cgroups.join(self._group),
            )
        assert eventually(self._has_booted), (self._home / f"{self.name}.log").read_text()
        self.network.join(self.name, self._pid, self.address)

    def typed(self, text: str, seconds: float = 1200.0) -> str:
        """Run lines as root, insist on the success of each, return what they print."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        done = subprocess.run(
            [*self._enter(), "sh", "-ec", f"cd; {text}"],
            check=False,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={"PATH": path, "HOME": "/root"},
        )
        said = f"{done.stdout[-3000:]}{done.stderr[-3000:]}{self.journal()}"
        assert done.returncode == 0, f"{self.name}: {text}{said}"
        return done.stdout

    def journal(self) -> str:
        """What its services have said last."""
        words = ["journalctl", "--no-pager", "--lines=60", "-u", "containerd", "-u", "kubelet"]
        said = subprocess.run([*self._enter(), *words], check=False, capture_output=True, text=True)
        return said.stdout[-5000:]

    def stop(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
        assert eventually(lambda: groups.end(self._group))

    def _has_booted(self) -> bool:
        assert self._process
        assert self._process.poll() is None
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        self._pid = int(children.read_text().split()[0]) if children.read_text() else 0
        if not self._pid or os.readlink(f"/proc/{self._pid}/exe").split("/")[-1] != "systemd":
            return False
        words = [*self._enter(), "systemctl", "is-system-running"]
        said = subprocess.run(words, check=False, capture_output=True, text=True).stdout.strip()
        return said in ("running", "degraded")

    def _enter(self) -> list[str]:
        kinds = ["--mount", "--net", "--uts", "--ipc", "--pid", "--cgroup"]
        return ["nsenter", f"--target={self._pid}", *kinds]


def ensure() -> Path:
    """The root filesystem of a Debian as its installer leaves it. It is made when it is not there
    yet, and the package archive must be in reach then."""
    target = build.cache() / f"machine-{SUITE}"
    if target.exists():
        return target
    half = target.with_suffix(".half")
    shutil.rmtree(half, ignore_errors=True)
    half.parent.mkdir(parents=True, exist_ok=True)
    mirror = build.mirror()
    sources = [f"deb {mirror} {suite} main" for suite in (SUITE, f"{SUITE}-updates")]
    _run(
        *("mmdebstrap", "--quiet", "--mode=root", "--variant=important"),
        *(f"--include={','.join(_INSTALLED)}", SUITE, str(half), *sources),
    )
    # How this machine's apt reaches its archive.
    said = subprocess.check_output(["apt-config", "dump"], text=True)
    lines = re.findall(r"^Acquire::(?!IndexTargets|cdrom).*\n", said, re.MULTILINE)
    (half / "etc/apt/apt.conf.d/90machine").write_text("".join(lines))
    (half / "etc/resolv.conf").unlink(missing_ok=True)
    # That of slirp4netns.
    (half / "etc/resolv.conf").write_text("nameserver 10.0.2.3\n")
    (half / "etc/fstab").touch()
    half.rename(target)
    return target


def _run(*words: str) -> None:
    done = subprocess.run(words, check=False, capture_output=True, text=True, errors="replace")
    assert done.returncode == 0, f"{' '.join(words)[:300]}: {done.stderr[-2000:]}"
