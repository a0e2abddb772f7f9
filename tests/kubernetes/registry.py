"""A registry of images that the nodes of a cluster reach, and a podman that speaks with it."""

import json
import shlex
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.kubernetes.networks import WIRE
from tests.platforms import images

ADDRESS = f"{WIRE}.1:5000"


class Registry:
    """Debian's docker-registry, at an address of the control plane, or at another one of a network
    namespace that is entered by the command `within`."""

    def __init__(
        self, programs: Path, home: Path, address: str = ADDRESS, within: Sequence[str] = ()
    ) -> None:
        self._home = home
        self.address = address
        self.base = f"{address}/base"
        """The image of all tests: busybox."""
        self.podman = executable(
            home / "podman",
            f"export CONTAINERS_REGISTRIES_CONF={home}/registries.conf",
            f"exec {shlex.join(within)} /usr/bin/podman "
            "--storage-driver vfs --cgroup-manager cgroupfs "
            f"--events-backend file --root {home}/root --runroot {home}/runroot "
            f'--tmpdir {home}/tmp "$@"',
        )
        (home / "registries.conf").write_text(
            f'[[registry]]\nlocation="{address}"\ninsecure=true\n'
        )
        settings = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(home / "images")}},
            "http": {"addr": address},
        }
        (home / "registry.json").write_text(json.dumps(settings))
        with (home / "registry.log").open("w") as log:
            words = [str(programs / "docker-registry"), "serve", str(home / "registry.json")]
            self._process = subprocess.Popen([*within, *words], stdout=log, stderr=log)
        self._run("import", "--quiet", "--change", "CMD sh", str(images.rootfs(home)), self.base)
        self._run("push", "--quiet", self.base)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def add(self, name: str, *lines: str, files: Path | None = None) -> None:
        """The base with these lines of a Dockerfile, whose files are in the directory `files`."""
        whole = f"{self.address}/{name}"
        with ExitStack() as stack:
            context = files or stack.enter_context(tempfile.TemporaryDirectory(dir=self._home))
            text = "\n".join([f"FROM {self.base}", *lines])
            self._run("build", "--quiet", "--tag", whole, "--file", "-", str(context), input=text)
        self._run("push", "--quiet", whole)

    def _run(self, *words: str, input: str = "") -> None:  # noqa: A002 - as subprocess calls it
        done = subprocess.run(
            [self.podman, *words], check=False, capture_output=True, text=True, input=input
        )
        assert done.returncode == 0, f"podman {words}: {done.stdout}{done.stderr}"


def executable(path: Path, *lines: str) -> Path:
    """A script of these lines."""
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return path
