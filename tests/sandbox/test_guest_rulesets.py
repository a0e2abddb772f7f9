"""Packet rules of the namespace in a real guest: at the start, and as they change. What they are
made of, and all that can go wrong beside them, is in test_rulesets.py."""

import re
import socket
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import netns
from tapwright.sandbox import client
from tapwright.state import registry
from tests.host import eventually
from tests.namespaces import Namespace, namespace
from tests.sandboxes import Tapwright

CORPUS = Path(__file__).parent.parent / "linux" / "rulesets"
VM, NETNS = "ruled", "twtest-ruled"
HOST, GUEST = "10.79.0.1", "10.79.0.2"
LOADER = "/host/ld-linux-x86-64.so.2 --library-path /host /host/"
TOOLS = "/usr/sbin/nft", "/usr/sbin/xtables-legacy-multi", "/usr/sbin/xtables-nft-multi"
IPVSADM = "/usr/lib/tapwright/disk ipvsadm"
EXTENSIONS = Path("/usr/lib/x86_64-linux-gnu/xtables")


@pytest.fixture(scope="module")
def outside() -> Iterator[Namespace]:
    """A namespace as a plugin leaves it, with an interface, and rules of a service mesh."""
    with namespace(NETNS) as made:
        made.ip("link set lo up")
        Namespace().ip(f"link add {VM}0 type veth peer name eth0 netns {NETNS}")
        Namespace().ip(f"address add {HOST}/24 dev {VM}0")
        Namespace().ip(f"link set {VM}0 up")
        made.ip(f"address add {GUEST}/24 dev eth0")
        made.ip("link set eth0 up")
        yield made


