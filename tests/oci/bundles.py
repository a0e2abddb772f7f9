"""Bundles as platforms write them."""

import json
from pathlib import Path
from typing import Any

Json = dict[str, Any]

# What docker gives (profiles/capabilities), but for those that nothing here needs.
CAPABILITIES = [
    f"CAP_{name}"
    for name in (
        *("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "MKNOD", "NET_BIND_SERVICE", "NET_RAW"),
        *("SETGID", "SETUID", "SYS_CHROOT"),
    )
]
NAMESPACES = ("pid", "network", "ipc", "uts", "mount", "cgroup")


def configuration(*argv: str, **changes: Any) -> Json:
    """A config.json of a container on a network of its own; `changes` to its parts."""
    content: Json = {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "process": {
            "args": list(argv) or ["true"],
            "env": ["PATH=/bin:/usr/bin"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), CAPABILITIES),
        },
        "hostname": "box",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
        ],
        "linux": {"namespaces": [{"type": kind} for kind in NAMESPACES]},
    }
    for key, value in changes.items():
        if isinstance(value, dict):
            content.setdefault(key, {}).update(value)
        elif key == "mounts":
            content[key] += value
        else:
            content[key] = value
    return content


def write(directory: Path, content: Json) -> Path:
    """Write a bundle; its root filesystem is there, or is made empty."""
    (directory / "rootfs").mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(content))
    return directory
