"""Words of a guest, or of a plugin, on root's terminal: it obeys none of them."""

import logging
from pathlib import Path

import pytest

from tapwright.cli import groups, output
from tapwright.errors import AgentError, printable, shown
from tapwright.oci.log import Log
from tapwright.supervisor import life
from tests.cni.fakes import Fakes, network

pytestmark = pytest.mark.unit

EVIL = "no\x1b[2J\x1b]0;title\x07\r\ntapwright: all is well\x9b31m\u202e\x00\ud800\x7f é"
SAID = r"no\x1b[2J\x1b]0;title\x07; tapwright: all is well\x9b31m\u202e\x00\ud800\x7f é"


def test_it_is_one_line_and_commands_nothing() -> None:
    assert shown(AgentError(EVIL)) == SAID
    assert printable("as it is; ä") == "as it is; ä"


def test_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    groups._complain(AgentError(EVIL), 1)
    assert capsys.readouterr().err == f"tapwright: {SAID}\n"


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_for_a_platform(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    log = Log(str(tmp_path / "log"), form)
    log.failed(EVIL)
    log.warn(EVIL)
    log.succeeded()
    assert capsys.readouterr().err == f"tapwright: {SAID}\n"
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)


def test_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_table(("A", "B"), [("\x1b[2J", "x")])
    assert capsys.readouterr().out == "A        B\n\\x1b[2J  x\n"


def test_a_log() -> None:
    formatter = life._Formatter("%(message)s")
    try:
        raise ValueError(EVIL)
    except ValueError as error:
        trace = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (EVIL,), trace)
    first, *others = formatter.format(record).split("\n")
    assert first == SAID
    assert len(others) > 2
    assert all(line.isprintable() for line in others)


def test_what_a_plugin_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fakes = Fakes(tmp_path)
    fakes.plugin("p", body="printf 'a\\033[2J\\tb\\n' >&2")
    fakes.runtime().status(network("p"))
    assert r"a\x1b[2J" in capsys.readouterr().err
