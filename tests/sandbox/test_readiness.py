"""What is said of hosts that are not like this one."""

import errno
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tapwright.config import Cni, Config, Factory, Image, Netmon, Qemu, Runtime
from tapwright.hypervisor import accelerator, process, users, virtiofsd
from tapwright.hypervisor.template_store import Store
from tapwright.linux import distribution, modules, trial
from tapwright.sandbox import abilities, installed, readiness
from tapwright.sandbox.finding import OK, PROBLEM, WARNING, Finding


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
        return findings(config._replace(qemu=config.qemu._replace(accelerator="tcg")))[name]

    finding = found(needed_by)
    assert finding.state == PROBLEM
    assert "not supported here" in finding.found
    assert finding.advice
    if not_needed_by:
        finding = found(not_needed_by)
        assert (finding.state, finding.advice) == (OK, "")
        assert "not needed" in finding.found


def test_not_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    found = findings(Config())
    assert found["root"].state == PROBLEM
    for name in ("KVM", "TAP", "tc", "templates"):
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


@pytest.mark.parametrize(
    ("missing", "advice"),
    [
        ("apt-get", "run: tapwright image import FILE"),
        ("zstd", "run: apt install zstd && tapwright image build"),
    ],
)
def test_an_image_that_can_not_be_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, advice: str
) -> None:
    there = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == missing else there("true"))
    found = installed.guest(Config(image=Image(str(tmp_path / "images"))), distribution.this())
    assert (found.state, f"without {missing}" in found.found) == (WARNING, True)
    assert found.advice.endswith(advice)


def test_no_image_yet(tmp_path: Path) -> None:
    found = findings(Config(image=Image(str(tmp_path / "images"))))
    assert found["guest image"].state == WARNING
    assert "not built yet" in found["guest image"].found
    assert found["guest image"].advice == "run: tapwright image build"
    assert found["KVM"].state == WARNING
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("path", ["/bin/false", "/bin/echo", "/nowhere/qemu"])
def test_what_is_no_qemu(path: str) -> None:
    found = findings(with_qemu(path=path))["QEMU"]
    assert found.state == PROBLEM
    assert path in found.found
    assert "install" in found.advice


def test_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    # More than there can be.
    finding = findings(with_qemu(enable_hugepages=True, default_memory=2**24))["huge pages"]
    assert finding.state == PROBLEM
    assert "reserve more (sysctl vm.nr_hugepages=" in finding.found
    monkeypatch.setattr(installed, "check_hugepages", lambda mib: None)
    assert findings(with_qemu(enable_hugepages=True))["huge pages"].state == OK
    assert "huge pages" not in findings(with_qemu())


def test_vhost_net_that_is_not_wanted() -> None:
    assert findings(with_qemu(disable_vhost_net=True))["vhost-net"].state == OK


def test_a_monitor_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "kata-netmon"
    config = with_qemu()._replace(netmon=Netmon(True, str(path)))
    assert findings(config)["monitor"].state == PROBLEM
    path.write_text("#!/bin/sh\n")
    assert findings(config)["monitor"].state == PROBLEM
    path.chmod(0o755)
    assert findings(config)["monitor"].state == OK
    assert "monitor" not in findings(config._replace(netmon=Netmon(False, "/nowhere")))


def test_our_own_monitor() -> None:
    finding = findings(with_qemu()._replace(netmon=Netmon(True)))["monitor"]
    assert (finding.state, finding.found) == (OK, "our own")


def test_no_plugins_and_no_networks(tmp_path: Path) -> None:
    (tmp_path / "bridge").write_text("not executable")
    found = findings(with_qemu()._replace(cni=Cni(str(tmp_path / "net.d"), (str(tmp_path),))))
    assert (found["plugins"].state, found["plugins"].found) == (WARNING, f"none in {tmp_path}")
    assert (found["network"].state, found["network"].found) == (
        WARNING,
        f"none in {tmp_path}/net.d",
    )


