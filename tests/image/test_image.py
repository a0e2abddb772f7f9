"""The guest image: the same inputs give the same bytes, and only an image that fits is used."""

import json
import stat
import subprocess
from pathlib import Path

import pytest

from tapwright.errors import ImageError
from tapwright.image import archive, build, kernel, packages, store
from tapwright.image.archive import Entry
from tapwright.linux import netns
from tests.sandboxes import COMMAND


def quiet(text: str) -> None:
    """No progress."""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, store.Image]:
    """A store with an image of its own, made from the packages that the shared store fetched."""
    directory = tmp_path_factory.mktemp("store")
    store.ensure(store.DIRECTORY, quiet)
    (directory / "packages").symlink_to(store.DIRECTORY / "packages")
    return directory, store.build_image(directory, quiet)


def test_same_inputs_give_the_same_bytes(built: tuple[Path, store.Image]) -> None:
    _, image = built
    shared = store.build_image(store.DIRECTORY, quiet)
    assert image.key == shared.key
    assert image.kernel.read_bytes() == shared.kernel.read_bytes()
    assert image.initrd.read_bytes() == shared.initrd.read_bytes()


def test_an_image_that_is_there_is_kept(built: tuple[Path, store.Image]) -> None:
    directory, image = built
    before = image.initrd.stat()
    assert store.build_image(directory, quiet) == image
    assert image.initrd.stat() == before


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
        assert "busybox-static" in entry["packages"]


def test_image_of_another_agent_is_not_used(
    built: tuple[Path, store.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, image = built
    assert store.find(directory) == image
    monkeypatch.setattr(build, "sources_digest", lambda: "of another version")
    assert store.find(directory) is None


def test_half_made_work_is_cleared_away(tmp_path: Path, built: tuple[Path, store.Image]) -> None:
    (tmp_path / "packages").symlink_to(store.DIRECTORY / "packages")
    (tmp_path / ".work-killed" / "unpacked").mkdir(parents=True)
    store.build_image(tmp_path, quiet)
    assert not list(tmp_path.glob(".work-*"))


def test_damaged_package_is_fetched_again(tmp_path: Path, machine_netns: str) -> None:
    (package,) = packages.resolve(["zlib1g"])
    (tmp_path / package.file).write_bytes(b"torn")
    with netns.entered(machine_netns):
        packages.fetch([package], tmp_path)
    packages.unpack(package, tmp_path, tmp_path / "tree")
    assert list((tmp_path / "tree").rglob("libz.so.1"))


def test_unknown_package() -> None:
    with pytest.raises(ImageError, match="no-such-package"):
        packages.resolve(["zlib1g", "no-such-package"])


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
