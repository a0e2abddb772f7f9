"""What the host changes in files that containers have: seen at once, and reported by inotify."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.sandbox import client
from tapwright.state import registry
from tests.containers import Files, Pod, configuration, process
from tests.host import eventually
from tests.sandboxes import Tapwright, show

SANDBOX = "host-changes"

# Says what inotify tells of a directory, and then what was asked for: one line for each.
WATCH = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None)
fd = libc.inotify_init1(0)
assert libc.inotify_add_watch(fd, os.fsencode(sys.argv[1]), 0xFCE) >= 0
print("watching", flush=True)
kinds = {0x2: "modify", 0x4: "attrib", 0x8: "close-write", 0x40: "moved-from", 0x80: "moved-to",
         0x100: "create", 0x200: "delete", 0x400: "delete-self", 0x800: "move-self"}
while True:
    data, offset = os.read(fd, 65536), 0
    while offset < len(data):
        _, mask, _, length = struct.unpack_from("=iIII", data, offset)
        name = data[offset + 16 : offset + 16 + length].partition(b"\\0")[0].decode()
        offset += 16 + length
        what = [word for bit, word in kinds.items() if mask & bit]
        print(*what, name or ".", flush=True)
"""


@pytest.fixture(scope="module")
def sandbox(tapwright: Tapwright) -> Iterator[registry.Sandbox]:
    yield tapwright.run_with_share(SANDBOX)
    tapwright.run("sandbox", "delete", "--force", SANDBOX)


class Volume:
    """A file or directory of the host, and its place in the guest."""

    def __init__(
        self, tapwright: Tapwright, sandbox: registry.Sandbox, place: Path, read_only: bool = False
    ) -> None:
        self.tapwright = tapwright
        self.place = place
        self.guest = show(sandbox, "test", place, read_only=read_only, followed=["root"])

    def sh(self, command: str) -> str:
        return self.tapwright.exec(SANDBOX, "sh", "-ec", f"cd {self.guest}; {command}")

    def watch(self, below: str = "") -> "Watcher":
        return Watcher(self.tapwright, f"{self.guest}/{below}".rstrip("/"))


