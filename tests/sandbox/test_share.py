"""Files of the host in the guest: what is seen, whose it is, and that nothing is left of it."""

import contextlib
import mmap
import os
import shutil
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.agent import protocol
from tapwright.config import load
from tapwright.errors import HypervisorError, SandboxStateError, UsageError
from tapwright.linux import mounts
from tapwright.sandbox import client, lifecycle, planning, wire
from tapwright.sandbox.planning import Wish
from tapwright.state import registry
from tests.host import eventually
from tests.sandboxes import Tapwright, child_of, children_of, ended, pids_of

SANDBOX, OTHER = "share", "share-other"
SHARE = "/run/tapwright/share"
DAEMON = "virtiofsd"

# So that the guest's interpreter can map files: its own has no module for that.
DYNLOAD = Path(mmap.__file__).parent


def run(tapwright: Tapwright, name: str, share: bool = True) -> registry.Sandbox:
    spec = planning.plan(load(str(tapwright.config)), Wish(share=share), print)
    lifecycle.run(tapwright.root, name, spec)
    return registry.find(tapwright.root, name)


def show(
    sandbox: registry.Sandbox, container: str, read_only: bool = False, **sources: Path
) -> dict[str, str]:
    """Where the guest has them."""
    fds = {name: mounts.clone(str(path), read_only=read_only) for name, path in sources.items()}
    try:
        return client.of(sandbox).share(container, fds)
    finally:
        for fd in fds.values():
            os.close(fd)


@pytest.fixture(scope="module")
def sandbox(tapwright: Tapwright) -> Iterator[registry.Sandbox]:
    """One for all tests that leave it as it was."""
    yield run(tapwright, SANDBOX)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


