"""The runtime as a platform calls it, and bundles of busybox to run."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from tests.host import eventually
from tests.oci.bundles import Json, configuration, write
from tests.sandboxes import Tapwright

BUSYBOX = "/usr/bin/busybox"
_DIRECTORIES = ("bin", "dev", "etc", "proc", "sys", "tmp", "data")
_SECONDS = 60


class Runtime:
    """Calls of one root. This process is to be a child subreaper, as conmon is: the shims become
    its children."""

    def __init__(self, tapwright: Tapwright, directory: Path) -> None:
        self.tapwright = tapwright
        self.root = tapwright.root
        self.directory = directory
        self._rootfs = directory / "busybox"
        self._number = 0
        self.config: Path | None = None
        make_rootfs(self._rootfs)

    def call(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.tapwright.run(*words, config=self.config, **options)

    def succeed(self, *words: str, **options: Any) -> str:
        done = self.call(*words, **options)
        assert done.returncode == 0, f"{words}: {done.returncode} {done.stderr}"
        return str(done.stdout)

    def refused(self, *words: str) -> str:
        """Insist on failure; what was said."""
        done = self.call(*words)
        failed = 255 if words[0] == "exec" else 1
        assert done.returncode == failed, f"{words}: {done.returncode} {done.stdout}"
        return str(done.stderr).removeprefix("tapwright: ").removesuffix("\n")

    def bundle(self, content: Json) -> Path:
        """Write a bundle with a root filesystem of its own."""
        self._number += 1
        directory = self.directory / f"bundle-{self._number}"
        shutil.copytree(self._rootfs, directory / "rootfs", symlinks=True, copy_function=os.link)
        return write(directory, content)

    def fresh_id(self) -> str:
        self._number += 1
        return f"c{self._number}"

    @contextmanager
    def created(self, content: Json, *options: str, name: str = "") -> Iterator["Container"]:
        """A container, deleted by force at the end of the block."""
        name = name or self.fresh_id()
        container = Container(self, name, self.bundle(content))
        try:
            container.create(*options)
            yield container
        finally:
            self.call("delete", "--force", name)
            container.close()

    @contextmanager
    def running(self, *argv: str, name: str = "", **changes: Any) -> Iterator["Container"]:
        with self.created(configuration(*argv, **changes), name=name) as container:
            container.start()
            yield container

    @contextmanager
    def booting(self) -> Iterator[None]:
        """Without templates: one takes longer to make than a guest to boot."""
        self.config = self.tapwright.configuration()
        try:
            yield
        finally:
            self.config = None

    def run(self, *argv: str, stdin: str = "", **changes: Any) -> tuple[int, str]:
        """Run a container to its end: exit status, and what it printed."""
        bundle = self.bundle(configuration(*argv, **changes))
        done = self.call("run", "--bundle", str(bundle), self.fresh_id(), input=stdin)
        return done.returncode, f"{done.stdout}{done.stderr}"


class Container:
    """A container, whose stdio are files of its own."""

    def __init__(self, runtime: Runtime, name: str, bundle: Path) -> None:
        self.runtime = runtime
        self.id = name
        self.bundle = bundle
        self.pid = 0
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        self._pid_file = bundle / "pid"

    def create(self, *options: str) -> None:
        words = ("create", "--bundle", str(self.bundle), "--pid-file", str(self._pid_file))
        done = self.runtime.call(
            *(*words, *options, self.id),
            stdin=subprocess.DEVNULL,
            capture_output=False,
            stdout=self._output,
            stderr=self._output,
        )
        assert done.returncode == 0, self.output()
        self.pid = int(self._pid_file.read_text())

    def start(self) -> None:
        self.runtime.succeed("start", self.id)

    def exec(self, *argv: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.runtime.call("exec", self.id, *argv, **options)

    def says(self, *argv: str) -> str:
        """What a command in it prints, which is to succeed."""
        return self.runtime.succeed("exec", self.id, *argv)

    def wait(self) -> int:
        """The exit status of its shim, as its subreaper gets it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def output(self) -> str:
        return os.pread(self._output.fileno(), 1 << 20, 0).decode()

    def prints(self, text: str) -> bool:
        return eventually(lambda: text in self.output())

    @property
    def state(self) -> Any:
        return json.loads(self.runtime.succeed("state", self.id))

    def close(self) -> None:
        self._output.close()
        if self.pid:
            with suppress(ChildProcessError, ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)


def wait_for_shim(pid: int) -> None:
    """Until it catches signals, and reads: one in the instant before that waits for the next
    event."""

    def reads() -> bool:
        status = Path(f"/proc/{pid}/status").read_text()
        (caught,) = re.findall(r"SigCgt:\s*(\w+)", status)
        return bool(int(caught, 16) & 1 << signal.SIGPWR - 1) and "State:\tS" in status

    assert eventually(reads)


class Console:
    """The socket to which a runtime sends a terminal's master, as conmon's."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(self.path)
        self._socket.listen()
        self._socket.settimeout(_SECONDS)
        self.master = -1

    def receive(self) -> int:
        connection, _ = self._socket.accept()
        with connection:
            _, (self.master, *_), _, _ = socket.recv_fds(connection, 4096, 4)
        return self.master

    def read_until(self, text: str) -> str:
        """Raises OSError at the end."""
        found = b""
        while text.encode() not in found:
            found += os.read(self.master, 4096)
        return found.decode()

    def write(self, text: str) -> None:
        os.write(self.master, text.encode())

    def __enter__(self) -> "Console":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        if self.master >= 0:
            os.close(self.master)


def make_rootfs(directory: Path) -> None:
    for name in _DIRECTORIES:
        (directory / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, directory / "bin/busybox")
    listed = subprocess.run([BUSYBOX, "--list"], capture_output=True, text=True, check=True)
    for name in listed.stdout.split():
        if name != "busybox":
            (directory / "bin" / name).symlink_to("busybox")
    (directory / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
