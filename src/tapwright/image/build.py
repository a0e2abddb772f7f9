"""Puts the image together: which packages, which of their files, and what is our own."""

import hashlib
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import tapwright
from tapwright.errors import ImageError
from tapwright.image import archive, kernel, packages
from tapwright.image.archive import Entry, Tree

Progress = Callable[[str], None]

# Modules that every guest needs; what they depend on is found.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_rng")
# And those of a guest that has the host's files, loaded when it mounts them.
SHARE_MODULES = ("virtiofs",)

_PYTHON = "usr/lib/python3.11"
_OWN = "usr/lib/tapwright"
_LIBRARIES = "lib/x86_64-linux-gnu"

# The files taken from each package, as patterns below the unpacked tree. The kernel's package
# is treated apart.
_FILES = {
    "busybox-static": ("bin/busybox",),
    "crun": ("usr/bin/crun",),
    "libc6": ("lib64/*", f"{_LIBRARIES}/ld-linux*", f"{_LIBRARIES}/lib[cm].so.*"),
    "libcap2": (f"{_LIBRARIES}/libcap.so.*",),
    "libexpat1": (f"{_LIBRARIES}/libexpat.so.*",),
    "libffi8": (f"usr/{_LIBRARIES}/libffi.so.*",),
    "libgcrypt20": (f"usr/{_LIBRARIES}/libgcrypt.so.*",),
    "libgpg-error0": (f"{_LIBRARIES}/libgpg-error.so.*",),
    "liblz4-1": (f"usr/{_LIBRARIES}/liblz4.so.*",),
    "liblzma5": (f"{_LIBRARIES}/liblzma.so.*",),
    "libpython3.11-minimal": (f"{_PYTHON}/**/*",),
    "libpython3.11-stdlib": (
        f"{_PYTHON}/ctypes/__init__.py",
        f"{_PYTHON}/ctypes/_endian.py",
        f"{_PYTHON}/json/*",
        f"{_PYTHON}/lib-dynload/_ctypes.*",
        f"{_PYTHON}/lib-dynload/_json.*",
        f"{_PYTHON}/lib-dynload/_typing.*",
    ),
    "libseccomp2": (f"usr/{_LIBRARIES}/libseccomp.so.*",),
    "libsystemd0": (f"usr/{_LIBRARIES}/libsystemd.so.*",),
    "libyajl2": (f"usr/{_LIBRARIES}/libyajl.so.*",),
    "libzstd1": (f"usr/{_LIBRARIES}/libzstd.so.*",),
    "python3.11-minimal": ("usr/bin/python3.11",),
    "zlib1g": (f"{_LIBRARIES}/libz.so.*",),
}

# Parts of the standard library that need OpenSSL or belong to development.
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


def find_packages() -> list[packages.Package]:
    """The packages an image would be made of today. Raises ImageError."""
    return packages.resolve([packages.kernel_package(), *_FILES])


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
    recipe = {name: here / name for name in ("build.py", "archive.py", "kernel.py")}
    for name, path in sorted((own_sources() | recipe).items()):
        digest.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


def build(
    chosen: list[packages.Package], cache: Path, work: Path, progress: Progress
) -> tuple[bytes, bytes]:
    """Make (kernel, initrd) from packages; `work` is an empty directory to unpack in.

    Raises ImageError.
    """
    progress(f"fetch {len(chosen)} packages")
    packages.fetch(chosen, cache)
    stage = work / "stage"
    for package in chosen:
        progress(f"unpack {package.name} {package.version}")
        packages.unpack(package, cache, work / package.name)
        _select(work / package.name, _FILES.get(package.name, ()), stage)
    for name, source in own_sources().items():
        _copy(source, stage / name)
    progress("unpack the kernel image")
    kernel_root = _only(work, "linux-image-*")
    elf = kernel.extract_elf(_only(kernel_root, "boot/vmlinuz-*").read_bytes())
    progress("compile Python")
    _compile(stage)
    tree = _files(stage) | _skeleton(stage) | _modules(_only(kernel_root, "lib/modules/*"))
    progress("write the initrd")
    return elf, archive.write(tree)


def _select(unpacked: Path, patterns: tuple[str, ...], stage: Path) -> None:
    for pattern in patterns:
        for path in unpacked.glob(pattern):
            left_out = any(part in str(path) for part in _LEFT_OUT)
            if not left_out and (path.is_symlink() or path.is_file()):
                _copy(path, stage / path.relative_to(unpacked))


def _compile(stage: Path) -> None:
    """Compile Python files with the guest's own interpreter, each `.pyc` in its source's place:
    nothing is compiled under emulation, and no time stamp goes in."""
    for name in (_PYTHON, _OWN):
        command = [
            *(stage / "lib64/ld-linux-x86-64.so.2", "--library-path", stage / _LIBRARIES),
            *(stage / "usr/bin/python3.11", "-B", "-s", "-S"),
            *("-m", "compileall", "-q", "-b", "-j1"),
            *("--invalidation-mode", "unchecked-hash", "-s", stage, "-p", "/", stage / name),
        ]
        done = subprocess.run(
            list(map(str, command)),
            env={"PYTHONHASHSEED": "0"},  # sets of constants are written in hash order
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise ImageError(f"compiling {name} failed: {(done.stdout + done.stderr).strip()}")


def _files(stage: Path) -> Tree:
    return {
        str(path.relative_to(stage)): _entry(path)
        for path in stage.rglob("*")
        if path.suffix != ".py" and (path.is_symlink() or path.is_file())
    }


def _skeleton(stage: Path) -> Tree:
    """busybox's commands, the few files of /etc, and the directories to mount on."""
    tree = {name: Entry(0o40755) for name in _DIRECTORIES}
    listed = subprocess.run(
        [stage / "bin/busybox", "--list"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if name != "busybox":
            tree[f"bin/{name}"] = Entry.link("/bin/busybox")
    tree["sbin"] = tree["usr/sbin"] = Entry.link("/bin")
    tree["usr/bin/python3"] = Entry.link("python3.11")
    tree["etc/passwd"] = Entry.file(b"root:x:0:0:root:/root:/bin/sh\n")
    tree["etc/group"] = Entry.file(b"root:x:0:\n")
    tree["etc/hosts"] = Entry.file(b"127.0.0.1 localhost\n::1 localhost\n")
    return tree


def _modules(directory: Path) -> Tree:
    tree = {}
    for listing, wanted in (("load", BOOT_MODULES), ("share", SHARE_MODULES)):
        names = []
        for path in kernel.select_modules(directory, wanted):
            names.append(f"lib/modules/{directory.name}/{path.name}")
            tree[names[-1]] = _entry(path)
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


def _only(root: Path, pattern: str) -> Path:
    found = sorted(root.glob(pattern))
    if len(found) != 1:
        raise ImageError(f"a package has {len(found)} files that match {pattern}, not one")
    return found[0]