# --- what QEMU's user can't reach --------------------------------------------------------------


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that everybody can get to, whereas pytest's own are root's alone."""
    path = Path(tempfile.mkdtemp(prefix="twtest-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def carry_out(finding: Finding) -> None:
    """What the advice says."""
    _, run, command = finding.advice.partition("run: ")
    assert run, finding
    subprocess.run(command, shell=True, check=True)  # noqa: S602 - as a person would


@pytest.mark.parametrize("closed", ["", "outer", "outer/inner", "outer/inner/vmlinux"])
@pytest.mark.parametrize("linked", [False, True])
def test_a_kernel_that_qemu_can_not_read(open_place: Path, closed: str, linked: bool) -> None:
    """It sees the file without the directories that it is in."""
    kernel = open_place / "outer" / "inner" / "vmlinux"
    kernel.parent.mkdir(parents=True)
    initrd = open_place / "initrd"
    for file in (kernel, initrd):
        file.touch(0o644)
    named = kernel
    if linked:
        named = open_place / "link"
        named.symlink_to("outer/inner/vmlinux")
    config = with_qemu(kernel=str(named), initrd=str(initrd))
    assert findings(config)["guest image"].state == OK
    if not closed:
        return
    (open_place / closed).chmod(0o700 if closed != "outer/inner/vmlinux" else 0o600)
    found = findings(config)["guest image"]
    if not closed.endswith("vmlinux"):
        assert found.state == OK
        return
    assert found.state == PROBLEM
    assert f"{named} can't be read by QEMU's user, which is not root: it is closed" in found.found
    carry_out(found)
    assert findings(config)["guest image"].state == OK


def test_qemu_is_not_in_roots_group(open_place: Path) -> None:
    config = with_qemu(kernel=str(open_place / "x"), initrd=str(open_place / "x"))
    (open_place / "x").touch()
    before = os.getgroups()
    os.setgroups([*before, 0])
    try:
        for mode, state in ((0o604, OK), (0o640, PROBLEM)):
            (open_place / "x").chmod(mode)
            assert findings(config)["guest image"].state == state
    finally:
        os.setgroups(before)


def test_a_qemu_that_its_user_can_not_run(open_place: Path) -> None:
    closed = open_place / "closed"
    closed.mkdir(mode=0o700)
    qemu = closed / "qemu"
    qemu.write_text("#!/bin/sh\necho QEMU emulator version 99\n")
    qemu.chmod(0o755)
    found = findings(with_qemu(path=str(qemu)))["QEMU"]
    assert (found.state, f"{closed} is closed" in found.found) == (PROBLEM, True)
    carry_out(found)
    qemu.chmod(0o700)
    found = findings(with_qemu(path=str(qemu)))["QEMU"]
    assert (found.state, f"{qemu} is closed" in found.found) == (PROBLEM, True)
    carry_out(found)
    found = findings(with_qemu(path=str(qemu)))["QEMU"]
    assert (found.state, found.found) == (OK, f"{qemu}: QEMU emulator version 99")


def stub(path: Path, script: str) -> str:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def test_firmware(open_place: Path) -> None:
    """Where it is to be is asked of QEMU."""
    roms = open_place / "share"
    script = f"[ $1 = -L ] && echo {open_place}/none && echo {roms} || echo QEMU 99"
    config = with_qemu(path=stub(open_place / "qemu", script))
    found = findings(config)["firmware"]
    assert (found.state, "bios-256k.bin is in none of" in found.found) == (PROBLEM, True)
    roms.mkdir()
    (roms / "bios-256k.bin").touch()
    assert "pvh.bin is in none of" in findings(config)["firmware"].found
    (roms / "pvh.bin").touch()
    (roms / "pvh.bin").chmod(0o600)
    found = findings(config)["firmware"]
    assert f"{roms}/pvh.bin can't be read by QEMU's user" in found.found
    carry_out(found)
    assert findings(config)["firmware"].state == OK


def test_memory_is_no_matter_of_qemus_user(open_place: Path) -> None:
    backend = open_place / "memory"
    backend.mkdir(mode=0o700)
    assert "memory" not in findings(with_qemu(file_mem_backend=str(backend)))
    found = findings(with_qemu(file_mem_backend=str(backend / "none")))["memory"]
    assert (found.state, "is no directory" in found.found) == (PROBLEM, True)


def test_user_ids_that_somebody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = findings(with_qemu())["user ids"]
    assert (found.state, str(users.first()) in found.found) == (OK, True)
    monkeypatch.setitem(installed._SERVICES, "a user's", lambda number: number == process.user()[0])
    found = findings(with_qemu())["user ids"]
    assert (found.state, f"{process.user()[0]}, of" in found.found) == (WARNING, True)


# --- what else there is ------------------------------------------------------------------------


def test_templates(tmp_path: Path) -> None:
    def found(path: Path, wanted: bool = True) -> Finding:
        return findings(with_qemu()._replace(factory=Factory(wanted, str(path))))["templates"]

    place = tmp_path / "far" / "away"
    assert (found(place).state, str(place) in found(place).found) == (OK, True)
    assert not place.parent.exists()
    assert "not wanted" in found(place, wanted=False).found
    (tmp_path / "far").touch()
    assert (found(place).state, "can't be written to" in found(place).found) == (WARNING, True)
    (tmp_path / "far").unlink()
    place.mkdir(parents=True)
    place.parent.chmod(0o777)
    assert (found(place).state, f"change {place.parent};" in found(place).found) == (WARNING, True)
    place.parent.chmod(0o755)
    Store(place).note_failure("some", "QEMU did not like it")
    assert (found(place).state, "QEMU did not like it" in found(place).found) == (WARNING, True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "tmpfs", place], check=True)
    try:
        assert (found(place).state, "8 MiB free" in found(place).found) == (WARNING, True)
        subprocess.run(["mount", "-o", "remount,ro", place], check=True)
        assert (found(place).state, "can't be written to" in found(place).found) == (WARNING, True)
    finally:
        subprocess.run(["umount", place], check=True)


def test_which_file_share(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    in_rust = stub(tmp_path / "rust", "echo virtiofsd 1.13.2")
    in_c = stub(tmp_path / "c", "echo virtiofsd version 7.2.9 # posix_lock|no_posix_lock")
    broken = stub(tmp_path / "broken", "echo no such library >&2; exit 127")
    monkeypatch.setattr(virtiofsd, "PATHS", (str(tmp_path / "none"),))

    def found(path: str) -> Finding:
        return findings(with_qemu(virtio_fs_daemon=path))["file share"]

    assert (found(in_rust).state, found(in_rust).found) == (
        OK,
        f"virtio-fs by {in_rust} (the one in Rust: virtiofsd 1.13.2)",
    )
    assert "QEMU's own, in C: virtiofsd version 7.2.9" in found(in_c).found
    assert (found(broken).state, found(broken).found) == (
        WARNING,
        f"{broken} does not run: no such library",
    )
    assert (found("").state, found("").found[:12]) == (WARNING, "no virtiofsd")
    monkeypatch.setattr(virtiofsd, "PATHS", (in_rust,))
    assert found("/opt/kata/virtiofsd").state == WARNING
    assert f"/opt/kata/virtiofsd is not there, so virtio-fs by {in_rust}" in (
        found("/opt/kata/virtiofsd").found
    )


@pytest.mark.parametrize(
    ("files", "said", "state"),
    [
        (["cgroup.controllers"], "version 2", OK),
        (["unified/cgroup.controllers", "memory/cgroup.procs"], "version 2 beside it", OK),
        (["memory/cgroup.procs"], "version 1", OK),
        ([], "none at", WARNING),
    ],
)
def test_cgroups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[str], said: str, state: str
) -> None:
    monkeypatch.setattr(abilities, "_CGROUPS", tmp_path)
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    finding = findings(with_qemu())["cgroups"]
    assert (finding.state, said in finding.found) == (state, True)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("has_device", "flags", "has_module", "said", "advice"),
    [
        (False, "fpu", False, "shows no virtualization", "nested virtualization"),
        (False, "fpu vmx", True, "no /dev/kvm", "run: modprobe kvm_intel"),
        (False, "svm", True, "no /dev/kvm", "run: modprobe kvm_amd"),
        (False, "svm", False, "no module kvm_amd", ""),
        (True, "svm", True, "its kernel has", "pass /dev/kvm in"),
    ],
)
def test_why_there_is_no_kvm(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_device: bool,
    flags: str,
    has_module: bool,
    said: str,
    advice: str,
) -> None:
    exists = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path != "/dev/kvm" and exists(path))
    monkeypatch.setattr(abilities, "_MISC", tmp_path)
    monkeypatch.setattr(abilities, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(modules, "is_there", lambda name: has_module)
    (tmp_path / "cpuinfo").write_text(f"flags\t: {flags}\n")
    if has_device:
        (tmp_path / "kvm").touch()
    reason, found = abilities._without_kvm("there is no /dev/kvm")
    assert said in reason
    assert (advice in found) if advice else not found


@pytest.mark.unit
def test_a_kvm_that_is_closed() -> None:
    closed = f"{accelerator.CLOSED}: {accelerator.TO_OPEN}"
    assert abilities._without_kvm(closed) == (
        accelerator.CLOSED,
        f"run: {accelerator.TO_OPEN}",
    )


@pytest.mark.parametrize(
    ("has_driver", "has_module", "advice"),
    [
        (True, False, "run: mkdir -p /dev && mknod /dev/nowhere c 10 238"),
        (False, True, "in a container, pass /dev/nowhere in; elsewhere run: modprobe vhost_net"),
        (False, False, "set disable_vhost_net = true in [hypervisor.qemu]"),
    ],
)
def test_without_vhost_net(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    has_driver: bool,
    has_module: bool,
    advice: str,
) -> None:
    monkeypatch.setattr(abilities, "_VHOST", "/dev/nowhere")
    monkeypatch.setattr(abilities, "_MISC", tmp_path)
    monkeypatch.setattr(modules, "is_there", lambda name: has_module)
    if has_driver:
        (tmp_path / "vhost-net").touch()
    finding = findings(with_qemu())["vhost-net"]
    assert finding.state == WARNING
    assert finding.advice.endswith(advice)


def test_a_container_without_privileges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "tap", lambda: OSError(errno.EPERM, "Operation not permitted"))
    finding = findings(with_qemu())["TAP"]
    assert (finding.state, "CAP_NET_ADMIN" in finding.advice) == (PROBLEM, True)


def test_a_kernel_without_any_way_to_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another model is advised only where it would work."""
    monkeypatch.setattr(trial, "redirection", fails)
    assert 'set internetworking_model = "macvtap"' in findings(with_qemu())["tc"].advice
    monkeypatch.setattr(trial, "macvtap", fails)
    assert "set internetworking_model" not in findings(with_qemu())["tc"].advice


