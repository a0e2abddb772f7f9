"""The runtime as platforms call it: a path to an executable, and no option of ours."""

import os
import shlex
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

from tests.sandboxes import COMMAND, Tapwright

_HANDED_ON = "PYTHONPATH", "COVERAGE_PROCESS_START"
_TELLING = "state", "exec"


def executable(path: Path, config: Path, root: Path) -> Path:
    """Makes one that is `tapwright` with a configuration and a root of its own.

    Platforms call a runtime with an environment of their own, some with none at all: so what is
    needed is set by an executable in front of it, as a system's owner may do in place of a file in
    /etc/tapwright.
    """
    settings = {"TAPWRIGHT_CONFIG": str(config), "TAPWRIGHT_ROOT": str(root)}
    settings |= {key: os.environ[key] for key in _HANDED_ON if key in os.environ}
    exports = [f"export {key}={shlex.quote(value)}\n" for key, value in settings.items()]
    path.write_text(f'#!/bin/sh\n{"".join(exports)}exec {COMMAND} "$@"\n')
    path.chmod(0o755)
    return path


class Runtime:
    """Executables for platforms, led to the tests' own configuration and root."""

    def __init__(self, tapwright: Tapwright, directory: Path) -> None:
        self._tapwright = tapwright
        self.session = directory.parent
        """The directory in which all that tests make is."""
        self.root = tapwright.root
        self.directories = [self.root, tapwright.cache]
        text = tapwright.config.read_text()
        followed = directory / "configuration.toml"
        followed.write_text(f"{text}[netmon]\nenable_netmon = true\n")
        self.path = executable(directory / "tapwright", followed, self.root)
        settings = {"disable_new_netns": True, "internetworking_model": "none"}
        in_host = tapwright.configuration(settings, template=tapwright.templates)
        self.in_host = executable(directory / "tapwright-host", in_host, self.root)
        """With sandboxes that have no network namespace."""

    def call(self, *words: str) -> str:
        """Run as a platform does, insist on success, return the stdout. What the container itself
        writes goes nowhere."""
        with tempfile.TemporaryFile("w+") as errors:
            done = subprocess.run(
                [self.path, *words],
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if words[0] in _TELLING else subprocess.DEVNULL,
                stderr=errors,
                text=True,
                timeout=60,
            )
            errors.seek(0)
            assert done.returncode == 0, f"{words}: {errors.read()}"
        return done.stdout or ""

    def run(self, *words: str) -> None:
        """The same, whatever comes of it."""
        with suppress(AssertionError):
            self.call(*words)

    def delete_all(self) -> None:
        """The sandboxes of podman's containers, whose root is that of the command itself."""
        self._tapwright.delete_all()
