"""`sandbox explain` names a fault, and its remedy works: the telling ones of the catalogue, and all
of it where TAPWRIGHT_CATALOGUE is `all`. docs/diagnosis.md has what came of that."""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tapwright.linux import nftrace
from tests.diagnosis.catalogue import Fault, faults
from tests.diagnosis.stage import Stage, sh, staged
from tests.host import Host, eventually
from tests.sandboxes import Networks, Tapwright

ALL = os.environ.get("TAPWRIGHT_CATALOGUE") == "all"
TABLE = os.environ.get("TAPWRIGHT_CATALOGUE_TABLE", "")

QUESTIONS = (
    *("", "--to 198.51.100.2", "--to 198.51.100.2:80", "--to [fd97::2]:80", "--to web:80"),
    *("--to 198.51.100.2:7 --udp", "--to 10.96.0.200", "--from host", "--from host --to {own6}"),
)


class Scene:
    """The stage, set anew when a fault could not be mended."""

    def __init__(self, tapwright: Tapwright, networks: Networks) -> None:
        self._tapwright, self._networks = tapwright, networks
        self._open = ExitStack()
        self._stage: Stage | None = None

    @property
    def stage(self) -> Stage:
        if self._stage is None:
            self._stage = self._open.enter_context(staged(self._tapwright, self._networks))
        return self._stage

    def clear(self) -> None:
        self._stage = None
        self._open.close()


@pytest.fixture(scope="module")
def scene(tapwright: Tapwright, networks: Networks) -> Iterator[Scene]:
    made = Scene(tapwright, networks)
    yield made
    made.clear()


@pytest.mark.smoke
@pytest.mark.parametrize("question", QUESTIONS if ALL else (QUESTIONS[4], QUESTIONS[8]))
def test_nothing_is_said_of_what_is_well(scene: Scene, question: str) -> None:
    stage = scene.stage
    # A guest has two seconds to answer: on a busy machine it is asked again.
    assert eventually(lambda: stage.explain(question).arrives), stage.explain(question)


@pytest.mark.parametrize(
    "fault", [f for f in faults() if ALL or f.telling], ids=lambda fault: fault.name
)
def test_a_fault_is_named_and_mended(scene: Scene, fault: Fault) -> None:
    stage = scene.stage
    is_mended, answer, took = False, dict[str, Any](), 0.0
    try:
        stage.run(fault.make)

        def is_named() -> bool:
            nonlocal answer, took
            begun = time.monotonic()
            answer = stage.command(fault.question) if ALL else stage.told(fault.question)
            took = time.monotonic() - begun
            verdict = answer["verdict"]
            is_it = bool(verdict) and fault.hop == verdict["hop"]
            return is_it and stage.filled(fault.word) in verdict["why"]

        # As above; and the kernel itself takes note of some a moment later.
        assert eventually(is_named), answer
        assert not answer["arrives"], answer
        verdict = answer["verdict"]
        question = fault.question
        if fault.by_hand.startswith("ASK "):
            question = fault.by_hand.removeprefix("ASK ")
        elif fault.by_hand:
            stage.run(fault.by_hand)
        else:
            for command in verdict["remedy"]:
                stage.run(command)
        arrives = eventually(lambda: stage.explain(question).arrives)
        assert arrives, (verdict, stage.explain(question))
        stage.run(fault.back)
        is_mended = True
    finally:
        note(fault.name, answer, is_mended, took)
        if not is_mended:
            scene.clear()


def note(name: str, answer: dict[str, Any], is_mended: bool, took: float) -> None:
    """A row of the table in docs/diagnosis.md."""
    if TABLE:
        verdict = answer.get("verdict")
        said = f"{verdict['hop']}: {verdict['why']}" if verdict else "nothing"
        with Path(TABLE).open("a") as file:
            file.write(f"| {name} | {said} | {'yes' if is_mended else 'no'} | {took:.1f} s |\n")


def test_the_status_of_the_command_says_whether_it_arrives(scene: Scene) -> None:
    stage = scene.stage
    assert eventually(lambda: stage.command("--to 198.51.100.2:80")["arrives"])

    def is_refused() -> bool:
        verdict = stage.command("--to 198.51.100.2:81")["verdict"]
        return bool(verdict) and verdict["hop"] == "target"

    assert eventually(is_refused)
    done = stage.tapwright.run("sandbox", "explain", stage.words["id"], "--to", "x:y")
    assert done.returncode == 2
    assert "a port is a number" in done.stderr


def test_nothing_is_changed(scene: Scene, host: Host) -> None:
    """Neither by an answer nor by a process that is killed in the middle of one."""
    stage = scene.stage
    before = host.snapshot()
    assert eventually(lambda: stage.explain("--to 198.51.100.2").arrives)
    child = os.fork()
    if not child:
        with nftrace.Trace(4, [("", "198.51.100.2")]):
            os.kill(os.getpid(), 9)
    os.waitpid(child, 0)
    sh("nft list tables > /dev/null")
    host.assert_same(before)


def test_one_that_is_killed_leaves_nothing(scene: Scene) -> None:
    """Neither on the host nor in the guest, where a process waited for it."""
    stage = scene.stage
    words = "sandbox", "explain", stage.words["id"], "--to", "198.51.100.99"
    process = subprocess.Popen(stage.tapwright.command(*words), stdout=subprocess.DEVNULL)
    try:
        assert eventually(lambda: "tapwright-trace" in _tables())
    finally:
        process.kill()
        process.wait()
    assert eventually(lambda: "tapwright-trace" not in _tables())
    alone = "test $(cat /proc/$PPID/task/$PPID/children | wc -w) = 1"
    command = "sandbox", "exec", stage.words["id"], "--", "sh", "-c", alone
    assert eventually(lambda: stage.tapwright.run(*command).returncode == 0)


def _tables() -> str:
    command = ["nft", "list", "tables"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
