"""Names this distribution and its packages (os-release(5)).

For Debian and Ubuntu a package's name is known to be right for the release. For others it is the
usual name, and a person has to look for it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

FILES = ("/etc/os-release", "/usr/lib/os-release")

_DEB, _RPM, _SUSE, _ALPINE, _ARCH = "debian", "fedora", "suse", "alpine", "arch"
_FAMILIES = {
    "debian": _DEB,
    "ubuntu": _DEB,
    "fedora": _RPM,
    "rhel": _RPM,
    "centos": _RPM,
    "openEuler": _RPM,
    "suse": _SUSE,
    "opensuse": _SUSE,
    "opensuse-leap": _SUSE,
    "opensuse-tumbleweed": _SUSE,
    "alpine": _ALPINE,
    "arch": _ARCH,
}
_OLD = {"debian": 13, "ubuntu": 24.04}
"""The first release with a package for virtiofsd; before, QEMU 7.2 and older had it."""

_PACKAGES = {
    "qemu": {
        _DEB: "qemu-system-x86",
        _RPM: "qemu-system-x86-core",
        _SUSE: "qemu-x86",
        _ALPINE: "qemu-system-x86_64",
        _ARCH: "qemu-system-x86",
    },
    "firmware": {
        _DEB: "seabios",
        _RPM: "seabios-bin",
        _SUSE: "qemu-seabios",
        _ALPINE: "seabios",
        _ARCH: "seabios",
    },
    "virtiofsd": {},
    "plugins": {
        _DEB: "containernetworking-plugins",
        _RPM: "containernetworking-plugins",
        _SUSE: "cni-plugins",
        _ALPINE: "cni-plugins",
        _ARCH: "cni-plugins",
    },
    "nftables": {},
    "zstd": {},
}
"""The package for each wanted thing, by family; a family that is not named uses the thing's own
name."""


@dataclass(frozen=True)
class Distribution:
    """`name` is for people. `identifier` is ID of os-release, `family` the one of _FAMILIES that it
    belongs to (empty for none), `version` VERSION_ID, 0 for a release to come."""

    name: str
    identifier: str
    family: str
    version: float

    def package(self, wanted: str) -> str:
        """Return the package that has one of _PACKAGES."""
        if wanted == "virtiofsd" and 0 < self.version < _OLD.get(self.identifier, 0):
            return "qemu-system-common"
        return _PACKAGES[wanted].get(self.family, wanted)

    def installing(self, wanted: str, what: str) -> str:
        """Return what to do to get `what`: a command, if one is known to work."""
        package = self.package(wanted)
        if self.family == _DEB:
            return f"run: apt install {package}"
        if self.family:
            return f"install {what} (on {self.name} usually in the package {package})"
        return f"install {what}"


def this(files: Sequence[str] = FILES) -> Distribution:
    """Return the distribution that runs here, by the first of the files that exists."""
    fields = dict(_fields(files))
    identifier = fields.get("ID", "")
    likes = [identifier, *fields.get("ID_LIKE", "").split()]
    family = next((_FAMILIES[like] for like in likes if like in _FAMILIES), "")
    try:
        version = float(fields.get("VERSION_ID", "0"))
    except ValueError:  # a version of three numbers, for example
        version = 0.0
    return Distribution(fields.get("NAME", "this system"), identifier, family, version)


def _fields(files: Sequence[str]) -> Iterator[tuple[str, str]]:
    for file in files:
        try:
            lines = Path(file).read_text(errors="replace").splitlines()
        except OSError:
            continue
        for line in lines:
            name, equals, value = line.partition("=")
            if equals and not name.startswith("#"):
                yield name.strip(), value.strip().strip("\"'")
        return
