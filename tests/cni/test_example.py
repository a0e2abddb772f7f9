"""The example plugin, under `tapwright cni` and under podman."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cni.command import Commands
from tests.cni.reference import PLUGINS, Reference, inside, output
from tests.cni.written import SOURCE

EXAMPLE = Path(__file__).parents[2] / "examples" / "link-alias"
ALIAS = {"type": "link-alias", "alias": "web tier"}
# `env python3` is to find the interpreter that has tapwright.
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


@pytest.fixture
def reference(tmp_path: Path) -> Iterator[Reference]:
    yield Reference(tmp_path)
    subprocess.run(["ip", "link", "delete", "brcni"], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.unit
def test_it_is_25_lines_of_code() -> None:
    source = EXAMPLE.read_text()
    code = source.split('"""', 2)[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 25


def test_it_works_in_a_chain(reference: Reference, make_netns: Callable[[], str]) -> None:
    netns = make_netns()
    reference.network(reference.bridge(), ALIAS)
    commands = Commands(reference.nets, f"{PLUGINS}:{EXAMPLE.parent}", reference.cache)
    result = commands.json("add", "net", netns, PATH=PATH)
    assert len(result["ips"]) == 1
    assert "alias web tier" in inside(netns, "ip", "link", "show", "eth0")
    assert commands.tapwright("check", "net", netns, PATH=PATH).returncode == 0
    inside(netns, "ip", "link", "set", "eth0", "alias", "changed")
    checked = commands.tapwright("check", "net", netns, PATH=PATH)
    assert checked.returncode == 1
    assert "eth0 has lost its alias" in checked.stderr
    assert commands.tapwright("del", "net", netns, PATH=PATH).returncode == 0


@pytest.fixture
def short_path() -> Iterator[Path]:
    """podman takes no path of more than 50 characters for its state."""
    with tempfile.TemporaryDirectory(prefix="tw") as directory:
        yield Path(directory)


PODMAN_MISSING = [name for name in ("podman", "runc", "busybox") if shutil.which(name) is None]


@pytest.mark.skipif(bool(PODMAN_MISSING), reason=f"not on the PATH: {', '.join(PODMAN_MISSING)}")
def test_it_works_under_podman(reference: Reference, short_path: Path) -> None:
    plugins = short_path / "plugins"
    plugins.mkdir()
    shutil.copy(EXAMPLE, plugins)
    reference.network(reference.bridge(), ALIAS, version="0.4.0")
    (short_path / "containers.conf").write_text(
        "[containers]\n"
        'default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]\n'
        "[network]\n"
        'network_backend = "cni"\n'
        f"cni_plugin_dirs = {json.dumps([PLUGINS, str(plugins)])}\n"
        f'network_config_dir = "{reference.nets}"\n'
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "none"\n'
    )
    read = ["/busybox", "cat", "/sys/class/net/eth0/ifalias"]
    run = ["--runtime", "runc", "run", "--rm", "--network", "net"]
    shown = podman(short_path, *run, image(short_path), *read)
    assert shown == "web tier\n"
    assert reference.leased() == []


def image(directory: Path) -> str:
    """An image of nothing but busybox."""
    busybox = shutil.which("busybox")
    assert busybox
    content = directory / "content"
    content.mkdir()
    shutil.copy(busybox, content / "busybox")
    output("tar", "-C", str(content), "-cf", str(directory / "image.tar"), ".")
    podman(directory, "import", str(directory / "image.tar"), "localhost/busybox")
    return "localhost/busybox"


def podman(directory: Path, *words: str) -> str:
    """podman with all its state in the directory."""
    state = ["--root", f"{directory}/root", "--runroot", f"{directory}/run"]
    done = subprocess.run(
        ["podman", *state, "--storage-driver", "vfs", *words],
        env=os.environ
        | {
            "CONTAINERS_CONF": f"{directory}/containers.conf",
            "PATH": PATH,
            "PYTHONPATH": SOURCE,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    if "cni support is not enabled" in done.stderr:
        pytest.skip("this podman has no CNI: version 5 runs netavark alone")
    assert done.returncode == 0, done.stderr
    return done.stdout
