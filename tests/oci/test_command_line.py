"""The verbs' options as platforms pass them, and how the verbs report failures."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tapwright.cli.oci_options import VERBS, read, verb_of
from tapwright.errors import UsageError
from tapwright.oci import limits, signals
from tests.sandboxes import COMMAND

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("line", "given", "operands"),
    [
        # conmon, containerd's shim, podman, and by hand
        ("create --bundle /b --pid-file /p ID", {"bundle": "/b", "pid-file": "/p"}, ["ID"]),
        ("create --bundle=/b --no-pivot ID", {"bundle": "/b", "no-pivot": "true"}, ["ID"]),
        ("kill --all ID 9", {"all": "true"}, ["ID", "9"]),
        ("kill ID TERM", {}, ["ID", "TERM"]),
        ("update --resources=/f ID", {"resources": "/f"}, ["ID"]),
        ("update --resources=- ID", {"resources": "-"}, ["ID"]),
        ("delete -f ID", {"force": "true"}, ["ID"]),
        ("delete ID --force", {"force": "true"}, ["ID"]),
        ("run -no-subreaper -b . ID", {"no-subreaper": "true", "bundle": "."}, ["ID"]),
        ("exec -t -e A=b ID sh -c true", {"tty": "true", "env": "A=b"}, ["ID", "sh", "-c", "true"]),
        ("exec ID -- ls -l", {}, ["ID", "ls", "-l"]),
        ("exec --process /p --detach ID", {"process": "/p", "detach": "true"}, ["ID"]),
        ("ps --format json ID", {"format": "json"}, ["ID"]),
    ],
)
def test_options(line: str, given: dict[str, str], operands: list[str]) -> None:
    _, verb, options = read(line.split())
    assert verb == line.split()[0]
    assert {name: options.text(name) for name in options.given()} == given
    assert options.operands == operands


def test_global_options() -> None:
    line = "--root /r --log /l --log-format=json --systemd-cgroup --config /c state ID"
    before, verb, _ = read(line.split())
    names = ("root", "log", "log-format", "config")
    assert [before.text(name) for name in names] == ["/r", "/l", "json", "/c"]
    assert before.flag("systemd-cgroup")
    assert verb == "state"


def test_whose_verb_it_is() -> None:
    assert verb_of(["--root", "list", "state", "x"]) == "state"
    assert verb_of(["--debug", "kill", "x"]) == "kill"
    assert verb_of(["--unknown", "run"]) == "run"
    for line in (
        "sandbox list",
        "--config list cni list",
        "--version",
        "--help run",
        "",
        "frob",
        "--unknown frob",
    ):
        assert verb_of(line.split()) == ""


@pytest.mark.parametrize(
    "line",
    ["create", "create a b", "kill ID 1 2", "create --frob ID", "list x", "--frob create ID"],
)
def test_wrong_usage(line: str) -> None:
    with pytest.raises(UsageError):
        read(line.split())


@pytest.mark.parametrize("verb", VERBS)
def test_help(verb: str) -> None:
    done = subprocess.run([COMMAND, verb, "--help"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"usage: tapwright [GLOBAL OPTION ...] {verb}")
    for option in VERBS[verb].options:
        assert f"--{option.name}" in done.stdout


@pytest.mark.parametrize("option", ["-v", "--version"])
def test_version_as_engines_read_it(option: str) -> None:
    done = subprocess.run([COMMAND, option], capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert first.startswith("tapwright version 0.")
    assert second == "spec: 1.2.0"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0", 0),
        ("9", 9),
        ("TERM", 15),
        ("SIGKILL", 9),
        ("sigusr1", 10),
        ("RTMIN+3", 37),
        ("RTMAX-1", 63),
    ],
)
def test_signals(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize("text", ["65", "FOO", "TERM+1", "RTMIN+x", "-9", ""])
def test_what_is_no_signal(text: str) -> None:
    with pytest.raises(UsageError):
        signals.number(text)


def test_limits() -> None:
    given = {"memory": "64M", "cpu-quota": "-1", "pids-limit": "7", "kernel-memory": "5"}
    assert limits.of_options(given) == {
        "memory": {"limit": 64 << 20},
        "cpu": {"quota": -1},
        "pids": {"limit": 7},
    }
    for text, size in (("1.5g", 3 << 29), ("64 MiB", 64 << 20), ("7b", 7), ("0.5", 0)):
        assert limits.of_options({"memory": text}) == {"memory": {"limit": size}}
    for name, text in (("pids-limit", "1.5"), ("pids-limit", "1k"), ("memory", "1x")):
        with pytest.raises(UsageError, match="is not a number"):
            limits.of_options({name: text})
    assert [limits.seconds(text) for text in ("5s", "100ms", "2m", "3")] == [5, 0.1, 120, 3]
    with pytest.raises(UsageError, match="--blkio-weight can't be set"):
        limits.of_options({"blkio-weight": "10"})
    assert limits.of_options({"cpuset-cpus": "0-2,4"}) == {"cpu": {"cpus": "0-2,4"}}
    with pytest.raises(UsageError, match="--cpuset-mems: '0-' is not a list of numbers"):
        limits.of_options({"cpuset-mems": "0-"})


def run(root: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [COMMAND, "--root", str(root), "--log", str(root / "log"), "--log-format", "json"]
    return subprocess.run(
        [*command, *words], stderr=subprocess.PIPE, text=True, check=False, **options
    )


def logged(root: Path) -> list[Any]:
    return [json.loads(line) for line in (root / "log").read_text().splitlines()]


@pytest.mark.parametrize(
    "words", [("state", "x"), ("start", "x"), ("kill", "x", "9"), ("delete", "x"), ("pause", "x")]
)
def test_what_is_not_there(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = run(tmp_path, *words)
    assert done.returncode == 1
    assert done.stderr == "tapwright: container does not exist\n"
    (line,) = logged(tmp_path)
    assert (line["level"], line["msg"]) == ("error", "container does not exist")
    assert line["time"].endswith("Z")


def test_delete_by_force_of_what_is_not_there(tmp_path: Path) -> None:
    assert run(tmp_path, "delete", "--force", "x").returncode == 0
    assert not (tmp_path / "log").exists()


def test_without_environment_and_descriptors(tmp_path: Path) -> None:
    """As podman calls kill and delete, and containerd for a pod."""
    script = f'exec "$0" "$@" <&- >&- 2>{tmp_path}/err'
    for words in (("delete", "--force", "x"), ("kill", "x", "9")):
        done = subprocess.run(
            ["/bin/sh", "-c", script, COMMAND, "--root", str(tmp_path), *words],
            env={key: os.environ[key] for key in os.environ if key == "PYTHONPATH"},
            check=False,
        )
        assert done.returncode == (0 if words[0] == "delete" else 1)
    with open(tmp_path / "read-only", "w+") as file, open(file.name) as stdout:
        assert run(tmp_path, "delete", "--force", "x", stdout=stdout).returncode == 0


def test_an_error_in_a_bundle(tmp_path: Path) -> None:
    done = run(tmp_path, "create", "--bundle", str(tmp_path), "x")
    assert done.returncode == 1
    assert "config.json can't be read: No such file or directory" in logged(tmp_path)[0]["msg"]
    assert not (tmp_path / "containers").exists()
