"""What is in a platform's log while a call is under way, and when it has come to its end."""

import json
from pathlib import Path

import pytest

from tapwright.oci.log import Log

pytestmark = pytest.mark.unit


def said(path: Path) -> list[tuple[str, str]]:
    lines = map(json.loads, path.read_text().splitlines())
    return [(line["level"], line["msg"]) for line in lines]


def test_an_error_ahead_is_there_as_long_as_the_call_is(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text('{"level": "error", "msg": "of another"}\n')
    for end in (Log.succeeded, lambda log: Log.failed(log, "at last")):
        log = Log(str(path), "json")
        log.fails_unless("slow")
        log.fails_unless("slower")
        assert said(path) == [("error", "of another"), ("error", "slower")]
        end(log)
        assert said(path)[0] == ("error", "of another")
        assert said(path)[1:] in ([], [("error", "at last")])


def test_what_another_wrote_since_is_left_alone(tmp_path: Path) -> None:
    log = Log(str(tmp_path / "log"), "json")
    log.fails_unless("slow")
    with (tmp_path / "log").open("a") as file:
        file.write('{"level": "error", "msg": "of another"}\n')
    log.succeeded()
    assert said(tmp_path / "log") == [("error", "slow"), ("error", "of another")]
