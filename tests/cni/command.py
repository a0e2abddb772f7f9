"""`tapwright cni` and cnitool as processes, under one environment."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from tests import forked
from tests.sandboxes import COMMAND

DEFAULT_CACHE = "/var/lib/cni"


class Commands:
    """Both commands, seeing the same networks and plugins; and `--cache-dir` for ours, as cnitool
    knows the default cache only."""

    def __init__(self, nets: Path, path: str, cache: Path | None = None) -> None:
        self.environment = {"NETCONFPATH": str(nets), "CNI_PATH": path}
        self._cache = [] if cache is None else ["--cache-dir", str(cache)]

    def tapwright(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run([COMMAND, "cni", *words, *self._cache], variables)

    def cnitool(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self._run(["cnitool", *words], variables)

    def json(self, *words: str, **variables: str) -> Any:
        """Run ours, insist on success, read the answer."""
        done = self.tapwright(*words, **variables)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _run(self, argv: list[str], variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("CNI_")}
        environment = inherited | self.environment | variables
        run = forked.run if argv[0] == COMMAND else subprocess.run
        return run(argv, env=environment, capture_output=True, text=True, timeout=60)
