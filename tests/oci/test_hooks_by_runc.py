"""Hooks of a container that can't be made or started, by runc and by Tapwright: which of them run,
and that nothing of the container is left."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.oci.bundles import Json, configuration
from tests.oci.runtime import Container, Runtime
from tests.oci.test_pod import member, pod

pytestmark = pytest.mark.usefixtures("nothing_left")

# Without poststart, which runc runs at `create`.
_KINDS = "prestart", "createRuntime", "createContainer", "startContainer", "poststop"


class Row(NamedTuple):
    """A hook of this kind comes second of its kind, and a third one after it."""

    kind: str
    hook: Json
    mounts: tuple[Json, ...] = ()


def _shell(script: str) -> Json:
    return {"path": "/bin/sh", "args": ["sh", "-c", script]}


_FAILS = _shell("echo out; echo err >&2; exit 3")
_NOWHERE = {"destination": "/x", "type": "bind", "source": "/nowhere", "options": ["bind"]}
ROWS = {
    **{f"{kind} fails": Row(kind, _FAILS) for kind in ("prestart", "createContainer")},
    "startContainer fails": Row("startContainer", _FAILS),
    "no such program": Row("createRuntime", {"path": "/nowhere"}),
    "a mount that can't be": Row("prestart", {"path": "/bin/true"}, (_NOWHERE,)),
}


@pytest.fixture(scope="module")
def sandbox(runtime: Runtime) -> Iterator[Container]:
    """All containers of this module are in its VM."""
    with pod(runtime) as found:
        yield found


def _told(command: list[str], bundle: Path, content: Json, name: str, row: Row) -> Any:
    """What came of a container by a runtime: the status, the hooks that ran, whether it is gone."""
    # Where the hooks write, by the same path on the host and in the container.
    record = bundle / "record"
    record.mkdir()
    record.chmod(0o777)
    place = {"destination": str(record), "type": "bind", "source": str(record)}
    content["mounts"] += [{**place, "options": ["bind"]}, *row.mounts]
    content["hooks"] = {kind: [_shell(f"echo {kind} >> {record}/ran")] for kind in _KINDS}
    content["hooks"][row.kind] += [row.hook, _shell(f"echo later >> {record}/ran")]
    (bundle / "config.json").write_text(json.dumps(content))
    words = [*command, "run", "--bundle", str(bundle), name]
    done = subprocess.run(words, capture_output=True, text=True, input="", check=False)
    left = subprocess.run([*command, "state", name], capture_output=True, check=False)
    subprocess.run([*command, "delete", "--force", name], check=True)
    ran = (record / "ran").read_text().split() if (record / "ran").exists() else []
    return done.returncode, ran, left.returncode


@pytest.mark.parametrize("name", ROWS)
def test_what_runs(runtime: Runtime, sandbox: Container, tmp_path: Path, name: str) -> None:
    row = ROWS[name]
    by_runc, by_us = (
        _told(command, runtime.bundle(content), content, f"twtest-{os.urandom(4).hex()}", row)
        for command, content in (
            (["runc", "--root", str(tmp_path / "runc")], configuration()),
            (runtime.tapwright.command(), member(sandbox)),
        )
    )
    if row.kind == "startContainer" and by_runc[0] == 255:
        by_runc = 1, *by_runc[1:]  # runc's before 1.3
    assert by_runc[0] == 1
    assert by_runc[1][-1] == "poststop"
    assert by_us == by_runc
