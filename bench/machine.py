"""What a measurement was made on: enough to judge the figures, and nothing that names the host."""

import os
import platform
import re
import subprocess
from typing import TypedDict


class MachineFacts(TypedDict):
    """Versions as the programs tell them; memory in MiB."""

    cores: int
    processor: str
    memory_mib: int
    system: str
    kernel: str
    python: str
    qemu: str
    accelerator: str
    plugins: str


def describe(qemu: str, accelerator: str) -> MachineFacts:
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _first("/proc/cpuinfo", r"model name\s*: (.+)"),
        "memory_mib": int(_first("/proc/meminfo", r"MemTotal:\s+(\d+)")) // 1024,
        "system": platform.freedesktop_os_release()["PRETTY_NAME"],
        # What follows the numbers is whose build it is.
        "kernel": _match(r"[\d.]+\d", os.uname().release),
        "python": platform.python_version(),
        "qemu": _match(r"[\d.]+\d", _output(qemu, "--version")),
        "accelerator": accelerator,
        "plugins": _output("dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins"),
    }


def _output(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _first(path: str, pattern: str) -> str:
    with open(path) as file:
        found = re.search(pattern, file.read())
    return found[1].strip() if found else "unknown"


def _match(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[0] if found else text
