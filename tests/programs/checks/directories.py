"""Large directories, listing while they change, and watching them."""

import ctypes
import os
import select
import shutil
import struct
from collections.abc import Callable

from tests.programs.checks.frame import (
    Outcome,
    check,
    error,
    in_child,
    mode,
    system,
    value,
    write,
)

MANY = int(os.environ.get("CHECKS_ENTRIES", "10000"))
"""Entries of a large directory."""


def _name(number: int) -> str:
    """A long one, so that a few hundred of them are more than one getdents(2) of glibc gives."""
    return f"{number:0150}"


@check
def a_large_directory() -> Outcome:
    at = os.open(".", os.O_RDONLY)
    for number in range(MANY):
        os.close(os.open(_name(number), os.O_CREAT | os.O_WRONLY | os.O_EXCL, dir_fd=at))
    expected = set(map(_name, range(MANY)))
    listed = os.listdir(".")
    outcome: Outcome = {
        "each once": len(listed) == len(set(listed)) == MANY,
        "all": set(listed) == expected,
        "again": set(os.listdir(".")) == expected,
        "kinds": all(entry.is_file(follow_symlinks=False) for entry in os.scandir(".")),
        "first and last": [mode(_name(0)), mode(_name(MANY - 1))],
        "none": error(os.stat, "entry-x"),
        "to a child": in_child(lambda: len(os.listdir("."))) == MANY,
    }
    for number in range(0, MANY, 2):
        os.unlink(_name(number), dir_fd=at)
    outcome["half"] = set(os.listdir(".")) == set(map(_name, range(1, MANY, 2)))
    removed = 0
    for entry in os.scandir("."):
        os.unlink(entry.name, dir_fd=at)
        removed += 1
    outcome["removed while listing"] = [removed == MANY // 2, os.listdir(".")]
    return outcome


@check
def listing_while_it_changes() -> Outcome:
    os.mkdir("d")
    for number in range(300):
        write(f"d/{_name(number)}", b"")
    outcome: Outcome = {}
    seen = []
    for entry in os.scandir("d"):
        seen.append(entry.name)
        os.unlink(f"d/{entry.name}")
    outcome["removed each"] = [len(seen), len(set(seen)), os.listdir("d")]
    for number in range(300):
        write(f"d/{_name(number)}", b"")
    for entry in os.scandir("d"):
        if not entry.name.startswith("renamed"):
            os.rename(f"d/{entry.name}", f"d/renamed-{entry.name}")
    outcome["renamed each"] = len(os.listdir("d"))
    outcome["rmtree"] = [error(shutil.rmtree, "d"), os.path.exists("d")]
    return outcome


@check
def places_in_a_directory() -> Outcome:
    """telldir(3), seekdir(3), rewinddir(3)."""
    for number in range(200):
        write(f"f{number:03}", b"")
    library = ctypes.CDLL(None, use_errno=True)
    library.opendir.restype = ctypes.c_void_p
    library.readdir.restype = ctypes.c_void_p
    library.telldir.restype = ctypes.c_long
    directory = ctypes.c_void_p(library.opendir(b"."))

    def following() -> str:
        entry = library.readdir(directory)
        return ctypes.string_at(entry + 19).decode() if entry else ""

    names, places = [], []
    while True:
        places.append(library.telldir(directory))
        if not (name := following()):
            break
        names.append(name)
    outcome: Outcome = {"dots": sorted(names)[:2], "names": len(set(names))}
    right = []
    for number in (0, 1, 7, 100, 150, 201, 3):
        library.seekdir(directory, ctypes.c_long(places[number]))
        right.append(following() == names[number])
    outcome["sought"] = right
    library.rewinddir(directory)
    outcome["rewound"] = following() == names[0]
    write("later", b"")
    library.rewinddir(directory)
    found = set()
    while name := following():
        found.add(name)
    outcome["rewound, later"] = "later" in found
    library.closedir(directory)
    return outcome


@check
def trees() -> Outcome:
    for outer in range(3):
        for inner in range(6):
            os.makedirs(f"tree/{outer}/{inner}")
            write(f"tree/{outer}/{inner}/file", b"x" * inner)
    os.symlink("0", "tree/link")
    outcome: Outcome = {"walk": sum(len(files) for _, _, files in os.walk("tree"))}
    outcome["links"] = os.stat("tree").st_nlink
    shutil.copytree("tree", "copy", symlinks=True)
    outcome["copied"] = sorted(os.path.relpath(path, "copy") for path, _, _ in os.walk("copy"))
    shutil.make_archive("packed", "gztar", "copy")
    shutil.unpack_archive("packed.tar.gz", "unpacked")
    outcome["unpacked"] = sum(
        os.stat(f"{path}/{name}").st_size
        for path, _, names in os.walk("unpacked")
        for name in names
    )
    shutil.move("unpacked", "copy/in")
    shutil.rmtree("copy")
    shutil.rmtree("tree")
    outcome["left"] = os.listdir(".")
    return outcome


_EVENTS = {
    0x1: "access",
    0x2: "modify",
    0x4: "attrib",
    0x8: "close after write",
    0x10: "close",
    0x20: "open",
    0x40: "moved from",
    0x80: "moved to",
    0x100: "create",
    0x200: "delete",
    0x400: "delete self",
    0x800: "move self",
    0x2000: "unmount",
    0x8000: "ignored",
}


class _Watch:
    """inotify(7)."""

    def __init__(self, *paths: str, mask: int = 0xFFF) -> None:
        self._fd = system("inotify_init1", os.O_NONBLOCK)
        for path in paths:
            system("inotify_add_watch", self._fd, path, mask)

    def told(self) -> list[str]:
        """What has come up to now."""
        said = b""
        while select.select([self._fd], [], [], 0)[0]:
            said += os.read(self._fd, 65536)
        events, offset = [], 0
        while offset < len(said):
            watch, mask, _, length = struct.unpack_from("iIII", said, offset)
            offset += 16
            name = said[offset : offset + length].rstrip(b"\0").decode()
            offset += length
            words = [word for bit, word in _EVENTS.items() if mask & bit]
            directory = " of a directory" if mask & 0x40000000 else ""
            events.append(f"{watch} {' '.join(words)}{directory} {name}".rstrip())
        return events


@check
def watching() -> Outcome:
    os.mkdir("d")
    write("d/old", b"old")
    watch = _Watch("d")
    file = _Watch("d/old")
    steps: dict[str, Callable[[], object]] = {
        "create": lambda: write("d/new"),
        "read": lambda: os.read(os.open("d/new", os.O_RDONLY), 1) and None,
        "append": lambda: write("d/old", b"longer"),
        "chmod": lambda: os.chmod("d/old", 0o600),
        "truncate": lambda: os.truncate("d/old", 1),
        "rename": lambda: os.rename("d/new", "d/newer"),
        "link": lambda: os.link("d/old", "d/linked"),
        "rename out": lambda: os.rename("d/newer", "out"),
        "rename in": lambda: os.rename("out", "d/in"),
        "rename over": lambda: os.rename("d/in", "d/old"),
        "mkdir": lambda: os.mkdir("d/sub"),
        "symlink": lambda: os.symlink("old", "d/soft"),
        "mkfifo": lambda: os.mkfifo("d/fifo"),
        "attribute": lambda: os.setxattr("d/old", "user.a", b"b"),
        "by a child": lambda: in_child(lambda: write("d/childs")),
        "list": lambda: len(os.listdir("d")) and None,
        "unlink": lambda: os.unlink("d/linked"),
        "rmdir": lambda: os.rmdir("d/sub"),
        "remove all": lambda: shutil.rmtree("d"),
    }
    outcome: Outcome = {}
    for name, step in steps.items():
        step()
        told = watch.told()
        # The order of what rmtree removes is the directory's.
        outcome[name] = [sorted(told) if name == "remove all" else told, file.told()]
    return outcome


@check
def watching_many() -> Outcome:
    for number in range(100):
        os.mkdir(f"d{number:03}")
    watch = _Watch(*(f"d{number:03}" for number in range(100)), mask=0x100)
    for number in range(100):
        write(f"d{number:03}/{number}")
    told = watch.told()
    return {"events": len(told), "all": len(set(told)), "first": told[:1]}


@check
def watching_by_fanotify() -> Outcome:
    """As virus scanners and systemd do it."""
    fd = value(system, "fanotify_init", 0x2, os.O_RDONLY)  # FAN_NONBLOCK
    if isinstance(fd, str):
        return {"init": fd}
    write("file")
    marked = error(system, "fanotify_mark", fd, 1, 0x2 | 0x8 | 0x20, -100, "file")
    write("file", b"more")
    said = value(os.read, fd, 4096) if marked == "ok" else marked
    found = len(said) >= 24 and struct.unpack_from("IBBHQ", said.encode("latin-1"))[4]
    names = value(system, "fanotify_init", 0xE02, os.O_RDONLY)  # with names and identities
    return {
        "mark": marked,
        "told": found,
        "mark with names": names
        if isinstance(names, str)
        else error(system, "fanotify_mark", names, 1, 0x40000102, -100, "."),
    }
