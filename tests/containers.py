"""Containers of a running sandbox, as the process that holds one would have them."""

import json
import os
import re
import select
import socket
import tempfile
from collections.abc import Sequence
from typing import Any

import pytest

from tapwright.errors import ContainerStateError
from tapwright.sandbox import client
from tapwright.state import registry
from tapwright.state.registry import Sandbox
from tests.sandboxes import Tapwright

_SECONDS = 60

# A root filesystem in the guest: busybox, and who is who.
ROOT = "/tmp/root"
MAKE_ROOT = f"""
mkdir -p {ROOT} && mount -t tmpfs tmpfs {ROOT} && cd {ROOT}
mkdir -p bin proc sys dev etc run tmp work && cp /bin/busybox bin
for name in $(busybox --list); do [ $name = busybox ] || ln -s busybox bin/$name; done
echo root:x:0:0:root:/:/bin/sh > etc/passwd
"""
ENVIRONMENT = ["PATH=/bin"]
_DEFAULT_NAMESPACES = ("pid", "mount", "ipc", "uts", "cgroup")


def make_root(tapwright: Tapwright, sandbox: str) -> None:
    tapwright.exec(sandbox, "sh", "-c", MAKE_ROOT)


def process(*argv: str, **fields: Any) -> dict[str, Any]:
    """An OCI process object."""
    user = {"uid": 0, "gid": 0}
    return {"args": list(argv), "cwd": "/", "env": ENVIRONMENT, "user": user, **fields}


def configuration(
    of: dict[str, Any],
    namespaces: Sequence[dict[str, str]] | None = None,
    resources: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """A config.json for the guest."""
    if namespaces is None:
        namespaces = [{"type": kind} for kind in _DEFAULT_NAMESPACES]
    mounts = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["newinstance", "ptmxmode=0666", "mode=0620"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"},
    ]
    return {
        "ociVersion": "1.0.2",
        "root": {"path": ROOT},
        "hostname": "inside",
        "process": of,
        "mounts": mounts,
        "linux": {"namespaces": list(namespaces), "resources": resources or {}},
    }


class Connection:
    """A process of a container, on its connection to the supervisor."""

    def __init__(
        self, sandbox: Sandbox, op: str, descriptors: Sequence[int], **arguments: Any
    ) -> None:
        self._socket = client.of(sandbox).opened(op, descriptors, **arguments)
        self._socket.settimeout(_SECONDS)
        self._lines = self._socket.makefile("rb")

    def hear(self) -> Any:
        """What the supervisor says next; nothing at the end."""
        line = self._lines.readline()
        return json.loads(line) if line else None

    def has_news(self) -> bool:
        """Whether the supervisor has sent something that the test has not read."""
        return bool(select.select([self._socket], [], [], 0)[0])

    def say(self, **words: Any) -> None:
        self._socket.sendall(json.dumps(words).encode() + b"\n")

    def close(self) -> None:
        # The file holds the socket too.
        self._lines.close()
        self._socket.close()

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Pod:
    """A sandbox in which containers are run."""

    def __init__(self, tapwright: Tapwright, name: str) -> None:
        self.name = name
        self.tapwright = tapwright
        self.sandbox = registry.find(tapwright.root, name)
        self._number = 0
        make_root(tapwright, name)

    def call(self, op: str, **arguments: Any) -> Any:
        return client.of(self.sandbox).call(op, **arguments)

    def fresh_id(self) -> str:
        self._number += 1
        return f"c{self._number}"

    def create(
        self, config: dict[str, Any], descriptors: Sequence[int], name: str = "", **more: Any
    ) -> "Container":
        name = name or self.fresh_id()
        connection = Connection(
            self.sandbox, "create_container", descriptors, id=name, config=config, **more
        )
        return Container(self, name, connection)

    def run(self, *argv: str, stdin: bytes = b"", **more: Any) -> tuple[Any, bytes, bytes]:
        """Run a container to its end and delete it: (what was said of its end, stdout, stderr)."""
        return self.run_configured(configuration(process(*argv), **more), stdin)

    def run_configured(
        self, config: dict[str, Any], stdin: bytes = b""
    ) -> tuple[Any, bytes, bytes]:
        with Files(stdin) as files, self.create(config, files.descriptors) as container:
            container.started()
            outcome = container.connection.hear()
            return outcome, files.stdout(), files.stderr()

    def execute(
        self, name: str, of: dict[str, Any], stdin: bytes = b""
    ) -> tuple[Any, bytes, bytes]:
        with Files(stdin) as files, self.exec(name, of, files.descriptors) as connection:
            heard = connection.hear()
            if "started" in heard:
                heard = connection.hear()
            return heard, files.stdout(), files.stderr()

    def exec(
        self, name: str, of: dict[str, Any], descriptors: Sequence[int], **more: Any
    ) -> Connection:
        return Connection(
            self.sandbox, "exec_container", descriptors, id=name, exec="e", process=of, **more
        )


class Container:
    """One container, deleted at the end of the block."""

    def __init__(self, pod: Pod, name: str, connection: Connection) -> None:
        self.pod = pod
        self.id = name
        self.connection = connection

    def __enter__(self) -> "Container":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.call("delete_container", force=True)
        finally:
            self.connection.close()

    def call(self, op: str, **arguments: Any) -> Any:
        return self.pod.call(op, id=self.id, **arguments)

    def created(self) -> int:
        """Wait for it; its pid in the guest."""
        heard = self.connection.hear()
        assert "created" in heard, heard
        pid = heard["created"]["pid"]
        assert isinstance(pid, int)
        return pid

    def started(self) -> int:
        pid = self.created()
        self.call("start_container")
        return pid

    @property
    def status(self) -> str:
        """The status, unless it is paused: the guest names it when it refuses to resume."""
        with pytest.raises(ContainerStateError) as refused:
            self.call("resume_container")
        said = re.search(r" is (\w+), not paused$", str(refused.value))
        assert said, refused.value
        return said[1]


class Files:
    """stdin, stdout and stderr as regular files."""

    def __init__(self, stdin: bytes = b"") -> None:
        self._files = [tempfile.TemporaryFile() for _ in range(3)]  # noqa: SIM115
        self._files[0].write(stdin)
        self._files[0].seek(0)
        self.descriptors = [file.fileno() for file in self._files]

    def stdout(self) -> bytes:
        return self._content(1)

    def stderr(self) -> bytes:
        return self._content(2)

    def _content(self, number: int) -> bytes:
        size = os.fstat(self.descriptors[number]).st_size
        return os.pread(self.descriptors[number], size, 0)

    def __enter__(self) -> "Files":
        return self

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()


class Pipes:
    """stdin, stdout and stderr as pipes; the other process's ends are closed when it has them."""

    def __init__(self) -> None:
        stdin, self.stdin = os.pipe()
        self.stdout, stdout = os.pipe()
        self.stderr, stderr = os.pipe()
        self.descriptors = [stdin, stdout, stderr]
        self._open = {self.stdin, self.stdout, self.stderr}

    def handed_over(self) -> None:
        for fd in self.descriptors:
            os.close(fd)
        self.descriptors = []

    def close(self, fd: int) -> None:
        self._open.discard(fd)
        os.close(fd)

    def __enter__(self) -> "Pipes":
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (*self._open, *self.descriptors):
            os.close(fd)


def read_all(fd: int) -> bytes:
    with open(fd, "rb", closefd=False) as file:
        return file.read()


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.settimeout(_SECONDS)
    return ours, theirs
