"""Real bytes between host and guests, over addresses that real plugins gave out."""

import hashlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.sandboxes import Networks, Tapwright

PAYLOAD = os.urandom(4 << 20)
DIGEST = hashlib.sha256(PAYLOAD).hexdigest()
TIMEOUT = 60

Sandbox = dict[str, Any]


@pytest.fixture(scope="module")
def pair(tapwright: Tapwright, networks: Networks) -> Iterator[tuple[Sandbox, Sandbox]]:
    """Two sandboxes on one dual-stack network, started at the same moment; the first publishes
    port 8088."""
    words = "sandbox", "run"
    first = tapwright.start(*words, "one", "--network", "dual", "--publish", "8088:80/tcp")
    second = tapwright.start(*words, "two", "--network", "dual")
    for starting in (first, second):
        _, errors = starting.communicate(timeout=120)
        assert starting.returncode == 0, errors
    yield tapwright.json("sandbox", "inspect", "one"), tapwright.json("sandbox", "inspect", "two")
    for name in ("one", "two"):
        tapwright.delete(name)


@pytest.fixture(scope="module")
def wide(tapwright: Tapwright) -> Iterator[Sandbox]:
    """A sandbox on two networks: MTU 1400 and 9000."""
    yield tapwright.json("sandbox", "run", "wide", "--network", "small", "--network", "jumbo:data0")
    tapwright.delete("wide")


def address(sandbox: Sandbox, family: int = 4, interface: int = 0) -> str:
    addresses = sandbox["interfaces"][interface]["addresses"]
    found: str = next(a.partition("/")[0] for a in addresses if (":" in a) == (family == 6))
    return found


def send_to_guest(tapwright: Tapwright, name: str, target: str, port: int) -> str:
    """Serve in the guest, send the payload to it; return the digest of what arrived."""
    serving = tapwright.start(
        "sandbox", "exec", name, "--", "sh", "-c", f"nc -l -p {port} | sha256sum"
    )
    wait_for_listener(tapwright, name, port)
    with socket.create_connection((target, port), timeout=TIMEOUT) as connection:
        connection.sendall(PAYLOAD)
    output, errors = serving.communicate(timeout=TIMEOUT)
    assert serving.returncode == 0, errors
    return output.split()[0]


def wait_for_listener(tapwright: Tapwright, name: str, port: int) -> None:
    pattern = f":{port:04X} "
    assert eventually(
        lambda: pattern in tapwright.exec(name, "cat", "/proc/net/tcp", "/proc/net/tcp6")
    ), f"nothing listens on port {port}"


@pytest.mark.smoke
@pytest.mark.parametrize(("family", "port"), [(4, 7001), (6, 7002)])
def test_host_to_guest(
    tapwright: Tapwright, pair: tuple[Sandbox, Sandbox], family: int, port: int
) -> None:
    assert send_to_guest(tapwright, "one", address(pair[0], family), port) == DIGEST


@pytest.mark.parametrize(("gateway", "port"), [("10.91.0.1", 7003), ("fd91::1", 7004)])
def test_guest_to_host(
    tapwright: Tapwright, pair: tuple[Sandbox, Sandbox], gateway: str, port: int
) -> None:
    family = socket.AF_INET6 if ":" in gateway else socket.AF_INET
    received = hashlib.sha256()
    with socket.create_server((gateway, port), family=family) as listener:
        listener.settimeout(TIMEOUT)

        def receive() -> None:
            connection, _ = listener.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    received.update(data)

        thread = threading.Thread(target=receive)
        thread.start()
        command = tapwright.command("sandbox", "exec", "one", "--", "nc", gateway, str(port))
        subprocess.run(command, input=PAYLOAD, check=True, timeout=TIMEOUT)
        thread.join(TIMEOUT)
    assert received.hexdigest() == DIGEST


@pytest.mark.parametrize(("family", "port"), [(4, 7005), (6, 7006)])
def test_guest_to_guest(
    tapwright: Tapwright, pair: tuple[Sandbox, Sandbox], family: int, port: int
) -> None:
    size = 2 << 20
    # As nc's program, for nc itself would close the connection at the end of its own stdin.
    serving = tapwright.start(
        *("sandbox", "exec", "two", "--", "nc", "-l", "-p", str(port)),
        *("-e", "sh", "-c", "sha256sum > /tmp/digest"),
    )
    wait_for_listener(tapwright, "two", port)
    target = address(pair[1], family)
    sent = tapwright.exec(
        "one",
        *("sh", "-c"),
        f"head -c {size} /dev/urandom > /tmp/payload; nc {target} {port} < /tmp/payload; "
        "sha256sum < /tmp/payload",
    )
    _, errors = serving.communicate(timeout=TIMEOUT)
    assert serving.returncode == 0, errors
    assert tapwright.exec("two", "cat", "/tmp/digest") == sent


