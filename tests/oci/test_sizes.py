"""Large configurations, and much that is read and written: whole, and in little memory."""

import hashlib
import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.amounts import amount
from tests.oci.bundles import configuration
from tests.oci.runtime import Container, Runtime
from tests.sandboxes import pids_of

pytestmark = pytest.mark.usefixtures("nothing_left")

MIB = 1 << 20
TOLD = amount(9, 13)
MUCH = amount(16, 64)
_EACH = 9  # the end of a string, and the pointer to it
_BASE = ["PATH=/bin", "HOME=/root"]


def environment(size: int, each: int = 500) -> list[str]:
    """So many bytes of services, as a cluster gives them to its pods."""
    size -= sum(len(text) + _EACH for text in _BASE)
    count = size // (each + _EACH)
    env = [f"SVC_{number:05}=tcp://".ljust(each, "x") for number in range(count)]
    return [*_BASE, *env, "REST=".ljust(size - count * (each + _EACH) - _EACH, "x")]


def exec_with(container: Container, env: list[str], *argv: str) -> Any:
    process = configuration(*argv)["process"] | {"env": env}
    path = container.bundle / "process.json"
    path.write_text(json.dumps(process))
    return container.runtime.call("exec", "--process", str(path), container.id)


class Guest:
    """The processes that pass on what a container reads and writes: supervisor and agent."""

    def __init__(self, runtime: Runtime, sandbox: str) -> None:
        self._tapwright = runtime.tapwright
        self._sandbox = sandbox
        self._supervisor = pids_of(self._tapwright.json("sandbox", "inspect", sandbox))[0]
        (self._agent,) = re.findall(
            r"(?m)^ *(\d+) .*/tapwright/agent$", self._says("ps", "-o", "pid,args")
        )

    def begin(self) -> tuple[int, int]:
        """Forget the peaks (proc(5), clear_refs); return what they are now."""
        Path(f"/proc/{self._supervisor}/clear_refs").write_text("5")
        self._says("sh", "-c", f"echo 5 > /proc/{self._agent}/clear_refs")
        return self.peaks()

    def peaks(self) -> tuple[int, int]:
        """Bytes of (supervisor, agent) since then."""
        ours = Path(f"/proc/{self._supervisor}/status").read_text()
        return _peak(ours), _peak(self._says("cat", f"/proc/{self._agent}/status"))

    def _says(self, *argv: str) -> str:
        return self._tapwright.exec(self._sandbox, *argv)


def _peak(status: str) -> int:
    (found,) = re.findall(r"VmHWM:\s*(\d+) kB", status)
    return int(found) * 1024


def test_large_environment(runtime: Runtime) -> None:
    """All that a kernel takes with the longest of these commands, and the path of that."""
    env = environment(2 * MIB - len("cat/proc/1/environ/bin/cat-") - 18)
    with runtime.running("sleep", "1000", process={"env": env}) as container:
        assert container.says("cat", "/proc/1/environ").split("\0")[:-1] == env
        other = [text.replace("tcp:", "udp:") for text in env]
        done = exec_with(container, other, "env")
        assert (done.stdout.splitlines(), done.stderr) == (other, "")
        # One that is given by its words has what the container has.
        assert container.says("env").splitlines() == env


def test_arguments_to_the_last_byte(runtime: Runtime) -> None:
    """Each as large as one can be, and all of them as large as all can be."""
    longest = "x" * (128 * 1024 - 1)
    script = "echo $# ${#1} ${#16}"
    fixed = ["/bin/sh", "-c", script, "sh"]
    strings = [*fixed, *_BASE, *([longest] * 15)]
    # What execve counts beside them: the path, once more.
    left = 2 * MIB - sum(len(text) + _EACH for text in strings) - len("/bin/sh") - 1 - _EACH
    argv = [*fixed, *([longest] * 15), "y" * left]
    with runtime.running("sleep", "1000") as container:
        done = exec_with(container, _BASE, *argv)
        assert done.stdout.split() == ["16", str(len(longest)), str(left)], done.stderr
        done = exec_with(container, _BASE, *argv[:-1], "y" * (left + len("/bin/sh") + 2))
        assert (done.returncode, done.stdout) == (255, "")
        assert "process.args and process.env have 2097153 bytes" in done.stderr


