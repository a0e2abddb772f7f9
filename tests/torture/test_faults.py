"""Part 2: each write of each verb fails in turn. A sentence says so, and `delete` works."""

import errno

from tests.host import Host, Snapshot, eventually
from tests.moments import Decide, Moment
from tests.oci.runtime import Runtime
from tests.sandboxes import Tapwright
from tests.torture import scenes
from tests.torture.bound import Bound
from tests.torture.scenes import Fault

CODES = (errno.ENOSPC, errno.EIO, errno.EROFS)


def failing(code: int) -> Decide:
    def decide(moment: Moment) -> int:
        frees = moment.call in ("unlink", "unlinkat", "rmdir")
        return 0 if code == errno.ENOSPC and frees else code

    return decide


def on_the_host(snapshot: Snapshot) -> Snapshot:
    """Without what is on the disk, and the TAP that is there for the verb."""
    return {
        kind: [line for line in lines if scenes.TAP not in line]
        for kind, lines in snapshot.items()
        if kind != "files"
    }


def test_each_write_fails(bound: Bound, tapwright: Tapwright, runtime: Runtime, host: Host) -> None:
    below = tapwright.root.parent
    verbs = scenes.chosen(runtime, bound)
    counts = dict.fromkeys((verb.name for verb in verbs), 0)
    came = 0
    for number in bound.goes_on(short=4):
        verb = verbs[number % len(verbs)]
        at, code = bound.random.randrange(max(1, verb.moments)), bound.random.choice(CODES)
        is_lasting = bound.random.random() < 0.5
        before = host.snapshot()
        fault = Fault()
        with scenes.staged(tapwright, below, fault) as stage:
            verb.prepare(stage, runtime)
            fault.begin(at, failing(code), is_lasting)
            status, said = verb.run(stage)
            where = (
                f"{verb.name}, {errno.errorcode[code]} at moment {at}"
                f"{' and after' * is_lasting}: {fault.came}, status {status}: {said}"
            )
            came += fault.came is not None
            check_words(where, status, said)
            check_logs(where, tapwright)
            if is_lasting and fault.came:
                check_delete(where, stage, host, before)
            fault.over()
            assert scenes.delete_all(tapwright) == [], where
        print(where)
        host.assert_same(before)
        counts[verb.name] += 1
    bound.tell(
        2,
        "ENOSPC, EIO, EROFS at a write of a verb, once or from then on ({verbs})",
        "{failed} failed: a sentence each time, `delete` worked, nothing left",
        counts={"verbs": counts, "failed": came},
    )


def check_words(where: str, status: int, said: str) -> None:
    assert "Traceback" not in said, where
    assert "unexpected" not in said, where
    if status:
        lines = [line for line in said.splitlines() if line.startswith("tapwright: ")]
        assert lines, where


def check_logs(where: str, tapwright: Tapwright) -> None:
    """A mistake of ours is in a log with its trace."""
    for log in tapwright.root.glob("sandboxes/*/log"):
        text = log.read_text(errors="replace")
        assert "Traceback" not in text, f"{where}\n{text}"


def check_delete(where: str, stage: scenes.Stage, host: Host, before: Snapshot) -> None:
    """On a disk that goes on failing, all goes that is not on that disk."""
    stage.do("delete", "--force", scenes.NAME)
    status, said = stage.do("sandbox", "delete", "--force", scenes.NAME)
    check_words(where, status, said)
    wanted = on_the_host(before)
    assert eventually(lambda: on_the_host(host.snapshot()) == wanted), (
        f"{where}; delete: {status} {said}"
    )
