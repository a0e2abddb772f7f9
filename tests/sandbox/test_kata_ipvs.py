"""`kata-ipvs`: load balancing by the guest's kernel, beside Debian's ipvsadm and conntrack in the
same guest."""

import re
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tapwright.errors import AgentRefusedError
from tapwright.sandbox import balancing, ipvsadm
from tapwright.state import registry
from tests import forked
from tests.amounts import amount
from tests.host import eventually
from tests.sandboxes import COMMAND, Tapwright

VM = "ipvs"
SERVICE, SERVERS = "172.17.0.7:80", ("172.17.0.4:80", "172.17.0.5:80")


class Ipvs:
    """Runs `kata-ipvs` through a link named kata-runtime, as on openEuler's page."""

    def __init__(self, tapwright: Tapwright, directory: Path) -> None:
        self.tapwright = tapwright
        self._link = directory / "kata-runtime"
        self._link.symlink_to(COMMAND)

    def run(self, *words: str, text: str = "") -> subprocess.CompletedProcess[str]:
        command = [str(self._link), "--root", str(self.tapwright.root), "kata-ipvs", *words, VM]
        return forked.run(command, input=text, capture_output=True, text=True, timeout=120)

    def __call__(self, parameters: str) -> str:
        return self._succeeded(self.run("ipvsadm", "--parameters", parameters))

    def restore(self, *rules: str) -> None:
        done = self.run("ipvsadm", "--restore", "-", text="\n".join(rules))
        assert self._succeeded(done) == ""

    def cleanup(self, parameters: str) -> str:
        return self._succeeded(self.run("cleanup", "--parameters", parameters))

    def refused(self, parameters: str) -> str:
        return self.failed(self.run("ipvsadm", "--parameters", parameters))

    def failed(self, done: subprocess.CompletedProcess[str]) -> str:
        assert (done.returncode in (1, 2), done.stdout) == (True, ""), done
        assert done.stderr.count("\n") == 1
        return done.stderr

    def by(self, program: str, *words: str) -> str:
        """What Debian's own program prints in the guest."""
        return self.tapwright.exec(VM, "/usr/lib/tapwright/disk", program, *words)

    def _succeeded(self, done: subprocess.CompletedProcess[str]) -> str:
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout


@pytest.fixture(scope="module")
def vm(tapwright: Tapwright) -> Iterator[str]:
    assert tapwright.run("sandbox", "run", VM).returncode == 0
    for address in ("172.17.0.7", "172.17.0.4", "172.17.0.5"):
        tapwright.exec(VM, "ip", "address", "add", f"{address}/32", "dev", "lo")
    yield VM
    tapwright.delete(VM)


@pytest.fixture
def ipvs(vm: str, tapwright: Tapwright, tmp_path: Path) -> Iterator[Ipvs]:
    made = Ipvs(tapwright, tmp_path)
    made("-C")
    yield made
    made("--clear")


def test_the_commands_of_openeulers_page(ipvs: Ipvs) -> None:
    for parameters in (
        f"--add-service --tcp-service {SERVICE} --scheduler rr --persistent 3000",
        f"--edit-service --tcp-service {SERVICE} --scheduler rr --persistent 5000",
        f"--add-server --tcp-service {SERVICE} --real-server {SERVERS[0]} --weight 100",
        f"--edit-server --tcp-service {SERVICE} --real-server {SERVERS[0]} --weight 200",
    ):
        assert ipvs(parameters) == ""
    # Kernels since 7 have a table of another size.
    assert re.sub(r"size=\d+", "size=4096", ipvs("--list")) == (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        f"TCP  {SERVICE} rr persistent 5000\n"
        f"  -> {SERVERS[0]:<28} Masq    200    0          0         \n"
    )
    ipvs(f"--delete-server --tcp-service {SERVICE} --real-server {SERVERS[0]}")
    ipvs(f"--delete-service --tcp-service {SERVICE}")
    assert SERVICE not in ipvs("--list")
    ipvs("--set 100 100 200")
    assert ipvs("--list --timeout") == "Timeout (tcp tcpfin udp): 100 100 200\n"
    assert ipvs("--set 900 0 300") == ""
    assert ipvs("-L --timeout") == "Timeout (tcp tcpfin udp): 900 100 300\n"


def test_lists_are_those_of_ipvsadm(ipvs: Ipvs) -> None:
    """With every scheduler, both protocols, both families; and with traffic that was counted."""
    schedulers = ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq"]
    ipvs.restore(
        *(f"-A -u 172.17.0.8:{n} -s {name} -p {n}" for n, name in enumerate(schedulers, 100)),
        f"-A -t {SERVICE}",
        *(f"-a -t {SERVICE} -r {server} -w 65535" for server in SERVERS),
        "-A -t [fd00::7]:443 -s wrr",
        "-a -t [fd00::7]:443 -r [fd00::5]:8443 -w 0",
        "-a -t [fd00::7]:443 -r [fd00::4]:8443",
    )
    # Of traffic the kernel makes rates anew every other second.
    assert ipvs("-L -n --rate") == ipvs.by("ipvsadm", "-L", "-n", "--rate")
    _fetch(ipvs)
    for form in ("", "--stats", "--stats --exact", f"-t {SERVICE}"):
        # The last packets may be under way.
        assert eventually(partial(_lists_the_same, ipvs, f"-L -n {form}"))
    assert " 65535 " in ipvs("-L")
    assert ipvs("-l -t [fd00::7]:443").splitlines()[4].startswith("  -> [fd00::5]:8443 ")
    assert ipvs("-L --timeout") == ipvs.by("ipvsadm", "-L", "--timeout")


