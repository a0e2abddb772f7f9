"""Puts the image together: which packages, which of their files, and what is our own."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import tapwright
from tapwright.errors import ImageError
from tapwright.image import archive, kernel, packages
from tapwright.image.archive import Entry, Tree
from tapwright.image.packages import Index, Package

Progress = Callable[[str], None]

# Modules that every guest needs; what they depend on is found.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_rng")
# And those of a guest that runs containers, loaded when it mounts the files of the host.
SHARE_MODULES = ("virtiofs", "overlay")

_OWN = "usr/lib/tapwright"
_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"

# What the guest runs beside Python. The libraries they need are found.
_PROGRAMS = {"busybox-static": "usr/bin/busybox", "crun": "usr/bin/crun"}
# What it has of the standard library beyond the packages of the minimal one.
_STANDARD_LIBRARY = (
    *("ctypes/*.py", "json/*"),
    *(f"lib-dynload/{name}.*" for name in ("_ctypes", "_json", "_typing")),
)

# Parts of the minimal one that need OpenSSL or belong to development.
_LEFT_OUT = ("_hashlib.", "_ssl.", "_sysconfigdata", "/__pycache__/", "/sitecustomize")

_OWN_SOURCES = (
    "__init__.py",
    "agent/__init__.py",
    "agent/protocol.py",
    "agent/guest/*.py",
    "linux/__init__.py",
    "linux/libc.py",
    "linux/mounts.py",
    "linux/netlink.py",
    "linux/links.py",
    "linux/addresses.py",
    "linux/routes.py",
    "linux/neighbours.py",
    "linux/announcement.py",
    "linux/ethtool.py",
)

_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "var", "mnt")


@dataclass(frozen=True)
class Recipe:
    """What an image is made of: the packages of the guest's programs, and those of its kernel.
    `python` is the version of the release's, such as "3.13"."""

    python: str
    programs: list[Package]
    kernel: list[Package]

    @property
    def packages(self) -> list[Package]:
        return sorted(self.programs + self.kernel)


def find_recipe(index: Index) -> Recipe:
    """What an image of a release would be made of today. Raises ImageError."""
    known = index.known(("python3", *_PROGRAMS, *packages.KERNEL_METAS))
    python = packages.python_version(known)
    names = (f"python{python}-minimal", f"libpython{python}-stdlib", *_PROGRAMS)
    return Recipe(python, packages.libraries(known, names), packages.kernel(known))


def own_sources() -> dict[str, Path]:
    """The agent and all that it imports: source files by their path in the guest."""
    package = Path(tapwright.__file__).parent
    found = {}
    for pattern in _OWN_SOURCES:
        for path in sorted(package.glob(pattern)):
            found[f"{_OWN}/tapwright/{path.relative_to(package)}"] = path
    guest = package / "image" / "guest"
    for target, name in (("init", "init"), ("etc/inittab", "inittab")):
        found[target] = guest / name
    found[f"{_OWN}/agent"] = guest / "agent"
    return found


def sources_digest() -> str:
    """A digest of everything in the image that is ours, this recipe included."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    recipe = {name: here / name for name in ("build.py", "archive.py", "kernel.py", "packages.py")}
    for name, path in sorted((own_sources() | recipe).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def build(
    recipe: Recipe, index: Index, cache: Path, work: Path, progress: Progress
) -> tuple[bytes, bytes]:
    """Make (kernel, initrd) from packages; `work` is an empty directory to unpack in.

    Raises ImageError.
    """
    progress(f"fetch {len(recipe.packages)} packages")
    packages.fetch(index, recipe.packages, cache)
    release, kernel_root, stage = work / "release", work / "kernel", work / "stage"
    progress("unpack the programs")
    packages.unpack(recipe.programs, cache, release)
    progress("unpack the kernel")
    packages.unpack(recipe.kernel, cache, kernel_root)
    elf = kernel.extract_elf(
        _only(kernel_root, "boot/vmlinuz-*", "usr/lib/modules/*/vmlinuz").read_bytes()
    )
    _select(release, tuple(_PROGRAMS.values()), stage)
    _select_python(recipe, cache, work)
    for name, source in own_sources().items():
        _copy(source, stage / name)
    _select_libraries(release, stage)
    progress("compile Python")
    _compile(release, stage, recipe.python)
    _try_imports(stage, recipe.python)
    tree = _files(stage) | _skeleton(stage, recipe.python)
    tree |= _modules(_only(kernel_root, "usr/lib/modules/*"))
    progress("write the initrd")
    return elf, archive.write(tree)


def _select(unpacked: Path, patterns: tuple[str, ...], stage: Path) -> None:
    for pattern in patterns:
        for path in unpacked.glob(pattern):
            left_out = any(part in str(path) for part in _LEFT_OUT)
            if not left_out and (path.is_symlink() or path.is_file()):
                _copy(path, stage / path.relative_to(unpacked))


def _select_python(recipe: Recipe, cache: Path, work: Path) -> None:
    """The interpreter, all of the minimal standard library, and some of the rest."""
    library = f"usr/lib/python{recipe.python}"
    minimal = f"libpython{recipe.python}-minimal"
    own = [package for package in recipe.programs if package.name == minimal]
    packages.unpack(own, cache, work / "minimal")
    _select(work / "minimal", (f"{library}/**/*",), work / "stage")
    rest = tuple(f"{library}/{name}" for name in _STANDARD_LIBRARY)
    _select(work / "release", (f"usr/bin/python{recipe.python}", *rest), work / "stage")


def _select_libraries(release: Path, stage: Path) -> None:
    """The libraries that the release's own loader finds for the files in the stage, and itself."""
    libraries = release / _LIBRARIES
    loader = libraries / _LOADER
    for path in [path for path in stage.rglob("*") if _is_dynamic(path)]:
        listed = subprocess.run(
            [loader, "--inhibit-cache", "--library-path", libraries, "--list", path],
            capture_output=True,
            text=True,
        )
        if listed.returncode and "=>" not in listed.stdout:
            raise ImageError(f"{path.name} can't be loaded: {listed.stderr.strip()}")
        for name in re.findall(r"^\s*([^\s/]+) =>", listed.stdout, re.MULTILINE):
            source = libraries / name
            if not source.exists():
                raise ImageError(f"no package has the library {name}, which {path.name} needs")
            _copy(source.resolve(), stage / _LIBRARIES / name)
    _copy(loader.resolve(), stage / _LIBRARIES / _LOADER)
    # Where programs ask for it.
    (stage / "usr/lib64").mkdir()
    (stage / "usr/lib64" / _LOADER).symlink_to(f"/{_LIBRARIES}/{_LOADER}")


