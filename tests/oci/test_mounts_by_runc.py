"""Mounts of the host in a container, by runc and by Tapwright: no difference."""

import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.host import eventually
from tests.oci.bundles import configuration
from tests.oci.runtime import Runtime

pytestmark = pytest.mark.usefixtures("nothing_left")

Run = Callable[..., str]


@pytest.fixture
def by_runc(runtime: Runtime, tmp_path: Path) -> Run:
    def run(*argv: str, mounts: list[dict[str, Any]]) -> str:
        bundle = runtime.bundle(configuration(*argv, mounts=mounts))
        name = f"twtest-{os.getpid()}"
        words = ["runc", "--root", str(tmp_path / "runc"), "run", "--bundle", str(bundle), name]
        done = subprocess.run(words, capture_output=True, text=True, input="", check=False)
        return f"{done.returncode} {done.stdout}{done.stderr}"

    return run


@pytest.fixture
def by_us(runtime: Runtime) -> Run:
    def run(*argv: str, mounts: list[dict[str, Any]]) -> str:
        status, output = runtime.run(*argv, mounts=mounts)
        return f"{status} {output}"

    return run


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
