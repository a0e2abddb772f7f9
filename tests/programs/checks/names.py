"""Names and links: making, finding, renaming, removing."""

import os
import socket
import stat
import threading
from collections.abc import Callable

from tests.programs.checks.frame import (
    USER,
    Outcome,
    check,
    error,
    in_child,
    link_of,
    mode,
    read,
    system,
    value,
    write,
)

_ODD = [
    *(b"new\nline", b"tab\t", b"back\\slash", b"\x01", b"\x7f", b"\xff\xfe", b"...", b" ", b"-rf"),
    *(b"*", b"a:b", b"nul", b"CON", b'"', b"'", b"$(x)", b".hidden", b"trailing.", b"%2f"),
    *("ü".encode(), "u\u0308".encode(), "🙂".encode(), b"A", b"a", b"\xc0\xaf", b"\xed\xa0\x80"),
]


@check
def odd_names() -> Outcome:
    here = os.getcwdb()
    made = {repr(name): error(os.mkfifo, here + b"/" + name) for name in _ODD}
    found = sorted(os.listdir(here))
    looked = {f"stat {name!r}": error(os.stat, here + b"/" + name) for name in found}
    for name in found:
        os.rename(here + b"/" + name, here + b"/" + name + b"~")
    renamed = sorted(repr(name) for name in os.listdir(here))
    return {**made, "found": [repr(name) for name in found], **looked, "renamed": renamed}


@check
def lengths_of_names() -> Outcome:
    outcome: Outcome = {}
    for length in (1, 254, 255, 256, 4096):
        name = "n" * length
        outcome[f"create {length}"] = error(write, name)
        outcome[f"stat {length}"] = error(os.stat, name)
        outcome[f"mkdir {length}"] = error(os.mkdir, f"{name[:-1]}d")
        outcome[f"symlink {length}"] = error(os.symlink, "x", f"{name[:-1]}s")
        outcome[f"link to {length}"] = value(os.readlink, f"{name[:-1]}s")
        outcome[f"rename {length}"] = error(os.rename, name, f"{name[:-1]}r")
        outcome[f"unlink {length}"] = error(os.unlink, f"{name[:-1]}r")
    outcome["255 bytes, 127 letters"] = error(write, "ü" * 127 + "u")
    outcome["256 bytes, 128 letters"] = error(write, "ü" * 128)
    outcome["found"] = sorted(len(os.fsencode(name)) for name in os.listdir("."))
    return outcome


@check
def deep_directories() -> Outcome:
    """Deeper than a path may be long."""
    name, levels = "d" * 200, 30
    for _ in range(levels):
        os.mkdir(name)
        os.chdir(name)
    write("deep")
    outcome: Outcome = {
        "deep": read("deep"),
        "length of its path": len(os.getcwd()),
        "by a path too long": error(os.stat, "/".join(["."] * 2050)),
        "removed": [],
    }
    os.unlink("deep")
    for _ in range(levels):
        os.chdir("..")
        outcome["removed"].append(error(os.rmdir, name))
    return outcome


@check
def directories_and_their_links() -> Outcome:
    outcome: Outcome = {}

    def links(moment: str) -> None:
        outcome[moment] = [os.stat(path).st_nlink for path in (".", "a") if os.path.exists(path)]

    links("empty")
    os.mkdir("a")
    links("a")
    os.mkdir("a/b")
    os.mkdir("c")
    links("a, a/b, c")
    os.rename("c", "a/c")
    links("c moved into a")
    write("a/file")
    links("a file in a")
    os.rmdir("a/b")
    links("b removed")
    outcome["not empty"] = error(os.rmdir, "a")
    outcome["a/."] = error(os.rmdir, "a/.")
    outcome["a/.."] = error(os.rmdir, "a/..")
    outcome["rename ."] = error(os.rename, "a/.", "z")
    outcome["rename onto .."] = error(os.rename, "a/c", "a/..")
    outcome["into its own child"] = error(os.rename, "a", "a/c/a")
    outcome["parent onto child"] = error(os.rename, "a", "a/c")
    outcome["child onto parent"] = error(os.rename, "a/c", "a")
    outcome["a slash behind"] = error(os.mkdir, "slash/")
    outcome["two slashes"] = error(os.rename, "slash//", "slash2//")
    outcome["file with slash"] = error(os.rename, "a/file", "file/")
    outcome["mkdir below nothing"] = error(os.mkdir, "no/where")
    outcome[".. of a moved one"] = [
        os.stat("a/c/..").st_ino == os.stat("a").st_ino,
        error(os.rename, "a/c", "c"),
        os.stat("c/..").st_ino == os.stat(".").st_ino,
    ]
    return outcome


