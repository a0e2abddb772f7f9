"""Where images are kept: one directory each, named by a digest of all that went in."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from tapwright.errors import ImageError
from tapwright.image import sources

TYPE_CHECKING = False
if TYPE_CHECKING:
    from tapwright.progress import Progress

DIRECTORY = Path("/var/lib/tapwright/images")
FILES = ("vmlinux", "initrd", "disk")
_MANIFEST = "manifest.json"


class Image(NamedTuple):
    """A built image. `current` says whether its agent is that of this Tapwright."""

    key: str
    kernel: Path
    initrd: Path
    disk: Path
    manifest: dict[str, Any]
    current: bool

    @property
    def release(self) -> str:
        """The distribution's release, empty for an image of an earlier Tapwright."""
        return str(self.manifest.get("release", ""))

    @property
    def packages(self) -> dict[str, str]:
        """The versions of the packages that the image consists of, by their names."""
        return {each["name"]: each["version"] for each in self.manifest["packages"]}


def listing(store: Path = DIRECTORY) -> list[Image]:
    """The images of a store, the newest first."""
    return list(_newest_first(store))


def find(store: Path = DIRECTORY) -> Image | None:
    """The newest image that fits this Tapwright, or None."""
    # Each start looks for it: no manifest is read in vain.
    return next((image for image in _newest_first(store) if image.current), None)


def _newest_first(store: Path) -> "Iterator[Image]":
    digest = sources.sources_digest()
    found = [(path.stat().st_mtime_ns, path) for path in store.glob(f"*/{_MANIFEST}")]
    for _, path in sorted(found, reverse=True):
        manifest = json.loads(path.read_text())
        directory = path.parent
        yield Image(
            key=directory.name,
            kernel=directory / FILES[0],
            initrd=directory / FILES[1],
            disk=directory / FILES[2],
            manifest=manifest,
            current=manifest["sources"] == digest,
        )


def ensure(store: Path, progress: "Progress") -> Image:
    """The image to use, built where there is none yet. Raises ImageError."""
    return find(store) or build_image(store, progress)


def build_image(store: Path, progress: "Progress", suite: str = "", mirror: str = "") -> Image:
    """Build the image of today's packages, or return the equal one that is there.

    The packages are those of the host's release, or of `suite` from `mirror` (`release.index`).
    Safe when several ask at once; what another run left half done is cleared away.
    Raises ImageError.
    """
    from tapwright.image import build, release
    from tapwright.image.packages import HOST

    with locked(store):
        index = HOST
        if suite:
            progress(f"fetch the lists of {suite}")
            index = release.index(suite, store / "apt", mirror)
        recipe = build.find_recipe(index)
        manifest = {
            "sources": sources.sources_digest(),
            "release": suite or release.host(),
            "packages": [package._asdict() for package in recipe.packages],
        }
        target = store / key_of(manifest)
        if not (target / _MANIFEST).exists():
            with _work(store) as work:
                cache = store / "packages"
                files = build.build(recipe, index, cache, work / "unpacked", progress)
                _put(target, manifest, dict(zip(FILES, files, strict=True)), work)
            progress(f"image {target.name}")
        return use(store, target.name)


def use(store: Path, key: str) -> Image:
    """Make an image the newest, which is the one that sandboxes use. Raises ImageError."""
    with suppress(FileNotFoundError):
        os.utime(store / key / _MANIFEST)
    image = find(store)
    if image is None or image.key != key:
        raise ImageError(f"the image {store / key} vanished while it was being made")
    return image


def add(store: Path, manifest: dict[str, Any], files: dict[str, bytes]) -> Image:
    """Keep an image that was built elsewhere, and use it. Raises ImageError."""
    with locked(store):
        key = key_of(manifest)
        if not (store / key / _MANIFEST).exists():
            with _work(store) as work:
                _put(store / key, manifest, files, work)
        return use(store, key)


def key_of(manifest: dict[str, Any]) -> str:
    """The digest of all that goes into an image: of its manifest without what came out."""
    inputs = {name: value for name, value in manifest.items() if name != "files"}
    return hashlib.sha256(json.dumps(inputs, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def _work(store: Path) -> Iterator[Path]:
    import shutil  # for those who build
    import tempfile

    for leftover in store.glob(".work-*"):
        shutil.rmtree(leftover)
    with tempfile.TemporaryDirectory(prefix=".work-", dir=store) as name:
        yield Path(name)


def _put(target: Path, manifest: dict[str, Any], files: dict[str, bytes], work: Path) -> None:
    import shutil

    shutil.rmtree(target, ignore_errors=True)
    result = work / "result"
    result.mkdir()
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        (result / name).write_bytes(content)
    (result / _MANIFEST).write_text(json.dumps(manifest | {"files": digests}, indent=1) + "\n")
    # QEMU reads it as an unprivileged user.
    for path in (result, *result.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)
    result.rename(target)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    try:
        made = [path for path in (store, *store.parents) if not path.exists()]
        store.mkdir(parents=True, exist_ok=True)
        for path in made:
            path.chmod(0o755)  # whatever the umask: QEMU reads images as an unprivileged user
        lock = (store / ".lock").open("w")
    except OSError as error:
        raise ImageError(f"the image store can't be written: {error}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
