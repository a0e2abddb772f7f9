"""Commands that are forked do as commands that are started."""

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import netns
from tests import forked
from tests.host import eventually
from tests.sandboxes import COMMAND

LISTENING = [COMMAND, "metrics", "--listen", "127.0.0.1:0"]


@pytest.fixture(autouse=True)
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[forked.Server]:
    """One that has what this process has now, whatever other files' tests have left."""
    with forked.Server() as server:
        monkeypatch.setattr(forked, "server", lambda: server)
        yield server


def is_forked(*words: str) -> bool:
    """Whether a command is, the first of its kind not counted."""
    for _ in range(2):
        stdio: list[forked.File] = [subprocess.DEVNULL] * 3
        started = forked.server().start([COMMAND, *words], stdio, "/", dict(os.environ))
        if started:
            started.communicate(None, 60)
    return started is not None


@pytest.mark.parametrize(
    "words", [("--version",), ("sandbox",), ("state", "nobody"), ("kata-network", "x", "-")]
)
def test_the_same_comes_out(tmp_path: Path, words: tuple[str, ...]) -> None:
    command = [COMMAND, "--root", str(tmp_path), *words] if len(words) > 1 else [COMMAND, *words]
    options: dict[str, Any] = {"capture_output": True, "text": True, "input": "{", "timeout": 60}
    done = [call(command, **options) for call in (forked.run, forked.run, subprocess.run)]
    assert is_forked(*words)
    assert done[1].stdout + done[1].stderr
    for key in ("returncode", "stdout", "stderr"):
        assert len({getattr(one, key) for one in done}) == 1, done


def test_files_are_the_callers(tmp_path: Path) -> None:
    with open(tmp_path / "both", "w+") as file:
        for words in (["sandbox"], ["--version"]) * 2:
            done = forked.run([COMMAND, *words], stdout=file, stderr=subprocess.STDOUT)
            assert (done.stdout, done.stderr) == (None, None)
        file.seek(0)
        lines = file.read().splitlines()
    assert len(lines) > 2
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]


@contextmanager
def few_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] - 1, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@contextmanager
def masked() -> Iterator[None]:
    before = os.umask(0o077)
    yield
    os.umask(before)


def test_what_it_would_inherit_is_the_threads(scratch_netns: str) -> None:
    assert is_forked("--version")
    for changed in (netns.entered(scratch_netns), few_files(), masked()):
        with changed:
            assert not is_forked("--version")
    assert is_forked("--version")


def test_one_that_takes_too_long(server: forked.Server) -> None:
    for _ in range(2):
        with pytest.raises(subprocess.TimeoutExpired):
            forked.run(LISTENING, timeout=0.3, capture_output=True)
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children")
    assert eventually(lambda: not children.read_text())
