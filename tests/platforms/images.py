"""The image that all platforms run: busybox and a page to serve, nothing pulled."""

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BUSYBOX = Path("/bin/busybox")
PAGE = "served from a sandbox\n"
SERVE = "httpd", "-f", "-p", "80", "-h", "/www"

_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000:worker:/home:/bin/sh\n",
    "etc/group": "root:x:0:\nworkers:x:1000:\nextra:x:2000:worker\n",
    "www/index.html": PAGE,
}
_DIRECTORIES = "bin", "dev", "etc", "home", "proc", "root", "sys", "tmp", "var", "www"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def rootfs(directory: Path) -> Path:
    """A tar archive of the root filesystem, as `import` of podman and docker takes it."""
    path = directory / "rootfs.tar"
    with tarfile.open(path, "w") as archive:
        for name in _DIRECTORIES:
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
            archive.addfile(entry)
        archive.add(BUSYBOX, "bin/busybox")
        for name in subprocess.check_output([BUSYBOX, "--list"], text=True).split():
            if name != "busybox":
                link = tarfile.TarInfo(f"bin/{name}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                archive.addfile(link)
        for name, content in _FILES.items():
            file = tarfile.TarInfo(name)
            file.size, file.mode = len(content), 0o644
            archive.addfile(file, io.BytesIO(content.encode()))
    return path


def oci_archive(layer: Path, commands: Mapping[str, Sequence[str]]) -> Path:
    """An OCI image layout in a tar archive, as `ctr image import` takes it, with an image for each
    reference and its command (image-spec 1.0: image-layout.md, manifest.md, config.md)."""
    path = layer.with_name("oci.tar")
    blobs = [layer.read_bytes()]
    manifests = []
    for reference, command in commands.items():
        config = _json(
            architecture="amd64",
            os="linux",
            config={"Env": ["PATH=/bin"], "Cmd": command},
            rootfs={"type": "layers", "diff_ids": [_digest(blobs[0])]},
        )
        manifest = _json(
            schemaVersion=2,
            mediaType=_MANIFEST,
            config=_descriptor(_CONFIG, config),
            layers=[_descriptor(_LAYER, blobs[0])],
        )
        blobs += config, manifest
        name = {"annotations": {"io.containerd.image.name": reference}}
        manifests.append(_descriptor(_MANIFEST, manifest) | name)
    with tarfile.open(path, "w") as archive:
        _put(archive, "oci-layout", _json(imageLayoutVersion="1.0.0"))
        _put(archive, "index.json", _json(schemaVersion=2, manifests=manifests))
        for content in blobs:
            _put(archive, f"blobs/sha256/{_digest(content).partition(':')[2]}", content)
    return path


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": _digest(content), "size": len(content)}


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _json(**content: Any) -> bytes:
    return json.dumps(content).encode()


def _put(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))
