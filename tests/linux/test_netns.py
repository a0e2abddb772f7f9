"""Namespaces by their paths."""

import os
from pathlib import Path

import pytest

from tapwright.linux import netns


def test_paths_that_end_with_a_process(scratch_netns: str, tmp_path: Path) -> None:
    own = f"/proc/{os.getpid()}"
    (tmp_path / "link").symlink_to(f"{own}/ns/net")
    (tmp_path / "name").symlink_to(scratch_netns)
    with open(scratch_netns) as held:
        fleeting = (
            "/proc/self/ns/net",
            "/proc/thread-self/ns/net",
            f"{own}/ns/net",
            f"{own}/task/{os.getpid()}/ns/net",
            f"{own}/fd/{held.fileno()}",
            str(tmp_path / "link"),
        )
        assert [path for path in fleeting if not netns.is_of_a_process(path)] == []
        lasting = (
            scratch_netns,
            str(tmp_path / "name"),
            f"{own}/root{scratch_netns}",
            "/proc/self/ns/nothing",
            "/run/netns/nowhere",
        )
        assert [path for path in lasting if netns.is_of_a_process(path)] == []
        assert netns.for_others(f"/proc/self/fd/{held.fileno()}") == f"{own}/fd/{held.fileno()}"
    assert netns.for_others("/proc/self/ns/net") == f"{own}/ns/net"


def test_a_second_name(scratch_netns: str) -> None:
    target = f"{scratch_netns}-again"
    netns.bind(scratch_netns, target)
    try:
        assert os.path.samefile(scratch_netns, target)
        with pytest.raises(FileExistsError):
            netns.bind(scratch_netns, target)
        assert os.path.samefile(scratch_netns, target), "what was there stays"
    finally:
        netns.remove(target)
    with pytest.raises(FileNotFoundError):
        netns.bind("/proc/self/ns/nothing", target)
    assert not os.path.exists(target)
