"""Verbs to be tortured: what has to be there before each, and how all of it is taken back."""

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.moments import Decide, Moment, Watched
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright
from tests.torture.bound import Bound

NAME, TAP = "victim", "twtorture0"
_SECONDS = 150
_SHORT = ("sandbox run", "sandbox delete", "create", "delete")

Words = list[str]


class Fault:
    """What happens at one moment, counted from `begin`; `lasting`, also at all that follow. Before
    it is armed, and when it is `over`, all goes on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.over()

    def begin(self, at: int, act: Decide, lasting: bool = False) -> None:
        with self._lock:
            self._at, self._act, self._lasting, self._counted = at, act, lasting, 0
            self.came: Moment | None = None
            self.counted = 0

    def over(self) -> None:
        self.begin(-1, lambda moment: 0)

    def __call__(self, moment: Moment) -> int:
        with self._lock:
            at = self.counted
            self.counted += 1
            if self._at < 0 or not (at == self._at or (self._lasting and at > self._at)):
                return 0
            self.came = self.came or moment
            return self._act(moment)


class Stage:
    """Runs commands of which each write is a moment of `fault`; so is each of what they start."""

    def __init__(self, tapwright: Tapwright, below: Path, fault: Fault) -> None:
        self.tapwright = tapwright
        self.fault = fault
        self._below = below
        self._stack = ExitStack()

    def start(self, *words: str, **options: Any) -> Watched:
        argv = self.tapwright.command(*words)
        return self._stack.enter_context(Watched(argv, self._below, self.fault, **options))

    def do(self, *words: str, **options: Any) -> tuple[int, str]:
        return self.start(*words, **options).wait(_SECONDS)

    def must(self, *words: str, **options: Any) -> None:
        """What goes before the verb."""
        status, said = self.do(*words, **options)
        assert status == 0, f"{words}: {status} {said}"

    def close(self) -> None:
        self._stack.close()


class Verb:
    """A verb: `prepare` makes what it needs, and `words` are what is called then; `text` is its
    stdin. With `again`, it can be called as often as one likes of a sandbox that runs."""

    def __init__(
        self,
        name: str,
        prepare: Callable[[Stage, Any], None],
        words: Words,
        text: str = "",
        again: bool = True,
    ) -> None:
        self.name = name
        self.again = again
        self.prepare = prepare
        self.words = words
        self.text = text
        self.moments = 12
        """How many it has, as far as is known: `learn` tells."""

    def start(self, stage: Stage) -> Watched:
        stdin = _file(self.text)
        try:
            return stage.start(*self.words, stdin=stdin)
        finally:
            os.close(stdin)

    def run(self, stage: Stage) -> tuple[int, str]:
        status, said = self.start(stage).wait(_SECONDS)
        self.learn(stage.fault)
        return status, said

    def learn(self, fault: Fault) -> None:
        """All of its moments have come, or more than were known."""
        came = fault.came is not None
        self.moments = max(self.moments if came else 0, fault.counted)


_INTERFACE = {
    "device": TAP,
    "name": "eth9",
    "IPAddresses": [{"address": "172.16.0.3", "mask": "16"}],
    "hwAddr": "02:42:20:6f:a3:69",
}


_KATA = ["kata-network"]


def _file(text: str) -> int:
    fd = os.memfd_create("stdin")
    os.write(fd, text.encode())
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def of_sandboxes(network: str) -> list[Verb]:
    run = ["sandbox", "run", NAME, "--network", network]

    def tap(stage: Stage, runtime: Runtime) -> None:
        subprocess.run(["ip", "tuntap", "add", "dev", TAP, "mode", "tap"], check=True)

    def running(stage: Stage, runtime: Runtime) -> None:
        tap(stage, runtime)
        stage.must(*run)

    def plugged(stage: Stage, runtime: Runtime) -> None:
        running(stage, runtime)
        status, said = plug.run(stage)
        assert status == 0, said

    interface = json.dumps(_INTERFACE)
    plug = Verb("add-iface", running, [*_KATA, "add-iface", NAME, "-"], interface)
    return [
        Verb("sandbox run", tap, run, again=False),
        Verb("sandbox delete", running, ["sandbox", "delete", NAME]),
        plug,
        Verb("del-iface", plugged, [*_KATA, "del-iface", NAME, "-"], '{"name": "eth9"}'),
    ]


def of_containers(runtime: Runtime) -> list[Verb]:
    """Of a container without a network: what it holds is its sandbox's, and a control group."""
    # One bundle for all: who runs it changes nothing in it.
    bundle = str(runtime.bundle(configuration("sleep", "1000")))
    create = ["create", "--bundle", bundle, NAME]

    def before(*verbs: Words) -> Callable[[Stage, Runtime], None]:
        def prepare(stage: Stage, runtime: Runtime) -> None:
            for words in verbs:
                stage.must(*words, stdin=subprocess.DEVNULL)

        return prepare

    start, pause = ["start", NAME], ["pause", NAME]
    return [
        Verb("create", before(), create, again=False),
        Verb("start", before(create), start),
        Verb("exec", before(create, start), ["exec", NAME, "true"]),
        Verb("pause", before(create, start), pause),
        Verb("resume", before(create, start, pause), ["resume", NAME]),
        Verb("update", before(create, start), ["update", "--pids-limit", "50", NAME]),
        Verb("kill", before(create, start), ["kill", NAME, "KILL"]),
        Verb("delete", before(create, start), ["delete", "--force", NAME]),
    ]


def chosen(runtime: Runtime, bound: Bound, network: str = "small") -> list[Verb]:
    """All verbs; in the short form the two that make, and the two that take back."""
    verbs = [*of_sandboxes(network), *of_containers(runtime)]
    return verbs if bound.is_whole else [verb for verb in verbs if verb.name in _SHORT]


@contextmanager
def staged(tapwright: Tapwright, below: Path, fault: Fault) -> Iterator[Stage]:
    stage = Stage(tapwright, below, fault)
    try:
        yield stage
    finally:
        fault.over()
        delete_all(tapwright)
        stage.close()
        subprocess.run(["ip", "link", "delete", TAP], check=False, capture_output=True)


def delete_all(tapwright: Tapwright, force: bool = False) -> list[str]:
    """What a platform does with its container, and a person with their sandbox; what was said when
    that failed."""
    _reap()  # what they leave behind is looked for by their numbers
    said = []
    done = tapwright.run("delete", "--force", NAME)
    if done.returncode:
        said.append(done.stderr)
    done = tapwright.run("sandbox", "delete", *["--force"] * force, NAME)
    if done.returncode:
        said.append(done.stderr)
    return said


def _reap() -> None:
    """Shims and supervisors are this process's children."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
