"""The Debian package: what is in it, and that dpkg installs and removes it on this Debian, in a
root that is this machine's with a layer above it."""

import shutil
import subprocess
from pathlib import Path

import pytest

import tapwright
from tests.packaging.conftest import PROJECT, run

_UNIT = "/usr/lib/systemd/system/tapwright-gc.service"
# Linked into a root that has all the host's files; changes stay in a tmpfs.
_LAYER = """\
set -e
mount -t tmpfs none "$1"
mkdir "$1/upper" "$1/work" "$1/root"
mount -t overlay -o "lowerdir=/,upperdir=$1/upper,workdir=$1/work" none "$1/root"
mount --rbind /proc "$1/root/proc"
mount --rbind /dev "$1/root/dev"
cp "$2" "$1/root/tapwright.deb"
exec chroot "$1/root" sh -e -c "$3"
"""


@pytest.fixture(scope="module")
def package(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("dpkg-deb"):
        pytest.skip("dpkg-deb is not installed: this is no Debian")
    directory = tmp_path_factory.mktemp("deb")
    return Path(run(PROJECT / "scripts/deb", wheel, directory).strip())


@pytest.fixture
def unpacked(package: Path, tmp_path: Path) -> Path:
    run("dpkg-deb", "-R", package, tmp_path)
    return tmp_path


def test_it_has_what_the_wheel_has(unpacked: Path) -> None:
    modules = {
        path.relative_to(PROJECT / "src") for path in (PROJECT / "src/tapwright").rglob("*.py")
    }
    packages = unpacked / "usr/lib/python3/dist-packages"
    assert {path.relative_to(packages) for path in packages.rglob("*.py")} == modules
    for path in (
        "usr/share/man/man1/tapwright-sandbox.1.gz",
        "usr/share/bash-completion/completions/tapwright",
        "usr/share/zsh/vendor-completions/_tapwright",
        "usr/share/fish/vendor_completions.d/tapwright.fish",
        "usr/share/doc/tapwright/copyright",
        "usr/share/doc/tapwright/changelog.gz",
        _UNIT.lstrip("/"),
    ):
        assert (unpacked / path).is_file()


def test_its_control_file(package: Path) -> None:
    said = run("dpkg-deb", "-f", package)
    fields = dict(line.split(": ", 1) for line in said.splitlines() if line[0] != " ")
    assert fields["Version"] == f"{tapwright.__version__}-1"
    assert "@" not in fields["Homepage"]
    # What scripts/setup installs for everybody, under Debian's names.
    for name in ("qemu-system-x86", "containernetworking-plugins", "nftables", "iptables"):
        assert name in fields["Depends"]
        assert name in (PROJECT / "scripts/setup").read_text()


def test_the_same_wheel_gives_the_same_bytes(package: Path, wheel: Path, tmp_path: Path) -> None:
    again = Path(run(PROJECT / "scripts/deb", wheel, tmp_path).strip())
    assert again.read_bytes() == package.read_bytes()


def test_the_unit_is_sound(unpacked: Path) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    unit = unpacked / _UNIT.lstrip("/")
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True
    )
    # The one thing that is not there is what is installed with it.
    faults = [line for line in done.stderr.splitlines() if "/usr/bin/tapwright" not in line]
    assert faults == []


def test_dpkg_installs_and_removes_it(package: Path, tmp_path: Path) -> None:
    said = run(
        *("unshare", "--mount", "--propagation", "private"),
        *("sh", "-c", _LAYER, "sh", tmp_path, package),
        f"""
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin
        dpkg -i --force-depends --no-triggers /tapwright.deb >/dev/null
        tapwright --version
        tapwright gc --help | head -1
        man -w tapwright-gc
        find /etc/systemd -name tapwright-gc.service
        find /usr/lib/python3/dist-packages/tapwright/cli -name 'groups*.pyc' | wc -l
        dpkg -P --no-triggers tapwright >/dev/null
        ls -d {_UNIT} /usr/lib/python3/dist-packages/tapwright /usr/bin/tapwright 2>/dev/null |
            wc -l
        find /etc/systemd -name tapwright-gc.service
        """,
    )
    assert said.splitlines()[2:] == [
        "usage: tapwright gc [-h] [--force] [--json]",
        "/usr/share/man/man1/tapwright-gc.1.gz",
        "/etc/systemd/system/multi-user.target.wants/tapwright-gc.service",
        "1",
        "0",
    ]
    assert said.startswith(f"tapwright version {tapwright.__version__}\n")