@pytest.fixture(scope="module")
def configuration(tapwright: Tapwright, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "configuration.toml"
    path.write_text(f"{tapwright.config.read_text()}\n[netmon]\nenable_netmon = true\n")
    return path


@pytest.fixture(scope="module")
def vm(tapwright: Tapwright, outside: Namespace, configuration: Path) -> Iterator[Tapwright]:
    inside(outside, "iptables-nft-restore", text=(CORPUS / "linkerd.v4").read_text())
    run(tapwright, configuration, VM, outside.path)
    try:
        give_tools(tapwright)
        yield tapwright
    finally:
        tapwright.delete(VM)


def run(tapwright: Tapwright, configuration: Path, name: str, path: str) -> None:
    done = tapwright.run("sandbox", "run", name, "--netns", path, config=configuration)
    assert done.returncode == 0, done.stderr


def inside(where: Namespace, *command: str, text: str = "") -> str:
    words = ["ip", "netns", "exec", where.name, *command]
    done = subprocess.run(words, input=text, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr[:500]}"
    return done.stdout


def give_tools(tapwright: Tapwright) -> None:
    """This host's, so the same programs show the guest's rules and the namespace's."""
    programs = [*TOOLS, *map(str, EXTENSIONS.glob("lib*.so"))]
    listed = subprocess.run(["ldd", *programs], check=True, capture_output=True, text=True).stdout
    libraries = {word for word in listed.split() if word.startswith("/") and not word.endswith(":")}
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for file in {*TOOLS, *libraries, *programs}:
            place = "host/xtables" if file.startswith(str(EXTENSIONS)) else "host"
            tar.add(file, f"{place}/{file.rpartition('/')[2]}")
        tar.add("/etc/protocols", "etc/protocols")  # so that all of them know the same names
    done = tapwright.run(
        *("sandbox", "exec", VM, "--", "tar", "-x", "-C", "/"),
        input=archive.getvalue(),
        text=False,
    )
    assert done.returncode == 0, done.stderr


def told(where: Namespace | Tapwright, program: str, arguments: str = "") -> str:
    """What one of the tools shows, of the namespace or in the guest, without counts of packets:
    each has its own."""
    if isinstance(where, Tapwright):
        multi = program if program == "nft" else f"xtables-{program.split('-')[1]}-multi"
        name = "" if program == "nft" else re.sub("-(nft|legacy)", "", program)
        command = f"XTABLES_LIBDIR=/host/xtables {LOADER}{multi} {name} {arguments}"
        output = where.exec(VM, "sh", "-c", command)
    else:
        output = inside(where, program, *arguments.split())
    lines = [line for line in output.splitlines() if not line.startswith("#")]
    return re.sub(r" expires \w+|\[\d+:\d+\]|packets \d+ bytes \d+", "", "\n".join(lines))


def same(one: Namespace, other: Tapwright, program: str, arguments: str = "") -> bool:
    return told(one, program, arguments) == told(other, program, arguments)


def test_rules_that_were_there_at_the_start(vm: Tapwright, outside: Namespace) -> None:
    assert "PROXY_INIT_REDIRECT" in told(vm, "iptables-nft-save")
    assert same(outside, vm, "iptables-nft-save")


def test_a_guest_without_rules_has_loaded_nothing(
    tapwright: Tapwright, configuration: Path
) -> None:
    with namespace("twtest-plain") as plain:
        run(tapwright, configuration, "plain", plain.path)
        try:
            modules = tapwright.exec("plain", "cat", "/proc/modules")
            assert "virtio_net" in modules
            assert not re.search(r"^(nf|ip|x)_?tables|^nfnetlink|^ip_set", modules, re.MULTILINE)
        finally:
            tapwright.delete("plain")


@pytest.mark.parametrize("name", ["istio-redirect.v4", "istio-tproxy.v4", "firewall.v6"])
@pytest.mark.parametrize("back_end", ["nft", "legacy"])
def test_rules_of_iptables_follow(
    name: str, back_end: str, vm: Tapwright, outside: Namespace
) -> None:
    program = "iptables" if name.endswith("4") else "ip6tables"
    text = (CORPUS / name).read_text()
    inside(outside, f"{program}-{back_end}-restore", text=text)
    if back_end == "legacy":
        synced(vm)  # nobody tells of it
    save = f"{program}-{back_end}-save"
    eventually(lambda: same(outside, vm, save))
    assert told(vm, save) == told(outside, save)
    if back_end == "nft":
        inside(outside, "nft", "flush", "ruleset")
        return
    policies = [line for line in text.splitlines() if line[0] in "*:" and " - " not in line]
    commits = "\n".join(policies).replace("\n*", "\nCOMMIT\n*").replace(" DROP ", " ACCEPT ")
    inside(outside, f"{program}-legacy-restore", text=f"{commits}\nCOMMIT\n")
    synced(vm)
    assert "-A" not in told(vm, f"{program}-legacy-save")


def synced(tapwright: Tapwright) -> None:
    client.of(registry.find(tapwright.root, VM)).call("sync", at_once=True)


def test_rules_of_nft_follow(vm: Tapwright, outside: Namespace) -> None:
    for name in ("devices.nft", "kube-proxy.nft"):
        inside(outside, "nft", "-f", str(CORPUS / name))
    listed = "list ruleset"
    assert eventually(lambda: same(outside, vm, "nft", listed))
    inside(outside, "nft", "flush", "ruleset")
    assert eventually(lambda: told(vm, "nft", listed) == "")


def test_what_a_container_added_is_there_after_a_change(vm: Tapwright, outside: Namespace) -> None:
    inside(outside, "iptables-nft-restore", text=(CORPUS / "istio-redirect.v4").read_text())
    assert eventually(lambda: same(outside, vm, "iptables-nft-save"))
    iptables = f"XTABLES_LIBDIR=/host/xtables {LOADER}xtables-nft-multi iptables -t nat"
    for words in ("-N DOCKER", "-A DOCKER -p tcp -j RETURN", "-A OUTPUT -p tcp -j DOCKER"):
        vm.exec(VM, "sh", "-c", f"{iptables} {words}")
    own = {"-A DOCKER -p tcp -j RETURN", "-A OUTPUT -p tcp -j DOCKER"}
    rule = "-A OUTPUT -p tcp -m tcp --dport 9 -j RETURN"
    inside(outside, "iptables-nft", "-t", "nat", *rule.split())

    def lines(where: Namespace | Tapwright) -> set[str]:
        return set(told(where, "iptables-nft-save").splitlines())

    assert eventually(lambda: rule in lines(vm))
    assert lines(vm) == lines(outside) | own | {":DOCKER - "}
    inside(outside, "nft", "flush", "ruleset")
    assert eventually(lambda: rule not in lines(vm))
    assert own <= lines(vm)
    vm.exec(VM, "sh", "-c", f"{LOADER}nft flush ruleset")


def test_a_redirection_works(vm: Tapwright, outside: Namespace) -> None:
    """From outside, and for the guest's own programs."""
    inside(outside, "iptables-nft-restore", text=(CORPUS / "istio-redirect.v4").read_text())
    assert eventually(lambda: "15006" in told(vm, "iptables-nft-save"))
    serve = "nc -l -p {port} -e echo {port} & "
    script = "".join(serve.format(port=port) for port in (15006, 15001, 15006, 15001))
    wait = "".join(
        f"until grep -q ':{port:04X} [0-9A-F:]* 0A ' /proc/net/tcp /proc/net/tcp6; "
        "do sleep 0.05; done; "
        for port in (15006, 15001)
    )
    vm.exec(VM, "sh", "-c", f"({script}) >/dev/null 2>&1 </dev/null & {wait}")
    with socket.create_connection((GUEST, 80), 60) as connection:
        assert connection.recv(100) == b"15006\n"
    answer = vm.exec(VM, "sh", "-c", f"nc {HOST} 4321 </dev/null")
    assert answer == "15001\n"
    inside(outside, "nft", "flush", "ruleset")


def test_a_name_server_that_rules_lead_to(
    vm: Tapwright, outside: Namespace, tmp_path: Path
) -> None:
    """As docker's: its socket has another port than 53."""
    with netns.entered(outside.path):
        udp = socket.socket(type=socket.SOCK_DGRAM)
        udp.bind(("127.0.0.11", 44377))

    def serve() -> None:
        with suppress(OSError):
            while (asked := udp.recvfrom(1 << 16))[0]:
                udp.sendto(asked[0][::-1], asked[1])

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        inside(outside, "iptables-nft-restore", text=(CORPUS / "docker.v4").read_text())
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.11\n")
        sandbox = registry.find(vm.root, VM)
        client.of(sandbox).call("follow_resolvers", resolv_conf=str(tmp_path / "resolv.conf"))
        synced(vm)
        assert told(vm, "iptables-nft-save") == told(outside, "iptables-nft-save")
        ask = (
            "import socket; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(60); "
            "s.connect(('127.0.0.11', 53)); s.send(b'question'); print(s.recv(99).decode())"
        )
        assert vm.exec(VM, "python3", "-c", ask) == "noitseuq\n"
    finally:
        with suppress(OSError):
            udp.shutdown(socket.SHUT_RDWR)
        udp.close()
        thread.join()
        inside(outside, "nft", "flush", "ruleset")


_COPY = """
from tapwright.linux import ipvs
with ipvs.Ipvs() as table:
    changes = []
    for service in table.services():
        service = service._replace(counters=())
        changes.append(("add", tuple(service), None))
        for server in table.servers(service):
            server = server._replace(active=0, inactive=0, persistent=0, counters=())
            changes.append(("add", tuple(service), tuple(server)))
print(repr(changes))
"""
_SERVICES = """\
-A -t 10.0.0.1:80 -s wrr -p 300 -M 255.255.255.0
-a -t 10.0.0.1:80 -r 10.1.0.1:8080 -m -w 3
-a -t 10.0.0.1:80 -r 10.1.0.2:80 -g -w 0 -x 100 -y 10
-A -u [fd00::1]:53 -s sh -b sh-port
-a -u [fd00::1]:53 -r [fd00::2]:53 -i -w 1
-A -f 7 -s rr -o
-a -f 7 -r 10.1.0.1:0 -m -w 1
"""


def test_services_of_ipvs_are_the_same_elsewhere(vm: Tapwright) -> None:
    """In two namespaces of the guest, for this host's kernel may have no IPVS."""
    reader = ["env", "PYTHONPATH=/usr/lib/tapwright", "python3", "-c", _COPY]
    shell = ["unshare", "--net", "sh", "-c"]
    quoted = " ".join(f"'{word}'" for word in reader)
    # Where loopback is up, addresses are known to be such.
    up = "ip link set lo up"
    save = f"{IPVSADM} --save -n"
    restore = f"{up} && printf '%s' '{_SERVICES}' | {IPVSADM} --restore && {save}"
    saved, _, changes = vm.exec(VM, *shell, f"{restore} && echo % && {quoted}").partition("%\n")
    put = (
        "from tapwright.agent.guest import rulesets; "
        f"print(rulesets.set_rulesets(None, {{'services': {changes.strip()}}})['refused'])"
    )
    writer = f'{up} && PYTHONPATH=/usr/lib/tapwright python3 -c "$1" && {save}'
    refused, _, again = vm.exec(VM, *shell, writer, "sh", put).partition("\n")
    assert refused == "[]"
    assert again == saved
    assert "wrr" in saved


@pytest.fixture
def without_netfilter(tapwright: Tapwright) -> dict[str, Any]:
    return {"kernel_params": "module_blacklist=nf_tables"}


def test_a_guest_that_can_not_have_the_rules(
    tapwright: Tapwright, without_netfilter: dict[str, Any], nothing_left: None
) -> None:
    strict = tapwright.configuration(**without_netfilter)
    lenient = tapwright.configuration({"netns_rulesets": "best-effort"}, **without_netfilter)
    with namespace("twtest-guarded") as guarded:
        inside(guarded, "nft", "table ip guard { chain c { type filter hook input priority 0; }; }")
        done = tapwright.run("sandbox", "run", "guarded", "--netns", guarded.path, config=strict)
        assert done.returncode
        assert "packet rules that the guest can't have" in done.stderr
        assert "netns_rulesets" in done.stderr
        done = tapwright.run("sandbox", "run", "guarded", "--netns", guarded.path, config=lenient)
        assert done.returncode == 0, done.stderr
        log = (tapwright.root / "sandboxes" / "guarded" / "log").read_text()
        assert "goes without packet rules" in log
        tapwright.delete("guarded")