def test_a_large_configuration(runtime: Runtime) -> None:
    """8 MiB to the byte: both of what stays on the host and of what goes to the guest."""
    content = configuration("sh", "-c", "ls /data | wc -l; sleep 1000")
    bundle = runtime.bundle(content)
    for number in range(300):
        source = bundle / "sources" / str(number)
        source.mkdir(parents=True)
        (bundle / "rootfs/data" / str(number)).mkdir()
        content["mounts"].append(
            {"destination": f"/data/{number}", "type": "bind", "source": f"sources/{number}"}
        )
    path = "/".join(["x" * 200] * 19)
    content["linux"]["maskedPaths"] = [f"/{number}/{path}" for number in range(1000)]
    content["annotations"] = {f"key-{number:05}": "é" * 300 for number in range(6000)}
    text = json.dumps(content, ensure_ascii=False)
    content["annotations"]["last"] = "x" * (8 * MIB - len(text.encode()) - len(', "last": ""'))
    text = json.dumps(content, ensure_ascii=False)
    assert len(text.encode()) == 8 * MIB
    (bundle / "config.json").write_text(text)
    name = runtime.fresh_id()
    container = Container(runtime, name, bundle)
    try:
        container.create()
        container.start()
        assert container.prints("300\n")
        assert container.state["annotations"] == content["annotations"]
        assert container.says("echo", "still there") == "still there\n"
        (bundle / "config.json").write_text(text + " ")
        refused = runtime.refused("create", "--bundle", str(bundle), f"{name}-more")
        assert refused.endswith("config.json is too large: it has more than 8388608 bytes")
        assert not (runtime.root / "containers" / f"{name}-more").exists()
    finally:
        runtime.call("delete", "--force", name)
        container.close()


def test_one_byte_more_is_refused_before_anything_is_made(runtime: Runtime) -> None:
    env = [*_BASE, *(f"A{number}=".ljust(100_000, "x") for number in range(20))]
    left = 2 * MIB - sum(len(text) + _EACH for text in ["true", *env]) - _EACH
    bundle = runtime.bundle(
        configuration("true", process={"env": [*env, "Z=".ljust(left + 1, "Z")]})
    )
    name = runtime.fresh_id()
    refused = runtime.refused("create", "--bundle", str(bundle), name)
    assert "process.args and process.env have 2097153 bytes" in refused
    assert not (runtime.root / "containers" / name).exists()
    assert not (runtime.root / "sandboxes" / name).exists()


@pytest.mark.large
def test_configurations_are_not_kept(runtime: Runtime) -> None:
    """Configurations of 2 MB each, of processes that go on: neither end has them any more."""
    env = environment(1_900_000, each=500)
    with runtime.running("sleep", "1000", process={"env": env}) as container:
        guest = Guest(runtime, container.id)
        before = None
        for _ in range(TOLD):
            process = configuration("sleep", "1000")["process"] | {"env": env}
            path = container.bundle / "process.json"
            path.write_text(json.dumps(process))
            words = ("exec", "--detach", "--process", str(path), container.id)
            runtime.succeed(*words, capture_output=False, stdout=subprocess.DEVNULL)
            before = before or guest.begin()
        after = guest.begin()
        assert before
        # 15 MB at least if it were kept; a heap has holes, too.
        assert all(now - then < 12 * MIB for now, then in zip(after, before, strict=True))


@pytest.mark.large
@pytest.mark.parametrize("verb", ["run", "exec"])
@pytest.mark.parametrize("kind", ["pipes", "files"])
def test_much_goes_both_ways_in_little_memory(runtime: Runtime, verb: str, kind: str) -> None:
    """All comes back; memory is that of a few windows."""
    size = MUCH * MIB
    with runtime.running("sleep", "1000") as container:
        # `run` is what makes the sandbox: its own is not there before. So it joins this one.
        guest = Guest(runtime, container.id)
        before = guest.begin()
        if verb == "run":
            netns = {"type": "network", "path": f"/proc/{container.pid}/ns/net"}
            content = configuration("cat")
            content["linux"]["namespaces"] = [
                netns if entry["type"] == "network" else entry
                for entry in content["linux"]["namespaces"]
            ]
            words = ["run", "--bundle", str(runtime.bundle(content)), runtime.fresh_id()]
        else:
            words = ["exec", container.id, "cat"]
        echoed(runtime.tapwright.command(*words), size, kind, container.bundle)
        after = guest.peaks()
        assert all(now - then < 12 * MIB for now, then in zip(after, before, strict=True))


def echoed(command: list[str], size: int, kind: str, directory: Path) -> None:
    """Give a `cat` so many bytes, and insist on having them back."""
    block = os.urandom(MIB)
    blocks = [number.to_bytes(8) + block[8:] for number in range(size // MIB)]
    sent = hashlib.sha256(b"".join(blocks)).hexdigest()
    found = hashlib.sha256()
    if kind == "files":
        (directory / "in").write_bytes(b"".join(blocks))
        with (directory / "in").open("rb") as stdin, (directory / "out").open("w+b") as stdout:
            done = subprocess.run(command, stdin=stdin, stdout=stdout, timeout=300, check=False)
            stdout.seek(0)
            while data := stdout.read(MIB):
                found.update(data)
        assert done.returncode == 0
    else:
        source = directory / "in"
        source.write_bytes(b"".join(blocks))
        with (
            subprocess.Popen(["cat", str(source)], stdout=subprocess.PIPE) as feeding,
            subprocess.Popen(command, stdin=feeding.stdout, stdout=subprocess.PIPE) as running,
        ):
            assert running.stdout
            while data := running.stdout.read(MIB):
                found.update(data)
        assert (feeding.returncode, running.returncode) == (0, 0)
    assert found.hexdigest() == sent
