"""One container of a Debian root filesystem, by any runtime of runc's command line."""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.oci import bundles

CHECKS = Path(__file__).with_name("checks")
SCRIPTS = Path(__file__).with_name("scripts")
MEMORY_MIB = 1024 - 112
"""With which the VM is one of 1 GiB (oci/size.py)."""

_CAPABILITIES = [
    *bundles.CAPABILITIES,
    *(
        f"CAP_{name}"
        for name in (
            *("AUDIT_WRITE", "DAC_READ_SEARCH", "FSETID", "IPC_LOCK", "LEASE", "LINUX_IMMUTABLE"),
            *("SETFCAP", "SETPCAP", "SYS_ADMIN", "SYS_NICE", "SYS_PTRACE"),
        )
    ),
]
_ENVIRONMENT = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    *("HOME=/root", "LC_ALL=C.UTF-8", "TZ=UTC", "TERM=dumb", "PYTHONPATH=/opt"),
    "DEBIAN_FRONTEND=noninteractive",
]
_START_SECONDS = 300


class Done(NamedTuple):
    """How a program ended, what it printed on stdout and stderr, how long it took. The status is
    None when it did not end in time."""

    status: int | None
    output: str
    seconds: float


class Box:
    """A container that waits, and in which programs are run."""

    def __init__(self, runtime: Sequence[str], name: str) -> None:
        """`runtime` is the command with its global options."""
        self._runtime = list(runtime)
        self.id = name

    def run(self, *command: str, cwd: str = "/root", seconds: float = 600) -> Done:
        """A program that does not end within the time is killed with all that is in the container,
        which is of no use afterwards."""
        words = [*self._runtime, "exec", "--cwd", cwd, self.id, *command]
        begun = time.monotonic()
        with subprocess.Popen(
            words,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="backslashreplace",
        ) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                self.delete()
                process.kill()
                output, _ = process.communicate()
                return Done(None, output, time.monotonic() - begun)
        return Done(process.returncode, output, time.monotonic() - begun)

    def script(self, name: str, seconds: float = 600) -> Done:
        """One of the scripts beside this module, in an empty directory of its own."""
        words = f"mkdir -p /root/{name} && cd /root/{name} && exec sh -eu /opt/scripts/{name}.sh"
        return self.run("sh", "-c", words, seconds=seconds)

    def delete(self) -> None:
        subprocess.run(
            [*self._runtime, "delete", "--force", self.id], check=False, capture_output=True
        )


@contextmanager
def running(runtime: Sequence[str], root: Path, directory: Path) -> Iterator[Box]:
    """A container on a copy of this root filesystem (an overlay, as platforms make them), with a
    directory of the host as /volume; one at a time for each runtime. `directory` is made, and is
    gone afterwards."""
    upper, work, volume, bundle = (directory / each for each in ("upper", "work", "v", "bundle"))
    for path in (upper, work, volume, bundle):
        path.mkdir(parents=True)
        path.chmod(0o755)
    bundles.write(bundle, _configuration(volume))
    options = f"lowerdir={root},upperdir={upper},workdir={work}"
    subprocess.run(
        ["mount", "-t", "overlay", "overlay", "-o", options, bundle / "rootfs"], check=True
    )
    # Network namespaces and cgroups have names that all processes of the machine share.
    name = f"twtest-box-{os.urandom(4).hex()}"
    box = Box(runtime, name)
    try:
        subprocess.run(
            [*runtime, "run", "--detach", "--bundle", bundle, name],
            check=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            timeout=_START_SECONDS,
        )
        yield box
    finally:
        box.delete()
        subprocess.run(["umount", bundle / "rootfs"], check=True)
        shutil.rmtree(directory)


def _configuration(volume: Path) -> bundles.Json:
    def bound(source: Path, destination: str, *options: str) -> bundles.Json:
        return {
            "destination": destination,
            "type": "bind",
            "source": str(source),
            "options": ["rbind", *options],
        }

    mounts: list[Any] = [
        {"destination": "/dev/shm", "type": "tmpfs", "options": ["mode=1777", "size=64m"]},
        {"destination": "/run", "type": "tmpfs", "options": ["mode=755"]},
        bound(volume, "/volume"),
        bound(CHECKS, "/opt/tests/programs/checks", "ro"),
        bound(SCRIPTS, "/opt/scripts", "ro"),
    ]
    process = {
        "env": _ENVIRONMENT,
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), _CAPABILITIES),
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}],
    }
    limit = {"resources": {"memory": {"limit": MEMORY_MIB << 20}}}
    return bundles.configuration("sleep", "infinity", process=process, mounts=mounts, linux=limit)


class Found(NamedTuple):
    """What a check returned (checks/frame.py), and how long it took."""

    outcome: dict[str, Any]
    seconds: float


def checks(
    box: Box, where: str, *names: str, seconds: float = 600, **environment: str
) -> dict[str, Found]:
    """What the checks find in this directory of the container, by their names."""
    settings = [f"{key}={value}" for key, value in environment.items()]
    command = ["env", *settings, "python3", "-m", "tests.programs.checks", where, *names]
    done = box.run(*command, seconds=seconds)
    found = {}
    for line in done.output.splitlines():
        if not line.startswith("{"):
            raise AssertionError(done.output)
        said = json.loads(line)
        found[said["check"]] = Found(said["outcome"], said["seconds"])
    assert done.status == 0, (done.status, list(found)[-1:])
    return found


def runc(root: Path) -> list[str]:
    """The command, with its state in a directory of its own."""
    return ["runc", "--root", os.fspath(root)]
