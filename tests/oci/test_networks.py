"""Networks of containers: as platforms prepare them, and as they come late."""

import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tapwright.linux import netns
from tapwright.oci import life, state
from tapwright.sandbox import client
from tests.host import eventually, one_ping
from tests.namespaces import Namespace, namespace
from tests.oci.bundles import NAMESPACES, configuration
from tests.oci.runtime import Container, Runtime

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def outside() -> Iterator[Namespace]:
    """Where the other ends of links are; with a web server's address."""
    with namespace("twtest-outside") as made:
        yield made


def link(outside: Namespace, netns: str, name: str, subnet: str) -> None:
    """A link from a namespace, by path or pid, to the outside, as a platform makes it."""
    outside.ip(f"link add {name}-o type veth peer name {name} netns {netns}")
    outside.ip(f"address add {subnet}.1/24 dev {name}-o")
    outside.ip(f"link set {name}-o up")


def set_up(netns: str, name: str, subnet: str) -> None:
    command = f"""
        ip address add {subnet}.2/24 dev {name}
        ip link set {name} up
    """
    subprocess.run(["nsenter", f"--net={netns}", "sh", "-ec", command], check=True)


def in_namespace(path: str) -> list[dict[str, str]]:
    return [{"type": kind, **({"path": path} if kind == "network" else {})} for kind in NAMESPACES]


def reaches(container: Container, address: str) -> bool:
    """As `Tapwright.reaches`."""
    return eventually(lambda: container.exec(*one_ping(address)).returncode == 0)


def has_some(path: Path) -> bool:
    return path.exists() and bool(path.read_text())


def test_the_program_finds_its_network_running(runtime: Runtime, outside: Namespace) -> None:
    """Also when the NIC was plugged in a moment ago."""
    for number in range(3):
        name, subnet = f"eth{number}", f"10.77.{number}"
        look = "sh", "-c", f"cat /sys/class/net/{name}/operstate >/data/state; sleep 1000"
        with namespace("twtest-inside") as inside:
            link(outside, inside.name, name, subnet)
            set_up(inside.path, name, subnet)
            spaces = {"namespaces": in_namespace(inside.path)}
            with runtime.running(*look, linux=spaces) as container:
                state = container.bundle / "rootfs/data/state"
                assert eventually(partial(has_some, state))
                assert state.read_text() == "up\n"


def test_a_namespace_with_a_path(runtime: Runtime, outside: Namespace) -> None:
    with namespace("twtest-inside") as inside:
        # Their indexes are none of those that the guest's kernel gives to its first NICs, or are
        # those of other NICs.
        names = ["one", "two", "eth0"]
        for number, name in enumerate(names, 1):
            link(outside, inside.name, name, f"10.77.{4 - number}")
            set_up(inside.path, name, f"10.77.{4 - number}")
        spaces = {"namespaces": in_namespace(inside.path)}
        with runtime.running("sleep", "1000", linux=spaces) as container:
            files = [f"/sys/class/net/{name}/ifindex" for name in names]
            indexes = container.says("cat", *files).split()
            assert list(map(int, indexes)) == [inside.index(name) for name in names]
            assert reaches(container, "10.77.1.1")
            assert "10.77.1.2/24" in container.says("ip", "addr", "show", "eth0")


