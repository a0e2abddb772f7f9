"""Plugins made for a test: shell scripts that note how they were run, and do what they are told.

They serve where the real plugins can't: to see what a plugin is given, and for faults.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tapwright.cni import Network, Runtime, parse_network

RESULT = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "mac": "02:00:00:00:00:01", "sandbox": "/run/netns/x"}],
    "ips": [{"address": "10.1.0.5/16", "gateway": "10.1.0.1", "interface": 0}],
    "routes": [{"dst": "0.0.0.0/0"}],
}
ALL_VERSIONS = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


class Seen(NamedTuple):
    """One run, as the plugin saw it."""

    kind: str
    command: str
    environment: dict[str, str]
    config: dict[str, Any]


class Fakes:
    """A plugin directory, and a Runtime with a cache of its own that uses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        self._runs = directory / "runs"
        self._runs.mkdir()
        self.cache = directory / "cache"

    def runtime(self, **options: Any) -> Runtime:
        return Runtime([str(self.bin)], str(self.cache), **options)

    def plugin(
        self,
        kind: str,
        add: dict[str, Any] | None = None,
        versions: list[str] | None = None,
        body: str = "",
    ) -> None:
        """A plugin that answers ADD with `add`, and VERSION. `body` is shell, run before that."""
        result = json.dumps(RESULT if add is None else add)
        supported = json.dumps(
            {"cniVersion": "1.1.0", "supportedVersions": versions or ALL_VERSIONS}
        )
        self.script(
            kind,
            f"""
            run=$(mktemp -d {self._runs}/XXXXXX)
            env -0 >$run/environment
            cat >$run/stdin
            echo "{kind} $run" >>{self._runs}/order
            {body}
            case $CNI_COMMAND in
            ADD) echo '{result}' ;;
            VERSION) echo '{supported}' ;;
            esac
            """,
        )

    def failing(self, kind: str, command: str, **error: Any) -> None:
        """A plugin that fails at one command with this error object, and does the rest."""
        words = json.dumps({"cniVersion": "1.1.0", "code": 100, "msg": f"{kind} fails"} | error)
        self.plugin(kind, body=f"[ $CNI_COMMAND != {command} ] || {{ echo '{words}'; exit 1; }}")

    def script(self, kind: str, body: str) -> Path:
        path = self.bin / kind
        path.write_text(f"#!/bin/sh\n{body}\n")
        path.chmod(0o755)
        return path

    def seen(self, *commands: str) -> list[Seen]:
        """The runs so far, first one first; only of these commands, if any are named."""
        order = self._runs / "order"
        lines = order.read_text().splitlines() if order.exists() else []
        runs = [self._read(*line.split()) for line in lines]
        return [run for run in runs if not commands or run.command in commands]

    def _read(self, kind: str, place: str) -> Seen:
        pairs = Path(place, "environment").read_text().split("\0")
        environment = dict(pair.split("=", 1) for pair in pairs if pair)
        config = json.loads(Path(place, "stdin").read_text())
        return Seen(kind, environment["CNI_COMMAND"], environment, config)


def network(*plugins: str | dict[str, Any], version: str | None = "1.1.0", **keys: Any) -> Network:
    """The network "net" of these plugins, given by type or whole."""
    content = {
        "name": "net",
        "plugins": [{"type": p} if isinstance(p, str) else p for p in plugins],
        **keys,
    }
    if version:
        content["cniVersion"] = version
    return parse_network(json.dumps(content).encode(), "net.conflist")
