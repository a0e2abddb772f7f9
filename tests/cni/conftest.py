"""Fixtures of the CNI tests: fake plugins, and namespaces for real ones."""

import itertools
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cni.fakes import Fakes


@pytest.fixture
def fakes(tmp_path: Path) -> Fakes:
    return Fakes(tmp_path)


@pytest.fixture
def make_netns() -> Iterator[Callable[[], str]]:
    """Makes namespaces by `ip netns`; gives their paths."""
    names: list[str] = []
    numbers = itertools.count()

    def make() -> str:
        name = f"twcni-{os.getpid()}-{next(numbers)}"
        subprocess.run(["ip", "netns", "add", name], check=True)
        names.append(name)
        return f"/run/netns/{name}"

    yield make
    for name in names:
        subprocess.run(["ip", "netns", "delete", name], check=False, stderr=subprocess.DEVNULL)
