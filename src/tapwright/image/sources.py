"""Tapwright's own files of an image, and the digest that shows whether an image has them.

The module is apart from `build`, because a search for an image does not need the rest.
"""

import hashlib
import os
from pathlib import Path

import tapwright

OWN = "usr/lib/tapwright"
"""Where Tapwright's own files are in the guest."""

EXECUTABLE = frozenset(("init", f"{OWN}/disk"))
"""The files that the guest executes. Their modes on the host do not count: the Debian package
installs them as data."""

_SOURCES = (
    "__init__.py",
    "shapes.py",
    "agent/__init__.py",
    "agent/protocol.py",
    "agent/guest/*.py",
    "linux/__init__.py",
    "linux/files.py",
    "linux/libc.py",
    "linux/rlimits.py",
    "linux/mounts.py",
    "linux/netlink.py",
    "linux/links.py",
    "linux/addresses.py",
    "linux/routes.py",
    "linux/neighbours.py",
    "linux/netns.py",
    "linux/settings.py",
    "linux/counted.py",
    "linux/announcement.py",
    "linux/ethtool.py",
    "linux/nfnetlink.py",
    "linux/packet_rules.py",
    "linux/nftables.py",
    "linux/xtables.py",
    "linux/ipset.py",
    "linux/ipvs.py",
    "linux/conntrack.py",
    "linux/lookup.py",
    "linux/nftrace.py",
    "linux/probes.py",
    "linux/sightings.py",
)


def own_sources() -> dict[str, Path]:
    """Return the agent and all that it imports: source files by their path in the guest."""
    return {name: Path(path) for name, path in _own_sources().items()}


def _own_sources() -> dict[str, str]:
    # Each start needs the digest: paths as text take a third of the time.
    package = os.path.dirname(tapwright.__file__)
    found = {}
    for pattern in _SOURCES:
        directory, _, name = pattern.rpartition("/")
        names = [name] if name != "*.py" else _modules(f"{package}/{directory}")
        for each in names:
            path = f"{directory}/{each}".lstrip("/")
            found[f"{OWN}/tapwright/{path}"] = f"{package}/{path}"
    guest = f"{package}/image/guest"
    for target, name in (("init", "init"), ("etc/inittab", "inittab")):
        found[target] = f"{guest}/{name}"
    for name in ("agent", "disk"):
        found[f"{OWN}/{name}"] = f"{guest}/{name}"
    return found


def _modules(directory: str) -> list[str]:
    return sorted(name for name in os.listdir(directory) if name.endswith(".py"))


def sources_digest() -> str:
    """Return a digest of all of Tapwright's own files in the image, including this recipe."""
    # A third of the time of SHA-256, which has no fast form without OpenSSL.
    digest = hashlib.blake2b(digest_size=32)
    here = os.path.dirname(__file__)
    recipe = {
        name: f"{here}/{name}"
        for name in ("build.py", "archive.py", "elf.py", "kernel.py", "packages.py", "sources.py")
    }
    for name, path in sorted((_own_sources() | recipe).items()):
        with open(path, "rb", buffering=0) as file:
            content = file.read()
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()