class NameServer:
    """One of a platform, in the namespace at `path`: it answers with what it was asked, turned
    around."""

    ADDRESS = "127.0.0.11"

    def __init__(self, path: str) -> None:
        with netns.entered(path):
            self._udp, self._tcp = socket.socket(type=socket.SOCK_DGRAM), socket.socket()
        for listener in (self._udp, self._tcp):
            listener.bind((self.ADDRESS, 53))
        self._tcp.listen()
        self._threads = [threading.Thread(target=one) for one in (self._serve_udp, self._serve_tcp)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        for listener in (self._udp, self._tcp):
            with suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        for thread in self._threads:
            thread.join()

    def _serve_udp(self) -> None:
        with suppress(OSError):
            while (asked := self._udp.recvfrom(1 << 16))[0]:
                self._udp.sendto(asked[0][::-1], asked[1])

    def _serve_tcp(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._tcp.accept()
                with connection, connection.makefile("rwb") as stream:
                    length = stream.read(2)
                    stream.write(length + stream.read(int.from_bytes(length))[::-1])


_ASK = """
import socket
udp = socket.socket(type=socket.SOCK_DGRAM)
udp.settimeout(60)
udp.connect(("127.0.0.11", 53))
for number in range(40):
    udp.send(b"question %d" % number)
    print(udp.recv(1000)[::-1].decode())
tcp = socket.create_connection(("127.0.0.11", 53), 60)
asked = b"long" * 5000
tcp.sendall(len(asked).to_bytes(2) + asked)
stream = tcp.makefile("rb")
print(stream.read(int.from_bytes(stream.read(2)))[::-1] == asked)
"""


def test_a_name_server_in_the_namespace(runtime: Runtime, tmp_path: Path) -> None:
    """As docker's, that comes with a network connected later."""
    resolv_conf = tmp_path / "resolv.conf"
    resolv_conf.write_text("nameserver 192.0.2.53\n")
    mount = {"destination": "/etc/resolv.conf", "source": str(resolv_conf), "options": ["bind"]}
    with namespace("twtest-inside") as inside:
        inside.ip("link set lo up")
        spaces = {"namespaces": in_namespace(inside.path)}
        with runtime.running("sleep", "1000", linux=spaces, mounts=[mount]) as container:
            sandbox = container.state["sandbox"]
            ask = "python3", "-c", _ASK
            refused = runtime.tapwright.run("sandbox", "exec", sandbox, "--", *ask)
            assert "refused" in refused.stderr
            server = NameServer(inside.path)
            try:
                resolv_conf.write_text(f"search x\nnameserver {server.ADDRESS}\noptions ndots:0\n")
                life.sync(
                    client.named(str(runtime.root), sandbox),
                    state.load(str(runtime.root), container.id),
                )
                answers = runtime.tapwright.exec(sandbox, *ask).splitlines()
                assert answers == [*(f"question {number}" for number in range(40)), "True"]
            finally:
                server.close()


def test_no_network(runtime: Runtime) -> None:
    with runtime.running("sleep", "1000") as container:
        links = container.says("ls", "/sys/class/net").split()
        assert links == ["lo"]
        assert reaches(container, "127.0.0.1")


def test_a_hook_that_makes_the_network(runtime: Runtime, outside: Namespace) -> None:
    """As docker's: it finds the namespace by the pid in the state on its stdin."""
    script = f"""
        pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')
        ip -n {outside.name} link add eth0-o type veth peer name eth0 netns $pid
        ip -n {outside.name} address add 10.77.2.1/24 dev eth0-o
        ip -n {outside.name} link set eth0-o up
        nsenter --net=/proc/$pid/ns/net ip address add 10.77.2.2/24 dev eth0
        nsenter --net=/proc/$pid/ns/net ip link set eth0 up
    """
    hook = {"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/usr/bin:/sbin:/bin"]}
    with runtime.running("sleep", "1000", hooks={"prestart": [hook]}) as container:
        assert reaches(container, "10.77.2.1")


def test_settings_of_what_a_hook_makes(runtime: Runtime) -> None:
    """Tapwright sets them after the hooks, as runc does; a refused one ends the container. A
    module's settings exist: on a host, whoever names them has loaded the module."""
    script = """
        pid=$(sed 's/.*"pid": *\\([0-9]*\\).*/\\1/')
        nsenter --net=/proc/$pid/ns/net sh -ec '
            ip link add eth0.100 type veth peer name other
            ip link set eth0.100 up
            ip link set other up'
    """
    hook = {"path": "/bin/sh", "args": ["sh", "-ec", script], "env": ["PATH=/usr/bin:/sbin:/bin"]}
    wanted = {
        "net/ipv4/conf/eth0.100/forwarding": "1",
        "net.ipv4.conf.other.rp_filter": "2",
        "net.ipv4.ip_unprivileged_port_start": "7",
        "net.ipv4.vs.conntrack": "1",
        "net.netfilter.nf_conntrack_max": "77777",
        "kernel/msgmax": "9000",
    }
    with runtime.running(
        "sleep", "1000", hooks={"createRuntime": [hook]}, linux={"sysctl": wanted}
    ) as container:
        files = [
            *("net/ipv4/conf/eth0.100/forwarding", "net/ipv4/conf/other/rp_filter"),
            *("net/ipv4/ip_unprivileged_port_start", "net/ipv4/vs/conntrack"),
            *("net/netfilter/nf_conntrack_max", "kernel/msgmax"),
        ]
        told = container.says("cat", *(f"/proc/sys/{file}" for file in files))
        assert told.split() == ["1", "2", "7", "1", "77777", "9000"]
    for name, value, reason in (
        ("net.ipv4.conf.eth9.forwarding", "1", "no such file or directory"),
        ("net.ipv4.ip_unprivileged_port_start", "high", "invalid argument"),
    ):
        bundle = runtime.bundle(configuration("true", linux={"sysctl": {name: value}}))
        refused = runtime.refused("create", "--bundle", str(bundle), "refused")
        path = name.replace(".", "/")
        assert refused.startswith(
            f"linux.sysctl: {path} = {value!r} was refused by the VM's kernel: {reason}; "
        )
        assert runtime.refused("state", "refused") == "container does not exist"


def test_between_create_and_start(runtime: Runtime, outside: Namespace) -> None:
    """As docker does it from version 26 on."""
    with runtime.created(configuration("sleep", "1000")) as container:
        link(outside, str(container.pid), "eth0", "10.77.3")
        set_up(f"/proc/{container.pid}/ns/net", "eth0", "10.77.3")
        container.start()
        assert reaches(container, "10.77.3.1")


def test_after_the_start(runtime: Runtime, outside: Namespace) -> None:
    """`network connect`: the platform does not tell the runtime, so the monitor finds the
    interface."""
    runtime.config = runtime.tapwright.configuration(template=runtime.tapwright.templates)
    runtime.config.write_text(runtime.config.read_text() + "[netmon]\nenable_netmon = true\n")
    try:
        with runtime.running("sleep", "1000") as container:
            link(outside, str(container.pid), "eth0", "10.77.4")
            set_up(f"/proc/{container.pid}/ns/net", "eth0", "10.77.4")
            assert reaches(container, "10.77.4.1")
    finally:
        runtime.config = None


@pytest.mark.parametrize("network", [[], [{"type": "network", "path": "/proc/self/ns/net"}]])
def test_the_hosts_network_is_refused(runtime: Runtime, network: list[dict[str, str]]) -> None:
    """Podman and containerd name no namespace, docker that of the host."""
    spaces = {"namespaces": [{"type": "pid"}, {"type": "mount"}, *network]}
    bundle = runtime.bundle(configuration("true", linux=spaces))
    refused = runtime.refused("create", "--bundle", str(bundle), "hosts")
    assert "a VM can't have the host's network (--network host)" in refused


def test_without_a_namespace(runtime: Runtime, tmp_path: Path) -> None:
    """disable_new_netns, as for `docker run --net=none`."""
    runtime.config = runtime.tapwright.configuration(
        runtime={"disable_new_netns": True, "internetworking_model": "none"},
        template=runtime.tapwright.templates,
    )
    try:
        with runtime.running("sleep", "1000") as container:
            # Hooks are given this pid, and change what they find there.
            assert not Path(f"/proc/{container.pid}/ns/net").samefile("/proc/self/ns/net")
            assert container.says("ls", "/sys/class/net").split() == ["lo"]
    finally:
        runtime.config = None
