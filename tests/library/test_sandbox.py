"""A real guest through the public API, blocking and asyncio."""

import asyncio
import io
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

import tapwright
from tapwright import AsyncSandbox, Sandbox
from tests.host import eventually
from tests.sandbox.test_faults import held
from tests.sandbox.test_kata_network import ip
from tests.sandboxes import Networks, Tapwright

__all__ = ["held"]

WORDS = ["sh", "-c", "cat >&2; echo out; exit 5"]


@pytest.fixture(scope="module")
def wanted(tapwright: Tapwright) -> dict[str, Any]:
    return {"config": tapwright.config, "root": tapwright.root}


@pytest.fixture(scope="module")
def box(wanted: dict[str, Any]) -> Iterator[Sandbox]:
    with Sandbox.run("library", networks=["dual"], **wanted) as made:
        yield made


@pytest.mark.smoke
def test_what_it_is(box: Sandbox, wanted: dict[str, Any]) -> None:
    assert (box.status, box.problem, box.warnings) == ("running", "", [])
    assert str(box.addresses[0]).startswith("10.91.0.")
    assert box.netns == "/run/netns/tapwright-library"
    assert [one.id for one in tapwright.sandboxes(root=box.root)] == ["library"]
    assert Sandbox.find("lib", root=box.root).id == "library"
    with pytest.raises(tapwright.SandboxExistsError) as caught:
        Sandbox.run("library", **wanted)
    assert caught.value.sandbox == "library"
    with pytest.raises(tapwright.SandboxNotFoundError) as missing:
        Sandbox("none", root=box.root).exec(["true"])
    assert missing.value.sandbox == "none"
    assert Sandbox("none", root=box.root).status == "deleted"


def test_a_command(box: Sandbox) -> None:
    done = box.exec(WORDS, stdin="in")
    assert (done.status, done.stdout, done.stderr) == (5, "out\n", "in")
    large = os.urandom(1_000_000)
    assert box.exec(["cat"], stdin=large, encoding=None).stdout == large
    assert box.exec(["no-such-command"]).status == 127


def test_a_command_that_takes_too_long_is_killed(box: Sandbox) -> None:
    def said() -> str:
        with pytest.raises(tapwright.CommandTimeoutError) as caught:
            box.exec(["sh", "-c", "echo some; exec sleep 86397"], timeout=2)
        assert caught.value.sandbox == "library"
        return str(caught.value.stdout)

    # A busy guest may take longer to begin.
    assert eventually(lambda: said() == "some\n")
    assert eventually(lambda: "86397" not in box.exec(["ps"]).stdout)


def test_a_terminal(box: Sandbox) -> None:
    script = "tty; echo ready; while read x; do stty size; echo $x; done"
    with box.popen(["sh", "-c", script], terminal=True) as shell:
        assert shell.stdout.readline().startswith(b"/dev/pts/")
        assert shell.stdout.readline() == b"ready\r\n"
        shell.resize(7, 70)
        shell.write(b"typed\n")
        heard = [shell.stdout.readline() for _ in range(3)]
        assert heard == [b"typed\r\n", b"7 70\r\n", b"typed\r\n"]
        shell.write(b"\x03")  # the terminal makes a signal of it
        assert shell.wait() == 130