@check
def hard_links() -> Outcome:
    write("one")
    inode = os.stat("one").st_ino
    outcome: Outcome = {}
    for number in range(200):
        os.link("one", f"link-{number}")
    outcome["links"] = os.stat("one").st_nlink
    outcome["one inode"] = {os.stat(name).st_ino for name in os.listdir(".")} == {inode}
    os.chmod("link-7", 0o600)
    write("link-8", b"changed")
    outcome["of all"] = [mode("link-9"), read("link-10")]
    outcome["rename onto itself"] = error(os.rename, "link-1", "link-2")
    outcome["both are there"] = [os.path.exists("link-1"), os.path.exists("link-2")]
    os.unlink("one")
    outcome["one less"] = os.stat("link-0").st_nlink
    os.mkdir("other")
    os.rename("link-0", "other/moved")
    outcome["moved"] = [os.stat("other/moved").st_ino == inode, os.stat("link-3").st_nlink]
    outcome["gone"] = error(os.link, "one", "two")
    os.symlink("link-1", "soft")
    os.link("soft", "softer", follow_symlinks=False)
    outcome["of a link itself"] = [os.readlink("softer"), os.lstat("soft").st_nlink]
    with open("link-5") as file:
        outcome["of a descriptor"] = error(link_of, file.fileno(), "again")
        outcome["of an empty path"] = error(
            system, "linkat", file.fileno(), "", -100, "again2", 0x1000
        )
    outcome["in the end"] = os.stat("link-1").st_nlink
    return outcome


def followed(name: str) -> str:
    """The kernel goes on with its count where it begins a walk anew, because something changed
    meanwhile (`filename_lookup` in fs/namei.c): what is short enough is found when tried again."""
    tried = (error(os.stat, name) for _ in range(20))
    return "ok" if "ok" in tried else "ELOOP"


@check
def symbolic_links() -> Outcome:
    outcome: Outcome = {}
    for length in (1, 59, 60, 61, 255, 1000, 4000, 4095, 4096):
        name = f"length-{length}"
        outcome[f"{length}"] = error(os.symlink, "t" * length, name)
        if outcome[f"{length}"] == "ok":
            outcome[f"{length} read"] = [len(os.readlink(name)), os.lstat(name).st_size]
    outcome["empty"] = error(os.symlink, "", "empty")
    os.symlink(b"\xff\n/..//x", b"odd")
    outcome["odd"] = repr(os.readlink(b"odd"))
    write("chain-0")
    for number in range(1, 42):
        os.symlink(f"chain-{number - 1}", f"chain-{number}")
    outcome["chains"] = [followed(f"chain-{number}") for number in (1, 39, 40, 41)]
    os.mkdir("d")
    os.symlink("d", "to-d")
    outcome["through"] = error(write, "to-d/file")
    outcome["listed through"] = os.listdir("to-d")
    outcome["mode"] = mode("to-d")
    os.lchown("to-d", 3, 4)
    outcome["owner of it, of its target"] = [os.lstat("to-d").st_uid, os.stat("to-d").st_uid]
    os.utime("to-d", ns=(10**18 + 1, 10**18 + 2), follow_symlinks=False)
    outcome["times"] = [os.lstat("to-d").st_mtime_ns, os.stat("to-d").st_mtime_ns == 10**18 + 2]
    outcome["rename"] = [error(os.rename, "to-d", "still"), os.readlink("still")]
    outcome["a slash behind"] = error(os.rmdir, "still/")
    outcome["beyond the root"] = [error(os.symlink, "/../../../etc", "up"), error(os.stat, "up")]
    outcome["no symbolic link on the way"] = error(_open_without_links, "still/file")
    outcome["beneath"] = error(_open_beneath, "d/../../x")
    return outcome


def _open_how(path: str, resolve: int) -> None:
    """openat2(2), which the C library does not have."""
    import ctypes

    how = (ctypes.c_uint64 * 3)(os.O_RDONLY, 0, resolve)
    os.close(system("syscall", 437, -100, path, ctypes.addressof(how), ctypes.sizeof(how)))


def _open_without_links(path: str) -> None:
    _open_how(path, 0x04)


def _open_beneath(path: str) -> None:
    _open_how(path, 0x08)


