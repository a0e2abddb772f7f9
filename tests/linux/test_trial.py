"""Trying what the kernel can do: the answer is true, and nothing is left."""

import os
import subprocess

import pytest

from tapwright.linux import links, tc, trial, tuntap
from tests.host import open_files


def interfaces() -> str:
    return subprocess.run(["ip", "-o", "link"], capture_output=True, text=True, check=True).stdout


def test_what_this_kernel_has_works_and_nothing_is_left() -> None:
    before, namespace = interfaces(), os.readlink("/proc/thread-self/ns/net")
    namespaces = os.listdir("/run/netns") if os.path.isdir("/run/netns") else []
    fds = open_files()
    # All other tests need these two; the others a kernel may lack.
    assert trial.tap() is None
    assert trial.redirection() is None
    for attempt in (trial.macvtap, trial.limits):
        assert attempt() is None or isinstance(attempt(), OSError)
    assert interfaces() == before
    assert os.readlink("/proc/thread-self/ns/net") == namespace
    assert (os.listdir("/run/netns") if os.path.isdir("/run/netns") else []) == namespaces
    assert len(open_files()) == len(fds)


def test_missing_parts_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuntap, "_DEVICE", "/nowhere/tun")
    error = trial.tap()
    assert isinstance(error, FileNotFoundError)
    assert "/nowhere/tun" in str(error)
    monkeypatch.setattr(tc, "TCA_EGRESS_REDIR", 99)
    assert isinstance(trial.redirection(), OSError)
    monkeypatch.setattr(links, "MACVTAP_MODES", {"bridge": 99})
    assert isinstance(trial.macvtap(), OSError)
    monkeypatch.setattr(tc, "TC_HTB_PROTOVER", 99)
    assert isinstance(trial.limits(), OSError)
