"""Plugins written with `tapwright.cni.plugin`, and running one as a runtime would."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tapwright

SOURCE = str(Path(tapwright.__file__).parents[1])


class Answer(NamedTuple):
    status: int
    output: Any
    stderr: str


class WrittenPlugin:
    """A plugin of these lines of Python, which may use `request`, `plugin`, `os` and `json`."""

    def __init__(self, path: Path, main: str = "add, delete", **functions: str) -> None:
        self.path = path
        bodies = {"add": "return None", "delete": "pass"} | functions
        defined = "".join(
            f"def {name}(request):\n"
            + "".join(f"    {line}\n" for line in body.strip().splitlines())
            for name, body in bodies.items()
        )
        path.write_text(
            f"#!{sys.executable}\nimport json, os, sys\nfrom tapwright.cni import plugin\n"
            f"{defined}plugin.main({main})\n"
        )
        path.chmod(0o755)

    def run(self, command: str, config: Any = None, **variables: str) -> Answer:
        """Run it with good parameters, changed by `variables`; one that is empty is unset."""
        parameters = {
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": "web",
            "CNI_NETNS": "/run/netns/web",
            "CNI_IFNAME": "eth0",
            "CNI_PATH": str(self.path.parent),
            **variables,
        }
        known = {name: value for name, value in parameters.items() if value}
        if config is None:
            config = {"cniVersion": "1.1.0", "name": "net", "type": "p"}
        stdin = config if isinstance(config, bytes) else json.dumps(config).encode()
        done = subprocess.run(
            [str(self.path)],
            input=stdin,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE, **known},
            capture_output=True,
            check=False,
            timeout=60,
        )
        output = json.loads(done.stdout) if done.stdout.strip() else None
        return Answer(done.returncode, output, done.stderr.decode())
