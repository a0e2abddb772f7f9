"""Debian packages by name: which version, fetched, checked, unpacked."""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from tapwright.errors import ImageError

_KERNEL_META = "linux-image-amd64"
_URI_LINE = re.compile(r"'[^']+' (?P<file>\S+) (?P<size>\d+) SHA256:(?P<sha256>[0-9a-f]{64})")


class Package(NamedTuple):
    """One package file, as the archive's signed index describes it."""

    name: str
    version: str
    file: str
    sha256: str


def kernel_package() -> str:
    """The package that linux-image-amd64 stands for at present. Raises ImageError."""
    output = _run("apt-cache", "show", "--no-all-versions", _KERNEL_META)
    match = re.search(r"^Depends: (linux-image-\S+)", output, re.MULTILINE)
    if not match:
        raise ImageError(f"the package {_KERNEL_META} names no kernel")
    return match.group(1)


def resolve(names: list[str]) -> list[Package]:
    """Find the candidate of each package, without fetching it. Raises ImageError."""
    output = _run("apt-get", "download", "--print-uris", *names)
    packages = []
    for match in _URI_LINE.finditer(output):
        name, version, _ = unquote(match["file"]).removesuffix(".deb").rsplit("_", 2)
        packages.append(Package(name, version, match["file"], match["sha256"]))
    missing = set(names) - {package.name for package in packages}
    if missing:
        raise ImageError(f"no Debian package called {', '.join(sorted(missing))}")
    return sorted(packages)


def fetch(packages: list[Package], directory: Path) -> None:
    """Download into a directory those packages that are not there yet. Raises ImageError."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not _is_sound(directory / p.file, p)]
    if not missing:
        return
    words = [f"{package.name}={package.version}" for package in missing]
    _run("apt-get", "download", "-o", "APT::Sandbox::User=root", *words, cwd=directory)
    for package in missing:
        if not _is_sound(directory / package.file, package):
            raise ImageError(f"the download of {package.file} did not arrive whole; try again")


def unpack(package: Package, directory: Path, target: Path) -> None:
    """Unpack a fetched package into the tree at `target`. Raises ImageError."""
    target.mkdir(parents=True, exist_ok=True)
    _run("dpkg-deb", "--extract", str(directory / package.file), str(target))


def _is_sound(path: Path, package: Package) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _run(*command: str, cwd: Path | None = None) -> str:
    if shutil.which(command[0]) is None:
        raise ImageError(
            f"{command[0]} is missing: the image is built from Debian packages. Elsewhere set "
            "kernel and initrd in the configuration"
        )
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        hint = ". Has 'apt-get update' been run?" if command[0].startswith("apt-") else ""
        raise ImageError(f"{' '.join(command[:2])} failed: {reason[0]}{hint}")
    return done.stdout
