"""NICs on a real Open vSwitch: TAPs as Neutron makes them, and vhost-user ports of DPDK."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.endpoint.vhost_user import _opened, _place, _somebody_listens
from tests.host import answers_ping, eventually
from tests.hypervisor.test_machines import available_hugepages, hugepages
from tests.ovs import VSWITCHD, OpenVSwitch
from tests.sandbox.test_kata_network import Kata, interface, ip, tap_state
from tests.sandbox.test_template import MAKING, is_restored
from tests.sandboxes import Networks, Tapwright, pids_of

__all__ = ["hugepages"]

BRIDGE = "br-int"
VM = "vm-ovs"
PORT_ID = "3f8e0b9a-7d51-4c7e-8e2f-5a0d6f1c2b3d"  # of Neutron
PAYLOAD = os.urandom(2 << 20)

if not Path(VSWITCHD).exists():
    pytest.skip(
        f"{VSWITCHD} is not installed (package openvswitch-switch-dpdk)", allow_module_level=True
    )


@pytest.fixture(scope="module")
def ovs() -> Iterator[OpenVSwitch]:
    directory = Path(tempfile.mkdtemp(prefix="ovs-"))
    switch = OpenVSwitch(directory)
    try:
        switch.start()
        switch.add_bridge(BRIDGE, "172.16.0.1/16")
        yield switch
    finally:
        switch.stop()
        shutil.rmtree(directory)


@pytest.fixture(scope="module")
def config(tapwright: Tapwright) -> Path:
    """For guests whose memory can be shared, and that start from a template all the same."""
    return tapwright.configuration(template=tapwright.templates, file_mem_backend="/dev/shm")


@pytest.fixture(scope="module")
def vm(tapwright: Tapwright, ovs: OpenVSwitch, config: Path) -> Iterator[Any]:
    done = tapwright.run("sandbox", "run", VM, "--json", config=config)
    assert done.returncode == 0, done.stderr
    assert is_restored(json.loads(done.stdout))
    yield tapwright.json("sandbox", "inspect", VM)
    tapwright.delete(VM)


@pytest.fixture(scope="module")
def kata(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory, vm: Any) -> Kata:
    return Kata(tapwright, tmp_path_factory.mktemp("bin"), VM)


@pytest.fixture(autouse=True)
def clean(kata: Kata, ovs: OpenVSwitch) -> Iterator[None]:
    """Whatever the test did, the next one begins with no NIC and no port."""
    yield
    for nic in kata("list-ifaces") or []:
        kata("del-iface", {"name": nic["name"]})
    for port in ovs.vsctl("list-ports", BRIDGE).split():
        ovs.vsctl("del-port", port)


def reached() -> bool:
    """Whether the guest answers soon: a switch takes a moment to take its port in."""
    return answers_ping("172.16.0.3")


def guest_sends(tapwright: Tapwright, name: str = VM) -> bytes:
    """The digest of what arrives on the bridge when the guest sends the payload."""
    received = hashlib.sha256()
    with socket.create_server(("172.16.0.1", 7100)) as listener, tempfile.TemporaryFile() as file:
        listener.settimeout(60)
        file.write(PAYLOAD)
        file.seek(0)
        command = tapwright.command("sandbox", "exec", name, "--", "nc", "172.16.0.1", "7100")
        sending = subprocess.Popen(command, stdin=file)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(60)
            while data := connection.recv(1 << 16):
                received.update(data)
        assert sending.wait(60) == 0
    return received.digest()


def test_tap_of_neutron(ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright) -> None:
    tap = f"tap{PORT_ID[:11]}"
    mac = "fa:16:3e:5d:2a:91"
    ip(f"tuntap add dev {tap} mode tap")
    ovs.vsctl(
        *("add-port", BRIDGE, tap, "--", "set", "Interface", tap),
        f"external_ids:iface-id={PORT_ID}",
        f'external_ids:attached-mac="{mac}"',
        "external_ids:iface-status=active",
    )
    ip(f"link set {tap} up")
    before = tap_state(tap)
    kata("add-iface", interface(tap, hwAddr=mac))
    assert reached()
    assert guest_sends(tapwright) == hashlib.sha256(PAYLOAD).digest()
    kata("del-iface", {"name": "eth-test"})
    assert tap_state(tap) == before
    assert tap in ovs.vsctl("list-ports", BRIDGE).split()
    assert PORT_ID in ovs.vsctl("get", "Interface", tap, "external_ids")
    ovs.vsctl("del-port", tap)
    ip(f"link delete {tap}")


@pytest.mark.parametrize("queues", [0, 2])
def test_vhost_user_client(
    ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright, vm: Any, queues: int
) -> None:
    """Open vSwitch is the client: QEMU listens, and a restarted switch comes again."""
    path = ovs.directory / "vhost-user1"
    ovs.vsctl(
        *("add-port", BRIDGE, "vhost1", "--", "set", "Interface", "vhost1"),
        "type=dpdkvhostuserclient",
        f"options:vhost-server-path={path}",
    )
    _, qemu = pids_of(vm)
    descriptors = os.listdir(f"/proc/{qemu}/fd")
    for _ in range(2):
        answer = kata("add-iface", interface("vhost1", vhostUserSocket=str(path), queues=queues))
        assert answer["device"] == "vhost1"
        assert path.stat().st_uid == 0
        assert path.stat().st_mode & 0o777 == 0o660
        assert reached()
        assert guest_sends(tapwright) == hashlib.sha256(PAYLOAD).digest()
        status = ovs.vsctl("get", "Interface", "vhost1", "status")
        assert "status=connected" in status
        assert f'num_of_vrings="{max(queues, 1) * 2}"' in status
        assert "vhost1" in ovs.appctl("dpif/show")
        kata("del-iface", {"name": "eth-test"})
        assert kata("list-ifaces") is None
        assert not path.exists()
        assert not list(ovs.directory.glob(".*.tapwright"))
    # QEMU closes what a NIC had when the guest has let go of it.
    assert eventually(lambda: len(os.listdir(f"/proc/{qemu}/fd")) == len(descriptors))


def test_vhost_user_server(ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright) -> None:
    """Open vSwitch listens; its socket stays its own."""
    ovs.vsctl(
        *("add-port", BRIDGE, "vhost2", "--"),
        *("set", "Interface", "vhost2", "type=dpdkvhostuser"),
    )
    path = ovs.directory / "vhost2"
    assert eventually(path.exists)
    before = path.stat()
    kata("add-iface", interface("vhost2", vhostUserSocket=str(path)))
    assert reached()
    assert (path.stat().st_uid, path.stat().st_ino) == (before.st_uid, before.st_ino)
    kata("del-iface", {"name": "eth-test"})
    assert path.stat().st_ino == before.st_ino
    kata("add-iface", interface("vhost2", vhostUserSocket=str(path)))
    assert reached()
    kata("del-iface", {"name": "eth-test"})


def test_vhost_user_with_huge_pages(
    ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright, hugepages: int
) -> None:
    """Of a guest from the same template."""
    path = ovs.directory / "vhost6"
    ovs.vsctl(
        *("add-port", BRIDGE, "vhost6", "--", "set", "Interface", "vhost6"),
        "type=dpdkvhostuserclient",
        f"options:vhost-server-path={path}",
    )
    before = available_hugepages()
    config = tapwright.configuration(template=tapwright.templates, enable_hugepages=True)
    done = tapwright.run("sandbox", "run", "huge", "--json", config=config)
    try:
        assert done.returncode == 0, done.stderr
        assert is_restored(json.loads(done.stdout))
        assert MAKING not in done.stderr
        kata("add-iface", interface("vhost6", vhostUserSocket=str(path)), "huge")
        assert reached()
        assert guest_sends(tapwright, "huge") == hashlib.sha256(PAYLOAD).digest()
        assert before - available_hugepages() == 128
    finally:
        tapwright.delete("huge")
    assert eventually(lambda: available_hugepages() == before)


def test_no_backend_comes(ovs: OpenVSwitch, kata: Kata) -> None:
    path = ovs.directory / "nobody"
    said = kata.refused("add-iface", interface("nobody", vhostUserSocket=str(path)))
    assert "no vhost-user backend has connected within 10 s" in said
    assert not path.exists()
    assert kata("list-ifaces") is None


def test_socket_of_another_sandbox(
    ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright, config: Path
) -> None:
    ovs.vsctl(
        *("add-port", BRIDGE, "vhost3", "--"),
        *("set", "Interface", "vhost3", "type=dpdkvhostuser"),
    )
    path = ovs.directory / "vhost3"
    assert eventually(path.exists)
    assert tapwright.run("sandbox", "run", "other", config=config).returncode == 0
    request = interface("vhost3", vhostUserSocket=str(path))
    kata("add-iface", request, "other")
    assert "in use by sandbox 'other'" in kata.refused("add-iface", request)
    tapwright.delete("other")
    kata("add-iface", request)
    assert reached()
    kata("del-iface", {"name": "eth-test"})


def test_socket_that_can_not_be(kata: Kata, tmp_path: Path) -> None:
    said = kata.refused("add-iface", interface("vhost4", vhostUserSocket="/nowhere/at/all/socket"))
    assert "vhostUserSocket: /nowhere/at/all/socket can't be used" in said


def test_file_in_the_place_of_a_socket(kata: Kata, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("content")
    path = tmp_path / "precious"
    said = kata.refused("add-iface", interface("vhost4", vhostUserSocket=str(path)))
    assert "is there and is no socket" in said
    assert path.read_text() == "content"


def test_backend_that_takes_nobody(kata: Kata, ovs: OpenVSwitch) -> None:
    """A listener with a full backlog is not waited for, nor taken for a dead one."""
    path = ovs.directory / "full"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as waiting:
        listener.bind(str(path))
        listener.listen(0)
        waiting.connect(str(path))
        with _place(str(path)) as place, _opened(*place) as fd:
            assert fd is not None
            assert _somebody_listens(fd)
    with _place(str(path)) as place, _opened(*place) as fd:
        assert fd is not None
        assert not _somebody_listens(fd)


def test_supervisor_killed_with_a_vhost_user_nic(
    ovs: OpenVSwitch, kata: Kata, tapwright: Tapwright, config: Path
) -> None:
    path = ovs.directory / "vhost5"
    ovs.vsctl(
        *("add-port", BRIDGE, "vhost5", "--", "set", "Interface", "vhost5"),
        "type=dpdkvhostuserclient",
        f"options:vhost-server-path={path}",
    )
    assert tapwright.run("sandbox", "run", "victim", config=config).returncode == 0
    kata("add-iface", interface("vhost5", vhostUserSocket=str(path)), "victim")
    supervisor, _ = pids_of(tapwright.json("sandbox", "inspect", "victim"))
    os.kill(supervisor, 9)
    tapwright.delete("victim")
    assert not path.exists()


PLUGIN = """#!{python}
import subprocess
from tapwright.cni import plugin

