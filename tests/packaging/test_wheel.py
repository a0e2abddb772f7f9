"""The wheel, built from the checkout and installed into an empty environment."""

import json
import subprocess
import sysconfig
import venv
from pathlib import Path

import pytest
from reference import completions, manual

import tapwright
from tests.packaging.conftest import PIP, PROJECT, run

# A root with a shell, Python and their libraries, and no other program.
_BARE = """\
set -e
root=$1 environment=$2 libraries=$3
mount -t tmpfs none "$root"
mkdir -p "$root/usr/bin" "$root/etc" "$root/tmp"
cp /usr/lib/os-release "$root/etc"
cp -L /bin/sh "$environment/bin/python3" "$root/usr/bin"
for name in bin lib lib64; do ln -s usr/$name "$root/$name"; done
for path in /proc /sys /dev /usr/lib/python3* /usr/lib64 "$libraries" "$environment"; do
    mkdir -p "$root$path"
    mount --rbind "$path" "$root$path"
done
exec env -i PATH=/usr/bin HOME=/tmp "$(command -v chroot)" "$root" "$environment/bin/tapwright" $4
"""


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has nothing but the wheel."""
    environment = tmp_path_factory.mktemp("installed")
    venv.create(environment)
    python = environment / "bin" / "python"
    run(*PIP, "--python", python, "install", "--no-deps", "--no-index", "--no-compile", wheel)
    return environment


def test_the_command_works(installed: Path) -> None:
    said = run(installed / "bin/tapwright", "--version")
    assert said.startswith(f"tapwright version {tapwright.__version__}\n")
    default = run(installed / "bin/tapwright", "check", "--print-default")
    assert default == (PROJECT / "src/tapwright/config/configuration.toml").read_text()
    assert "-r RUNTIME" in run(installed / "bin/tapwright-netmon", "-help")


def test_it_looks_at_the_host(installed: Path) -> None:
    """Whatever comes of it: nothing else than the standard library is needed."""
    done = subprocess.run(
        [installed / "bin/tapwright", "check", "--json"], capture_output=True, text=True
    )
    assert json.loads(done.stdout)["ready"] is (done.returncode == 0)


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        ("--version", 0, "tapwright version"),
        ("check", 1, "apt install\n                      qemu-system-x86"),
        ("sandbox list", 0, "ID  STATUS"),
        ("sandbox run x", 1, "is not installed: install qemu-system-x86"),
        ("image build", 1, "apt-cache is missing"),
    ],
)
def test_where_no_other_program_is(
    installed: Path, tmp_path: Path, words: str, status: int, said: str
) -> None:
    """The command works, and says what it lacks and how the distribution installs that."""
    apart = ("unshare", "--mount", "--propagation", "private", "sh", "-c", _BARE, "sh")
    done = subprocess.run(
        [*apart, tmp_path, installed, sysconfig.get_config_var("LIBDIR"), words],
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_it_brings_man_pages_and_completions(installed: Path) -> None:
    pages = {path.name for path in (installed / "share/man/man1").iterdir()}
    assert pages == set(manual.pages())
    for name in completions.scripts():
        assert (installed / "share" / name).is_file()


def test_it_has_all_that_is_no_python(installed: Path) -> None:
    [package] = (installed / "lib").glob("python*/site-packages/tapwright")
    for path in (PROJECT / "src/tapwright").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            name = path.relative_to(PROJECT / "src/tapwright")
            assert (package / name).read_bytes() == path.read_bytes()


def test_its_metadata(installed: Path) -> None:
    [path] = (installed / "lib").glob("python*/site-packages/*.dist-info/METADATA")
    head, _, body = path.read_text().partition("\n\n")
    assert "License-Expression: Apache-2.0" in head.splitlines()
    assert "Description-Content-Type: text/markdown" in head.splitlines()
    assert body.strip() == (PROJECT / "README.md").read_text().strip()