def _lists_the_same(ipvs: Ipvs, parameters: str) -> bool:
    return ipvs(parameters) == ipvs.by("ipvsadm", *parameters.split())


def _fetch(ipvs: Ipvs) -> None:
    """A page from each server, by the address of the service."""
    lines = []
    for number, server in enumerate(SERVERS):
        lines.append(f"mkdir -p /tmp/www{number}; echo {number} >/tmp/www{number}/index.html")
        lines.append(f"httpd -p {server} -h /tmp/www{number}")
    fetch = "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc 172.17.0.7 80 | tail -n 1"
    lines.append(f"for n in 1 2; do {fetch}; done")
    pages = ipvs.tapwright.exec(VM, "sh", "-c", "\n".join(lines))
    assert sorted(pages.split()) == ["0", "1"]


def test_what_the_kernel_refuses(ipvs: Ipvs) -> None:
    # The kernel counts the connections of an earlier test where that had them, until they end.
    service, server, other = "172.17.0.7:81", "172.17.0.4:81", "172.17.0.5:81"
    ipvs(f"-A -t {service}")
    ipvs(f"-a -t {service} -r {server}")
    before = ipvs("-L")
    for parameters, reason in (
        (f"-A -t {service}", "Service already exists"),
        ("-E -t 172.17.0.9:80", "No such service"),
        ("-D -t 172.17.0.9:80", "No such service"),
        ("-L -t 172.17.0.9:80", "No such service"),
        (f"-a -t {service} -r {server}", "Destination already exists"),
        (f"-a -t 172.17.0.9:80 -r {server}", "Service not defined"),
        (f"-e -t {service} -r {other}", "No such destination"),
        (f"-d -t {service} -r {other}", "No such destination"),
    ):
        assert reason in ipvs.refused(parameters)
    assert ipvs("-L") == before
    assert "'; reboot'" not in ipvs.refused(f"-A -t {service};reboot")
    done = ipvs.run("ipvsadm", "--restore", "-", text="-A -t 172.17.0.9:80")
    assert "an empty one only" in ipvs.failed(done)
    assert "--restore - < FILE" in ipvs.failed(ipvs.run("ipvsadm", "--restore", "/etc/passwd"))
    assert ipvs("-L") == before


@pytest.mark.large
def test_as_many_rules_as_there_can_be(ipvs: Ipvs, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the suite, the guest gets a lower bound."""
    most = amount(400, ipvsadm.MOST_RULES)
    monkeypatch.setattr(ipvsadm, "MOST_RULES", most)
    rules = []
    for n in range(most // 4):
        service = f"10.{n >> 8}.{n & 255}.1:80"
        rules.append(f"-A -t {service} -s rr -p 3000")
        rules += [f"-a -t {service} -r 172.16.{n >> 8}.{n & 255}:{k} -m" for k in (1, 2, 3)]
    ipvs.restore(*rules)
    assert ipvs("-L") == ipvs.by("ipvsadm", "-L", "-n")
    one_more = ipvsadm.read_rules("-A -t 10.200.0.1:80")
    sandbox = registry.find(ipvs.tapwright.root, VM)
    with pytest.raises(AgentRefusedError, match=f"can have {most} at most"):
        list(balancing.run(sandbox, one_more))
    ipvs("-D -t 10.0.0.1:80")
    assert list(balancing.run(sandbox, one_more)) == []


def test_connections_that_are_cleaned_up(ipvs: Ipvs) -> None:
    """Those to one address by one protocol alone."""
    exec_in = ipvs.tapwright.exec
    # The kernel tracks connections where a rule asks for their state.
    rules = "table inet t { chain c { type filter hook input priority 0; ct state new accept; }; }"
    exec_in(VM, "/usr/lib/tapwright/disk", "nft", rules)
    exec_in(VM, "sh", "-c", _CONNECT)

    def tracked() -> list[str]:
        return ipvs.by("conntrack", "-L", "-d", "172.17.0.4", "-p", "tcp").splitlines()

    assert eventually(lambda: any("ESTABLISHED" in line for line in tracked()))
    (line,) = tracked()
    assert ipvs.cleanup("-d 172.17.0.4 -p udp") == "0 flow entries have been deleted.\n"
    assert ipvs.cleanup("-d 172.17.0.5 -p tcp") == "0 flow entries have been deleted.\n"
    gone = ipvs.cleanup("--orig-dst 172.17.0.4 --protonum tcp").splitlines()
    assert _timeless(gone[0]) == _timeless(line)
    assert gone[1:] == ["1 flow entries have been deleted."]
    assert tracked() == []


_CONNECT = """
httpd -p 172.17.0.4:8000 -h /tmp
(sleep 100 | nc 172.17.0.4 8000) >/dev/null 2>&1 &
"""


def _timeless(line: str) -> list[str]:
    words = line.split()
    assert words[:2] == ["tcp", "6"]
    return words[3:]
