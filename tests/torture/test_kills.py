"""Part 9: kills at any moment of any verb, of one process or of all. What a platform does with a
container then, and a person with a sandbox, leaves nothing."""

import json
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

from tapwright.state import supervisors
from tests.host import Host
from tests.moments import Decide, Moment, Watched
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright, children_of
from tests.templates import Templates
from tests.torture import scenes
from tests.torture.bound import Bound
from tests.torture.scenes import Fault, Stage, Verb

_A_VERB_SECONDS = 0.8
_IN_A_LIFE = 12


def test_kills(
    bound: Bound,
    tapwright: Tapwright,
    runtime: Runtime,
    host: Host,
    templates_of_session: Templates,
) -> None:
    """A sandbox that lives on has the next verb, and the next kill."""
    kinds = [scenes.of_sandboxes("small"), scenes.of_containers(runtime)]
    verbs = [(verb, kind) for kind in kinds for verb in kind]
    if not bound.is_whole:
        shown = {verb.name for verb in scenes.chosen(runtime, bound)}
        verbs = [(verb, []) for verb, _ in verbs if verb.name in shown]
    killed: Counter[str] = Counter()
    for number in bound.goes_on(short=3):
        templates_of_session.renew()
        verb, others = verbs[number % len(verbs)]
        before = host.snapshot()
        fault = Fault()
        said = []
        with scenes.staged(tapwright, tapwright.root.parent, fault) as stage:
            verb.prepare(stage, runtime)
            while True:
                where, victims = kill_at(verb, stage, fault, bound)
                killed.update(victims)
                said.append(where)
                later = [other for other in others if other.again]
                if not later or len(said) == _IN_A_LIFE or not lives(tapwright):
                    break
                verb = bound.random.choice(later)
            fault.over()
            assert scenes.delete_all(tapwright) == [], said
        print("\n".join(said))
        host.assert_same(before)
    bound.tell(
        9,
        f"SIGKILL at a write or at a random time of {len(verbs)} verbs ({{killed}})",
        "`delete` worked, nothing left",
        killed.total(),
        {"killed": killed},
    )


def kill_at(verb: Verb, stage: Stage, fault: Fault, bound: Bound) -> tuple[str, list[str]]:
    """Kill during a verb; what happened, and the kinds of what was killed."""
    at_a_write = verb.moments > 0 and bound.random.random() < 0.6
    of_all = bound.random.random() < 0.3
    tapwright = stage.tapwright
    victims: list[str] = []
    if at_a_write:
        fault.begin(bound.random.randrange(verb.moments), killing(tapwright, of_all, victims))
        status, said = verb.run(stage)
        when = f"at {fault.came}"
    else:
        fault.over()
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
        when = f"after {moment:.3f} s"
    where = f"{verb.name}: {victims} killed {when}: {status} {said}"
    return where, ["all"] if of_all and victims else list(map(kind, victims))


def lives(tapwright: Tapwright) -> bool:
    directory = tapwright.root / "sandboxes" / scenes.NAME
    return directory.exists() and supervisors.is_alive(directory)


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
            for child in children_of(supervisor, ""):
                words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
                name = "monitor" if "netmon" in " ".join(words) else Path(words[0]).name
                found[f"{name.partition('-')[0]}{child}"] = child
    for state in tapwright.root.glob("containers/*/state.json"):
        with suppress(OSError, ValueError):
            if pid := json.loads(state.read_text())["pid"]:
                found["shim"] = pid
    return found
