"""A share without a QEMU, and a guest that speaks to its daemon."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tapwright.hypervisor.machine import Daemon
from tapwright.hypervisor.share import Share
from tests.hypervisor.shares import PROGRAMS, UID, show
from tests.hypervisor.vhost_user_fs import Guest


@pytest.fixture(params=PROGRAMS)
def daemon(request: pytest.FixtureRequest) -> Daemon:
    return Daemon(request.param)


@pytest.fixture
def share(daemon: Daemon) -> Iterator[Share]:
    started = Share.start(UID, daemon)
    yield started
    started.kill()
    os.close(started.stderr)


@pytest.fixture
def guest(share: Share) -> Iterator[Guest]:
    """With the share mounted, sealed as it is before a guest can speak to it."""
    here = Guest(share.connection, share.process.pid)
    here.frontend.features()
    share.seal()
    here.begin()
    yield here
    here.close()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    place = tmp_path / "tree"
    place.mkdir()
    (place / "file").write_text("shared")
    return place


@pytest.fixture
def top(guest: Guest, share: Share, tree: Path) -> int:
    """The tree as the guest sees it: a node."""
    show(share, "one", tree=tree)
    return guest.walk("one/tree").node
