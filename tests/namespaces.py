"""Network namespaces as a test prepares them, and all that `ip` and `tc` show of them."""

import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from tests.host import eventually
from tests.sandboxes import Tapwright

Json = Any
State = dict[str, dict[str, Json]]

_IP = "/bin/ip"


class Namespace:
    """A namespace of `ip netns`; without a name, that of the caller."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.path = f"/run/netns/{name}"
        self._place = ["-n", name] if name else []

    def ip(self, command: str) -> str:
        return _output("ip", *self._place, *command.split())

    def tc(self, command: str) -> str:
        return _output("tc", *self._place, *command.split())

    def mac(self, name: str) -> str:
        return str(self._json("ip", f"link show {name}")[0]["address"])

    def index(self, name: str) -> int:
        return int(self._json("ip", f"link show {name}")[0]["ifindex"])

    def join(self, one: str, other: str) -> None:
        """Send all that arrives at one interface out of the other, both ways."""
        for source, target in ((one, other), (other, one)):
            self.tc(f"qdisc add dev {source} ingress")
            self.tc(
                f"filter add dev {source} parent ffff: protocol all u32 match u8 0 0 "
                f"action mirred egress redirect dev {target}"
            )

    @contextmanager
    def table_of_another(self, name: str) -> Iterator[None]:
        """With an nftables table that belongs to a process: nobody else can change it."""
        command = ["ip", "netns", "exec", self.name, "nft", "-i"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as holder:
            assert holder.stdin
            assert holder.stdout
            try:
                print(f"add table ip {name} {{ flags owner; }}", file=holder.stdin, flush=True)
                print("list tables", file=holder.stdin, flush=True)
                while name not in (line := holder.stdout.readline()):
                    assert line
                yield
            finally:
                holder.stdin.close()

    def state(self) -> State:
        """Each interface with all that it has."""
        qdiscs = self._json("tc", "qdisc show")
        by_name = {
            "links": [_without_timers(link) for link in self._json("ip", "-details link show")],
            "addresses": self._json("ip", "address show"),
            "neighbours": self._json("ip", "neighbour show nud permanent"),
            "routes": self._json("ip", "-4 route show table all"),
            "routes6": self._json("ip", "-6 route show table all"),
            "qdiscs": qdiscs,
            "filters": [
                {"dev": qdisc["dev"], "filters": self._filters(qdisc["dev"])}
                for qdisc in qdiscs
                if qdisc["kind"] in ("ingress", "clsact")
            ],
        }
        return {
            link["ifname"]: {
                kind: [e for e in entries if link["ifname"] in (e.get("ifname"), e.get("dev"))]
                for kind, entries in by_name.items()
            }
            for link in by_name["links"]
        }

    def settles(self) -> None:
        """Wait until the kernel has taken note of all carriers, which it does up to a second later:
        states and routes follow from them."""

        def has_settled() -> bool:
            return all(
                ("LOWER_UP" in link["flags"]) == (link["operstate"] in ("UP", "UNKNOWN"))
                for link in self._json("ip", "link show")
                if "UP" in link["flags"]
            )

        assert eventually(has_settled), self.ip("link show")

    def _filters(self, name: str) -> str:
        command = ["tc", *self._place, "filter", "show", "dev", name, "ingress"]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    def _json(self, program: str, command: str) -> list[Json]:
        output = _output(program, *self._place, "-json", *command.split())
        return [entry for entry in json.loads(output or "[]") if entry]


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """A fresh one, for the length of the block; its addresses are there at once."""
    _output("ip", "netns", "add", name)
    try:
        dad = [f"net.ipv6.conf.{scope}.accept_dad=0" for scope in ("all", "default")]
        _output("ip", "netns", "exec", name, "sysctl", "-qw", *dad)
        yield Namespace(name)
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)


def _without_timers(value: Json) -> Json:
    """Those of bridges and their ports run."""
    if isinstance(value, dict):
        return {k: _without_timers(v) for k, v in value.items() if not k.endswith("_timer")}
    return value


def give_ip(tapwright: Tapwright, sandbox: str) -> None:
    """Put this host's `ip` into a guest, so the same program shows its tables and ours."""
    listed = _output("ldd", _IP)
    files = [_IP, *(word for word in listed.split() if word.startswith("/"))]
    archive = BytesIO()
    with tarfile.open(fileobj=archive, mode="w", dereference=True) as tar:
        for file in files:
            # Beside what the guest has of its own.
            tar.add(file, f"host/{file.rpartition('/')[2]}")
    done = tapwright.run(
        *("sandbox", "exec", sandbox, "--", "tar", "-x", "-C", "/"),
        input=archive.getvalue(),
        text=False,
    )
    assert done.returncode == 0, done.stderr


def guest_ip(tapwright: Tapwright, sandbox: str, *commands: str) -> list[list[Json]]:
    """What `ip -json` in the guest answers to each of some commands."""
    loader = "/host/ld-linux-x86-64.so.2 --library-path /host /host/ip -json"
    script = " && ".join(f"{loader} {command} && echo '%'" for command in commands)
    *answers, _ = tapwright.exec(sandbox, "sh", "-c", script).split("%\n")
    return [[entry for entry in json.loads(answer or "[]") if entry] for answer in answers]


def _output(*command: str) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
    return done.stdout
