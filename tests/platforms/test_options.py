"""Options of `podman run`: what a program sees by Tapwright is what it sees by runc.

A row is a set of options and a script, which both run; whatever they print must be the same.
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.platforms.confined import RUNTIMES, said
from tests.platforms.podman import Podman

_IMAGE = "linked"
_MAKE_IMAGE = (
    "ln -s home /link; ln -s /home /abs; ln -s ../../../beside /out; ln -s target /etc/linked; "
    "echo 'echo script ran' >/etc/script; chmod +x /etc/script"
)


class Row(NamedTuple):
    """`{dir}` in the options is a directory with `file` and `volume/in`. Of a row without a script
    the image's own command is run, and only the status compared."""

    options: str
    script: str = ""
    stdin: str = ""


_HOST_WIDE = (
    *("vm/max_map_count", "fs/inotify/max_user_watches", "fs/inotify/max_user_instances"),
    *("fs/file-max", "fs/aio-max-nr", "kernel/pid_max", "kernel/threads-max"),
)

ROWS = {
    "identity": Row(
        "--user worker:extra --group-add 5000 --umask 027 --workdir /www --env HOME= "
        "--env A=b=c --hostname me --add-host some:10.1.2.3 --tz UTC",
        "id; umask; pwd; env | sort; hostname; grep 10.1.2.3 /etc/hosts; cat /etc/hostname; "
        "date +%Z; touch /tmp/x; ls -ln /tmp/x | cut -d' ' -f1",
    ),
    "limits": Row(
        "--ulimit nofile=512:600 --ulimit nproc=1024:1024 --ulimit core=0 --oom-score-adj 300 "
        "--shm-size 10m --cpuset-cpus 0",
        "cat /proc/self/limits /proc/self/oom_score_adj; nproc; df -k /dev/shm | tail -n 1 | "
        "tr -s ' ' | cut -d' ' -f2,6; cd /proc/sys; cat " + " ".join(_HOST_WIDE),
    ),
    "a user that nobody knows": Row("--user 1234:567", "id; echo $HOME; pwd"),
    "capabilities": Row(
        "--cap-drop ALL --cap-add net_raw --security-opt no-new-privileges "
        "--security-opt mask=/etc:/www/index.html",
        "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; ls /etc; cat /www/index.html",
    ),
    "files": Row(
        "--read-only --tmpfs /x:size=5m,mode=711,noexec --volume {dir}/file:/f:ro "
        "--volume {dir}/volume:/abs/one --volume {dir}/volume:/link/two "
        "--volume {dir}/volume:/out/three:noexec --volume {dir}/file:/etc/linked",
        "for d in / /tmp /run /var/tmp /dev /dev/shm /etc /x /f; do touch $d/new 2>&1; done; "
        "ls -ld /x | cut -c1-10; df -k /x | tail -n 1 | tr -s ' '; cp /bin/busybox /x/ls; /x/ls; "
        "ls /home /home/* /beside/*; cat /etc/target",
    ),
    "a volume with an overlay": Row(
        "--volume {dir}/volume:/v:O", "cat /v/in; echo new >/v/new; rm /v/in; ls /v"
    ),
    "the host's name": Row("--uts host", "hostname"),
    "an image as a volume": Row("--mount type=image,source=busybox,destination=/i", "ls /i"),
    "a script without an interpreter": Row("--entrypoint /etc/script"),
    "a directory as the program": Row("--entrypoint /etc"),
    "ended by a signal": Row("", "sh -c 'kill -SEGV $$'; echo $?; kill -9 $$"),
    "stdin": Row("--interactive --init", "md5sum; cat /proc/1/comm", "some text\n" * 100_000),
}


@pytest.fixture(scope="module", autouse=True)
def nothing_left(podman: Podman, podman_leaves_nothing: None) -> None:
    """Of all containers of this module."""


@pytest.fixture(scope="module")
def directory(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What the options name; and the image is there."""
    path = tmp_path_factory.mktemp("options")
    (path / "volume").mkdir()
    (path / "volume/in").write_text("in\n")
    (path / "file").write_text("file\n")
    podman.output("run", "--name", "base", "busybox", "sh", "-c", _MAKE_IMAGE, runtime="runc")
    podman.output("commit", "--quiet", "base", _IMAGE)
    podman.output("rm", "base")
    yield path
    podman.run("volume", "rm", "--all", "--force")
    podman.output("rmi", _IMAGE)


def _by_both(podman: Podman, row: Row, directory: Path) -> list[tuple[int, str]]:
    options = [word.format(dir=directory) for word in row.options.split()]
    network = () if "--network" in options else ("--network", "none")
    argv = ("sh", "-c", row.script) if row.script else ()
    words = ("run", "--rm", *network, *options, _IMAGE, *argv)
    ways = [said(podman.run(*words, runtime=each, input=row.stdin)) for each in RUNTIMES]
    return ways if row.script else [(status, "") for status, _ in ways]


@pytest.mark.parametrize("name", ROWS)
def test_options(podman: Podman, directory: Path, name: str) -> None:
    by_runc, by_us = _by_both(podman, ROWS[name], directory)
    assert by_runc[0] != 125, f"podman itself refuses this: {by_runc[1]}"
    if name == "a script without an interpreter" and by_runc[0] == 255:
        by_runc = 1, ""  # runc's before 1.3, and crun's
    assert by_us == by_runc


@pytest.mark.skipif(not shutil.which("slirp4netns"), reason="slirp4netns is not installed")
def test_a_program_as_the_network(podman: Podman, directory: Path) -> None:
    """It holds a TAP in the container's namespace, and answers for its gateway."""
    script = (
        "ip -o -4 address | tr -s ' ' | cut -d' ' -f2-4; ip route; cat /etc/resolv.conf; "
        "ping -c 1 -W 9 $(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p') | grep received"
    )
    by_runc, by_us = _by_both(podman, Row("--network slirp4netns", script), directory)
    assert by_runc[0] == 0, by_runc[1]
    assert by_us == by_runc


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--network host", "a VM can't have the host's network (--network host)"),
        ("--network none --mount type=bind,source=/etc,destination=/", "mounted over"),
    ],
)
def test_what_is_refused_says_so(podman: Podman, options: str, words: str) -> None:
    done = podman.run("run", "--rm", *options.split(), "busybox", "true")
    assert done.returncode in (125, 126), done.stderr
    assert words in done.stderr