@pytest.fixture
def tree(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> Iterator[Path]:
    """A directory, which the guest sees as ROOT."""
    place = tmp_path / "tree"
    place.mkdir()
    as_root(tapwright, show(sandbox, "test", root=place)["root"])
    yield place
    client.of(sandbox).unshare("test")


@pytest.fixture
def no_sandbox_left(tapwright: Tapwright, nothing_left: None) -> Iterator[None]:
    yield
    tapwright.run("sandbox", "delete", "--force", OTHER)


ROOT = "/tmp/root"


def as_root(tapwright: Tapwright, path: str, sandbox: str = SANDBOX) -> None:
    """Have ROOT lead to what is at a path in the guest."""
    tapwright.exec(sandbox, "ln", "-sfn", path, ROOT)


def sh(tapwright: Tapwright, command: str, sandbox: str = SANDBOX) -> str:
    return tapwright.exec(sandbox, "sh", "-ec", f"cd {ROOT}; {command}")


def python(tapwright: Tapwright, program: str) -> str:
    return tapwright.exec(
        SANDBOX, "python3", "-I", "-S", "-c", f"import os\nos.chdir('{ROOT}')\n{program}"
    )


# --- what is seen -------------------------------------------------------------------------------


def test_what_is_shared_is_seen_as_long_as_it_is(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("content")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost")
    before = Path("/proc/self/mountinfo").read_text()
    show(sandbox, "one", root=tmp_path / "tree", hosts=tmp_path / "hosts")
    assert tapwright.exec(SANDBOX, "cat", f"{SHARE}/one/root/deep/file") == "content"
    assert tapwright.exec(SANDBOX, "cat", f"{SHARE}/one/hosts") == "127.0.0.1 localhost"
    tapwright.exec(SANDBOX, "sh", "-c", f"echo new > {SHARE}/one/root/new")
    assert (tmp_path / "tree" / "new").read_text() == "new\n"
    assert Path("/proc/self/mountinfo").read_text() == before
    client.of(sandbox).unshare("one")
    client.of(sandbox).unshare("one")
    assert tapwright.exec(SANDBOX, "ls", SHARE) == ""


ASK_SOCKETS = """
import os, socket, sys
for path in sys.argv[1:]:
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(path)
            print(connection.recv(100).decode())
        except OSError as error:
            print(type(error).__name__)
"""


def test_sockets_are_carried_as_long_as_a_container_has_them(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path
) -> None:
    def say(listener: socket.socket, text: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(text.encode())

    def ask(*paths: str) -> list[str]:
        words = ("python3", "-I", "-S", "-c", ASK_SOCKETS, *paths)
        return tapwright.exec(SANDBOX, *words).splitlines()

    def carry(container: str, *names: str) -> list[str]:
        fds = [os.open(tmp_path / name, os.O_PATH) for name in names]
        try:
            kinds = [protocol.STREAM] * len(fds)
            found = client.of(sandbox).carry_sockets(container, names, kinds, fds)
            return [found[name] for name in names]
        finally:
            for fd in fds:
                os.close(fd)

    def held() -> set[str]:
        """By the supervisor."""
        supervisor, _ = pids_of(tapwright.json("sandbox", "inspect", SANDBOX))
        links = (os.readlink(path) for path in Path(f"/proc/{supervisor}/fd").iterdir())
        return {Path(link).name for link in links if link.startswith(str(tmp_path))}

    with contextlib.ExitStack() as serving:
        for name in ("one", "two"):
            listener = serving.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(tmp_path / name))
            listener.listen()
            serving.callback(listener.shutdown, socket.SHUT_RDWR)
            threading.Thread(target=say, args=(listener, name)).start()
        one, two = carry("a", "one", "two")
        assert carry("b", "one") == [one]
        # The name of a socket does not matter when it is held.
        (tmp_path / "one").rename(tmp_path / "moved")
        assert ask(one, two, one) == ["one", "two", "one"]
        client.of(sandbox).unshare("a")
        assert ask(one, two) == ["one", "FileNotFoundError"]
        assert held() == {"moved"}
    assert ask(one) == [""], "the first one may be taken"
    assert eventually(lambda: ask(one) == ["FileNotFoundError"])
    client.of(sandbox).unshare("b")
    assert held() == set()


def test_both_sides_write(tapwright: Tapwright, tree: Path) -> None:
    (tree / "log").write_text("host 1\n")
    sh(tapwright, "echo guest 1 >> log; mkdir made; echo there > made/file")
    with (tree / "log").open("a") as file:
        file.write("host 2\n")
    sh(tapwright, "echo guest 2 >> log")
    expected = "host 1\nguest 1\nhost 2\nguest 2\n"
    assert (tree / "log").read_text() == expected
    assert sh(tapwright, "dd if=log bs=64 2>/dev/null") == expected
    # `cat` uses sendfile, which does not ask for the size before it has become old (mm/filemap.c:
    # filemap_splice_read, since Linux 6.5).
    assert eventually(lambda: sh(tapwright, "cat log") == expected)
    (tree / "made" / "file").rename(tree / "made" / "moved")
    (tree / "log").unlink()
    (tree / "later").mkdir()
    assert sh(tapwright, "find . | sort").split() == [".", "./later", "./made", "./made/moved"]


def test_an_open_file_is_seen_to_grow(tapwright: Tapwright, tree: Path) -> None:
    (tree / "log").write_text("first\n")
    words = tapwright.command("sandbox", "exec", SANDBOX, "--", "tail", "-f", f"{ROOT}/log")
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "first\n"
        with (tree / "log").open("a") as file:
            file.write("second\n")
        assert process.stdout.readline() == "second\n"
        process.kill()


def test_owners_and_modes(tapwright: Tapwright, tree: Path) -> None:
    sh(tapwright, "echo a > file; chown 1000:1001 file; chmod 4751 file; mkdir -m 1777 all")
    status = (tree / "file").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (1000, 1001, 0o4751)
    assert stat.S_IMODE((tree / "all").stat().st_mode) == 0o1777
    (tree / "secret").write_text("of another")
    os.chown(tree / "secret", 1234, 1234)
    (tree / "secret").chmod(0o600)
    said = python(
        tapwright,
        "os.setgid(1000); os.setuid(1000)\n"
        "for path, mode in (('all/mine', 'w'), ('new', 'w'), ('secret', 'r'), ('file', 'r+')):\n"
        "    try: open(path, mode).close(); print(path, 'yes')\n"
        "    except OSError as error: print(path, error.strerror)\n"
        "os.mkdir('all/directory'); os.symlink('nowhere', 'all/link')",
    )
    assert said.splitlines() == [
        "all/mine yes",
        "new Permission denied",
        "secret Permission denied",
        "file yes",
    ]
    for name in ("mine", "directory", "link"):
        assert (tree / "all" / name).lstat().st_uid == 1000
    assert sh(tapwright, "cat secret") == "of another"


def test_kinds_of_files(tapwright: Tapwright, tree: Path) -> None:
    python(
        tapwright,
        "import socket, stat\n"
        "open('file', 'w').write('x')\n"
        "os.symlink('file', 'link'); os.link('file', 'hard'); os.mkfifo('fifo')\n"
        "listening = socket.socket(socket.AF_UNIX); listening.bind('socket'); listening.listen()\n"
        "socket.socket(socket.AF_UNIX).connect('socket')\n"
        "assert os.stat('file').st_nlink == 2 and os.path.samefile('file', 'hard')\n"
        "assert stat.S_ISFIFO(os.stat('fifo').st_mode)",
    )
    kinds = {path.name: stat.S_IFMT(path.lstat().st_mode) for path in tree.iterdir()}
    assert kinds == {
        "file": stat.S_IFREG,
        "hard": stat.S_IFREG,
        "link": stat.S_IFLNK,
        "fifo": stat.S_IFIFO,
        "socket": stat.S_IFSOCK,
    }
    assert (tree / "hard").samefile(tree / "file")
    assert sh(tapwright, "(echo through > fifo &); cat fifo") == "through\n"


def test_files_that_are_open(tapwright: Tapwright, tree: Path) -> None:
    """Renamed, replaced and removed while programs have them open: they stay what they were, with
    size, owner, mode and time of their own, and can be changed and opened anew."""
    said = python(
        tapwright,
        "renamed = os.open('one', os.O_CREAT | os.O_RDWR); os.rename('one', 'two')\n"
        "os.write(renamed, b'x'); os.fchown(renamed, 5, 6); print(os.fstat(renamed).st_size)\n"
        "open('old', 'w').write('old'); old = os.open('old', os.O_RDWR)\n"
        "open('new', 'w').write('newer'); os.rename('new', 'old')\n"
        "print(os.read(old, 9), open('old').read(), os.fstat(old).st_size)\n"
        "os.ftruncate(old, 1); os.fchmod(old, 0o600); os.fchown(old, 7, 8); os.utime(old, (1, 2))\n"
        "status = os.fstat(old); print(status.st_size, oct(status.st_mode), status.st_uid)\n"
        "print(status.st_mtime, status.st_nlink, os.stat('old').st_size)\n"
        "gone = open('gone', 'w+'); gone.write('kept'); gone.flush(); os.unlink('gone')\n"
        "gone.write(' on'); gone.seek(0); print(gone.read(), os.fstat(gone.fileno()).st_size)\n"
        "gone.truncate(4); os.fchmod(gone.fileno(), 0o640); status = os.fstat(gone.fileno())\n"
        "print(status.st_size, oct(status.st_mode), status.st_nlink)\n"
        "print(open(f'/proc/self/fd/{gone.fileno()}').read())",
    )
    assert said.splitlines() == [
        "1",
        "b'old' newer 3",
        "1 0o100600 7",
        "2.0 0 5",
        "kept on 7",
        "4 0o100640 0",
        "kept",
    ]
    assert sorted(path.name for path in tree.iterdir()) == ["old", "two"]
    assert (tree / "two").stat().st_uid == 5
    assert ((tree / "old").read_text(), (tree / "old").stat().st_uid) == ("newer", 0)


def test_two_kinds_of_locks(tapwright: Tapwright, tree: Path) -> None:
    """On one file, without one keeping the other away."""
    said = python(
        tapwright,
        "import fcntl\n"
        "one, other = open('file', 'w'), open('file', 'w')\n"
        "fcntl.flock(one, fcntl.LOCK_EX); fcntl.lockf(other, fcntl.LOCK_EX); print('both')\n"
        "try: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('held')",
    )
    assert said.split() == ["both", "held"]


def test_capabilities_of_files(tapwright: Tapwright, tree: Path) -> None:
    """Set as setcap(8) does, and in force."""
    permitted = "0100000200040000000000000000000000000000"  # CAP_NET_BIND_SERVICE, effective
    sh(tapwright, "cp /usr/bin/python3 able")
    said = python(
        tapwright,
        f"os.setxattr('able', 'security.capability', bytes.fromhex('{permitted}'))\n"
        "print(os.getxattr('able', 'security.capability').hex(), flush=True)\n"
        "os.setgid(1000); os.setuid(1000)\n"
        "os.execv('able', ['python3', '-c', 'print(open(\"/proc/self/status\").read())'])",
    )
    assert said.splitlines()[0] == permitted
    assert f"CapEff:\t{1 << 10:016x}" in said.splitlines()
    assert os.getxattr(tree / "able", "security.capability").hex() == permitted


def test_sizes_times_and_attributes(tapwright: Tapwright, tree: Path) -> None:
    said = python(
        tapwright,
        "open('file', 'w').write('x' * 5000); os.truncate('file', 100)\n"
        "os.utime('file', (1, 2)); print(os.stat('file').st_size, os.stat('file').st_mtime)\n"
        "os.setxattr('file', 'user.colour', b'red'); print(os.listxattr('file'))\n"
        "fd = os.open('file', os.O_RDWR); os.posix_fallocate(fd, 0, 8192); os.fsync(fd)\n"
        "import fcntl; fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print(os.stat('file').st_size, os.statvfs('.').f_bsize > 0)",
    )
    assert said.splitlines() == ["100 2.0", "['user.colour']", "8192 True"]
    assert os.getxattr(tree / "file", "user.colour") == b"red"


def test_mapped_files(tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path) -> None:
    show(sandbox, "modules", read_only=True, dynload=DYNLOAD)
    (tree / "file").write_bytes(bytes(8192))
    said = python(
        tapwright,
        f"import sys; sys.path.append('{SHARE}/modules/dynload')\n"
        "import mmap\n"
        "file = open('file', 'r+b'); mapped = mmap.mmap(file.fileno(), 0)\n"
        "mapped[4096:4100] = b'page'; mapped.flush(); mapped.close(); file.close()\n"
        "print(open('file', 'rb').read()[4090:4102])",
    )
    client.of(sandbox).unshare("modules")
    assert said.strip() == str(bytes(6) + b"page" + bytes(2))
    assert (tree / "file").read_bytes()[4096:4100] == b"page"


def test_programs(tapwright: Tapwright, tree: Path) -> None:
    shutil.copy("/bin/busybox", tree / "busybox")
    assert sh(tapwright, "./busybox echo here") == "here\n"
    sh(tapwright, "cp /usr/bin/python3 setuid; chmod 4755 setuid")
    said = python(
        tapwright,
        "os.setgid(1000); os.setuid(1000)\n"
        "os.execv('setuid', ['python3', '-c', 'import os; print(os.getresuid())'])",
    )
    assert said == "(1000, 0, 0)\n"


def test_large_files(tapwright: Tapwright, tree: Path) -> None:
    content = os.urandom(10_000_001)
    (tree / "host").write_bytes(content)
    sh(tapwright, "cp host guest; cmp host guest")
    assert (tree / "guest").read_bytes() == content


def test_many_files(tapwright: Tapwright, tree: Path) -> None:
    names = [f"name-{number}-{'x' * (number % 200)}" for number in range(700)]
    for name in names:
        (tree / name).touch()
    assert sh(tapwright, "ls").split() == sorted(names)


def test_an_overlay_with_mounts(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path
) -> None:
    """As container engines make root filesystems."""
    for name in ("lower", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "base").write_text("of the image")
    (tmp_path / "lower" / "dev").mkdir()
    options = ",".join(
        f"{key}dir={tmp_path / name}"
        for key, name in (("lower", "lower"), ("upper", "upper"), ("work", "work"))
    )
    merged = tmp_path / "merged"
    with contextlib.ExitStack() as undo:
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", merged], check=True)
        undo.callback(subprocess.check_call, ["umount", "--recursive", merged])
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", merged / "dev"], check=True)
        (merged / "dev" / "inside").write_text("mounted")
        as_root(tapwright, show(sandbox, "test", root=merged)["root"])
        undo.callback(client.of(sandbox).unshare, "test")
        assert sh(tapwright, "cat base dev/inside") == "of the imagemounted"
        sh(tapwright, "echo changed > base; rm -r dev/inside; echo new > new; chown 7 new")
    assert (tmp_path / "upper" / "base").read_text() == "changed\n"
    assert (tmp_path / "upper" / "new").stat().st_uid == 7
    assert (tmp_path / "lower" / "base").read_text() == "of the image"


# --- what is not --------------------------------------------------------------------------------


def test_links_lead_nowhere_on_the_host(tapwright: Tapwright, tree: Path) -> None:
    """A guest's link is to its own files, whoever follows it."""
    sh(tapwright, "ln -s /etc/shadow planted; ln -s ../../../../../../etc up; ln -s / top")
    for path in ("planted", "up/shadow", "top/etc/shadow", "../../../../../../etc/shadow"):
        done = tapwright.exec_with_status(SANDBOX, "cat", f"{ROOT}/{path}")
        assert (done.returncode, done.stdout) == (1, ""), path
    names = sh(tapwright, "ls /; ls ../../..; ls top/run/tapwright/share").split()
    assert len([name for name in names if name.startswith("test")]) == 1


def test_read_only(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    place = show(sandbox, "fixed", read_only=True, root=tmp_path)["root"]
    for command in ("echo x > file", "touch new", "rm file", "chmod 777 file", "mv file moved"):
        done = tapwright.exec_with_status(SANDBOX, "sh", "-c", f"cd {place} && {command}")
        assert "Read-only file system" in done.stderr, command
    assert (tmp_path / "file").read_text() == "kept"
    for command in (f"touch {SHARE}/new", f"mkdir {place}/../new", f"rmdir {place}"):
        assert tapwright.exec_with_status(SANDBOX, "sh", "-c", command).returncode == 1
    client.of(sandbox).unshare("fixed")
    assert os.listdir(tmp_path) == ["file"]


def test_devices(tapwright: Tapwright, tree: Path) -> None:
    """What everybody may use on a host can be made, and is the guest's own; others can't."""
    for kind, numbers in (("b", "254 0"), ("b", "1 3"), ("c", "1 1"), ("c", "10 229")):
        done = tapwright.exec_with_status(SANDBOX, "mknod", f"{ROOT}/disk", kind, *numbers.split())
        assert "Operation not permitted" in done.stderr, numbers
    assert os.listdir(tree) == []
    sh(tapwright, "mknod null c 1 3; mknod zero c 1 5; mknod white c 0 0; echo lost > null")
    assert sh(tapwright, "head -c 3 zero | od -An -tx1").split() == ["00"] * 3
    assert (tree / "null").is_char_device()
    assert (tree / "null").stat().st_rdev == os.makedev(1, 3)
    # One that is there, and is the host's: of the guest it is the one with its number, or none.
    os.mknod(tree / "disk", 0o60666, os.makedev(8, 0))
    done = tapwright.exec_with_status(SANDBOX, "head", "-c1", f"{ROOT}/disk")
    assert (done.returncode, done.stdout) == (1, "")


def test_what_can_t_be_asked(sandbox: registry.Sandbox, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="1 names, 0 descriptors"):
        client.of(sandbox).call("share", container="a", names=["root"])
    with pytest.raises(UsageError, match="container: must be a name"):
        client.of(sandbox).call("unshare", container=7)
    with pytest.raises(HypervisorError, match="can't be the name"):
        show(sandbox, "..", root=tmp_path)
    with wire.connected(sandbox.directory) as connection:
        connection.sendall(b'{"op": "share", "container": "a", "names": ["root"], "fds": [1]}\n')
        assert b"beside the request, not in it" in connection.makefile("rb").read()
    with pytest.raises(HypervisorError, match="a can't be shared"):
        client.of(sandbox).call("share", [0], container="a", names=["no mount"])


def test_a_sandbox_without_a_share(
    tapwright: Tapwright, no_sandbox_left: None, tmp_path: Path
) -> None:
    other = run(tapwright, OTHER, share=False)
    supervisor, _ = pids_of(other_json(tapwright))
    # What else it has started is a moment's.
    assert eventually(lambda: len(children_of(supervisor, "")) == 1)
    assert children_of(supervisor, DAEMON) == []
    with pytest.raises(SandboxStateError, match="without a share"):
        show(other, "one", root=tmp_path)


# --- two of them, and their ends ----------------------------------------------------------------


def other_json(tapwright: Tapwright) -> Any:
    return tapwright.json("sandbox", "inspect", OTHER)


def test_two_of_one_template(
    tapwright: Tapwright,
    sandbox: registry.Sandbox,
    tree: Path,
    no_sandbox_left: None,
    tmp_path: Path,
) -> None:
    other = run(tapwright, OTHER)
    assert any(phase["name"] == "restore" for phase in other_json(tapwright)["phases"])
    (tmp_path / "others").mkdir()
    as_root(tapwright, show(other, "test", root=tmp_path / "others")["root"], OTHER)
    sh(tapwright, "echo one > file", SANDBOX)
    sh(tapwright, "echo other > file", OTHER)
    assert (tree / "file").read_text() == "one\n"
    assert (tmp_path / "others" / "file").read_text() == "other\n"


@pytest.mark.parametrize("victims", ["supervisor", "qemu", "daemon", "qemu daemon supervisor"])
def test_kills(tapwright: Tapwright, no_sandbox_left: None, tmp_path: Path, victims: str) -> None:
    other = run(tapwright, OTHER)
    show(other, "test", root=tmp_path)
    supervisor, qemu = pids_of(other_json(tapwright))
    pids = {"supervisor": supervisor, "qemu": qemu, "daemon": child_of(supervisor, DAEMON)}
    for name in victims.split():
        os.kill(pids[name], signal.SIGKILL)
    assert all(ended(pid) for pid in pids.values())
    if victims == "daemon":
        assert eventually(lambda: registry.find(tapwright.root, OTHER).status != "running")
        assert "the daemon that opens the host's files had ended" in (
            registry.find(tapwright.root, OTHER).problem
        )
    tapwright.delete(OTHER)
