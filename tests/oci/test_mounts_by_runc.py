"""Mounts of the host in a container, by runc and by Tapwright: no difference."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.oci.conftest import Run

pytestmark = pytest.mark.usefixtures("nothing_left")


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Path]:
    """A shared mount with another one in it."""
    place = tmp_path / "volume"
    (place / "inner").mkdir(parents=True)
    mount("--bind", place, place)
    mount("--make-shared", place)
    mount("-t", "tmpfs", "tmpfs", place / "inner")
    (place / "later").mkdir()
    yield place
    subprocess.run(["umount", "--recursive", place], check=True)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def bound(source: Path, destination: str, *options: str) -> dict[str, Any]:
    return {
        "destination": destination,
        "type": "bind",
        "source": str(source),
        "options": list(options),
    }


WRITE = """
for place in "$@"; do
    for below in . inner; do
        if touch "$place/$below/new" 2>/dev/null; then echo "$place $below written"
        else echo "$place $below refused"; fi
    done
done
"""


def test_two_kinds_of_read_only(by_runc: Run, by_us: Run, volume: Path) -> None:
    mounts = [
        bound(volume, "/all", "rbind"),
        bound(volume, "/one", "rbind", "ro"),
        bound(volume, "/each", "rbind", "rro"),
        bound(volume, "/alone", "bind"),
    ]
    places = ("/all", "/one", "/each", "/alone")
    expected = by_runc("sh", "-c", WRITE, "sh", *places, mounts=mounts)
    assert "/one . refused\n/one inner written\n/each . refused\n/each inner refused" in expected
    assert by_us("sh", "-c", WRITE, "sh", *places, mounts=mounts) == expected


@pytest.mark.parametrize("propagation", ["rprivate", "rslave"])
def test_what_the_host_mounts_later(
    by_runc: Run, by_us: Run, volume: Path, propagation: str
) -> None:
    """A container says that it is there, is answered when the host has mounted, and says what it
    sees then."""
    mounts = [bound(volume, "/volume", "rbind", propagation)]
    script = (
        "touch /volume/ready; until [ -e /volume/mounted ]; do usleep 50000; done; "
        "rm /volume/ready /volume/mounted; ls /volume/later"
    )

    def answer() -> None:
        assert eventually((volume / "ready").exists)
        mount("-t", "tmpfs", "tmpfs", volume / "later")
        (volume / "later/file").touch()
        (volume / "mounted").touch()

    said = []
    for run in (by_runc, by_us):
        answering = threading.Thread(target=answer)
        answering.start()
        said.append(run("sh", "-c", script, mounts=mounts))
        answering.join()
        subprocess.run(["umount", "--lazy", volume / "later"], check=True)
    expected = "0 file\n" if propagation == "rslave" else "0 "
    assert said == [expected, expected]


def _with_links(rootfs: Path) -> None:
    """Relative, absolute, out of the root filesystem, to what is missing; one is to be a file."""
    (rootfs / "home").mkdir()
    for name, target in {
        "relative": "home",
        "absolute": "/home",
        "out": "../../../../beside",
        "dangling": "/missing/deep",
        "etc/linked": "target",
    }.items():
        (rootfs / name).symlink_to(target)


def test_destinations_that_lead_through_links(by_runc: Run, by_us: Run, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume/file").write_text("text\n")
    volume = tmp_path / "volume"
    (volume / "inside").symlink_to("/home/inside/file")
    (volume / "up").symlink_to("../up/file")
    mounts = [
        bound(volume, "/relative/one", "rbind"),
        bound(volume, "/absolute/two", "rbind"),
        bound(volume, "/out/three", "rbind"),
        bound(volume, "/dangling/four", "rbind"),
        bound(volume / "file", "/etc/linked", "rbind"),
        bound(volume, "/etc/../dots/./five", "rbind"),
        {"destination": "/absolute/tmp", "type": "tmpfs", "source": "tmpfs"},
        # Links in what is mounted count, too.
        bound(volume / "file", "/relative/one/inside", "rbind"),
        bound(volume / "file", "/home/one/up", "rbind"),
    ]
    # Links of a filesystem that is mounted there are not those of the root filesystem.
    mounts.append(bound(volume, "/home/tmp/relative", "rbind"))
    script = "ls -R /home /beside /missing /dots /etc; cat /etc/target; readlink /etc/linked"
    expected = by_runc("sh", "-c", script, mounts=mounts, prepare=_with_links)
    assert expected.startswith("0 ")
    assert expected.count("file\n") == 8, expected
    assert by_us("sh", "-c", script, mounts=mounts, prepare=_with_links) == expected


def test_access_times(by_runc: Run, by_us: Run, tmp_path: Path) -> None:
    """The time of a reading is noted, unless the mount says otherwise."""
    places = {"kept": [], "not": ["noatime"], "last": ["noatime", "strictatime"]}
    for place in places:
        (tmp_path / place).mkdir()
        (tmp_path / place / "file").write_text("text")
    mounts = [bound(tmp_path / name, f"/{name}", "rbind", *each) for name, each in places.items()]

    def long_ago(_: Path) -> None:
        for place in places:
            os.utime(tmp_path / place / "file", (1, 2))

    script = 'for i in "$@"; do cat /$i/file > /dev/null; stat -c %X /$i/file | wc -c; done'
    argv = ("sh", "-c", script, "sh", *places)
    expected = by_runc(*argv, mounts=mounts, prepare=long_ago)
    assert expected == "0 11\n2\n11\n"
    assert by_us(*argv, mounts=mounts, prepare=long_ago) == expected


def _with_modes(rootfs: Path) -> None:
    for name, mode in {"run": 0o755, "open": 0o1777, "close": 0o700}.items():
        (rootfs / name).mkdir()
        (rootfs / name).chmod(mode)
    (rootfs / "link").symlink_to("close")


def test_what_a_tmpfs_covers(by_runc: Run, by_us: Run, tmp_path: Path) -> None:
    """It has the mode of that, in the root filesystem or in a volume, if it is given none."""
    (tmp_path / "volume/in").mkdir(parents=True)
    (tmp_path / "volume/in").chmod(0o750)
    options = {
        "/run": ["nosuid"],
        "/open": [],
        "/link": ["size=1m"],
        "/missing": [],
        "/volume/in": [],
        "/volume/new": [],
        "/volume/in/deeper": [],
        "/named": ["mode=711"],
    }
    mounts = [bound(tmp_path / "volume", "/volume", "rbind")]
    mounts += [
        {"destination": place, "type": "tmpfs", "source": "tmpfs", "options": given}
        for place, given in options.items()
    ]
    script = "stat -c '%a %n' /run /open /close /missing /volume/* /volume/in/deeper /named"
    expected = by_runc("sh", "-c", script, mounts=mounts, prepare=_with_modes)
    assert "755 /run\n1777 /open\n700 /close\n1777 /missing\n750 /volume/in" in expected
    (tmp_path / "volume/new").rmdir()
    assert by_us("sh", "-c", script, mounts=mounts, prepare=_with_modes) == expected


@pytest.mark.parametrize("length", [1, 200])
def test_an_overlay(by_runc: Run, by_us: Run, tmp_path: Path, length: int) -> None:
    """As podman writes `--volume SOURCE:DESTINATION:O`; also with longer paths than fsconfig(2)
    takes, as of `--mount type=image`."""
    said = []
    for name, run in (("runc", by_runc), ("us", by_us)):
        lower, upper, work = (
            tmp_path / name / ("d" * length) / part for part in ("lower", "upper", "work")
        )
        for each in (lower, upper, work):
            each.mkdir(parents=True)
        (lower / "file").write_text("text\n")
        options = [f"lowerdir={lower}", f"upperdir={upper}", f"workdir={work}", "private"]
        overlay = {"destination": "/o", "type": "overlay", "source": "overlay", "options": options}
        script = "cat /o/file; rm /o/file; echo new >/o/new; ls /o"
        said.append(run("sh", "-c", script, mounts=[overlay]))
        assert (lower / "file").exists()
        assert (upper / "new").read_text() == "new\n"
    assert said == ["0 text\nnew\n"] * 2


def test_a_volume_of_huge_pages_is_refused(by_us: Run, tmp_path: Path) -> None:
    """As the kubelet mounts it on the host (`medium: HugePages-2Mi`)."""
    (tmp_path / "huge").mkdir()
    mount("-t", "hugetlbfs", "none", tmp_path / "huge")
    try:
        said = by_us("true", mounts=[bound(tmp_path / "huge", "/huge", "rbind")])
    finally:
        subprocess.run(["umount", tmp_path / "huge"], check=True)
    assert said.startswith("1 tapwright: /huge: the VM has no huge pages")