def test_published_port(tapwright: Tapwright, pair: tuple[Sandbox, Sandbox]) -> None:
    tapwright.exec("one", "sh", "-c", "mkdir -p /www && echo it is me > /www/index.html")
    tapwright.exec("one", "httpd", "-h", "/www", "-p", "80")
    subprocess.run(["ip", "address", "replace", "192.0.2.1/32", "dev", "lo"], check=True)
    for target in (f"{address(pair[0])}:80", "192.0.2.1:8088", "127.0.0.1:8088"):
        done = subprocess.run(
            ["curl", "-sS", "-m", "60", f"http://{target}/"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.stdout, done.stderr) == ("it is me\n", ""), target


def test_guest_has_what_the_plugin_gave(
    tapwright: Tapwright, pair: tuple[Sandbox, Sandbox]
) -> None:
    for name, sandbox in zip(("one", "two"), pair, strict=True):
        (interface,) = sandbox["interfaces"]
        assert interface["network"] == "dual"
        shown = tapwright.exec(name, "ip", "address", "show", "dev", "eth0")
        assert interface["mac"] in shown
        assert "mtu 1500" in shown
        for expected in interface["addresses"]:
            assert expected in shown
        assert "tentative" not in shown
        assert "default via 10.91.0.1 dev eth0" in tapwright.exec(name, "ip", "route")
        assert "default via fd91::1 dev eth0" in tapwright.exec(name, "ip", "-6", "route")
    assert pair[0]["interfaces"][0]["mac"] != pair[1]["interfaces"][0]["mac"]
    assert not set(pair[0]["interfaces"][0]["addresses"]) & set(
        pair[1]["interfaces"][0]["addresses"]
    )


def test_two_networks_with_their_mtus(tapwright: Tapwright, wide: Sandbox) -> None:
    small, jumbo = wide["interfaces"]
    assert (small["name"], small["mtu"]) == ("eth0", 1400)
    assert (jumbo["name"], jumbo["mtu"]) == ("data0", 9000)
    assert "mtu 1400" in tapwright.exec("wide", "ip", "link", "show", "eth0")
    assert "mtu 9000" in tapwright.exec("wide", "ip", "link", "show", "data0")


def test_network_of_ipv6_alone(tapwright: Tapwright) -> None:
    sandbox = tapwright.json("sandbox", "run", "v6", "--network", "six")
    (address,) = sandbox["interfaces"][0]["addresses"]
    assert address.startswith("fd94::")
    assert "inet " not in tapwright.exec("v6", "ip", "address", "show", "dev", "eth0")
    assert send_to_guest(tapwright, "v6", address.partition("/")[0], 7008) == DIGEST
    tapwright.delete("v6")


def test_default_routes_of_all_networks(tapwright: Tapwright) -> None:
    """In the order of the namespace: the one in use is that which a container there would use."""
    words = "sandbox", "run", "many", "--network", "dual", "--network", "six", "--network", "small"
    netns = tapwright.json(*words)["netns"]
    listed = tapwright.json("kata-network", "list-routes", "many")
    defaults = [
        (route["gateway"], route["device"]) for route in listed if route["dest"] == "default"
    ]
    there = ["ip", "-json", "-n", Path(netns).name, "route", "show", "default"]
    found = json.loads(subprocess.check_output(there))
    assert defaults[:2] == [(route["gateway"], route["dev"]) for route in found]
    assert sorted(defaults[:2]) == [("10.91.0.1", "eth0"), ("10.92.0.1", "eth2")]
    assert sorted(defaults[2:]) == [("fd91::1", "eth0"), ("fd94::1", "eth1")]
    tapwright.delete("many")


@pytest.mark.parametrize(("gateway", "payload"), [("10.92.0.1", 1400 - 28), ("10.93.0.1", 8972)])
def test_frames_of_full_mtu_pass(
    tapwright: Tapwright, wide: Sandbox, gateway: str, payload: int
) -> None:
    assert tapwright.reaches("wide", gateway, "-s", str(payload))


def test_dns_of_the_networks_is_the_guests(tapwright: Tapwright, wide: Sandbox) -> None:
    content = tapwright.exec("wide", "cat", "/etc/resolv.conf")
    assert content == "nameserver 10.93.0.1\nsearch example.org\n"


def test_transfer_over_large_mtu(tapwright: Tapwright, wide: Sandbox) -> None:
    assert send_to_guest(tapwright, "wide", address(wide, interface=1), 7007) == DIGEST