def _is_dynamic(path: Path) -> bool:
    """Does the file ask for a loader? All of ELF's do here but busybox's."""
    if path.is_symlink() or not path.is_file() or path.name == "busybox":
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _compile(release: Path, stage: Path, version: str) -> None:
    """Compile Python files with the guest's own interpreter, each `.pyc` in its source's place:
    nothing is compiled under emulation, and no time stamp goes in."""
    for name in (f"usr/lib/python{version}", _OWN):
        _run_python(
            *(release, version, "-m", "compileall", "-q", "-b", "-j1"),
            *("--invalidation-mode", "unchecked-hash", "-s", stage, "-p", "/", stage / name),
        )


def _try_imports(stage: Path, version: str) -> None:
    """Import all of the agent with nothing but what the guest will have."""
    own = [Path(name) for name in own_sources()]
    names = [
        ".".join(path.relative_to(_OWN).with_suffix("").parts)
        for path in own
        if path.suffix == ".py"
    ]
    lines = [f"import sys; sys.path.append({str(stage / _OWN)!r})"]
    lines += [f"import {name.removesuffix('.__init__')}" for name in names]
    _run_python(stage, version, "-c", "\n".join(lines))


def _run_python(root: Path, version: str, *arguments: object) -> None:
    """Run the Python of a tree with the tree's loader and libraries. Raises ImageError."""
    libraries = root / _LIBRARIES
    command = [
        *(libraries / _LOADER, "--inhibit-cache", "--library-path", libraries),
        root / f"usr/bin/python{version}",
        *("-B", "-s", "-S", *arguments),
    ]
    done = subprocess.run(
        list(map(str, command)),
        env={"PYTHONHASHSEED": "0"},  # sets of constants are written in hash order
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        output = (done.stdout + done.stderr).strip().splitlines()[-1:] or ["no reason given"]
        raise ImageError(f"the guest's Python {version} failed: {output[0]}")


def _files(stage: Path) -> Tree:
    return {
        str(path.relative_to(stage)): _entry(path)
        for path in stage.rglob("*")
        if path.suffix != ".py" and (path.is_symlink() or path.is_file())
    }


def _skeleton(stage: Path, python: str) -> Tree:
    """busybox's commands, the few files of /etc, and the directories to mount on."""
    tree = {name: Entry(0o40755) for name in _DIRECTORIES}
    listed = subprocess.run(
        [stage / _PROGRAMS["busybox-static"], "--list"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if name != "busybox":
            tree[f"usr/bin/{name}"] = Entry.link("busybox")
    # All is in /usr, as releases have it by now.
    tree["bin"] = tree["sbin"] = Entry.link("usr/bin")
    tree["usr/sbin"] = Entry.link("bin")
    tree["lib"] = Entry.link("usr/lib")
    tree["lib64"] = Entry.link("usr/lib64")
    tree["usr/bin/python3"] = Entry.link(f"python{python}")
    tree["etc/passwd"] = Entry.file(b"root:x:0:0:root:/root:/bin/sh\n")
    tree["etc/group"] = Entry.file(b"root:x:0:\n")
    tree["etc/hosts"] = Entry.file(b"127.0.0.1 localhost\n::1 localhost\n")
    return tree


def _modules(directory: Path) -> Tree:
    tree = {}
    for listing, wanted in (("load", BOOT_MODULES), ("share", SHARE_MODULES)):
        names = []
        for module in kernel.select_modules(directory, wanted):
            names.append(f"usr/lib/modules/{directory.name}/{module.file}")
            tree[names[-1]] = Entry.file(module.content)
        lines = "".join(f"/{name}\n" for name in names)
        tree[f"etc/modules.{listing}"] = Entry.file(lines.encode())
    return tree


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target, follow_symlinks=False)


def _entry(path: Path) -> Entry:
    if path.is_symlink():
        return Entry.link(str(path.readlink()))
    return Entry.file(path.read_bytes(), 0o755 if path.stat().st_mode & 0o100 else 0o644)


def _only(root: Path, *patterns: str) -> Path:
    found = sorted(path for pattern in patterns for path in root.glob(pattern))
    if len(found) != 1:
        raise ImageError(
            f"the packages have {len(found)} files that match {' or '.join(patterns)}, not one"
        )
    return found[0]