@check
def renames_keep_the_inode() -> Outcome:
    outcome: Outcome = {}
    os.mkdir("d")
    os.mkdir("e")
    for kind, make in {"file": write, "directory": os.mkdir, "fifo": os.mkfifo}.items():
        make(kind)  # type: ignore[operator]
        inode = os.stat(kind).st_ino
        steps = [f"{kind}-2", f"d/{kind}", f"e/{kind}", kind]
        found = []
        at = kind
        for step in steps:
            os.rename(at, step)
            at = step
            found.append(os.stat(at).st_ino == inode)
        os.rename("d", "d2")
        os.rename("d2", "d")
        outcome[kind] = found
        outcome[f"{kind}, entry"] = [
            entry.inode() == inode for entry in os.scandir(".") if entry.name == kind
        ]
    write("old", b"old")
    write("new", b"newer")
    inodes = os.stat("old").st_ino, os.stat("new").st_ino
    os.rename("new", "old")
    outcome["over another"] = [os.stat("old").st_ino == inodes[1], read("old")]
    write("x", b"x")
    os.mkdir("y")
    inodes = os.stat("x").st_ino, os.stat("y").st_ino
    outcome["exchanged"] = error(system, "renameat2", -100, "x", -100, "y", 2)
    outcome["inodes exchanged"] = (os.stat("y").st_ino, os.stat("x").st_ino) == inodes
    return outcome


@check
def negative_lookups_do_not_stay() -> Outcome:
    """What was not there a moment ago is there now, whoever made it."""
    outcome: Outcome = {}
    for number, maker in enumerate(("here", "child")):
        name = f"late-{number}"
        before = error(os.stat, name)
        if maker == "here":
            write(name)
        else:
            in_child(lambda name=name: write(name))  # type: ignore[misc]
        after = error(os.stat, name)
        in_child(lambda name=name: os.unlink(name))  # type: ignore[misc]
        outcome[maker] = [before, after, error(os.stat, name)]
    write("swap", b"1")
    reads = [read("swap")]
    for number in range(5):
        write("swap-new", str(number))
        os.rename("swap-new", "swap")
        reads.append(read("swap"))
    outcome["swapped"] = reads
    return outcome


@check
def fifos() -> Outcome:
    os.mkfifo("fifo", 0o640)
    outcome: Outcome = {"mode": mode("fifo"), "nobody reads": None}
    outcome["nobody reads"] = error(os.open, "fifo", os.O_WRONLY | os.O_NONBLOCK)
    os.link("fifo", "linked")
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(read("linked")))
    thread.start()
    write("fifo", b"through")
    thread.join()
    outcome["through its link"] = said
    reader = os.open("fifo", os.O_RDONLY | os.O_NONBLOCK)
    os.rename("fifo", "moved")
    writer = os.open("moved", os.O_WRONLY)
    os.unlink("moved")
    os.write(writer, b"late")
    outcome["moved and removed"] = value(os.read, reader, 10)
    os.close(writer)
    outcome["end"] = value(os.read, reader, 10)
    outcome["seek"] = error(os.lseek, reader, 0, os.SEEK_SET)
    outcome["truncate"] = error(os.ftruncate, reader, 0)
    outcome["by a child"] = [
        error(os.mkfifo, "f2"),
        _between_processes(),
    ]
    return outcome


def _between_processes() -> str:
    pid = os.fork()
    if pid == 0:
        write("f2", b"from the child")
        os._exit(0)
    said = read("f2")
    os.waitpid(pid, 0)
    return said


@check
def sockets() -> Outcome:
    outcome: Outcome = {}
    for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
        name = kind.name
        with socket.socket(socket.AF_UNIX, kind) as server:
            server.settimeout(10)
            outcome[f"{name} bind"] = error(server.bind, name)
            outcome[f"{name} mode"] = mode(name)
            with socket.socket(socket.AF_UNIX, kind) as other:
                outcome[f"{name} bind again"] = error(other.bind, name)
            if kind != socket.SOCK_DGRAM:
                with socket.socket(socket.AF_UNIX, kind) as early:
                    outcome[f"{name} before listen"] = error(early.connect, name)
                server.listen()
            for step in ("", "linked", "renamed"):
                path = f"{name}{step}"
                if step == "linked":
                    os.link(name, path)
                elif step == "renamed":
                    os.rename(name, path)
                outcome[f"{name} {step}"] = _spoken(server, kind, path)
            outcome[f"{name} for a user"] = in_child(_speaker(kind), USER)
            os.chmod(f"{name}linked", 0o666)
            outcome[f"{name} allowed"] = in_child(_speaker(kind), USER)
        write("file")
        with socket.socket(socket.AF_UNIX, kind) as late:
            outcome[f"{name} after its end"] = error(late.connect, f"{name}linked")
            outcome[f"{name} gone"] = error(late.connect, "nothing")
            outcome[f"{name} to a file"] = error(late.connect, "file")
    outcome["open"] = error(os.open, "SOCK_STREAMlinked", os.O_RDWR)
    outcome["path of 107"] = _bound("p" * 107)
    outcome["by a descriptor"] = _by_descriptor()
    outcome["abstract"] = _bound("\0tapwright-check")
    return outcome


