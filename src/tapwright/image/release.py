"""The package lists of another release than the host's, in an apt directory of their own."""

import platform
from pathlib import Path
from typing import NamedTuple

from tapwright.errors import ImageError
from tapwright.image import packages
from tapwright.image.packages import Index

# Which archives may sign a release; of other keyrings of the host none.
_KEYRINGS = tuple(
    f"/usr/share/keyrings/{name}"
    for name in (
        *("debian-archive-keyring.gpg", "debian-archive-keyring.pgp"),
        *("ubuntu-archive-keyring.gpg", "ubuntu-archive-keyring.pgp"),
    )
)
# These are one suite; releases have others beside them, for updates.
_ROLLING = ("sid", "unstable", "experimental")
_COMPONENTS = "main universe"


class Source(NamedTuple):
    """Where apt has a release from, and the name it asks for."""

    uri: str
    name: str


def host() -> str:
    """What this host's apt calls its release, such as "trixie". Raises ImageError."""
    return _own(_listed())


def index(suite: str, directory: Path, mirror: str = "") -> Index:
    """Fetch the lists of a release, by its codename, into a directory; what apt knows by them.

    The mirror is that of the host's own release unless one is given. Nothing of the host's apt is
    changed; its settings (proxies, certificates) hold. Raises ImageError.
    """
    if not suite.replace("-", "").replace(".", "").isalnum():
        raise ImageError(f"--suite {suite!r} is no codename of a release, such as trixie")
    keyrings = [path for path in _KEYRINGS if Path(path).exists()]
    if not keyrings:
        raise ImageError(
            "there is no keyring of an archive in /usr/share/keyrings: install "
            "debian-archive-keyring or ubuntu-keyring"
        )
    apt = directory / suite
    for name in ("lists/partial", "cache/archives/partial"):
        (apt / name).mkdir(parents=True, exist_ok=True)
    sources = apt / "sources.list"
    sources.write_text(
        "".join(
            f"deb [signed-by={','.join(keyrings)}] {uri} {name} {_COMPONENTS}\n"
            for uri, name in _sources(suite, mirror)
        )
    )
    settings = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Etc::Preferences": "/dev/null",
        "Dir::Etc::PreferencesParts": "/dev/null",
        "Dir::State::Lists": apt / "lists",
        "Dir::State::Status": "/dev/null",
        "Dir::Cache": apt / "cache",
        "APT::Default-Release": "",
        "APT::Sandbox::User": "root",
        # What others hang onto an update, such as a look for upgrades, is about the host.
        "APT::Update::Post-Invoke": "",
        "APT::Update::Post-Invoke-Success": "",
    }
    known = Index(
        tuple(word for item in settings.items() for word in ("-o", "=".join(map(str, item))))
    )
    packages.run("apt-get", *known.options, "-o", "APT::Update::Error-Mode=any", "-qq", "update")
    return known


def _listed() -> list[Source]:
    output = packages.run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(RELEASE)"), "Created-By: Packages"
    )
    return list(dict.fromkeys(Source(*line.split()) for line in output.splitlines()))


def _own(listed: list[Source]) -> str:
    """Which of them is the host's: by its codename, or else the first that is no part of another
    (`stable`; and sid calls itself by the codename of what it will be)."""
    names = [source.name for source in listed]
    try:
        codename = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        codename = ""
    if codename in names:
        return codename
    return next((name for name in names if "-" not in name), codename or "unknown")


def _sources(suite: str, mirror: str) -> list[Source]:
    """A release and its updates, from where the host has its own."""
    if mirror:
        names = [suite] if suite in _ROLLING else [suite, f"{suite}-updates"]
        return [Source(mirror, name) for name in names]
    listed = _listed()
    own = _own(listed)
    found = [
        Source(uri, suite + name.removeprefix(own))
        for uri, name in listed
        if name == own or (name.startswith(f"{own}-") and suite not in _ROLLING)
    ]
    if not found:
        raise ImageError(
            f"this host's apt has no mirror of its own release ({own}), where {suite} could be: "
            "name one with --mirror"
        )
    return found
