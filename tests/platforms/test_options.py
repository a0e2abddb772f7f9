"""Options of `podman run`: what a program sees by Tapwright is what it sees by runc.

A row is a set of options and a script, which both run; whatever they print must be the same. The
quick rows have several options each. The others run with TAPWRIGHT_ALL_OPTIONS=1.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.platforms.confined import RUNTIMES, said
from tests.platforms.podman import Podman

_ALL = "TAPWRIGHT_ALL_OPTIONS"
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

QUICK = {
    "identity": Row(
        "--user worker:extra --group-add 5000 --umask 027 --workdir /not/there --env HOME= "
        "--env A=b=c --hostname me --add-host some:10.1.2.3 --tz UTC",
        "id; umask; pwd; env | sort; hostname; cat /etc/hosts /etc/hostname; date +%Z; "
        "touch /tmp/x; ls -ln /tmp/x | cut -d' ' -f1",
    ),
    "a user that nobody knows": Row("--user 1234:567", "id; echo $HOME; pwd"),
    "limits": Row(
        "--ulimit nofile=512:600 --ulimit core=0 --ulimit stack=4194304 --oom-score-adj 300 "
        "--shm-size 10m --cpuset-cpus 0",
        "cat /proc/self/limits /proc/self/oom_score_adj; nproc; df -k /dev/shm | tail -n 1 | "
        "tr -s ' ' | cut -d' ' -f2,6; cd /proc/sys; cat " + " ".join(_HOST_WIDE),
    ),
    "capabilities": Row(
        "--cap-drop ALL --cap-add net_raw --security-opt no-new-privileges "
        "--security-opt mask=/etc:/www/index.html",
        "grep -E 'Cap|NoNew|Seccomp:' /proc/self/status; ls /etc; cat /www/index.html",
    ),
    "files": Row(
        "--read-only --tmpfs /x:size=5m,mode=711,noexec,nr_inodes=100 --volume {dir}/file:/f:ro "
        "--volume {dir}/volume:/abs/one --volume {dir}/volume:/link/two "
        "--volume {dir}/volume:/out/three:noexec --volume {dir}/file:/etc/linked",
        "for d in / /tmp /run /var/tmp /dev /dev/shm /etc /x /f; do touch $d/new 2>&1; done; "
        "ls -ld /x | cut -c1-10; df -k /x | tail -n 1 | tr -s ' '; cp /bin/busybox /x/ls; /x/ls; "
        "ls /home /home/* /beside/*; cat /etc/target",
    ),
    "a volume with an overlay": Row(
        "--volume {dir}/volume:/v:O", "cat /v/in; echo new >/v/new; rm /v/in; ls /v"
    ),
    "a script without an interpreter": Row("--entrypoint /etc/script"),
    "a directory as the program": Row("--entrypoint /etc"),
    "ended by a signal": Row("", "sh -c 'kill -SEGV $$'; echo $?; kill -9 $$"),
    "stdin": Row("--interactive --init", "md5sum; cat /proc/1/comm", "some text\n" * 100_000),
}

OTHERS = {
    "no stdin": Row("", "cat; echo ended"),
    "devices": Row(
        "--device /dev/null:/dev/foo:r", "ls -l /dev/foo | tr -s ' ' | cut -d' ' -f1,5,6"
    ),
    "a device that is not there": Row("--device /dev/nowhere"),
    "all capabilities": Row("--cap-add ALL", "grep Cap /proc/self/status"),
    "capabilities of a user": Row(
        "--user worker --cap-add net_admin", "grep Cap /proc/self/status"
    ),
    "a user by name": Row("--user worker", "id; echo $HOME; grep Groups /proc/self/status"),
    "no such user": Row("--user nobody-here"),
    "kernel parameters": Row(
        "--sysctl net.core.somaxconn=1234 --sysctl kernel.msgmax=9000",
        "cd /proc/sys; cat net/core/somaxconn kernel/msgmax",
    ),
    "no such parameter": Row("--sysctl net.nothing=1"),
    "a parameter of the host": Row("--sysctl vm.max_map_count=300000"),
    "name servers": Row(
        "--network podman --dns 10.9.9.9 --dns-search example.org --dns-opt ndots:3",
        "cat /etc/resolv.conf",
    ),
    "addresses": Row(
        "--network podman --ip 10.88.0.77 --mac-address 02:11:22:33:44:55",
        "ip -o link show eth0 | grep -o 'link/ether [^ ]*'; ip route; cat /sys/class/net/eth0/mtu",
    ),
    "a named volume": Row("--volume named:/www", "ls -l /www | tr -s ' ' | cut -d' ' -f1,3,9"),
    "a source that is not there": Row("--mount type=bind,source={dir}/nothing,destination=/v"),
    "a destination with dots": Row("--volume {dir}/volume:/etc/../v2/./x", "ls /v2/x"),
    "a file in a new directory": Row("--volume {dir}/file:/new/deep/file", "cat /new/deep/file"),
    "a tmpfs over files": Row("--tmpfs /www", "ls /www; cat /www/index.html"),
    "privileged": Row(
        "--privileged",
        "grep Cap /proc/self/status; mkdir /m; mount -t tmpfs x /m; echo $?; "
        "echo me >/proc/sys/kernel/hostname; hostname",
    ),
    "no environment": Row("--unsetenv-all", "env | sort"),
    "a long variable": Row(f"--env BIG={'x' * 100_000}", "echo ${#BIG}"),
    "binary output": Row("", "head -c 300000 /dev/zero; printf 'a\\r\\nb\\001'"),
    "a time limit": Row("--timeout 1", "sleep 100"),
    "what may not be done": Row(
        "",
        "mknod /tmp/n c 1 3; mknod /tmp/p p; chroot / /bin/true; echo $?; mount -t proc p /proc; "
        "unshare -m true; unshare -U true; date -s 2020-01-01; hostname new; chown 7:7 /tmp; "
        "ls -ldn /tmp | tr -s ' ' | cut -d' ' -f3; echo x >/proc/sys/kernel/msgmax",
    ),
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


@pytest.mark.parametrize("name", QUICK)
def test_options(podman: Podman, directory: Path, name: str) -> None:
    by_runc, by_us = _by_both(podman, QUICK[name], directory)
    assert by_us == by_runc


@pytest.mark.skipif(_ALL not in os.environ, reason=f"more options: set {_ALL}=1 to compare them")
@pytest.mark.parametrize("name", OTHERS)
def test_more_options(podman: Podman, directory: Path, name: str) -> None:
    by_runc, by_us = _by_both(podman, OTHERS[name], directory)
    assert by_us == by_runc


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--network host", "the host's network (--network host) is not to be had in a VM"),
        ("--userns auto:size=1000 --network none", "user namespaces are not supported"),
        ("--network none --mount type=bind,source=/etc,destination=/", "mounted over"),
    ],
)
def test_what_is_refused_says_so(podman: Podman, options: str, words: str) -> None:
    done = podman.run("run", "--rm", *options.split(), "busybox", "true")
    assert done.returncode == 126 or done.returncode == 125, done.stderr
    assert words in done.stderr
