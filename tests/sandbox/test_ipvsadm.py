"""`kata-ipvs`'s language: what is taken, what is refused and with which words, what is printed."""

import pytest

from tapwright.errors import UsageError
from tapwright.linux.conntrack import Connection, Way
from tapwright.linux.ipvs import TCP, UDP, Change, Server, Service
from tapwright.sandbox import ipvsadm
from tapwright.sandbox.ipvsadm import Changes, Cleanup, Clear, Listing, SetTimeouts

pytestmark = pytest.mark.unit

HTTP = Service(TCP, "172.17.0.7", 80)
COUNTERS = (7, 123_456_789, 1_234_567_890, 5, 6, 1, 2, 3, 400_000_000_000, 0)


@pytest.mark.parametrize(
    ("parameters", "verb", "service", "server"),
    [
        (
            "--add-service --tcp-service 172.17.0.7:80 --scheduler rr --persistent 3000",
            "add",
            HTTP._replace(scheduler="rr", persistence=3000),
            None,
        ),
        (
            "-E -u 172.17.0.7:53 -s=nq -p",
            "edit",
            Service(UDP, "172.17.0.7", 53, "nq", 360),
            None,
        ),
        ("-A -t [fd00::0001]:443", "add", Service(TCP, "fd00::1", 443, "wlc"), None),
        ("--delete-service --tcp-service=172.17.0.7:80", "delete", HTTP, None),
        (
            "--add-server --tcp-service 172.17.0.7:80 --real-server 172.17.0.4:80 --weight 100",
            "add",
            HTTP,
            Server("172.17.0.4", 80, 100),
        ),
        ("-t 172.17.0.7:80 -e -r 172.17.0.4:8080 -m", "edit", HTTP, Server("172.17.0.4", 8080)),
        ("-d -t 172.17.0.7:80 -r 172.17.0.4:80", "delete", HTTP, Server("172.17.0.4", 80)),
        (
            "-a -t [fd00::1]:1 -r [fd00::2]:65535 -w 0",
            "add",
            Service(TCP, "fd00::1", 1),
            Server("fd00::2", 65535, 0),
        ),
    ],
)
def test_changes(parameters: str, verb: str, service: Service, server: Server | None) -> None:
    assert ipvsadm.read(parameters) == Changes((Change(verb, service, server),))


