"""What a process is given that its configuration says nothing of, by runc and by Tapwright: no
difference."""

import json
import resource
from pathlib import Path

import pytest

from tapwright.agent import inherited
from tests.oci.conftest import Exec, Run
from tests.oci.runtime import Runtime

RLIMIT_LOCKS = 10  # include/uapi/asm-generic/resource.h; Python has no name for it

pytestmark = pytest.mark.usefixtures("nothing_left")


def _with_a_user(rootfs: Path) -> None:
    # Not the file itself, which all bundles have in common.
    (rootfs / "etc/passwd").unlink()
    (rootfs / "etc/passwd").write_text("root:x:0:0::/root:\nworker:x:1000:1000::/home/w:\n")


def test_limits_and_buffers_are_the_callers(by_runc: Run, by_us: Run) -> None:
    """A limit that it has, two of those that engines leave out, and one that the guest's kernel
    would make out of its memory; what a network namespace inherits, or has by the size of the host;
    a domain by sysctl; and random addresses."""
    paths = [*inherited.SETTINGS, *(f"net/{path}" for path in inherited.OF_NEW_NAMESPACES)]
    if Path("/proc/sys", tracked := "net/netfilter/nf_conntrack_max").exists():
        paths.append(tracked)
    argv = "cat", "/proc/self/limits", *(f"/proc/sys/{path}" for path in paths)
    argv += ("/proc/sys/kernel/domainname", "/proc/self/personality")
    linux = {"sysctl": {"kernel.domainname": "of.docker"}}  # docker's --domainname
    kinds = resource.RLIMIT_MEMLOCK, resource.RLIMIT_SIGPENDING, RLIMIT_LOCKS
    before = [resource.getrlimit(kind) for kind in kinds]
    process = {"rlimits": [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]}
    try:
        for number, kind in enumerate(kinds):
            resource.setrlimit(kind, (4321 + number, before[number][1]))
        expected = by_runc(*argv, process=process, linux=linux)
        assert by_us(*argv, process=process, linux=linux) == expected
    finally:
        for number, kind in enumerate(kinds):
            resource.setrlimit(kind, before[number])
    assert "4321 " in expected
    assert "4322 " in expected
    assert "4323 " in expected
    assert expected.endswith("\nof.docker\n00000000\n")


@pytest.mark.parametrize("uid", [1000, 1234])
def test_home(by_runc: Run, by_us: Run, uid: int) -> None:
    """Of a user that /etc/passwd has, and of one that it has not. The last one counts, and an empty
    one is none."""
    env = ["PATH=/bin", *(["HOME=/before"] if uid == 1000 else []), "HOME="]
    process = {"user": {"uid": uid, "gid": uid}, "env": env}
    script = "env | grep -c HOME; echo $HOME"
    expected = by_runc("sh", "-c", script, process=process, prepare=_with_a_user)
    assert expected == f"0 1\n{'/home/w' if uid == 1000 else '/'}\n"
    assert by_us("sh", "-c", script, process=process, prepare=_with_a_user) == expected


def test_home_and_limits_of_a_further_process(runtime: Runtime, tmp_path: Path) -> None:
    """Those of its own user, and those of its container."""
    limits = [{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 88}]
    with runtime.running("sleep", "1000", process={"rlimits": limits}) as container:
        path = tmp_path / "process.json"
        path.write_text(
            '{"args": ["sh", "-c", "echo $HOME; ulimit -n; ulimit -Hn"], "cwd": "/",'
            ' "env": ["PATH=/bin"], "user": {"uid": 1234, "gid": 0}}'
        )
        said = runtime.succeed("exec", "--process", str(path), container.id)
        assert said.split() == ["/", "77", "88"]


# The score comes when crun has told of the process, which may be a moment after it began.
_SCORE = """\
for i in $(seq 100); do
    [ $(cat /proc/$$/oom_score_adj) = 222 ] && break; sleep 0.1
done
cat /proc/$$/oom_score_adj
"""


_ENV = {"env": ["PATH=/bin"]}
_STDIN = "ls -l /proc/1/fd/0 | grep -o '0 -> .*'; grep flags /proc/1/fdinfo/0"
# The limit comes when crun has told of the process, too. Then, whether stdin is a pipe.
_LIMITED = "until [ $(ulimit -Hn) = 7 ]; do sleep 0.1; done; ulimit -n; [ -p /dev/stdin ]; echo $?"
_FILES = ["sh", "-c", _LIMITED]


def test_a_further_process(exec_by_both: Exec, tmp_path: Path) -> None:
    """It has its container's score for the OOM killer, whatever it is given. Without variables of
    its own it has HOME, and nothing of its container's: of a user that the container knows, of one
    that it does not know, and without a path in which to look for a program. Its addresses are
    random, unlike crun's. It may have fewer open files than crun needs itself. Without input it has
    a pipe, and the container, for which nobody waits, the null device."""
    sheets = list[Path]()
    for argv, uid in ((["/bin/env"], 1000), (["/bin/env"], 1234), (["env"], 0)):
        sheets.append(tmp_path / f"{len(sheets)}.json")
        user = {"uid": uid, "gid": uid}
        sheet = {"args": argv, "cwd": "/", "user": user, "oomScoreAdj": 5}
        sheets[-1].write_text(json.dumps(sheet))
    script = f"{_SCORE}cat /proc/self/personality"
    calls = [*(("--process", str(sheet), "{}") for sheet in sheets), ("{}", "sh", "-c", script)]
    few = tmp_path / "few.json"
    limits = [{"type": "RLIMIT_NOFILE", "soft": 7, "hard": 7}]
    few.write_text(json.dumps({"args": _FILES, "cwd": "/", "rlimits": limits} | _ENV))
    calls += [("--process", str(few), "{}"), ("{}", "sh", "-c", _STDIN)]
    process = {"env": ["PATH=/bin", "OF=the container"], "oomScoreAdj": 222}
    by_runc, by_us = exec_by_both(calls, prepare=_with_a_user, process=process)
    assert by_runc[0] == "0 HOME=/home/w\n"
    assert by_runc[1] == "0 HOME=/\n"
    assert by_runc[3] == "0 222\n00000000\n"
    # runc has the limit too before it executes the program, and fails now and then.
    assert by_us[4] == "0 7\n0\n"
    assert by_runc[5].startswith("0 0 -> /dev/null\n")
    for number in (0, 1, 3, 5):
        assert by_us[number] == by_runc[number]
    # Each in its own words.
    assert by_runc[2].startswith("255 ")
    assert by_us[2].startswith("255 ")


def test_names_of_a_container_that_is_given_none(by_runc: Run, by_us: Run) -> None:
    """As `ctr run` gives none."""
    argv = ("cat", "/proc/sys/kernel/hostname", "/proc/sys/kernel/domainname")
    assert by_us(*argv, hostname="") == by_runc(*argv, hostname="")


def test_groups_that_are_named_twice(by_runc: Run, by_us: Run) -> None:
    """As docker does with that of `--user` (since CVE-2022-36109)."""
    process = {"user": {"uid": 1000, "gid": 2000, "additionalGids": [2000, 99, 2000]}}
    expected = by_runc("id", process=process)
    assert expected.endswith("groups=99,2000\n")
    assert by_us("id", process=process) == expected
