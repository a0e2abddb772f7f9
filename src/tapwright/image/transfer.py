"""An image as one file, for hosts that have no apt: a compressed tar archive.

It contains the manifest, whose digests show whether the rest arrived whole, and then its files.
"""

import gzip
import hashlib
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

from tapwright.errors import ImageError
from tapwright.image import sources, store
from tapwright.image.store import Image

_MANIFEST = "manifest.json"
_LEVEL = 6
_LARGEST = 1 << 30
"""Bytes of one file; ours have tens of millions."""


def export_image(image: Image, target: Path) -> None:
    """Write an image to a file, which is there whole or not at all. Raises ImageError."""
    part = target.with_name(f".{target.name}.part")
    try:
        with (
            part.open("wb") as raw,
            gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as stream,
            tarfile.open(fileobj=stream, mode="w") as archive,
        ):
            _add(archive, _MANIFEST, json.dumps(image.manifest, indent=1).encode())
            for name, path in zip(
                store.FILES, (image.kernel, image.initrd, image.disk), strict=True
            ):
                _add(archive, name, path.read_bytes())
        part.rename(target)
    except OSError as error:
        raise ImageError(f"the image can't be written to {target}: {error}") from None
    finally:
        part.unlink(missing_ok=True)


def import_image(source: Path, directory: Path) -> Image:
    """Keep an exported image in the store at `directory`, and have sandboxes use it.

    Raises ImageError when the file is torn or damaged, or made for another Tapwright.
    """
    try:
        with source.open("rb") as raw, gzip.open(raw) as stream:
            manifest, files = _read(stream)
            # The archive's own checksum is behind all that it holds.
            while stream.read(1 << 20):
                pass
    except (FileNotFoundError, IsADirectoryError, PermissionError) as error:
        raise ImageError(f"no image can be read from {source}: {error.strerror}") from None
    except (OSError, EOFError, ValueError, LookupError, tarfile.TarError, zlib.error) as error:
        raise ImageError(f"{source} is no whole image ({error}): export or copy it again") from None
    if manifest["sources"] != sources.sources_digest():
        raise ImageError(
            f"the image in {source} has the agent of another Tapwright than this: export one by "
            "the same version"
        )
    return store.add(directory, manifest, files)


def _add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def _read(stream: gzip.GzipFile) -> tuple[dict[str, Any], dict[str, bytes]]:
    with tarfile.open(fileobj=stream, mode="r:") as archive:
        manifest = json.loads(_next(archive, _MANIFEST))
        files = {name: _next(archive, name) for name in store.FILES}
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    if manifest["files"] != digests:
        raise ValueError("its digests do not match")
    return manifest, files


def _next(archive: tarfile.TarFile, name: str) -> bytes:
    entry = archive.next()
    if entry is None or entry.name != name or not entry.isfile() or entry.size > _LARGEST:
        raise ValueError(f"{name} is missing")
    file = archive.extractfile(entry)
    content = file.read() if file else b""
    if len(content) != entry.size:
        raise ValueError(f"{name} is torn")
    return content
