"""`disable_new_netns`: a sandbox without a network namespace, on TAPs of the host's bridges."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tapwright.endpoint import host_tap
from tapwright.errors import NetworkError
from tests.host import Host, answers_ping, eventually, processes
from tests.ovs import VSWITCHD, OpenVSwitch
from tests.sandbox.test_kata_network import Kata, interface, ip, tap_state
from tests.sandboxes import Tapwright, ended, pids_of

BRIDGE, OTHER_BRIDGE, OVS_BRIDGE = "br-tap", "br-tap2", "br-ovs"
ADDRESSES = *(f"10.85.{number}.1/24" for number in range(1, 5)), "fd85::1/64"
SANDBOX = "hosted"
RUN = "sandbox", "run", SANDBOX

Json = Any


@pytest.fixture(scope="module")
def config(tapwright: Tapwright) -> Path:
    runtime = {"disable_new_netns": True, "internetworking_model": "none"}
    return tapwright.configuration(runtime, template=tapwright.templates)


@pytest.fixture(scope="module")
def bridges() -> Iterator[None]:
    for number, name in enumerate((BRIDGE, OTHER_BRIDGE)):
        # Without an address of its own it takes the least of its ports', whichever those are.
        ip(f"link add {name} address 02:00:00:85:ff:0{number} type bridge")
        ip(f"link set {name} up")
    for address in ADDRESSES:
        ip(f"address add {address} dev {BRIDGE}" + (" nodad" if ":" in address else ""))
    yield
    for name in (BRIDGE, OTHER_BRIDGE):
        ip(f"link delete {name}")


@pytest.fixture
def taps(bridges: None) -> Iterator[Any]:
    """Make TAPs as an administrator does; they, and the sandbox, go at the end."""
    made = []

    def make(name: str, *settings: str) -> None:
        ip(f"tuntap add dev {name} mode tap")
        made.append(name)
        for setting in settings:
            ip(f"link set {name} {setting}")

    yield make
    for name in made:
        subprocess.run(["ip", "link", "delete", name], check=False, capture_output=True)


@pytest.fixture
def ended_sandbox(tapwright: Tapwright) -> Iterator[None]:
    """Also where the test has failed."""
    yield
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


@pytest.fixture
def kata(tapwright: Tapwright, tmp_path: Path) -> Kata:
    return Kata(tapwright, tmp_path, SANDBOX)


def master(name: str) -> str:
    (link,) = json.loads(ip(f"-json link show {name}"))
    return str(link.get("master", ""))


def run(tapwright: Tapwright, config: Path, *taps: str, **options: Any) -> Json:
    words = [word for tap in taps for word in ("--tap", tap)]
    done = tapwright.run(*RUN, *words, "--json", config=config, **options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.usefixtures("ended_sandbox")
def test_taps_of_all_makes(
    tapwright: Tapwright, config: Path, taps: Any, kata: Kata, host: Host
) -> None:
    """Made here and found, up and down, in the bridge and not; given back one by one, and after
    supervisor and QEMU were killed."""
    taps("twup", f"master {BRIDGE}", "up")
    taps("twdown", "up", "down")  # the kernel gives it its qdisc when it is up for the first time
    taps("twalone", "up", "mtu 1400")
    taps("twlate", f"master {BRIDGE}", "up")
    found = "twup", "twdown", "twalone", "twlate"
    before = {name: tap_state(name) for name in found}
    everything = host.snapshot()

    sandbox = run(
        tapwright,
        config,
        f"twmade,bridge={BRIDGE},ip=10.85.1.2/24,ip=fd85::101/64,mac=02:00:00:85:00:01",
        f"twup,bridge={BRIDGE},ip=10.85.2.2/24,name=lan2",
        f"twdown,bridge={BRIDGE},ip=10.85.3.2/24",
        "twalone,ip=192.0.2.9/24",
        f"twbare,bridge={BRIDGE},mtu=1300",
    )
    assert sandbox["netns"] == ""
    nics = {nic["device"]: nic for nic in sandbox["interfaces"]}
    assert [nic["name"] for nic in sandbox["interfaces"]] == [
        "eth0",
        "lan2",
        "eth1",
        "eth2",
        "eth3",
    ]
    assert nics["twmade"]["mac"] == "02:00:00:85:00:01"
    assert [nics[name]["mtu"] for name in ("twmade", "twalone", "twbare")] == [1500, 1400, 1300]
    assert "mtu 1400" in tapwright.exec(SANDBOX, "ip", "link", "show", "eth2")
    assert "mtu 1300" in ip("link show twbare")
    masters = {name: master(name) for name in (*nics, "twlate")}
    assert masters == dict.fromkeys(masters, BRIDGE) | {"twalone": ""}
    # Each address shall answer by its own NIC alone.
    script = "echo 1 > /proc/sys/net/ipv4/conf/all/arp_ignore"
    tapwright.exec(SANDBOX, "sh", "-c", script)
    for number in (1, 2, 3):
        assert answers_ping(f"10.85.{number}.2")
        assert tapwright.reaches(SANDBOX, f"10.85.{number}.1")
    assert answers_ping("fd85::101")
    assert tapwright.reaches(SANDBOX, "fd85::1")

    kata("add-iface", interface("twlate", IPAddresses=[{"address": "10.85.4.2", "mask": "24"}]))
    assert answers_ping("10.85.4.2")
    listed = {nic["name"] for nic in kata("list-ifaces")}
    assert listed == {"eth0", "lan2", "eth1", "eth2", "eth3", "eth-test"}
    said = kata.refused("add-iface", interface(BRIDGE, name="x0", hwAddr="02:00:00:85:00:09"))
    assert "is no TAP but a bridge, and this sandbox has no network namespace: make a TAP" in said
    for name, device in (("eth1", "twdown"), ("eth3", "twbare"), ("eth-test", "twlate")):
        kata("del-iface", {"name": name})
        if device in before:
            assert eventually(lambda d=device: tap_state(d) == before[d])  # type: ignore[misc]
        else:
            assert device not in ip("link show")

    supervisor, qemu = pids_of(tapwright.json("sandbox", "inspect", SANDBOX))
    for pid in (supervisor, qemu):
        # QEMU ends with its supervisor.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        assert ended(pid)
    assert "twmade" in ip("link show")
    tapwright.delete(SANDBOX)
    eventually(lambda: {name: tap_state(name) for name in found} == before)
    assert {name: tap_state(name) for name in found} == before
    host.assert_same(everything)


@pytest.mark.usefixtures("ended_sandbox", "bridges")
def test_bridge_keeps_its_mtu(tapwright: Tapwright, config: Path) -> None:
    """One that has been given none follows the least of its ports. Here, with a namespace too."""
    ip("link add twbig mtu 9000 type veth peer name twbig2 mtu 9000")
    ip(f"link set twbig master {OTHER_BRIDGE} up")
    ip("link set twbig2 up")
    assert "mtu 9000" in ip(f"link show {OTHER_BRIDGE}")
    ip(f"address add 10.86.0.1/24 dev {OTHER_BRIDGE}")
    words = "--tap", f"twmade,bridge={OTHER_BRIDGE},ip=10.86.0.2/24", "--network", "dual"
    sandbox = tapwright.json(*RUN, *words)
    assert [(nic["name"], nic["mtu"]) for nic in sandbox["interfaces"]] == [
        ("eth0", 1500),
        ("eth1", 9000),
    ]
    assert "mtu 9000" in ip(f"link show {OTHER_BRIDGE}")
    assert answers_ping("10.86.0.2", "-M", "do", "-s", "8972")
    tapwright.delete(SANDBOX)
    assert "twmade" not in ip("link show")
    ip("link delete twbig")


# --- Open vSwitch -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ovs() -> Iterator[OpenVSwitch]:
    if not Path(VSWITCHD).exists():
        pytest.skip(f"{VSWITCHD} is not installed (package openvswitch-switch-dpdk)")
    directory = Path(tempfile.mkdtemp(prefix="ovs-"))
    switch = OpenVSwitch(directory)
    try:
        switch.start()
        switch.add_bridge(OVS_BRIDGE, "10.87.0.1/16")
        switch.add_bridge("br-ovs2", "10.88.0.1/16")
        yield switch
    finally:
        switch.stop()
        shutil.rmtree(directory)


@pytest.mark.usefixtures("ended_sandbox")
def test_bridge_of_open_vswitch(
    tapwright: Tapwright, config: Path, taps: Any, ovs: OpenVSwitch
) -> None:
    environment = os.environ | {"OVS_RUNDIR": str(ovs.directory)}
    taps("twthere", "up")
    taps("twfound")
    taps("twother", "up")
    ovs.vsctl("add-port", OVS_BRIDGE, "twthere")
    ovs.vsctl("add-port", "br-ovs2", "twother")
    before = {name: tap_state(name) for name in ("twthere", "twfound")}

    for tap, reason in (
        ("twx,ovs=br-none", "Open vSwitch has no bridge br-none; ovs-vsctl add-br br-none"),
        (f"twother,ovs={OVS_BRIDGE}", "is a port of Open vSwitch's br-ovs2; remove it from there"),
    ):
        assert reason in refused(tapwright, config, tap, env=environment)
    nowhere = environment | {"OVS_RUNDIR": "/nowhere"}
    said = refused(tapwright, config, f"twx,ovs={OVS_BRIDGE}", env=nowhere)
    assert "Open vSwitch does not answer: start it" in said

    run(
        tapwright,
        config,
        f"twmade,ovs={OVS_BRIDGE},ip=10.87.1.1/16",
        f"twthere,ovs={OVS_BRIDGE},ip=10.87.1.2/16",
        f"twfound,ovs={OVS_BRIDGE},ip=10.87.1.3/16",
        env=environment,
    )
    assert set(ovs.vsctl("list-ports", OVS_BRIDGE).split()) == {"twmade", "twthere", "twfound"}
    for last in (1, 2, 3):
        assert answers_ping(f"10.87.1.{last}")
    assert tapwright.reaches(SANDBOX, "10.87.0.1")
    done = tapwright.run("sandbox", "delete", SANDBOX, env=environment)
    assert done.returncode == 0, done.stderr
    assert ovs.vsctl("list-ports", OVS_BRIDGE) == "twthere"
    assert {name: tap_state(name) for name in before} == before
    assert "twmade" not in ip("link show")
    for bridge, tap in ((OVS_BRIDGE, "twthere"), ("br-ovs2", "twother")):
        ovs.vsctl("del-port", bridge, tap)


# --- what can't be ------------------------------------------------------------------------------


def refused(tapwright: Tapwright, config: Path, tap: str, status: int = 1, **options: Any) -> str:
    """What is said, in one sentence, before anything is made."""
    before = Counter(processes())
    done = tapwright.run(*RUN, "--tap", tap, config=config, **options)
    assert (done.returncode, done.stdout) == (status, ""), done.stderr
    assert done.stderr.count("\n") == 1
    # What would have been the supervisor ends by itself, when it sees that it is not.
    assert eventually(lambda: not Counter(processes()) - before)
    return done.stderr


@pytest.mark.parametrize(
    ("runtime", "said"),
    [
        (
            {"disable_new_netns": True},
            "config disable_new_netns only works with 'none' internetworking_model",
        ),
        (
            {"disable_new_netns": True, "internetworking_model": "macvtap"},
            "config disable_new_netns only works with 'none' internetworking_model",
        ),
    ],
)
def test_conflicts(tapwright: Tapwright, runtime: Json, said: str) -> None:
    assert said in refused(tapwright, tapwright.configuration(runtime), "twx")


def test_conflict_with_the_monitor(tapwright: Tapwright, config: Path) -> None:
    monitored = config.with_suffix(".monitored")
    monitored.write_text(config.read_text() + "[netmon]\nenable_netmon = true\n")
    said = refused(tapwright, monitored, "twx")
    assert "config disable_new_netns conflicts with enable_netmon" in said


@pytest.mark.parametrize("words", [["--network", "dual"], ["--netns", "/run/netns/x"]])
def test_no_namespace_to_be_in(tapwright: Tapwright, config: Path, words: list[str]) -> None:
    done = tapwright.run(*RUN, *words, config=config)
    assert (done.returncode, done.stdout) == (2, "")
    assert "give it TAPs of the host's (--tap), or set disable_new_netns = false" in done.stderr


@pytest.mark.parametrize(
    ("tap", "said"),
    [
        ("", "'' is not an interface name"),
        ("a" * 16, "1 to 15 bytes"),
        ("tw/0", "is not an interface name"),
        ("twx,bridge=", "'' is not an interface name"),
        ("twx,bridge=a,ovs=b", "a TAP can be in only one bridge"),
        ("twx,ip=10.0.0.1", "'10.0.0.1' is not ADDRESS/PREFIX"),
        ("twx,ip=10.0.0.300/24", "is not ADDRESS/PREFIX"),
        ("twx,mac=01:00:5e:00:00:01", "is not the MAC address of one NIC"),
        ("twx,mtu=9601", "is not an MTU, 46 to 9600"),
        ("twx,speed=1", "'speed=1' is unknown; the form is NAME[,bridge=BR|,ovs=BR]"),
        ("twx,name=a:b", "is not an interface name"),
    ],
)
def test_wrong_words(tapwright: Tapwright, config: Path, tap: str, said: str) -> None:
    assert said in refused(tapwright, config, tap, status=2)


def test_one_tap_twice(tapwright: Tapwright, config: Path) -> None:
    done = tapwright.run(*RUN, "--tap", "twx", "--tap", "twx,name=lan1", config=config)
    assert (done.returncode, done.stdout) == (2, "")
    assert "two NICs can't have the same TAP" in done.stderr


def test_things_that_are_in_the_way(
    tapwright: Tapwright, config: Path, taps: Any, host: Host
) -> None:
    taps("twother", f"master {OTHER_BRIDGE}", "up")
    ip("link add twveth type veth peer name twveth2")
    before = host.snapshot()
    for tap, said in (
        ("twx,bridge=br-none", "no Linux bridge br-none; ip link add br-none type bridge"),
        ("twx,bridge=lo", "lo is no Linux bridge"),
        (f"twother,bridge={BRIDGE}", "is a port of another bridge; remove it from there first"),
        (f"twveth,bridge={BRIDGE}", "no TAP but a veth; choose another name for the TAP"),
    ):
        assert said in refused(tapwright, config, tap)
        host.assert_same(before)
    ip("link delete twveth")


def test_tap_in_use(tapwright: Tapwright, config: Path, taps: Any, host: Host) -> None:
    taps("twused")
    holder = subprocess.Popen(
        ["python3", "-c", HOLD, "twused"], stdout=subprocess.PIPE, stdin=subprocess.PIPE
    )
    try:
        assert holder.stdout
        assert holder.stdout.read(1) == b"."
        before = host.snapshot()
        said = refused(tapwright, config, f"twused,bridge={BRIDGE}")
        assert f"it is in use by python3 (pid {holder.pid})" in said
        host.assert_same(before)
    finally:
        holder.communicate()


HOLD = """
import fcntl, os, struct, sys
fd = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(fd, 0x400454CA, struct.pack("16sH22x", sys.argv[1].encode(), 0x1002))
sys.stdout.write(".")
sys.stdout.flush()
sys.stdin.read()
"""


def test_open_vswitch_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(NetworkError, match=r"ovs-vsctl can't be run: .*; install openvswitch"):
        host_tap.is_connected("twx", "", OVS_BRIDGE)
