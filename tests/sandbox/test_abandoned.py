"""What the supervisor does when a container ends whose monitor is gone."""

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.control import abandoned
from tapwright.control.abandoned import Abandoned
from tapwright.errors import UsageError
from tests.host import eventually

pytestmark = pytest.mark.unit


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        yield sleeper
        sleeper.kill()


monitor = process


async def goes_on(watcher: Abandoned) -> None:
    for _ in range(9):  # more than it takes to see what has happened
        await asyncio.sleep(0)
    assert watcher._watching


async def is_over(watcher: Abandoned) -> None:
    while watcher._watching:
        await asyncio.sleep(0)


def end(sleeper: subprocess.Popen[bytes]) -> None:
    sleeper.kill()
    sleeper.wait()


@pytest.mark.parametrize("is_dead", [True, False])
def test_a_process_ends(
    process: subprocess.Popen[bytes],
    monitor: subprocess.Popen[bytes],
    tmp_path: Path,
    is_dead: bool,
) -> None:
    done = tmp_path / "done"

    async def watch() -> None:
        watcher = Abandoned()
        async with watcher.watched():
            await watcher.watch(
                process.pid, monitor.pid, False, str(tmp_path), ["touch", str(done)]
            )
            if is_dead:
                end(monitor)
            await asyncio.sleep(0)
            assert not done.exists()
            end(process)
            await is_over(watcher)
        assert done.exists() == is_dead

    asyncio.run(watch())


def test_a_monitor_that_deletes_ends_after_the_process(
    process: subprocess.Popen[bytes], monitor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    done = tmp_path / "done"

    async def watch() -> None:
        async with (watcher := Abandoned()).watched():
            await watcher.watch(process.pid, monitor.pid, True, str(tmp_path), ["touch", str(done)])
            end(process)
            await goes_on(watcher)
            assert not done.exists()
            end(monitor)
            await is_over(watcher)

    asyncio.run(watch())
    assert done.exists()


def test_the_bundle_goes_while_the_process_runs(
    process: subprocess.Popen[bytes],
    monitor: subprocess.Popen[bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(abandoned, "_LOOK_SECONDS", 0)
    done, bundle = tmp_path / "done", tmp_path / "bundle"
    bundle.mkdir()

    async def watch() -> None:
        async with (watcher := Abandoned()).watched():
            await watcher.watch(process.pid, monitor.pid, True, str(bundle), ["touch", str(done)])
            end(monitor)
            await goes_on(watcher)
            bundle.rmdir()
            await is_over(watcher)

    asyncio.run(watch())
    assert done.exists()


def test_a_process_that_had_ended(
    process: subprocess.Popen[bytes], monitor: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    done = tmp_path / "done"
    end(process)
    end(monitor)

    async def watch() -> None:
        async with (watcher := Abandoned()).watched():
            await watcher.watch(
                process.pid, monitor.pid, False, str(tmp_path), ["touch", str(done)]
            )
            await is_over(watcher)

    asyncio.run(watch())
    assert done.exists()


@pytest.mark.parametrize("is_dead", [True, False])
def test_the_sandbox_ends(
    process: subprocess.Popen[bytes],
    monitor: subprocess.Popen[bytes],
    tmp_path: Path,
    is_dead: bool,
) -> None:
    """The command is not waited for: it may wait for the sandbox's end."""
    done = tmp_path / "done"

    async def watch() -> None:
        async with (watcher := Abandoned()).watched():
            script = f"while kill -0 {process.pid}; do sleep 0.01; done; touch {done}"
            await watcher.watch(
                process.pid, monitor.pid, False, str(tmp_path), ["sh", "-c", script]
            )
            if is_dead:
                end(monitor)
            await asyncio.sleep(0)

    asyncio.run(watch())
    assert not done.exists()
    end(process)
    if is_dead:
        assert eventually(done.exists)
    else:
        assert not done.exists()


def test_what_makes_no_sense_is_refused() -> None:
    watcher = Abandoned()
    for process, monitor, command in (
        ("1", 1, ["true"]),
        (1, None, ["true"]),
        (1, 1, "true"),
        (1, 1, [1]),
    ):
        with pytest.raises(UsageError):
            asyncio.run(watcher.watch(process, monitor, False, "/", command))
