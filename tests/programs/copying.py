"""What podman does with the files of a container while it runs."""

import subprocess
import tarfile
import time
from pathlib import Path

from tests.host import eventually
from tests.platforms.podman import Podman
from tests.programs.box import Done

# It writes, replaces and removes all the time.
_WORK = """\
mkdir /busy /kept
i=0
while :; do
    i=$((i + 1))
    for n in 0 1 2 3 4; do
        echo $i >/busy/new; mv /busy/new /busy/$n
        echo $i >>/busy/log
        rm -f /busy/gone; echo $i >/busy/gone
    done
    rm /busy/log
    : >/kept/ready
done
"""
_NAME = "busy"


def copied(podman: Podman, runtime: str, directory: Path) -> Done:
    """`cp` in and out, `diff`, `commit`, `export`; of an image called busybox. What a copy has of
    a file that is being written is up to chance, and not printed."""
    begun = time.monotonic()
    said: list[str] = []
    podman.output("run", "--detach", "--name", _NAME, "busybox", "sh", "-c", _WORK, runtime=runtime)
    try:
        assert eventually(lambda: _is_ready(podman, runtime))
        large = directory / "large"
        large.write_bytes(bytes(range(256)) * 20_000)
        large.chmod(0o4750)
        podman.output("cp", str(large), f"{_NAME}:/kept/large", runtime=runtime)
        words = "exec", _NAME, "sh", "-c", "sha256sum /kept/large; stat -c '%a %u %s' /kept/large"
        said.append(podman.output(*words, runtime=runtime))
        change = "mkdir /kept/d; echo made >/kept/d/made; ln -s made /kept/d/soft; rm /etc/group"
        podman.output("exec", _NAME, "sh", "-c", change, runtime=runtime)
        podman.output("cp", f"{_NAME}:/kept/d", str(directory), runtime=runtime)
        said += sorted(path.name for path in (directory / "d").iterdir())
        difference = podman.output("diff", _NAME, runtime=runtime).splitlines()
        said += sorted(line for line in difference if "/busy/" not in line and "/run" not in line)
        podman.output("commit", "--quiet", "--pause=false", _NAME, "copy", runtime=runtime)
        look = "cat /kept/d/soft; ls /kept; ls /etc"
        said.append(podman.output("run", "--rm", "copy", "sh", "-c", look, runtime=runtime))
        archive = directory / "exported"
        podman.output("export", "--output", str(archive), _NAME, runtime=runtime)
        with tarfile.open(archive) as file:
            names = sorted(name for name in file.getnames() if name.startswith("kept"))
        said += names
        status = 0
    except (AssertionError, OSError, tarfile.TarError, subprocess.SubprocessError) as error:
        said.append(f"{type(error).__name__}: {error}")
        status = 1
    finally:
        podman.run("rm", "--force", "--time", "0", _NAME, runtime=runtime)
        podman.run("rmi", "copy")
    return Done(status, "\n".join(said), time.monotonic() - begun)


def _is_ready(podman: Podman, runtime: str) -> bool:
    return podman.run("exec", _NAME, "test", "-e", "/kept/ready", runtime=runtime).returncode == 0
