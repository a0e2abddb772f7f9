"""What is said of hosts that are not like this one."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapwright.config import Cni, Config, Image, Netmon, Qemu, Runtime
from tapwright.hypervisor import accelerator
from tapwright.linux import trial
from tapwright.sandbox import readiness
from tapwright.sandbox.readiness import OK, PROBLEM, WARNING, Finding


def findings(config: Config) -> dict[str, Finding]:
    return {finding.name: finding for finding in readiness.findings(config, print)}


def with_qemu(**keys: Any) -> Config:
    return Config(qemu=Qemu(**{"accelerator": "tcg", **keys}))


def fails() -> OSError:
    return OSError(errno.EOPNOTSUPP, "not supported here")


@pytest.mark.parametrize(
    ("name", "function", "needed_by", "not_needed_by"),
    [
        ("TAP", "tap", Config(), None),
        ("tc", "redirection", Config(), Config(runtime=Runtime("macvtap"))),
        ("macvtap", "macvtap", Config(runtime=Runtime("macvtap")), Config()),
        ("rate limits", "limits", with_qemu(tx_rate_limiter_max_rate=8000), Config()),
    ],
)
def test_what_the_kernel_lacks_matters_where_it_is_needed(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    function: str,
    needed_by: Config,
    not_needed_by: Config | None,
) -> None:
    monkeypatch.setattr(trial, function, fails)

    def found(config: Config) -> Finding:
        return findings(replace(config, qemu=replace(config.qemu, accelerator="tcg")))[name]

    finding = found(needed_by)
    assert finding.state == PROBLEM
    assert "not supported here" in finding.found
    assert finding.advice
    if not_needed_by:
        finding = found(not_needed_by)
        assert (finding.state, finding.advice) == (OK, "")
        assert "is not needed" in finding.found


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = findings(Config())
    assert found["root"].state == PROBLEM
    for name in ("KVM", "TAP", "tc"):
        assert (found[name].state, found[name].found) == (WARNING, "unknown: only root can try")


@pytest.mark.parametrize(
    ("wanted", "chosen", "state"),
    [
        ("auto", "kvm", OK),
        ("auto", "tcg", WARNING),
        ("kvm", "kvm", OK),
        ("kvm", "tcg", PROBLEM),
        ("tcg", "never asked", OK),
    ],
)
def test_kvm(monkeypatch: pytest.MonkeyPatch, wanted: str, chosen: str, state: str) -> None:
    async def choose(machine: Any, progress: Callable[[str], None]) -> tuple[str, str]:
        assert machine.accelerator == "auto", "a configured one would be taken untried"
        return chosen, "the reason"

    monkeypatch.setattr(accelerator, "choose", choose)
    finding = findings(Config(qemu=Qemu(accelerator=wanted)))["KVM"]
    assert finding.state == state
    assert ("the reason" in finding.found) is (wanted != "tcg")


def test_no_image_yet(tmp_path: Path) -> None:
    found = findings(Config(image=Image(str(tmp_path / "images"))))
    assert (found["guest image"].state, found["guest image"].found) == (WARNING, "not built yet")
    assert (found["KVM"].state, found["KVM"].advice) == (WARNING, "tapwright image build")
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("path", ["/bin/false", "/bin/echo", "/nowhere/qemu"])
def test_what_is_no_qemu(path: str) -> None:
    found = findings(with_qemu(path=path))["QEMU"]
    assert found.state == PROBLEM
    assert path in found.found
    assert "install qemu-system-x86" in found.advice


def test_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than there can be.
    finding = findings(with_qemu(enable_hugepages=True, default_memory=2**24))["huge pages"]
    assert finding.state == PROBLEM
    assert "reserve more (sysctl vm.nr_hugepages=" in finding.found
    monkeypatch.setattr(readiness, "check_hugepages", lambda mib: None)
    assert findings(with_qemu(enable_hugepages=True))["huge pages"].state == OK
    assert "huge pages" not in findings(with_qemu())


def test_vhost_net_that_is_not_wanted() -> None:
    assert findings(with_qemu(disable_vhost_net=True))["vhost-net"].state == OK


def test_a_monitor_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "kata-netmon"
    config = replace(with_qemu(), netmon=Netmon(True, str(path)))
    assert findings(config)["monitor"].state == PROBLEM
    path.write_text("#!/bin/sh\n")
    assert findings(config)["monitor"].state == PROBLEM
    path.chmod(0o755)
    assert findings(config)["monitor"].state == OK
    assert "monitor" not in findings(replace(config, netmon=Netmon(False, "/nowhere")))


def test_our_own_monitor() -> None:
    finding = findings(replace(with_qemu(), netmon=Netmon(True)))["monitor"]
    assert (finding.state, finding.found) == (OK, "our own")


def test_no_plugins_and_no_networks(tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("not executable")
    found = findings(replace(with_qemu(), cni=Cni(str(tmp_path / "net.d"), (str(tmp_path),))))
    assert (found["plugins"].state, found["plugins"].found) == (WARNING, f"none in {tmp_path}")
    assert (found["network"].state, found["network"].found) == (
        WARNING,
        f"none in {tmp_path}/net.d",
    )
