"""Packages of a release, by its signed index: finds, fetches, checks and unpacks them.

`Index` is what apt knows: the lists of this host, or those of another release (`release`).
"""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from tapwright.errors import ImageError

# The package of the newest kernel on Debian, and on Ubuntu.
KERNEL_METAS = ("linux-image-amd64", "linux-image-virtual", "linux-image-generic")
# The archive's sections that have libraries; a component's are like "universe/libs".
_LIBRARY_SECTIONS = ("libs", "oldlibs", "python")
# Directories that are links to those in /usr (https://wiki.debian.org/UsrMerge).
_MERGED = ("bin", "lib", "lib64", "sbin")
_RECURSION = (
    *("--recurse", "--no-recommends", "--no-suggests", "--no-enhances"),
    *("--no-conflicts", "--no-breaks", "--no-replaces"),
)
_HINT = "Has 'apt-get update' been run?"


class Package(NamedTuple):
    """One package file, as the archive's signed index describes it."""

    name: str
    version: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Stanza:
    """The index's paragraph of `Packages` (deb-control(5)) about the candidate of one package.
    `depends` has the names of each dependency's alternatives."""

    package: Package
    section: str
    depends: tuple[tuple[str, ...], ...]


Known = dict[str, Stanza]
"""The stanzas of some packages, by their names."""


@dataclass(frozen=True)
class Index:
    """The package lists that apt uses. `options` are apt's, before its command."""

    options: tuple[str, ...] = ()

    def known(self, names: Iterable[str]) -> Known:
        """Return the candidates of packages, and of all that they depend on, as far as these exist.
        Raises ImageError without apt."""
        output = run("apt-cache", *self.options, "depends", *_RECURSION, *names, check=False)
        # A dependent package is at the beginning of a line; "<" marks a name without a package.
        found = sorted(set(re.findall(r"^[^\s<].*", output, re.MULTILINE)))
        if not found:
            return {}
        output = run(
            *("apt-cache", *self.options, "show", "--no-all-versions", *found), check=False
        )
        # apt knows no file of an installed package that is in no list.
        stanzas = [_stanza(text) for text in output.split("\n\n") if "\nSHA256: " in text]
        return {stanza.package.name: stanza for stanza in reversed(stanzas)}


HOST = Index()


def python_version(known: Known) -> str:
    """Return the version of the release's Python, such as "3.13". Raises ImageError."""
    for name in _dependencies(known, "python3-minimal"):
        if match := re.fullmatch(r"python(3\.\d+)-minimal", name):
            return match[1]
    raise ImageError(f"apt knows no python3-minimal that names a Python. {_HINT}")


def libraries(known: Known, names: Iterable[str]) -> list[Package]:
    """Return packages with all libraries that they depend on. Raises ImageError."""
    return _closure(
        known, names, lambda stanza: stanza.section.rpartition("/")[2] in _LIBRARY_SECTIONS
    )


def kernel(known: Known) -> list[Package]:
    """Return the packages of the release's newest kernel, without those that only install it on a
    host. The number of packages differs between releases. Raises ImageError."""
    for meta in KERNEL_METAS:
        names = [name for name in _dependencies(known, meta) if name.startswith("linux-image-")]
        if names:
            return _closure(known, names, lambda stanza: stanza.package.name.startswith("linux-"))
    raise ImageError(f"apt knows no kernel ({', '.join(KERNEL_METAS)}). {_HINT}")


def _closure(known: Known, names: Iterable[str], wanted: Callable[[Stanza], bool]) -> list[Package]:
    """Return packages and all that they depend on, as far as it is wanted, sorted by name.

    Of alternatives, the first that exists is taken. Dependencies of unwanted packages are not
    followed.
    """
    front = list(names)
    if missing := set(front) - known.keys():
        raise ImageError(f"apt knows no package called {', '.join(sorted(missing))}. {_HINT}")
    chosen = set(front)
    while front:
        for alternatives in known[front.pop()].depends:
            name = next((name for name in alternatives if name in known), None)
            if name and name not in chosen and wanted(known[name]):
                chosen.add(name)
                front.append(name)
    return sorted(known[name].package for name in chosen)


def fetch(index: Index, packages: list[Package], directory: Path) -> None:
    """Download into a directory those packages that are missing there. Raises ImageError."""
    directory.mkdir(parents=True, exist_ok=True)
    missing = [p for p in packages if not _is_sound(directory / p.file, p)]
    if not missing:
        return
    words = [f"{package.name}={package.version}" for package in missing]
    options = (*index.options, "-o", "APT::Sandbox::User=root")
    run("apt-get", *options, "download", *words, cwd=directory)
    for package in missing:
        if not _is_sound(directory / package.file, package):
            raise ImageError(f"the download of {package.file} did not arrive whole; try again")


def unpack(packages: list[Package], directory: Path, target: Path) -> None:
    """Unpack fetched packages into one new tree at `target`, with everything in /usr, wherever a
    release has it. Raises ImageError."""
    for name in _MERGED:
        (target / "usr" / name).mkdir(parents=True)
        (target / name).symlink_to(f"usr/{name}")
    for package in packages:
        file = directory / package.file
        with subprocess.Popen(("dpkg-deb", "--fsys-tarfile", file), stdout=subprocess.PIPE) as deb:
            # dpkg-deb --extract would replace a link by a directory.
            tar = ("tar", "--extract", "--keep-directory-symlink", "--no-same-owner")
            done = subprocess.run(
                (*tar, "--directory", target), stdin=deb.stdout, capture_output=True, text=True
            )
        if deb.returncode or done.returncode:
            raise ImageError(f"{file} can't be unpacked: {done.stderr.strip() or 'it is damaged'}")


def run(*command: str, cwd: Path | None = None, check: bool = True) -> str:
    """Return the output of one of apt's commands. Raises ImageError without apt, or when it
    fails."""
    if shutil.which(command[0]) is None:
        raise ImageError(
            f"{command[0]} is missing: the image is built from Debian packages. Elsewhere import "
            "one (tapwright image import), or set kernel and initrd in the configuration"
        )
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        reason = done.stderr.strip().splitlines()[-1:] or ["no reason given"]
        raise ImageError(f"{command[0]} failed: {reason[0]}. {_HINT}")
    return done.stdout


def _dependencies(known: Known, name: str) -> list[str]:
    depends = known[name].depends if name in known else ()
    return [name for alternatives in depends for name in alternatives]


def _stanza(text: str) -> Stanza:
    fields = dict(re.findall(r"^([^\s:]+): (.*)", text, re.MULTILINE))
    name, version, architecture = fields["Package"], fields["Version"], fields["Architecture"]
    # As `apt-get download` names it.
    file = f"{name}_{version.replace(':', '%3a')}_{architecture}.deb"
    depends = []
    for clause in ", ".join(
        fields[field] for field in ("Pre-Depends", "Depends") if field in fields
    ).split(","):
        # A name is followed by an architecture, a version, both or neither.
        names = (re.match(r"\s*([^\s:(]+)", word) for word in clause.split("|"))
        if alternatives := tuple(match[1] for match in names if match):
            depends.append(alternatives)
    return Stanza(
        Package(name, version, file, fields["SHA256"]), fields.get("Section", ""), tuple(depends)
    )


def _is_sound(path: Path, package: Package) -> bool:
    if not path.exists():
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256
