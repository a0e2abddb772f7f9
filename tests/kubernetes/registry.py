"""A registry of images that the nodes of a cluster reach, and a podman that speaks with it."""

import json
import subprocess
import tempfile
from pathlib import Path

from tests.kubernetes.networks import WIRE
from tests.platforms import images

ADDRESS = f"{WIRE}.1:5000"
BASE = f"{ADDRESS}/base"
"""The image of all tests: busybox."""


class Registry:
    """Debian's docker-registry, at an address of the control plane."""

    def __init__(self, programs: Path, home: Path) -> None:
        self._home = home
        self.podman = executable(
            home / "podman",
            f"export CONTAINERS_REGISTRIES_CONF={home}/registries.conf",
            "exec /usr/bin/podman --storage-driver vfs --cgroup-manager cgroupfs "
            f"--events-backend file --root {home}/root --runroot {home}/runroot "
            f'--tmpdir {home}/tmp "$@"',
        )
        (home / "registries.conf").write_text(
            f'[[registry]]\nlocation="{ADDRESS}"\ninsecure=true\n'
        )
        settings = {
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": str(home / "images")}},
            "http": {"addr": ADDRESS},
        }
        (home / "registry.json").write_text(json.dumps(settings))
        with (home / "registry.log").open("w") as log:
            words = [str(programs / "docker-registry"), "serve", str(home / "registry.json")]
            self._process = subprocess.Popen(words, stdout=log, stderr=log)
        self._run("import", "--quiet", "--change", "CMD sh", str(images.rootfs(home)), BASE)
        self._run("push", "--quiet", BASE)

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait()

    def add(self, name: str, *lines: str) -> None:
        """The base with these lines of a Dockerfile."""
        whole = f"{ADDRESS}/{name}"
        with tempfile.TemporaryDirectory(dir=self._home) as context:
            text = "\n".join([f"FROM {BASE}", *lines])
            self._run("build", "--quiet", "--tag", whole, "--file", "-", context, input=text)
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
