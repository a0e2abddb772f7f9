"""Where images are kept: one directory each, named by a digest of all that went in."""

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tapwright.errors import ImageError
from tapwright.image.build import Progress

DIRECTORY = Path("/var/lib/tapwright/images")
_MANIFEST = "manifest.json"


class Image(NamedTuple):
    """A built image. `current` tells whether its agent is the one of this Tapwright."""

    key: str
    kernel: Path
    initrd: Path
    manifest: dict[str, Any]
    current: bool


def listing(store: Path = DIRECTORY) -> list[Image]:
    """The images of a store, the newest first."""
    from tapwright.image import build

    digest = build.sources_digest()
    found = []
    for path in store.glob(f"*/{_MANIFEST}"):
        manifest = json.loads(path.read_text())
        directory = path.parent
        image = Image(
            key=directory.name,
            kernel=directory / "vmlinux",
            initrd=directory / "initrd",
            manifest=manifest,
            current=manifest["sources"] == digest,
        )
        found.append((path.stat().st_mtime_ns, image))
    return [image for _, image in sorted(found, key=lambda item: item[0], reverse=True)]


def find(store: Path = DIRECTORY) -> Image | None:
    """The newest image that fits this Tapwright, or None."""
    return next((image for image in listing(store) if image.current), None)


def ensure(store: Path, progress: Progress) -> Image:
    """The image to use, built where there is none yet. Raises ImageError."""
    return find(store) or build_image(store, progress)


def build_image(store: Path, progress: Progress) -> Image:
    """Build the image of today's packages, or return the equal one that is there.

    Safe when several ask at once; what another run left half done is cleared away.
    Raises ImageError.
    """
    from tapwright.image import build

    with _locked(store):
        chosen = build.find_packages()
        sources = build.sources_digest()
        manifest = {
            "sources": sources,
            "packages": [package._asdict() for package in chosen],
        }
        key = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
        target = store / key
        if not (target / _MANIFEST).exists():
            _build_into(target, manifest, store, progress)
        else:
            os.utime(target / _MANIFEST)
    image = find(store)
    if image is None:
        raise ImageError(f"the image {target} vanished while it was being built")
    return image


def _build_into(target: Path, manifest: dict[str, Any], store: Path, progress: Progress) -> None:
    from tapwright.image import build
    from tapwright.image.packages import Package

    for leftover in store.glob(".work-*"):
        shutil.rmtree(leftover)
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=store) as name:
        work = Path(name)
        chosen = [Package(**fields) for fields in manifest["packages"]]
        kernel, initrd = build.build(chosen, store / "packages", work / "unpacked", progress)
        result = work / "result"
        result.mkdir()
        manifest["files"] = {}
        for file_name, content in (("vmlinux", kernel), ("initrd", initrd)):
            (result / file_name).write_bytes(content)
            manifest["files"][file_name] = hashlib.sha256(content).hexdigest()
        (result / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
        # QEMU reads it as an unprivileged user.
        for path in (result, *result.iterdir()):
            path.chmod(0o755 if path.is_dir() else 0o644)
        result.rename(target)
    progress(f"image {target.name}")


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    try:
        store.mkdir(parents=True, exist_ok=True, mode=0o755)
        lock = (store / ".lock").open("w")
    except OSError as error:
        raise ImageError(f"the image store can't be written: {error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
