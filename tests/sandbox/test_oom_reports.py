"""What platforms learn when the guest's kernel has killed for want of memory."""

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from tapwright.control.oom_reports import OomReports
from tapwright.errors import UsageError
from tests.platforms.protobuf import decode

pytestmark = pytest.mark.unit

Answer = Callable[[bytes], bytes]


class Containerd:
    """Listens where containerd would; each request is a ttrpc message of kind 1, on a stream."""

    def __init__(self, path: Path, status: bytes = b"") -> None:
        self.address = str(path)
        self.heard: list[dict[int, list[Any]]] = []
        self._status = status

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._answer, self.address)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        header = await reader.readexactly(10)
        assert header[8] == 1
        content = await reader.readexactly(int.from_bytes(header[:4]))
        self.heard.append(decode(content))
        answer = bytes([0x0A, len(self._status)]) + self._status if self._status else b""
        writer.write(len(answer).to_bytes(4) + header[4:8] + b"\x02\x00" + answer)
        writer.close()


def told(containerd: Containerd, work: Callable[[OomReports], Coroutine[Any, Any, None]]) -> None:
    async def main() -> None:
        where = {"address": containerd.address, "namespace": "k8s.io", "container": "c1"}
        reports = OomReports({"containerd": where})
        async with await containerd.serve():
            going_on = asyncio.create_task(reports.run())
            await work(reports)
            going_on.cancel()

    asyncio.run(main())


async def one(reports: OomReports) -> None:
    reports.killed()
    await reports.settle()


def test_an_event_of_containerds(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "socket")
    told(containerd, one)
    (request,) = containerd.heard
    assert (request[1], request[2]) == (
        [b"containerd.services.events.ttrpc.v1.Events"],
        [b"Forward"],
    )
    envelope = decode(decode(request[3][0])[1][0])
    assert (envelope[2], envelope[3]) == ([b"k8s.io"], [b"/tasks/oom"])
    event = decode(envelope[4][0])
    assert event[1] == [b"containerd.events.TaskOOM"]
    assert decode(event[2][0]) == {1: [b"c1"]}


def test_many_at_once_are_one(tmp_path: Path) -> None:
    """A guest may say so as often as it likes."""

    async def many(reports: OomReports) -> None:
        for _ in range(1000):
            reports.killed()
            await asyncio.sleep(0)

    containerd = Containerd(tmp_path / "socket")
    told(containerd, many)
    assert len(containerd.heard) <= 2


def test_nothing_to_tell(tmp_path: Path) -> None:
    containerd = Containerd(tmp_path / "socket")
    told(containerd, lambda reports: reports.settle())
    assert containerd.heard == []


def test_files_of_conmons(tmp_path: Path) -> None:
    """One is there already, another can't be: the bundle has gone."""
    (tmp_path / "bundle").mkdir()
    (tmp_path / "there").touch()
    places = [tmp_path / "there", tmp_path / "gone/oom", tmp_path / "bundle/oom"]
    asyncio.run(one(OomReports({"files": list(map(str, places))})))
    assert (tmp_path / "bundle/oom").read_bytes() == b""


@pytest.mark.parametrize("status", [b"", b"\x08\x02"])
def test_who_is_not_there_or_refuses(
    tmp_path: Path, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It costs a line in the log."""
    containerd = Containerd(tmp_path / "socket", status)
    if status:
        told(containerd, one)
    else:
        where = {"address": containerd.address, "namespace": "x", "container": "c"}
        asyncio.run(one(OomReports({"containerd": where})))
    assert "containerd can't get the report" in caplog.text


@pytest.mark.parametrize(
    "wanted",
    [None, [], {"file": "x"}, {"files": "x"}, {"files": [1]}, {"containerd": {"address": "x"}}],
)
def test_what_makes_no_sense(wanted: Any) -> None:
    with pytest.raises(UsageError, match="must say `files` and `containerd`"):
        OomReports(wanted)