def test_plugins_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bridge").write_text("#!/bin/sh\n")
    (tmp_path / "bridge").chmod(0o755)
    monkeypatch.setattr(installed, "DEFAULT_PATH", (str(tmp_path),))
    found = findings(with_qemu()._replace(cni=Cni("/nowhere", ("/nowhere",))))["plugins"]
    assert (found.state, found.advice) == (
        WARNING,
        f'set bin_dirs = ["{tmp_path}"] in [cni], where plugins are',
    )


# --- what packages are called ------------------------------------------------------------------


@pytest.mark.unit
@pytest.mark.parametrize(
    ("release", "share", "qemu"),
    [
        ("ID=debian\nVERSION_ID='12'", "run: apt install qemu-system-common", "qemu-system-x86"),
        ("ID=debian\nVERSION_ID='13'", "run: apt install virtiofsd", "qemu-system-x86"),
        ("ID=debian\nVERSION_CODENAME=forky", "run: apt install virtiofsd", "qemu-system-x86"),
        ("ID=ubuntu\nVERSION_ID='22.04'", "run: apt install qemu-system-common", "qemu-system"),
        ("ID=ubuntu\nVERSION_ID='24.04'", "run: apt install virtiofsd", "qemu-system-x86"),
        ("ID=mint\nID_LIKE='ubuntu debian'\nVERSION_ID=22", "run: apt install virtiofsd", "qemu"),
        ("NAME=Fedora\nID=fedora\nVERSION_ID=43", "(on Fedora usually", "qemu-system-x86-core"),
        ('ID="openEuler"\nVERSION_ID="24.03"', "usually in the package virtiofsd", "x86-core"),
        ("ID=opensuse-leap\nID_LIKE='suse'\nVERSION_ID=16.0", "usually", "qemu-x86"),
        ("ID=alpine\nVERSION_ID=3.22.1", "usually", "qemu-system-x86_64"),
        ("ID=nixos", "install virtiofsd", "install QEMU"),
        ("", "install virtiofsd", "install QEMU"),
    ],
)
def test_the_package_of_the_hosts_distribution(
    tmp_path: Path, release: str, share: str, qemu: str
) -> None:
    (tmp_path / "os-release").write_text(f"# of a test\n{release}\n")
    system = distribution.this([str(tmp_path / "none"), str(tmp_path / "os-release")])
    assert share in system.installing("virtiofsd", "virtiofsd")
    assert qemu in system.installing("qemu", "QEMU")
    # Only of those that it was tried on is it said to work.
    of_debian = "debian" in release or "ubuntu" in release
    assert ("run: " in system.installing("plugins", "CNI plugins")) is of_debian


@pytest.mark.unit
def test_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / os.uname().release
    directory.mkdir()
    monkeypatch.setattr(modules, "DIRECTORY", tmp_path)
    assert not modules.is_there("no_such_one")
    (directory / "modules.dep").write_text("kernel/x/no-such-one.ko.xz: kernel/x/other.ko.xz\n")
    (directory / "modules.builtin").write_text("kernel/y/not_at_all.ko\n")
    assert modules.is_there("no_such_one")
    assert modules.is_there("not_at_all")
    assert not modules.is_there("other")
    assert not modules.is_there("one")
