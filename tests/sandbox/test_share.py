"""Files of the host in the guest: what is seen, who owns it, and that nothing else is reached."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.config import load
from tapwright.linux import mounts
from tapwright.sandbox import client, lifecycle, planning, registry
from tapwright.sandbox.planning import Wish
from tests.sandboxes import Tapwright

SANDBOX, OTHER = "share", "share-other"
SHARE = "/run/tapwright/share"
HELPER = "virtfs-proxy"


@pytest.fixture
def ended_sandboxes(tapwright: Tapwright) -> Iterator[None]:
    yield
    for name in (SANDBOX, OTHER):
        tapwright.run("sandbox", "delete", "--force", name)


pytestmark = pytest.mark.usefixtures("nothing_left", "ended_sandboxes")


def run(tapwright: Tapwright, name: str = SANDBOX, share: bool = True) -> registry.Sandbox:
    spec = planning.plan(load(str(tapwright.config)), Wish(share=share), print)
    lifecycle.run(tapwright.root, name, spec)
    return registry.find(tapwright.root, name)


def show(sandbox: registry.Sandbox, container: str, **sources: Path | str) -> None:
    fds = {name: mounts.clone(os.fspath(path)) for name, path in sources.items()}
    try:
        client.share(sandbox, container, fds)
    finally:
        for fd in fds.values():
            os.close(fd)


def test_what_is_shared_is_seen_as_long_as_it_is(tapwright: Tapwright, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "file").write_text("content")
    (tmp_path / "hosts").write_text("127.0.0.1 localhost")
    sandbox = run(tapwright)
    before = Path("/proc/self/mountinfo").read_text()
    show(sandbox, "one", root=tmp_path / "tree", hosts=tmp_path / "hosts")
    assert tapwright.exec(SANDBOX, "cat", f"{SHARE}/one/root/deep/file") == "content"
    assert tapwright.exec(SANDBOX, "cat", f"{SHARE}/one/hosts") == "127.0.0.1 localhost"
    tapwright.exec(SANDBOX, "sh", "-c", f"echo new > {SHARE}/one/root/new")
    assert (tmp_path / "tree" / "new").read_text() == "new\n"
    assert Path("/proc/self/mountinfo").read_text() == before
    client.unshare(sandbox, "one")
    client.unshare(sandbox, "one")
    assert tapwright.exec(SANDBOX, "ls", SHARE) == ""
