"""What a supervisor reads of a resolv.conf that a container can write to."""

import asyncio
import os
import threading
from pathlib import Path

import pytest

from tapwright.nics import resolvers

pytestmark = pytest.mark.unit


class Agent:
    """Nothing is asked of it here."""


def looked_at(path: Path, change: str) -> set[str]:
    """What the supervisor finds at a path that a container changes after the request."""
    read: list[set[str]] = []
    threads: list[int] = []

    async def look() -> None:
        followed = resolvers.Resolvers("/proc/self/ns/net", Agent())  # type: ignore[arg-type]
        await followed.follow(str(path))
        match change:
            case "fifo":
                path.unlink()
                os.mkfifo(path)
            case "link":
                path.rename(path.with_name("other"))
                path.symlink_to(path.with_name("other"))
            case "zero":
                path.unlink()
                path.symlink_to("/dev/zero")
            case "sparse":
                os.truncate(path, 1 << 40)
        await followed._serve_new()

    original = resolvers._loopbacks

    def loopbacks(paths: list[str]) -> set[str]:
        threads.append(threading.get_ident())
        read.append(original(paths))
        return set()  # nothing is to be served

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resolvers, "_loopbacks", loopbacks)
        asyncio.run(look())
    assert threads != [threading.get_ident()], "it was read in the event loop"
    return read[0]


@pytest.mark.parametrize("change", ["none", "fifo", "link", "zero", "sparse"])
def test_only_what_is_a_small_file_is_read(tmp_path: Path, change: str) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("search a.b\nnameserver 127.0.0.11\nnameserver ::1\nnameserver 10.0.0.1\n")
    assert looked_at(path, change) == ({"127.0.0.11"} if change == "none" else set())


def test_a_link_of_the_platform_is_followed_when_it_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("nameserver 127.0.0.11\n")
    (tmp_path / "resolv.conf").symlink_to("real")
    assert looked_at(tmp_path / "resolv.conf", "none") == {"127.0.0.11"}