class Watcher:
    """A program in the guest that watches a file or directory."""

    def __init__(self, tapwright: Tapwright, path: str) -> None:
        words = tapwright.command("sandbox", "exec", SANDBOX, "--", "python3", "-c", WATCH, path)
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
        assert self.hears() == "watching"

    def hears(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip()

    def hears_of(self, *wanted: str) -> list[str]:
        """All output until each of these lines has come."""
        heard: list[str] = []
        while not set(wanted) <= set(heard):
            line = self.hears()
            assert line, heard
            heard.append(line)
        return heard

    def __enter__(self) -> "Watcher":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "volume"
    (place / "deep").mkdir(parents=True)
    (place / "file").write_text("old\n")
    (place / "deep" / "file").write_text("old\n")
    return place


@pytest.fixture
def volume(tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path) -> Iterator[Volume]:
    yield Volume(tapwright, sandbox, tree)
    client.of(sandbox).unshare("test")


def overwrite(path: Path, text: str) -> None:
    """By one change: Python's own way empties the file first, and a busy host reports that before
    the rest is written."""
    with path.open("r+") as file:
        file.write(text)


def test_a_file_that_is_written_to(volume: Volume, tree: Path) -> None:
    assert volume.sh("cat file deep/file") == "old\nold\n"
    with volume.watch() as top, volume.watch("deep") as deep:
        overwrite(tree / "file", "much longer than before\n")
        top.hears_of("modify file")
        assert volume.sh("cat file") == "much longer than before\n"
        overwrite(tree / "deep" / "file", "new\n")
        deep.hears_of("modify file")
        assert volume.sh("cat deep/file") == "new\n"


def test_files_that_come_go_and_are_replaced(volume: Volume, tree: Path) -> None:
    assert volume.sh("cat file; ls") == "old\ndeep\nfile\n"
    with volume.watch() as watcher:
        (tree / "new").write_text("new\n")
        watcher.hears_of("modify new")
        assert eventually(lambda: volume.sh("cat new") == "new\n")
        (tree / "new").rename(tree / "file")
        watcher.hears_of("modify file")
        assert volume.sh("cat file; ls") == "new\ndeep\nfile\n"
        (tree / "file").unlink()
        watcher.hears_of("modify .")
        assert volume.sh("ls") == "deep\n"


def test_a_directory_that_comes_later(volume: Volume, tree: Path) -> None:
    with volume.watch() as top:
        (tree / "later").mkdir()
        (tree / "later" / "file").write_text("old\n")
        top.hears_of("modify later")
    with volume.watch("later") as later:
        overwrite(tree / "later" / "file", "newer\n")
        later.hears_of("modify file")
        assert volume.sh("cat later/file") == "newer\n"


def test_the_guests_own_change_is_reported_once(volume: Volume, tree: Path) -> None:
    with volume.watch() as watcher:
        volume.sh("echo mine > mine")
        (tree / "end").write_text("end\n")
        heard = watcher.hears_of("modify end")
    assert heard[:3] == ["create mine", "modify mine", "close-write mine"]
    assert not [line for line in heard[3:] if "mine" in line]


def test_a_program_finds_what_was_changed_before_its_start(
    tapwright: Tapwright, volume: Volume, tree: Path
) -> None:
    """The guest has just heard of a change, and would hear of the next one later."""
    config = configuration(process("cat", "/volume/file"))
    mount = {"type": "bind", "options": ["bind"], "source": volume.guest}
    config["mounts"].append({"destination": "/volume", **mount})
    with (
        Files() as files,
        Pod(tapwright, SANDBOX).create(config, files.descriptors) as container,
        volume.watch() as watcher,
    ):
        container.created()
        overwrite(tree / "file", "longer than the old one\n")
        watcher.hears_of("modify file")
        overwrite(tree / "file", "much longer than that before it\n")
        container.call("start_container")
        assert container.connection.hear() == {"exited": {"status": 0}}
        assert files.stdout() == b"much longer than that before it\n"


def test_times_stay_what_they_are(volume: Volume, tree: Path) -> None:
    with volume.watch() as watcher:
        os.utime(tree / "file", ns=(1_111_111_111_123_456_789, 1_222_222_222_123_456_789))
        watcher.hears_of("modify file")
        (tree / "file").chmod(0o600)
        watcher.hears_of("modify file")
    status = (tree / "file").stat()
    assert (status.st_atime_ns, status.st_mtime_ns) == (
        1_111_111_111_123_456_789,
        1_222_222_222_123_456_789,
    )
    # The first may have been told twice.
    assert eventually(lambda: volume.sh("stat -c '%a %Y' file") == "600 1222222222\n")


def test_a_single_file(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    volume = Volume(tapwright, sandbox, hosts)
    try:
        with volume.watch() as watcher:
            with hosts.open("a") as file:
                file.write("10.0.0.2 neighbour\n")
            watcher.hears_of("modify .")
            content = tapwright.exec(SANDBOX, "cat", volume.guest)
            assert content == "127.0.0.1 localhost\n10.0.0.2 neighbour\n"
    finally:
        client.of(sandbox).unshare("test")


def test_what_can_t_be_written_to_is_seen_at_once(
    tapwright: Tapwright, sandbox: registry.Sandbox, tree: Path
) -> None:
    volume = Volume(tapwright, sandbox, tree, read_only=True)
    try:
        assert volume.sh("cat file") == "old\n"
        (tree / "new").write_text("replaced, and longer\n")
        (tree / "new").rename(tree / "file")
        # Nothing tells of it. The second is what it takes where nothing is followed.
        seen = volume.sh("for i in $(seq 50); do cat file; usleep 10000; done").splitlines()
        assert seen[-1] == "replaced, and longer"
    finally:
        client.of(sandbox).unshare("test")


# --- volumes of the kubelet ----------------------------------------------------------------------


class ConfigMap:
    """A volume as the kubelet writes it (pkg/volume/util/atomic_writer.go)."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self._version = 0
        place.mkdir()

    def write(self, content: dict[str, str]) -> None:
        before, self._version = f"..{self._version}", self._version + 1
        new = self.place / f"..{self._version}"
        new.mkdir()
        for name, text in content.items():
            (new / name).write_text(text)
            (new / name).chmod(0o640)
        (self.place / "..data_tmp").symlink_to(new.name)
        (self.place / "..data_tmp").rename(self.place / "..data")
        for name in content:
            if not (self.place / name).is_symlink():
                (self.place / name).symlink_to(f"..data/{name}")
        for link in self.place.iterdir():
            if not link.name.startswith("..") and link.name not in content:
                link.unlink()
        if (self.place / before).exists():
            for path in (self.place / before).iterdir():
                path.unlink()
            (self.place / before).rmdir()


def test_a_volume_of_the_kubelet(
    tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path
) -> None:
    config = ConfigMap(tmp_path / "config")
    config.write({"key": "old\n", "gone": "gone\n"})
    volume = Volume(tapwright, sandbox, config.place, read_only=True)
    try:
        assert volume.sh("cat key; stat -c '%a %u' ..data/key") == "old\n640 0\n"
        with volume.watch() as watcher:
            config.write({"key": "new\n", "more": "more\n"})
            heard = watcher.hears_of("moved-to ..data", "delete ..1", "delete gone")
        assert heard.index("create ..2") < heard.index("moved-to ..data")
        assert volume.sh("cat key more; ls -A") == "new\nmore\n..2\n..data\nkey\nmore\n"
    finally:
        client.of(sandbox).unshare("test")
    assert tapwright.exec(SANDBOX, "find", "/run/tapwright/mirrors", "-type", "f") == ""


def test_a_thousand_files(tapwright: Tapwright, sandbox: registry.Sandbox, tmp_path: Path) -> None:
    config = ConfigMap(tmp_path / "config")
    config.write({f"key-{number}": "old" for number in range(1000)})
    volume = Volume(tapwright, sandbox, config.place, read_only=True)
    try:
        with volume.watch() as watcher:
            config.write({f"key-{number}": "new" for number in range(1000)})
            watcher.hears_of("moved-to ..data", "delete ..1")
        assert volume.sh("cat key-* | md5sum; ls | wc -l") == volume.sh(
            "for i in $(seq 1000); do printf new; done | md5sum; echo 1000"
        )
    finally:
        client.of(sandbox).unshare("test")