@pytest.mark.parametrize(
    "scheduler", ["rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "sed", "nq"]
)
def test_every_scheduler(scheduler: str) -> None:
    (change,) = changes(f"-A -t 10.0.0.1:1 -s {scheduler} -p 2678400")
    assert (change.service.scheduler, change.service.persistence) == (scheduler, 2_678_400)


def test_other_commands() -> None:
    assert ipvsadm.read("-C") == ipvsadm.read("--clear") == Clear()
    assert ipvsadm.read("--set 0 1296000 200") == SetTimeouts((0, 1_296_000, 200))
    for text in ("--list", "-L", "-l", "-L -n", "-Ln", "-ln", "--list --numeric"):
        assert ipvsadm.read(text) == Listing()
    assert ipvsadm.read("-L --stats -t 172.17.0.7:80 --exact") == Listing(HTTP, "stats", True)
    assert ipvsadm.read("-L --timeout") == Listing(form="timeout")
    assert ipvsadm.read_cleanup("--orig-dst 172.17.0.4 --protonum tcp") == Cleanup(
        "172.17.0.4", TCP
    )
    assert ipvsadm.read_cleanup("-p udp -d fd00::01") == Cleanup("fd00::1", UDP)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("", "nothing to do"),
        ("-t 1.2.3.4:80", "not 0"),
        ("-A -E -t 1.2.3.4:80", "not 2"),
        ("-A", "there must be one service"),
        ("-A -t 1.2.3.4:80 -u 1.2.3.4:80", "not 2"),
        ("-A -t 1.2.3.4:80 -t 1.2.3.4:80", "given twice"),
        ("-A -t 1.2.3.4:80 -s mh", "-s|--scheduler: 'mh' is refused"),
        ("-A -t 1.2.3.4:80 -p 0", "from 1 to 2678400"),
        ("-A -t 1.2.3.4:80 -p 2678401", "from 1 to 2678400"),
        ("-A -t 1.2.3.4:80 -p 3_0", "'3_0' is refused"),
        ("-A -t 1.2.3.4:80 -p ٣", "is refused"),
        ("-A -t 1.2.3.4:80 -M 255.255.0.0", "'-M' is not a parameter"),
        ("-A -f 3", "'-f' is not a parameter"),
        ("-A -t 1.2.3.4:0", "the port from 1 to 65535"),
        ("-A -t 1.2.3.4:65536", "the port from 1 to 65535"),
        ("-A -t 1.2.3.4", "must be IP:PORT"),
        ("-A -t 1.2.3.4.5:80", "must be IP:PORT"),
        ("-A -t 1.2.3.256:80", "must be IP:PORT"),
        ("-A -t www.example.org:80", "must be IP:PORT"),
        ("-A -t fd00::1:80", "an IPv6 address in brackets"),
        ("-A -t [1.2.3.4]:80", "one machine can have"),
        ("-A -t [fe80::1%eth0]:80", "must be IP:PORT"),
        ("-A -t 0.0.0.0:80", "one machine can have"),
        ("-A -t 224.0.0.1:80", "one machine can have"),
        ("-A -t 1.2.3.4:80;reboot", "must be IP:PORT"),
        ("-A -t $(reboot):80", "must be IP:PORT"),
        ("-A -t", "takes 1 values, not 0"),
        ("-A -t 1.2.3.4:80 -r 1.2.3.5:80", "-r|--real-server is not for -A|--add-service"),
        ("-D -t 1.2.3.4:80 -s rr", "is not for -D|--delete-service"),
        ("-a -t 1.2.3.4:80", "-r|--real-server is missing"),
        ("-a -t 1.2.3.4:80 -r 1.2.3.5", "must be IP:PORT"),
        ("-a -t 1.2.3.4:80 -r [fd00::1]:80", "of the family of 1.2.3.4"),
        ("-a -t 1.2.3.4:80 -r 1.2.3.5:80 -w 65536", "from 0 to 65535"),
        ("-a -t 1.2.3.4:80 -r 1.2.3.5:80 -w -1", "from 0 to 65535"),
        ("-a -t 1.2.3.4:80 -r 1.2.3.5:80 -g", "'-g' is not a parameter"),
        ("--set 1 2", "takes 3 values, not 2"),
        ("--set 1 2 1296001", "--set UDP: '1296001' is refused"),
        ("-C -n", "-n|--numeric is not for -C|--clear"),
        ("-L --stats --rate", "can't be listed together"),
        ("-Z", "'-Z' is not a parameter"),
        ("-C; reboot", "'-C;' is not a parameter"),
        ("-C reboot", "'reboot' is not a parameter"),
    ],
)
def test_what_is_refused(parameters: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        ipvsadm.read(parameters)
    assert reason in str(refused.value)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("-d 1.2.3.4", "-p|--protonum is missing"),
        ("-p tcp", "-d|--orig-dst is missing"),
        ("-d 1.2.3.4 -p sctp", "must be tcp or udp"),
        ("-d 1.2.3.4/8 -p tcp", "must be an IPv4 or IPv6 address"),
        ("-d fe80::1%lo -p tcp", "without an interface"),
        ("-d 1.2.3.4 -p tcp -f ipv6", "'-f' is not a parameter"),
    ],
)
def test_what_cleanup_refuses(parameters: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        ipvsadm.read_cleanup(parameters)
    assert reason in str(refused.value)


def test_rules_of_openeulers_page() -> None:
    found = ipvsadm.read_rules(
        "-A -t 10.10.11.12:100 -s rr -p  3000\n"
        "-a -t 10.10.11.12:100 -r  172.16.0.1:80 -m\n"
        "-a -t 10.10.11.12:100 -r  172.16.0.1:81 -m\n"
        "\n"
        "-a -t 10.10.11.12:100 -r 172.16.0.1:82  -m"
    )
    service, *servers = found.changes
    assert service.service == Service(TCP, "10.10.11.12", 100, "rr", 3000)
    assert [one.server and one.server.port for one in servers] == [80, 81, 82]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("\n \n", "there are no rules"),
        ("-A -t 1.2.3.4:80\n-A -t 1.2.3.4:80 -s rr", "line 2: this service is in the file"),
        ("-a -t 1.2.3.4:80 -r 1.2.3.5:80", "line 1: its service must come before it"),
        (
            "-A -t 1.2.3.4:80\n" + "-a -t 1.2.3.4:80 -r 1.2.3.5:80\n" * 2,
            "line 3: this server is in the file",
        ),
        ("-A -t 1.2.3.4:80\n-C", "line 2: -C|--clear is no rule"),
        ("-A -t 1.2.3.4:80" + " " * 600, "line 1: it has more than 512 characters"),
        ("-A -t 1.2.3.4:80\nreboot", "line 2: 'reboot' is not a parameter"),
    ],
)
def test_what_rules_are_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        ipvsadm.read_rules(text)
    assert reason in str(refused.value)


