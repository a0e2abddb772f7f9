"""What a kubelet insists on of the kernel, shown to it alone: the machine has other tenants."""

from pathlib import Path

_VALUES = {
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}


def write(directory: Path) -> None:
    """A file for each, by its path below /proc/sys, to be mounted there."""
    for name, value in _VALUES.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{value}\n")
