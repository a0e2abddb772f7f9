"""Interfaces that come after `create`, as from docker 26 on: it makes the container with an empty
namespace, then fills that, and only then starts it."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.platforms.conftest import unchanged
from tests.platforms.images import PAGE, SERVE
from tests.platforms.runtime import Runtime

NAME = "late"
CAPABILITY_SETS = "bounding", "effective", "permitted"
NAMESPACES = "pid", "network", "ipc", "uts", "mount"


@pytest.fixture
def bundle(rootfs: Path, tmp_path: Path) -> Path:
    """A container of the least that the specification asks for."""
    (tmp_path / "rootfs").mkdir()
    subprocess.run(["tar", "-x", "-f", rootfs, "-C", tmp_path / "rootfs"], check=True)
    process = {
        "args": SERVE,
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "capabilities": {kind: ["CAP_NET_BIND_SERVICE"] for kind in CAPABILITY_SETS},
    }
    config = {
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture
def pid(runtime: Runtime, bundle: Path) -> Iterator[int]:
    """That of a container that is created and has no network."""
    with unchanged(bundle, runtime, lambda: runtime.run("delete", "--force", NAME)):
        runtime.call("create", "--bundle", str(bundle), "--pid-file", f"{bundle}/pid", NAME)
        yield int((bundle / "pid").read_text())
        runtime.call("delete", "--force", NAME)


def ip(words: str) -> None:
    subprocess.run(["ip", *words.split()], check=True)


def add_interface(pid: int, number: int) -> str:
    """As an engine does it, from outside; the address."""
    subnet = f"10.96.{number}"
    ip(f"link add late{number} type veth peer name made{number} netns {pid}")
    ip(f"address add {subnet}.1/24 dev late{number}")
    ip(f"link set late{number} up")
    inside = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip"]
    for words in (
        f"link set made{number} name eth{number}",
        f"address add {subnet}.2/24 dev eth{number}",
        f"link set eth{number} up",
    ):
        subprocess.run([*inside, *words.split()], check=True)
    return f"{subnet}.2"


def fetched(address: str) -> bool:
    words = ["curl", "-sS", "--max-time", "3", f"http://{address}/"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout == PAGE


def test_before_and_after_start(runtime: Runtime, pid: int) -> None:
    before = add_interface(pid, 0)
    runtime.call("start", NAME)
    state: Any = json.loads(runtime.call("state", NAME))
    assert (state["status"], state["pid"]) == ("running", pid)
    # The server may take a moment to listen; the interface is there already.
    assert eventually(lambda: fetched(before))
    shown = runtime.call("exec", NAME, "ip", "-o", "-4", "address")
    assert f"inet {before}/24" in shown

    after = add_interface(pid, 1)
    assert eventually(lambda: fetched(after))
