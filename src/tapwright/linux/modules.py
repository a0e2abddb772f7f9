"""Which modules this kernel can load, or has built in (depmod(8), modules.builtin)."""

import os
from pathlib import Path

DIRECTORY = Path("/lib/modules")


def is_there(name: str) -> bool:
    """Whether the running kernel has a module of this name, loadable or built in."""
    if os.path.exists(f"/sys/module/{name}"):
        return True
    wanted = f"/{name}.ko"
    for file in ("modules.dep", "modules.builtin"):
        try:
            lines = (DIRECTORY / os.uname().release / file).read_text().splitlines()
        except OSError:
            continue
        # A module's file may have '-' where its name has '_', and may be compressed.
        paths = (line.partition(":")[0].replace("-", "_") for line in lines)
        if any(path[: path.rfind(".ko") + 3].endswith(wanted) for path in paths):
            return True
    return False