def test_many_threads(box: Sandbox) -> None:
    said: dict[int, str] = {}

    def run(number: int) -> None:
        said[number] = box.exec(["echo", str(number)]).stdout

    threads = [threading.Thread(target=run, args=[number]) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {number: f"{number}\n" for number in range(12)}


def test_files(box: Sandbox, tmp_path: Path) -> None:
    content = os.urandom(700_000)
    source = tmp_path / "source"
    source.write_bytes(content)
    source.chmod(0o750)
    box.files.put(source, "/tmp/it")
    assert box.exec(["stat", "-c", "%a %s", "/tmp/it"]).stdout == "750 700000\n"
    box.files.get("/tmp/it", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == content
    box.files.put(io.BytesIO(b"other"), "/tmp/it", mode=0o600)
    into = io.BytesIO()
    box.files.get("/tmp/it", into)
    assert into.getvalue() == b"other"
    with pytest.raises(tapwright.GuestFileError, match="/tmp in the guest: Is a directory"):
        box.files.read("/tmp")
    with pytest.raises(tapwright.GuestFileError, match="/proc/x in the guest"):
        box.files.write("/proc/x", "x")
    with pytest.raises(tapwright.UsageError, match="'it' is not an absolute path"):
        box.files.read("it")
    assert box.exec(["ls", "/tmp"]).stdout == "it\n"


def test_nics_and_routes(box: Sandbox) -> None:
    ip("tuntap add dev twlib mode tap")
    try:
        nic = box.nics.add("twlib", "lan0", addresses=["172.16.0.3/16"], mtu=1400)
        assert (nic.name, nic.mtu, nic.device) == ("lan0", 1400, "twlib")
        assert [str(address) for address in nic.addresses] == ["172.16.0.3/16"]
        assert {one.name for one in box.nics} == {"eth0", "lan0"}
        assert len(box.nics) == 2
        box.routes.add("10.200.0.0/16", via="172.16.0.1", device="lan0", metric=7)
        (route,) = [one for one in box.routes if str(one.destination) == "10.200.0.0/16"]
        assert (str(route.gateway), route.device, route.metric) == ("172.16.0.1", "lan0", 7)
        box.routes.remove("10.200.0.0/16")
        assert "10.200.0.0/16" not in [str(one.destination) for one in box.routes]
        assert str(nic.set_addresses(["172.16.0.4/16"]).addresses[0]) == "172.16.0.4/16"

        async def readdressed() -> str:
            nic = await AsyncSandbox(box.id, box.root).nics.get("lan0")
            assert repr(nic).startswith("AsyncNic(name='lan0', mac=")
            nic = await nic.set_addresses(["172.16.0.5/16"])
            return f"{nic.name} {nic.device} {nic.addresses[0]}"

        assert asyncio.run(readdressed()) == "lan0 twlib 172.16.0.5/16"
        with pytest.raises(tapwright.UsageError, match="the prefix is missing"):
            nic.set_addresses(["172.16.0.4"])
        with pytest.raises(KeyError):
            box.nics["lan7"]
        with pytest.raises(tapwright.UsageError) as caught:
            box.nics.add("twlib", "a name", addresses=[])
        assert caught.value.sandbox == "library"
        nic.remove()
        assert len(box.nics) == 1
    finally:
        ip("link delete twlib")


@asynccontextmanager
async def running(box: Sandbox, *argv: str) -> AsyncIterator[Any]:
    async with await AsyncSandbox(box.id, box.root).popen(argv, stdin=True) as process:
        yield process


def test_asyncio(box: Sandbox) -> None:
    async def story() -> None:
        other = await AsyncSandbox.find("lib", root=box.root)
        assert other.status == "running"
        assert [one.id for one in await AsyncSandbox.all(root=box.root)] == ["library"]
        done = await asyncio.gather(*(other.exec(["echo", str(n)]) for n in range(12)))
        assert [one.stdout for one in done] == [f"{n}\n" for n in range(12)]
        async with running(box, "sh", "-c", "while read x; do echo $x$x; done; exit 3") as process:
            for word in (b"a", b"b"):
                await process.write(word + b"\n")
                assert await process.stdout.readline() == word * 2 + b"\n"
            process.close_stdin()
            assert [line async for line in process.stdout] == []
            assert await process.wait() == 3
        await other.files.write("/tmp/a", "b")
        assert await other.files.read("/tmp/a") == b"b"
        assert [nic.name async for nic in other.nics] == ["eth0"]
        assert [route async for route in other.routes] == list(box.routes)
        running_long = asyncio.create_task(other.exec(["sleep", "86398"]))
        while "86398" not in (await other.exec(["ps"])).stdout:
            pass
        running_long.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running_long
        while "86398" in (await other.exec(["ps"])).stdout:
            pass

    asyncio.run(story())


def test_a_start_that_is_cancelled(
    wanted: dict[str, Any], tapwright: Tapwright, networks: Networks, held: Path
) -> None:
    config = tapwright.configuration(template=tapwright.templates, plugins=held)

    async def story() -> None:
        starting = asyncio.create_task(
            AsyncSandbox.run("cancelled", networks=["held"], config=config, root=tapwright.root)
        )
        assert await asyncio.to_thread(eventually, (held / "holding").exists)
        starting.cancel()
        (held / "go").touch()
        with pytest.raises(asyncio.CancelledError):
            await starting

    asyncio.run(story())
    assert Sandbox("cancelled", tapwright.root).status == "deleted"
    assert networks.leased("held") == []
