"""Tapwright's own files of an image, and the digest that shows whether an image has them.

The module is apart from `build`, because a search for an image does not need the rest.
"""

import hashlib
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
    "linux/libc.py",
    "linux/rlimits.py",
    "linux/mounts.py",
    "linux/netlink.py",
    "linux/links.py",
    "linux/addresses.py",
    "linux/routes.py",
    "linux/neighbours.py",
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
    package = Path(tapwright.__file__).parent
    found = {}
    for pattern in _SOURCES:
        for path in sorted(package.glob(pattern)):
            found[f"{OWN}/tapwright/{path.relative_to(package)}"] = path
    guest = package / "image" / "guest"
    for target, name in (("init", "init"), ("etc/inittab", "inittab")):
        found[target] = guest / name
    for name in ("agent", "disk"):
        found[f"{OWN}/{name}"] = guest / name
    return found


def sources_digest() -> str:
    """Return a digest of all of Tapwright's own files in the image, including this recipe."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    recipe = {
        name: here / name
        for name in ("build.py", "archive.py", "kernel.py", "packages.py", "sources.py")
    }
    for name, path in sorted((own_sources() | recipe).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()