def test_as_many_rules_as_there_can_be() -> None:
    lines = [f"-A -t 10.{n >> 8}.{n & 255}.1:80" for n in range(ipvsadm.MOST_RULES)]
    assert len(ipvsadm.read_rules("\n".join(lines)).changes) == 20_000
    with pytest.raises(UsageError, match="more than 20000 rules"):
        ipvsadm.read_rules("\n".join([*lines, "-A -u 10.0.0.1:80"]))


def test_list() -> None:
    """As ipvsadm 1.31 prints it with -n; `test_kata_ipvs` compares with that program."""
    dns = Service(UDP, "fd00::7", 53, "wlc", 0, 2, 128)
    http = HTTP._replace(scheduler="rr", persistence=3000, flags=3, netmask=24)
    servers = [
        Server("172.17.0.10", 80, 2, 0, 3, 4, counters=COUNTERS),
        Server("172.17.0.9", 80, 100, 0, 0, 0, counters=COUNTERS),
    ]
    table = [(dns, []), (http, servers)]
    assert "".join(ipvsadm.written((0x010201, 4096), table, Listing())) == (
        "IP Virtual Server version 1.2.1 (size=4096)\n"
        "Prot LocalAddress:Port Scheduler Flags\n"
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn\n"
        "TCP  172.17.0.7:80 rr persistent 3000 mask 255.255.255.0\n"
        "  -> 172.17.0.9:80                Masq    100    0          0         \n"
        "  -> 172.17.0.10:80               Masq    2      3          4         \n"
        "UDP  [fd00::7]:53 wlc\n"
    )
    counted = http._replace(counters=COUNTERS)
    lines = list(ipvsadm.written(None, [(counted, servers[:1])], Listing(form="stats")))
    assert lines == [
        "Prot LocalAddress:Port               Conns   InPkts  OutPkts  InBytes OutBytes\n"
        "  -> RemoteAddress:Port\n",
        "TCP  172.17.0.7:80                       7  123456K    1234M        5        6\n",
        "  -> 172.17.0.10:80                      7  123456K    1234M        5        6\n",
    ]
    lines = list(ipvsadm.written(None, [(counted, [])], Listing(form="rate", exact=True)))
    assert (
        lines[1]
        == "TCP  172.17.0.7:80                       1        2        3 400000000000        0\n"
    )
    assert ipvsadm.written_timeouts([900, 120, 300]) == "Timeout (tcp tcpfin udp): 900 120 300\n"


def test_connections_that_were_removed() -> None:
    one, other = Way("10.0.0.1", "10.0.0.2", 4, 80), Way("10.0.0.2", "10.0.0.1", 80, 4)
    gone = [
        Connection(TCP, 431_999, 3, one, other, 14, 0, 1),
        Connection(UDP, 29, 0, one, other, 8, 5, 1),
    ]
    assert list(ipvsadm.written_cleanup(gone)) == [
        "tcp      6 431999 ESTABLISHED src=10.0.0.1 dst=10.0.0.2 sport=4 dport=80 "
        "src=10.0.0.2 dst=10.0.0.1 sport=80 dport=4 [ASSURED] mark=0 use=1\n",
        "udp      17 29 src=10.0.0.1 dst=10.0.0.2 sport=4 dport=80 [UNREPLIED] "
        "src=10.0.0.2 dst=10.0.0.1 sport=80 dport=4 mark=5 use=1\n",
        "2 flow entries have been deleted.\n",
    ]
    assert list(ipvsadm.written_cleanup([])) == ["0 flow entries have been deleted.\n"]


def changes(parameters: str) -> tuple[Change, ...]:
    found = ipvsadm.read(parameters)
    assert isinstance(found, Changes)
    return found.changes