def ovs(*words):
    subprocess.run(["ovs-vsctl", "--db=unix:{directory}/db.sock", *words], check=True)

def add(request):
    port = "vh-" + request.container_id[:8]
    ovs("add-port", "{bridge}", port, "--", "set", "Interface", port, "type=dpdkvhostuserclient",
        f"options:vhost-server-path={directory}/{{port}}")
    return {{
        "cniVersion": "1.1.0",
        "interfaces": [{{"name": request.ifname, "mac": "02:42:20:6f:a3:70", "mtu": 1400,
                        "sandbox": request.netns, "socketPath": f"{directory}/{{port}}"}}],
        "ips": [{{"address": "172.16.0.3/16", "gateway": "172.16.0.1", "interface": 0}}],
        "routes": [{{"dst": "0.0.0.0/0"}}, {{"dst": "10.9.0.0/16", "gw": "172.16.0.2"}}],
    }}

def delete(request):
    ovs("--if-exists", "del-port", "{bridge}", "vh-" + request.container_id[:8])

plugin.main(add, delete, about="Makes a vhost-user port.")
"""


def test_socket_of_a_cni_result(
    ovs: OpenVSwitch, tapwright: Tapwright, networks: Networks, config: Path, tmp_path: Path
) -> None:
    """A plugin that makes a port of Open vSwitch, and nothing in the namespace."""
    plugin = tmp_path / "vhost-port"
    plugin.write_text(PLUGIN.format(python=sys.executable, directory=ovs.directory, bridge=BRIDGE))
    plugin.chmod(0o755)
    networks.write("vhost", [{"type": "vhost-port"}], version="1.1.0")
    try:
        done = tapwright.run(
            *("sandbox", "run", "by-cni", "--network", "vhost", "--plugin-dir", str(tmp_path)),
            "--json",
            config=config,
        )
        assert done.returncode == 0, done.stderr
        (nic,) = json.loads(done.stdout)["interfaces"]
        assert (nic["name"], nic["mtu"], nic["network"]) == ("eth0", 1400, "vhost")
        assert reached()
        routes = tapwright.exec("by-cni", "ip", "route")
        assert "default via 172.16.0.1 dev eth0" in routes
        assert "10.9.0.0/16 via 172.16.0.2 dev eth0" in routes
    finally:
        tapwright.run("sandbox", "delete", "by-cni")
    assert not (ovs.directory / "vh-by-cni").exists()
    assert "vh-by-cni" not in ovs.vsctl("list-ports", BRIDGE)
    # Without memory that can be shared it is said so, and all is taken back.
    done = tapwright.run(
        "sandbox", "run", "by-cni", "--network", "vhost", "--plugin-dir", str(tmp_path)
    )
    assert done.returncode == 1
    assert "file_mem_backend" in done.stderr
    assert "vh-by-cni" not in ovs.vsctl("list-ports", BRIDGE)
