"""Part 9: kills at any moment of any verb, of one process or of all. What a platform does with a
container then, and a person with a sandbox, leaves nothing."""

import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tests.host import Host
from tests.moments import Decide, Moment, Watched
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright
from tests.torture import scenes
from tests.torture.bound import Bound
from tests.torture.scenes import Fault

_A_VERB_SECONDS = 0.8


def test_kills(bound: Bound, tapwright: Tapwright, runtime: Runtime, host: Host) -> None:
    verbs = scenes.chosen(runtime, bound)
    killed: Counter[str] = Counter()
    for number in bound.goes_on(short=3):
        verb = verbs[number % len(verbs)]
        before = host.snapshot()
        fault = Fault()
        with scenes.staged(tapwright, tapwright.root.parent, fault) as stage:
            verb.prepare(stage, runtime)
            at_a_write, of_all = bound.random.random() < 0.6, bound.random.random() < 0.4
            if at_a_write:
                at = bound.random.randrange(verb.moments)
                victims: list[str] = []
                fault.begin(at, killing(tapwright, of_all, victims))
                status, said = verb.run(stage)
                where = f"{verb.name}: {victims} killed at {fault.came}: {status} {said}"
            else:
                moment = bound.random.uniform(0, _A_VERB_SECONDS)
                watched = verb.start(stage)
                # The moment itself is what is tested: no event belongs to it.
                time.sleep(moment)
                there = processes(tapwright, watched)
                names = sorted(there)
                victims = names if of_all else [bound.random.choice(names)]
                for name in victims:
                    scenes.kill(there[name])
                status, said = watched.wait()
                where = f"{verb.name}: {victims} killed after {moment:.3f} s: {status} {said}"
            killed.update({"all"} if of_all and victims else map(kind, victims))
            assert scenes.delete_all(tapwright) == [], where
        print(where)
        host.assert_same(before)
    done = ", ".join(f"{name} {count}" for name, count in sorted(killed.items()))
    bound.tell(
        9,
        f"SIGKILL at a write or at a random time of {len(verbs)} verbs ({done})",
        "`delete` worked, nothing left",
        sum(killed.values()),
    )


def kind(name: str) -> str:
    return name.rstrip("0123456789")


def killing(tapwright: Tapwright, of_all: bool, victims: list[str]) -> Decide:
    def decide(moment: Moment) -> int:
        if of_all:
            there = processes(tapwright)
            victims.extend(sorted(there))
            for pid in there.values():
                scenes.kill(pid)
        victims.append("writer")
        scenes.kill(moment.pid)
        return 0

    return decide


def processes(tapwright: Tapwright, watched: Watched | None = None) -> dict[str, int]:
    """All that live of the scene's, by what they are."""
    found = {"caller": watched.process.pid} if watched else {}
    for alive in tapwright.root.glob("sandboxes/*/alive"):
        with suppress(OSError, ValueError):
            supervisor = int(alive.read_text())
            found["supervisor"] = supervisor
            for child in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                name = "monitor" if "netmon" in " ".join(words) else Path(words[0]).name
                found[f"{name.partition('-')[0]}{child}"] = int(child)
    for state in tapwright.root.glob("containers/*/state.json"):
        with suppress(OSError, ValueError):
            if pid := json.loads(state.read_text())["pid"]:
                found["shim"] = pid
    return found
