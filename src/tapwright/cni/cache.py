"""What was attached, in libcni's own place and format (libcni/api.go, kind cniCacheV1): so an
attachment made here can be deleted by another user of libcni, and the other way round."""

import base64
import contextlib
import json
import os
from pathlib import Path
from typing import Any

DEFAULT_DIRECTORY = "/var/lib/cni"
_KIND = "cniCacheV1"


def path_of(directory: str, network: str, container_id: str, ifname: str) -> Path:
    return Path(directory, "results", f"{network}-{container_id}-{ifname}")


def write(path: Path, content: dict[str, Any], config: bytes) -> None:
    """Remember an attachment; the file appears whole or not at all."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    entry = {"kind": _KIND, **content, "config": base64.b64encode(config).decode()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(entry, file)
        temporary.rename(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: Path) -> dict[str, Any] | None:
    """The remembered attachment; None where there is none or the file is not one of ours."""
    try:
        entry = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    if not isinstance(entry, dict) or entry.get("kind") != _KIND:
        return None
    return entry


def remove(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