def _spoken(server: socket.socket, kind: socket.SocketKind, path: str) -> str:
    """In a child, because connecting may block."""
    return str(in_child(lambda: _dialogue(server, kind, path)))


def _dialogue(server: socket.socket, kind: socket.SocketKind, path: str) -> str:
    with socket.socket(socket.AF_UNIX, kind) as client:
        client.connect(path)
        client.send(b"said")
        if kind == socket.SOCK_DGRAM:
            return server.recv(10).decode()
        accepted, _ = server.accept()
        return accepted.recv(10).decode()


def _speaker(kind: socket.SocketKind) -> Callable[[], None]:
    """What connects to the second name of a kind's socket."""

    def speak() -> None:
        with socket.socket(socket.AF_UNIX, kind) as client:
            client.connect(f"{kind.name}linked")

    return speak


def _bound(name: str) -> str:
    with socket.socket(socket.AF_UNIX) as made:
        return error(made.bind, name)


def _by_descriptor() -> str:
    """How programs reach a socket whose path is too long."""
    directory = os.open(".", os.O_PATH)
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        said = error(server.bind, f"/proc/self/fd/{directory}/long")
        if said == "ok":
            server.listen()
            said = error(client.connect, f"/proc/self/fd/{directory}/long")
    os.close(directory)
    return said


@check
def devices() -> Outcome:
    outcome: Outcome = {}
    for name, kind, numbers in (
        ("null", stat.S_IFCHR, (1, 3)),
        ("zero", stat.S_IFCHR, (1, 5)),
        ("whiteout", stat.S_IFCHR, (0, 0)),
        ("disk", stat.S_IFBLK, (7, 0)),
    ):
        outcome[f"{name} made"] = error(os.mknod, name, kind | 0o640, os.makedev(*numbers))
        outcome[name] = value(_device, name)
    outcome["null written"] = error(write, "null")
    outcome["null read"] = value(read, "null")
    outcome["zero read"] = value(lambda: os.read(os.open("zero", os.O_RDONLY), 3))
    outcome["for a user"] = in_child(lambda: os.mknod("mine", stat.S_IFCHR, 259), 1000)
    return outcome


def _device(path: str) -> list[object]:
    found = os.stat(path)
    return [f"{found.st_mode:o}", os.major(found.st_rdev), os.minor(found.st_rdev)]


@check
def descriptors_of_directories() -> Outcome:
    os.mkdir("d")
    at = os.open("d", os.O_DIRECTORY)
    os.rename("d", "moved")
    outcome: Outcome = {
        "create": value(lambda: os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=at))),
        "mkdir": error(os.mkdir, "sub", dir_fd=at),
        "symlink": error(os.symlink, "x", "soft", dir_fd=at),
        "link": error(os.link, "x", "hard", src_dir_fd=at, dst_dir_fd=at),
        "rename": error(os.rename, "x", "y", src_dir_fd=at, dst_dir_fd=at),
        "out of it": error(os.rename, "hard", "hard", src_dir_fd=at),
        "up": error(os.stat, "../hard", dir_fd=at),
        "listed": sorted(os.listdir(at)),
        "by path": sorted(os.listdir("moved")),
        "no directory": error(os.stat, "z", dir_fd=os.open("hard", os.O_RDONLY)),
        "read of it": error(os.read, at, 1),
        "fsync": error(os.fsync, at),
        "sync": error(system, "syncfs", at),
        "chdir": error(os.fchdir, at),
        "where": os.path.basename(os.getcwd()),
    }
    os.rename("../moved", "../again")
    outcome["where now"] = os.path.basename(os.getcwd())
    return outcome


@check
def handles() -> Outcome:
    """name_to_handle_at and open_by_handle_at, as file servers and podman use them."""
    import ctypes

    write("file", b"by handle")
    handle = ctypes.create_string_buffer(8 + 128)
    ctypes.c_uint.from_buffer(handle).value = 128
    mount = ctypes.c_int()
    asked = (-100, "file", handle, ctypes.byref(mount), 0)
    said = error(system, "name_to_handle_at", *asked)
    if said != "ok":
        return {"handle": said}
    at = os.open(".", os.O_RDONLY)

    def opened() -> bytes:
        fd = system("open_by_handle_at", at, handle, os.O_RDONLY)
        content = os.read(fd, 20)
        os.close(fd)
        return content

    return {"handle": [value(opened), error(os.unlink, "file"), value(opened)]}
