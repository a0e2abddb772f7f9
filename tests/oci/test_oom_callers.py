"""Where a container's caller reports a kill for want of memory."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tapwright.errors import ContainerStateError
from tapwright.oci import oom, reports, state
from tests.host import eventually

pytestmark = pytest.mark.unit


@contextmanager
def process(*argv: str) -> Iterator[int]:
    with subprocess.Popen(argv, executable="/bin/sh", stdin=subprocess.PIPE) as started:
        # Its words are there a moment after it is executed.
        assert eventually(lambda: state.command_of(started.pid)[0] == argv[0])
        yield started.pid
        started.kill()


SCRIPT = ("-c", "read -r line")


def test_conmon() -> None:
    with process("/usr/bin/conmon", *SCRIPT) as caller:
        assert oom.of_caller("c1", "/root", "/bundle", caller) == {"files": ["/bundle/oom"]}
    with process("/usr/bin/conmon", *SCRIPT, "x", "--persist-dir", "/kept") as caller:
        found = oom.of_caller("c1", "/root", "/bundle", caller)
    assert found == {"files": ["/bundle/oom", "/kept/oom"]}


def test_containerds_shim(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTRPC_ADDRESS", "/run/containerd/containerd.sock.ttrpc")
    with process("containerd-shim-runc-v2", *SCRIPT) as caller:
        assert oom.of_caller("c1", "/run/containerd/runc/k8s.io", "/bundle", caller) == {
            "containerd": {
                "address": "/run/containerd/containerd.sock.ttrpc",
                "namespace": "k8s.io",
                "container": "c1",
            }
        }


def test_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TTRPC_ADDRESS", raising=False)
    with process("sh", *SCRIPT) as caller:
        assert oom.of_caller("c1", "/root", "/bundle", caller) == {}


def test_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """One of type `oom` where there were more kills than before."""
    counts = iter([1, 1, 2, 2])

    def numbers(*_: str) -> dict[str, dict[str, dict[str, int]]]:
        try:
            return {"memory": {"events": {"oom_kill": next(counts)}}}
        except StopIteration:
            raise ContainerStateError("container not running") from None

    monkeypatch.setattr(reports, "_numbers", numbers)
    kinds = [event["type"] for event in reports.events("/root", "c1", 0)]
    assert kinds == ["stats", "stats", "oom", "stats", "stats"]
