"""A Debian root filesystem of packages, made once and kept: nothing is pulled."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from tapwright.image import release

CACHE = Path("/var/cache/tapwright-tests")

# What the suite runs; then what takes minutes too.
USUAL = (
    *("acl", "apt-utils", "attr", "dpkg-dev", "git", "libcap2-bin", "make", "gcc", "libc6-dev"),
    *("procps", "python3", "python3-venv", "rsync"),
)
ALL = (
    *USUAL,
    *("curl", "default-jdk-headless", "nginx-light", "nodejs", "npm", "openssh-client"),
    *("openssh-server", "postgresql", "postgresql-contrib", "redis-server"),
)

# Users of the checks, and what a program may ask for when it runs.
_FILES = {
    "etc/hosts": "127.0.0.1 localhost\n",
    "etc/resolv.conf": "",
    "etc/hostname": "box\n",
}
_FORMAT = "$(REPO_URI) $(CODENAME) $(COMPONENT) $(ORIGIN)"


def ensure(packages: Sequence[str]) -> Path:
    """The root filesystem of these packages, and of what they need, in this host's release of
    Debian; half a minute to a minute when it is to be made. It is shared: a writer needs an
    overlay. Raises CalledProcessError with what mmdebstrap says.
    """
    sources = _sources()
    key = hashlib.sha256("\n".join([*packages, *sources, *_FILES.values()]).encode()).hexdigest()
    target = CACHE / key[:16]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _make(target, packages, sources)
    return target


def _make(target: Path, packages: Sequence[str], sources: Sequence[str]) -> None:
    unfinished = CACHE / "unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    command = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase"]
    # A mirror may be a snapshot, whose lists are older than they say that they may be.
    command.append('--aptopt=Acquire::Check-Valid-Until "false"')
    subprocess.run(
        [*command, f"--include={','.join(packages)}", release.host(), unfinished, *sources],
        check=True,
        # What tests listen to is not meant for services that are being installed.
        env=os.environ | {"LC_ALL": "C"},
    )
    for name, content in _FILES.items():
        path = unfinished / name
        path.unlink(missing_ok=True)
        path.write_text(content)
    unfinished.rename(target)


def _sources() -> list[str]:
    """The archives of Debian that this host's apt has, in sources.list(5)'s one-line format."""
    command = ["apt-get", "indextargets", "--format", _FORMAT, "Created-By: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = []
    for line in listed.splitlines():
        uri, codename, component, origin = line.split(" ", 3)
        if origin == "Debian":
            found.append(f"deb {uri} {codename} {component}")
    return found
