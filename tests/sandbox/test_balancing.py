"""What a hostile guest answers to `kata-ipvs`: nothing of it comes out that is not what it should
be. The guest is a stand-in; `test_kata_ipvs` has a real one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tapwright.errors import AgentError, AgentRefusedError
from tapwright.linux.ipvs import TCP, Service
from tapwright.sandbox import balancing, ipvsadm
from tapwright.sandbox.execution import Completed
from tapwright.state.registry import Sandbox

pytestmark = pytest.mark.unit

SANDBOX = Sandbox("vm", "running", Path("/"), None)
COUNTERS = [0] * 10
SERVER = ["172.17.0.4", 80, 1, 0, 0, 0, 0, 0, 0, COUNTERS]
SERVICE = [6, "172.17.0.7", 80, "rr", 0, 2, 32, 0, "", COUNTERS]
END = {"version": [0x010201, 4096], "count": 1}
WAY = ["10.0.0.1", "10.0.0.2", 4, 80]
CONNECTION = [6, 30, 3, WAY, WAY, 14, 0, 1]


class Guest:
    """Answers with these bytes; `asked` is what it was asked."""

    def __init__(self, *lines: object, status: int = 0, complaint: bytes = b"") -> None:
        self._output = b"".join(
            line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines
        )
        self._status = status
        self._complaint = complaint
        self.asked: Any = None

    def __call__(self, *words: object, **options: object) -> "Guest":
        return self

    def __enter__(self) -> "Guest":
        return self

    def __exit__(self, *_: object) -> None:
        """As in `Process`."""

    def communicate(self, stdin: bytes, limit: int) -> Completed[bytes]:
        self.asked = json.loads(stdin)
        return Completed((), self._status, self._output, self._complaint)


@pytest.fixture
def answered(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Guest]:
    def put(*lines: object, **options: Any) -> Guest:
        guest = Guest(*lines, **options)
        monkeypatch.setattr(balancing, "Process", guest)
        return guest

    return put


def listing(form: str = "stats") -> str:
    return "".join(balancing.run(SANDBOX, ipvsadm.Listing(form=form)))


def test_a_list(answered: Callable[..., Guest]) -> None:
    guest = answered([SERVICE, [SERVER]], END)
    numbers = 5 * f"{0:>9}"
    assert listing().endswith(
        f"TCP  {'172.17.0.7:80':<28}{numbers}\n  -> {'172.17.0.4:80':<28}{numbers}\n"
    )
    assert guest.asked["counted"] is True
    guest = answered([[*SERVICE[:9], []], [[*SERVER[:9], []]]], END)
    server = f"  -> {'172.17.0.4:80':<28} Masq    1      0          0         \n"
    assert listing("").endswith(f"TCP  172.17.0.7:80 rr\n{server}")
    assert guest.asked["counted"] is False
    # Counters that nobody asked for are no list.
    answered([SERVICE, []], END)
    with pytest.raises(AgentError):
        listing("")


def changed(place: int, value: object, fields: list[Any]) -> list[Any]:
    return [*fields[:place], value, *fields[place + 1 :]]


@pytest.mark.parametrize(
    "line",
    [
        7,
        "x",
        None,
        {},
        [],
        [SERVICE],
        [SERVICE, 7],
        [SERVICE, [[]]],
        [SERVICE[:5], []],
        [[*SERVICE, 1], []],
        [changed(1, "fe80::1%\x1b[31m", SERVICE), []],
        [changed(1, "\x1b[31m", SERVICE), []],
        [changed(3, "rr\x1b[31m", SERVICE), []],
        [changed(3, "r" * 100, SERVICE), []],
        [changed(2, "80", SERVICE), []],
        [changed(4, -1, SERVICE), []],
        [changed(4, 1.5, SERVICE), []],
        [changed(6, 129, SERVICE), []],
        [changed(8, 7, SERVICE), []],
        [changed(9, COUNTERS[:9], SERVICE), []],
        [changed(9, "0123456789", SERVICE), []],
        [SERVICE, [changed(0, 7, SERVER)]],
        [SERVICE, [changed(3, True, SERVER)]],
        [SERVICE, [changed(9, [2**64] * 10, SERVER)]],
    ],
)
def test_what_no_table_has(answered: Callable[..., Guest], line: object) -> None:
    answered(line, END)
    with pytest.raises(AgentError, match="not what it should be"):
        listing()


@pytest.mark.parametrize(
    "lines",
    [
        [b""],
        [b"{"],
        [b"[" * 100_000],
        [b"\xff\xfe\n"],
        [[SERVICE, []], 7],
        [[SERVICE, []], [1]],
        [{"version": [1]}],
        [{"version": "xy"}],
        [b"0" * (33 << 20)],
    ],
)
def test_what_is_no_answer(answered: Callable[..., Guest], lines: list[object]) -> None:
    answered(*lines)
    with pytest.raises(AgentError):
        listing()


@pytest.mark.parametrize(
    "line",
    [
        7,
        changed(0, "tcp", CONNECTION),
        changed(3, [*WAY, 1], CONNECTION),
        changed(3, changed(0, "x\n", WAY), CONNECTION),
        changed(4, changed(3, [], WAY), CONNECTION),
    ],
)
def test_what_no_connection_is(answered: Callable[..., Guest], line: object) -> None:
    answered(line, {"count": 1})
    with pytest.raises(AgentError, match="not what it should be"):
        list(balancing.cleanup(SANDBOX, ipvsadm.Cleanup("10.0.0.2", TCP)))


def test_refusals_can_be_shown(answered: Callable[..., Guest]) -> None:
    guest = answered({"refused": "no\x1b[31m\nsuch", "number": 2})
    rules = ipvsadm.read_rules("-A -t 1.2.3.4:80\n-a -t 1.2.3.4:80 -r 1.2.3.5:80")
    with pytest.raises(AgentRefusedError) as refused:
        balancing.restore(SANDBOX, rules)
    assert str(refused.value) == "rule 3: no?[31m?such"
    assert guest.asked == {
        "op": "change",
        "changes": [
            ["add", list(Service(TCP, "1.2.3.4", 80, "wlc")[:5]), None],
            ["add", [TCP, "1.2.3.4", 80, "", 0], ["1.2.3.5", 80, 1]],
        ],
        "most": 20_000,
        "into_empty": True,
    }
    answered(status=1, complaint=b"Traceback\n\x1b[31mValueError: \xff\n")
    with pytest.raises(AgentError) as failed:
        listing()
    assert str(failed.value).isprintable()
