"""The guest image: the same inputs give the same bytes, and only an image that fits is used."""

import gzip
import hashlib
import json
import lzma
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tapwright.errors import ImageError
from tapwright.image import archive, build, kernel, packages, release, sources, store, transfer
from tapwright.image.archive import Entry
from tapwright.image.packages import HOST
from tapwright.linux import netns
from tests.sandboxes import COMMAND


def quiet(text: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, store.Image]:
    """A store with an image of its own, made from the packages that the shared store fetched; what
    a killed run has left was there before."""
    directory = tmp_path_factory.mktemp("store")
    (directory / ".work-killed" / "unpacked").mkdir(parents=True)
    store.ensure(store.DIRECTORY, quiet)
    (directory / "packages").symlink_to(store.DIRECTORY / "packages")
    return directory, store.build_image(directory, quiet)


def test_same_inputs_give_the_same_bytes(built: tuple[Path, store.Image]) -> None:
    _, image = built
    shared = store.build_image(store.DIRECTORY, quiet)
    assert image.key == shared.key
    assert image.kernel.read_bytes() == shared.kernel.read_bytes()
    assert image.initrd.read_bytes() == shared.initrd.read_bytes()
    assert b"usr/lib/x86_64-linux-gnu/libseccomp" in image.initrd.read_bytes()
    assert b"usr/lib/x86_64-linux-gnu/libsystemd" not in image.initrd.read_bytes()
    assert image.disk.read_bytes() == shared.disk.read_bytes()


def test_an_image_that_is_there_is_kept(built: tuple[Path, store.Image]) -> None:
    directory, image = built
    before = image.initrd.stat()
    assert store.build_image(directory, quiet) == image
    assert image.initrd.stat() == before


@pytest.mark.smoke
def test_list_and_build_commands(built: tuple[Path, store.Image], tmp_path: Path) -> None:
    directory, image = built
    config = tmp_path / "configuration.toml"
    config.write_text(f'[image]\nstore = "{directory}"\n')
    for words in (["image", "list"], ["image", "build"]):
        done = subprocess.run(
            [COMMAND, "--config", config, *words, "--json"], capture_output=True, check=True
        )
        answer = json.loads(done.stdout)
        entry = answer[0] if words[1] == "list" else answer
        assert entry["key"] == image.key
        assert entry["current"] is True
        assert entry["kernel_package"].startswith("linux-image-")
        assert entry["release"] == release.host()
        assert "busybox-static" in entry["packages"]


