"""docker's engine with directories, socket and bridge of its own (20.10), and its client."""

import json
import signal
import subprocess
from pathlib import Path
from typing import Any

from tests.host import eventually

CLIENT = "/usr/bin/docker"
"""That of the engine's package; another one may stand before it on the PATH."""


class Docker:
    """The engine, from its start to its end. `runtimes` are names and executables."""

    def __init__(self, home: Path, runtimes: dict[str, Path], rootfs: Path) -> None:
        self._socket = f"unix://{home}/socket"
        self.home = home
        settings = {
            "data-root": f"{home}/data",
            "exec-root": f"{home}/run",
            "pidfile": f"{home}/pid",
            "hosts": [self._socket],
            "bip": "10.89.0.1/24",
            "group": "root",
            "runtimes": {name: {"path": str(path)} for name, path in runtimes.items()},
            "storage-driver": "overlay2",
        }
        (home / "daemon.json").write_text(json.dumps(settings))
        self._log = (home / "log").open("w")
        self._process = subprocess.Popen(
            ["dockerd", "--config-file", home / "daemon.json"], stdout=self._log, stderr=self._log
        )
        try:
            assert eventually(lambda: self.run("version").returncode == 0), self.log()
            self.output("import", str(rootfs), "busybox")
        except BaseException:
            self.stop()
            raise

    def command(self, *words: str) -> list[str]:
        return [CLIENT, "--host", self._socket, *words]

    def run(self, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run the client to its end; text in and out."""
        options = {"capture_output": True, "text": True, "timeout": 120, **options}
        return subprocess.run(self.command(*words), check=False, **options)

    def output(self, *words: str, **options: Any) -> str:
        """Run the client, insist on success, return its stdout."""
        done = self.run(*words, **options)
        assert done.returncode == 0, f"docker {words}: {done.returncode} {done.stderr}"
        return str(done.stdout)

    def inspect(self, container: str) -> Any:
        return json.loads(self.output("inspect", container))[0]

    def stats(self, container: str) -> Any:
        """What the engine's API says that a container uses."""
        url = f"http://engine/containers/{container}/stats?stream=false&one-shot=true"
        words = ["curl", "-sS", "--max-time", "60", "--unix-socket", f"{self.home}/socket", url]
        return json.loads(subprocess.check_output(words, text=True))

    @property
    def root(self) -> Path:
        """What the engine gives runtimes as their root, whatever they are called."""
        return self.home / "run" / "runtime-runc" / "moby"

    def remove_all(self) -> None:
        if containers := self.output("ps", "--all", "--quiet").split():
            self.run("rm", "--force", *containers)

    def log(self) -> str:
        return (self.home / "log").read_text()

    def stop(self) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)
        self._log.close()