def test_image_of_another_agent_is_not_used(
    built: tuple[Path, store.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, image = built
    assert store.find(directory) == image
    monkeypatch.setattr(sources, "sources_digest", lambda: "of another version")
    assert store.find(directory) is None


def test_half_made_work_is_cleared_away(built: tuple[Path, store.Image]) -> None:
    directory, _ = built
    assert not list(directory.glob(".work-*"))


def test_damaged_package_is_fetched_again(tmp_path: Path, machine_netns: str) -> None:
    package = HOST.known(["zlib1g"])["zlib1g"].package
    (tmp_path / package.file).write_bytes(b"torn")
    with netns.entered(machine_netns):
        packages.fetch(HOST, [package], tmp_path)
    packages.unpack([package], tmp_path, tmp_path / "tree")
    assert list((tmp_path / "tree/usr/lib").rglob("libz.so.1"))


@pytest.mark.unit
def test_modes_do_not_depend_on_the_installer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Debian package has no executable files but in /usr/bin; a guest with such an init hangs."""
    ours = sources.own_sources()
    installed = {name: tmp_path / str(number) for number, name in enumerate(ours)}
    for name, source in ours.items():
        installed[name].write_bytes(source.read_bytes())
    monkeypatch.setattr(build, "own_sources", lambda: installed)
    stage = tmp_path / "stage"
    build._select_own(stage)
    executable = {name for name in installed if (stage / name).stat().st_mode & 0o111}
    assert executable == {"init", "usr/lib/tapwright/disk"}


def test_unknown_package() -> None:
    with pytest.raises(ImageError, match="no-such-package"):
        packages.libraries(HOST.known(["zlib1g", "no-such-package"]), ["no-such-package"])
    assert HOST.known(["no-such-package"]) == {}


PARAGRAPHS = """\
Package: tool
Version: 1:2-3
Architecture: amd64
Pre-Depends: libearly0 (>= 1)
Depends: libtool1t64 (>= 2) | libtool1, installer | other-installer,
Section: universe/utils
SHA256: 01

Package: libtool1
Version: 1
Architecture: amd64
Depends: libearly0, no-such-library
Section: universe/libs
SHA256: 02

Package: libearly0
Version: 1
Architecture: all
Depends: libtool1:any
Section: libs
SHA256: 03

Package: installer
Version: 1
Architecture: amd64
Depends: liblarge0
Section: admin
SHA256: 04

Package: liblarge0
Version: 1
Architecture: amd64
Section: libs
SHA256: 05

Package: installed-only
Status: install ok installed
Version: 1
Architecture: amd64
Section: libs
"""


def test_of_what_is_depended_on_the_libraries_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = "tool\n  Depends: libearly0\nlibearly0\n |Depends: <virtual>\n<virtual>\nlibtool1\n"
    listed += "installer\nliblarge0\ninstalled-only\n"

    def run(*command: str, check: bool = True) -> str:
        return listed if command[1] == "depends" else PARAGRAPHS

    monkeypatch.setattr(packages, "run", run)
    known = HOST.known(["tool"])
    assert "installed-only" not in known
    found = {package.name: package for package in packages.libraries(known, ["tool"])}
    assert set(found) == {"tool", "libtool1", "libearly0"}
    assert found["tool"].file == "tool_1%3a2-3_amd64.deb"


def test_a_release_of_its_own(tmp_path: Path, machine_netns: str) -> None:
    """Any but the host's, in an apt directory that leaves the host's as it is."""
    suite = "sid" if release.host() != "sid" else "trixie"
    before = HOST.known(["libc6"])
    with netns.entered(machine_netns):
        index = release.index(suite, tmp_path)
    assert HOST.known(["libc6"]) == before
    recipe = build.find_recipe(index)
    names = {package.name for package in recipe.packages}
    assert {f"python{recipe.python}-minimal", "crun", "busybox-static", "libc6"} <= names
    assert not names & {"dpkg", "initramfs-tools", "debconf"}
    host = build.find_recipe(HOST)
    assert recipe.kernel != host.kernel
    assert set(recipe.packages).isdisjoint(host.packages)


def test_a_release_that_there_is_not(tmp_path: Path, machine_netns: str) -> None:
    with netns.entered(machine_netns), pytest.raises(ImageError, match="no-such-suite"):
        release.index("no-such-suite", tmp_path)
    with pytest.raises(ImageError, match="codename"):
        release.index("../trixie", tmp_path)


def test_a_new_store_is_open_to_qemu_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with store.locked(tmp_path / "state" / "images"):
            pass
    finally:
        os.umask(before)
    for path in (tmp_path / "state", tmp_path / "state" / "images"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o755


def test_store_that_can_not_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ImageError, match="can't be written"):
        store.build_image(tmp_path / "file" / "store", quiet)


@pytest.mark.parametrize("data", [bytes(0x300), b"MZ" + bytes(0x200) + b"HdrS" + bytes(0x1000)])
def test_what_is_no_kernel(data: bytes) -> None:
    with pytest.raises(ImageError):
        kernel.extract_elf(data)


def test_unknown_module(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/a.ko\n")
    assert kernel.select_modules(tmp_path, ("a",)) == []
    with pytest.raises(ImageError, match="no module b"):
        kernel.select_modules(tmp_path, ("b",))


def test_modules_by_where_they_are(tmp_path: Path) -> None:
    paths = ("kernel/net/ipv4/ip-gre.ko.xz", "kernel/net/a.ko", "kernel/fs/fuse/fuse.ko.zst")
    for path in (*paths, "kernel/drivers/net/tun.ko", "kernel/drivers/net/tundra.ko"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    patterns = ("kernel/net/*", "kernel/drivers/net/tun", "kernel/fs/none/*")
    assert kernel.names_below(tmp_path, patterns) == ("tun", "a", "ip_gre")


def test_soft_dependencies_are_loaded_too(tmp_path: Path) -> None:
    (tmp_path / "modules.dep").write_text(
        "net/xt_LOG.ko: x.ko\nx.ko:\nnet/syslog.ko: y.ko\ny.ko:\n"
    )
    (tmp_path / "modules.softdep").write_text(
        "# Soft dependencies\nsoftdep xt_LOG pre: syslog crypto-x post: x\nsoftdep gone pre: x\n"
    )
    kernel.add_soft_dependencies(tmp_path)
    assert (tmp_path / "modules.dep").read_text().splitlines() == [
        "net/xt_LOG.ko: x.ko net/syslog.ko y.ko",
        "x.ko:",
        "net/syslog.ko: y.ko",
        "y.ko:",
    ]


def test_modules_however_they_are_compressed(tmp_path: Path) -> None:
    (tmp_path / "modules.builtin").write_text("kernel/built-in.ko\n")
    contents = {
        name: b"\x7fELF\0depends=" + needs + b"\0"
        for name, needs in {
            "virtio-net": b"net-failover,xz-ed,built_in",
            "net-failover": b"failover",
            "failover": b"",
            "xz-ed": b"failover",
        }.items()
    }
    (tmp_path / "virtio-net.ko").write_bytes(contents["virtio-net"])
    (tmp_path / "net-failover.ko.gz").write_bytes(gzip.compress(contents["net-failover"]))
    (tmp_path / "xz-ed.ko.xz").write_bytes(lzma.compress(contents["xz-ed"]))
    zstd = subprocess.run(
        ["zstd", "-qc"], input=contents["failover"], capture_output=True, check=True
    )
    (tmp_path / "failover.ko.zst").write_bytes(zstd.stdout)
    order = ("failover", "net-failover", "xz-ed", "virtio-net")
    assert kernel.select_modules(tmp_path, ("virtio_net", "failover")) == [
        kernel.Module(f"{name}.ko", contents[name], f"{name}.ko") for name in order
    ]
    (tmp_path / "failover.ko.zst").write_bytes(zstd.stdout[:-1])
    with pytest.raises(ImageError, match=r"failover\.ko\.zst"):
        kernel.select_modules(tmp_path, ("failover",))


def test_an_exported_image(
    built: tuple[Path, store.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, image = built
    file = tmp_path / "image"
    config = tmp_path / "configuration.toml"
    config.write_text(f'[image]\nstore = "{directory}"\n')
    subprocess.run([COMMAND, "--config", config, "image", "export", file], check=True)
    config.write_text(f'[image]\nstore = "{tmp_path}/other"\n')
    done = subprocess.run(
        [COMMAND, "--config", config, "image", "import", file], capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == image.key
    other = store.find(tmp_path / "other")
    assert other
    assert other.manifest == image.manifest
    assert other.kernel.read_bytes() == image.kernel.read_bytes()
    assert other.initrd.read_bytes() == image.initrd.read_bytes()
    assert other.disk.read_bytes() == image.disk.read_bytes()
    assert stat.S_IMODE(other.kernel.parent.stat().st_mode) == 0o755
    assert transfer.import_image(file, tmp_path / "other") == other

    monkeypatch.setattr(sources, "sources_digest", lambda: "of another version")
    with pytest.raises(ImageError, match="another Tapwright"):
        transfer.import_image(file, tmp_path / "new")


@pytest.mark.parametrize("damage", ["cut", "first half", "changed", "swapped", "empty", "text"])
def test_a_damaged_export_is_refused(tmp_path: Path, damage: str) -> None:
    files = {name: os.urandom(1 << 16) for name in store.FILES}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    manifest = {"sources": sources.sources_digest(), "packages": [], "files": digests}
    kernel_file, initrd_file, disk_file = (tmp_path / name for name in store.FILES)
    image = store.Image("key", kernel_file, initrd_file, disk_file, manifest, True)
    file, store_path = tmp_path / "image", tmp_path / "store"
    if damage == "swapped":
        image = image._replace(kernel=image.initrd, initrd=image.kernel)
    transfer.export_image(image, file)
    whole = file.read_bytes()
    middle = len(whole) // 2
    file.write_bytes(
        {
            "cut": whole[:-9],
            "first half": whole[:middle],
            "changed": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
            "swapped": whole,
            "empty": b"",
            "text": b"an image\n",
        }[damage]
    )
    with pytest.raises(ImageError, match="no whole image"):
        transfer.import_image(file, store_path)
    assert not list(store_path.glob("*/manifest.json"))
    file.write_bytes(whole)
    if damage != "swapped":
        transfer.import_image(file, store_path)


def test_an_export_that_can_not_be_written(built: tuple[Path, store.Image], tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="can't be written"):
        transfer.export_image(built[1], tmp_path / "no" / "image")


def test_an_import_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="No such file"):
        transfer.import_image(tmp_path / "image", tmp_path / "store")


def test_archive_is_what_cpio_reads(tmp_path: Path) -> None:
    tree = {
        "etc/passwd": Entry.file(b"root\n"),
        "bin/tool": Entry.file(b"#!", 0o755),
        "bin/link": Entry.link("/bin/tool"),
        "empty": Entry(0o40755),
    }
    (tmp_path / "archive").write_bytes(archive.write(tree))
    subprocess.run(
        ["cpio", "--extract", "--make-directories", "--quiet", "-F", "archive"],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "etc/passwd").read_bytes() == b"root\n"
    assert stat.S_IMODE((tmp_path / "bin/tool").stat().st_mode) == 0o755
    assert str((tmp_path / "bin/link").readlink()) == "/bin/tool"
    assert (tmp_path / "empty").is_dir()
    assert archive.write(dict(reversed(tree.items()))) == archive.write(tree)
