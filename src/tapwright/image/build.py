"""Puts the image together: the packages, the files of them that the guest gets, and the agent."""

import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tapwright.errors import ImageError
from tapwright.image import archive, kernel, packages
from tapwright.image.archive import Entry, Tree
from tapwright.image.elf import without
from tapwright.image.packages import Index, Package
from tapwright.image.sources import EXECUTABLE, OWN, own_sources
from tapwright.progress import Progress

# The modules that every guest needs; what they depend on is found.
BOOT_MODULES = ("virtio_pci", "virtio_console", "virtio_net", "virtio_rng")
# The modules of a guest that runs containers, loaded when it mounts the files of the host. With
# nf_conntrack, programs find the settings of connection tracking (net.netfilter.nf_conntrack_max).
SHARE_MODULES = ("virtiofs", "overlay", "nf_conntrack")
# The modules for iptables-legacy and its like. The kernel loads neither these nor nf_conntrack by
# itself: on a host, the platform or another program loads them. They are patterns, because not
# every kernel has all of them.
TABLE_MODULES = ("kernel/net/ipv?/netfilter/*_tables", "kernel/net/bridge/netfilter/ebtables")

# The modules that are loaded when a program asks for them, as on a host. These are all that concern
# networks, except for drivers of hardware that the machine can't have, and those that programs in
# privileged containers mount. Their device nodes are made when the guest boots, because opening one
# loads its module.
DISK_MODULES = (
    *("kernel/net/*", "kernel/crypto/*", "kernel/arch/x86/crypto/*", "kernel/lib/ts_*"),
    *(
        f"kernel/drivers/net/{name}"
        for name in (
            *("amt", "bareudp", "bonding/*", "can/dev/*", "can/slcan*", "can/vcan", "can/vxcan"),
            *("dummy", "eql", "geneve", "gtp", "ifb", "ipvlan/*", "macsec", "macvlan", "macvtap"),
            *("net_failover", "netconsole", "netdevsim/*", "netkit", "nlmon", "ovpn/*", "pfcp"),
            *("ppp/*", "slip/*", "tap", "team/*", "tun", "veth", "vrf", "vsockmon", "vxlan"),
            *("vxlan/*", "wireguard/*", "wireguard", "wireless/mac80211_hwsim"),
            *("wireless/virtual/*",),
        )
    ),
    *("kernel/drivers/vhost/*", "kernel/drivers/block/loop", "kernel/drivers/block/nbd"),
    *("kernel/fs/ext4/*", "kernel/fs/fuse/*", "kernel/fs/isofs/*", "kernel/fs/nfs/*"),
    *("kernel/fs/overlayfs/*", "kernel/fs/squashfs/*"),
)
# The modules that are needed to read the disk.
READER_MODULES = ("virtio_blk", "squashfs")
# On a host these devices are made in the host's own namespace, where they disturb no container.
# Debian's systemd has the same options (modprobe.d/systemd.conf).
_MODULE_OPTIONS = "options bonding max_bonds=0\noptions dummy numdummies=0\noptions ifb numifbs=0\n"

_LIBRARIES = "usr/lib/x86_64-linux-gnu"
_LOADER = "ld-linux-x86-64.so.2"

# The guest's programs besides Python. The libraries that they need are found.
_PROGRAMS = {"busybox-static": "usr/bin/busybox", "crun": "usr/bin/crun"}
# Libraries that a program calls for nothing that it does here: crun's speaks with systemd.
_NEEDLESS = {"usr/bin/crun": "libsystemd.so.0"}
# The programs on the disk, which is mounted when one is wanted: those that set packet rules.
_DISK_PROGRAMS = {
    "conntrack": ("usr/sbin/conntrack",),
    "ipset": ("usr/sbin/ipset",),
    "iptables": ("usr/sbin/*tables*", f"{_LIBRARIES}/xtables/*.so"),
    "ipvsadm": ("usr/sbin/ipvsadm",),
    "nftables": ("usr/sbin/nft",),
}
# The programs that make the image.
_DEPMOD, _SQUASH = "usr/bin/kmod", "usr/bin/mksquashfs"
_TOOLS = ("kmod", "squashfs-tools")
# Modules of the standard library beyond the packages of the minimal one.
_STANDARD_LIBRARY = (
    *("ctypes/*.py", "json/*"),
    *(f"lib-dynload/{name}.*" for name in ("_ctypes", "_json", "_typing")),
)

# Parts of the minimal one that need OpenSSL or belong to development.
_LEFT_OUT = ("_hashlib.", "_ssl.", "_sysconfigdata", "/__pycache__/", "/sitecustomize")


_DIRECTORIES = ("dev", "proc", "sys", "run", "tmp", "root", "var", "mnt")


@dataclass(frozen=True)
class Recipe:
    """The packages of an image: those of the guest's programs, and those of its kernel. `python` is
    the version of the release's Python, such as "3.13"."""

    python: str
    programs: list[Package]
    kernel: list[Package]

    @property
    def packages(self) -> list[Package]:
        return sorted(self.programs + self.kernel)


def find_recipe(index: Index) -> Recipe:
    """Return what an image of a release would be made of today. Raises ImageError."""
    programs = (*_PROGRAMS, *_DISK_PROGRAMS, *_TOOLS)
    known = index.known(("python3", *programs, *packages.KERNEL_METAS))
    python = packages.python_version(known)
    names = (f"python{python}-minimal", f"libpython{python}-stdlib", *programs)
    return Recipe(python, packages.libraries(known, names), packages.kernel(known))


def build(
    recipe: Recipe, index: Index, cache: Path, work: Path, progress: Progress
) -> tuple[bytes, bytes, bytes]:
    """Make (kernel, initrd, disk) from packages; `work` is an empty directory to unpack in.

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
    for name, library in _NEEDLESS.items():
        (stage / name).write_bytes(without((stage / name).read_bytes(), library))
    _select_python(recipe, cache, work)
    _select_own(stage)
    _select_libraries(release, stage)
    progress("compile Python")
    _compile(release, stage, recipe.python)
    _try_imports(stage, recipe.python)
    _run(stage, stage / _PROGRAMS["crun"], "--version")
    modules = _only(kernel_root, "usr/lib/modules/*")
    progress("write the disk")
    _fill_disk(release, kernel_root, modules, work / "disk")
    disk = _squashed(release, work / "disk", work)
    tree = _files(stage) | _skeleton(stage, recipe.python)
    tree |= _modules(modules)
    tree["etc/devices"] = Entry.file(_devices(work / "disk").encode())
    progress("write the initrd")
    return elf, archive.write(tree), disk


def _select(unpacked: Path, patterns: tuple[str, ...], stage: Path) -> None:
    for pattern in patterns:
        for path in unpacked.glob(pattern):
            left_out = any(part in str(path) for part in _LEFT_OUT)
            if not left_out and (path.is_symlink() or path.is_file()):
                _copy(path, stage / path.relative_to(unpacked))


def _select_python(recipe: Recipe, cache: Path, work: Path) -> None:
    """Select the interpreter, the whole minimal standard library, and some further modules."""
    library = f"usr/lib/python{recipe.python}"
    minimal = f"libpython{recipe.python}-minimal"
    own = [package for package in recipe.programs if package.name == minimal]
    packages.unpack(own, cache, work / "minimal")
    _select(work / "minimal", (f"{library}/**/*",), work / "stage")
    rest = tuple(f"{library}/{name}" for name in _STANDARD_LIBRARY)
    _select(work / "release", (f"usr/bin/python{recipe.python}", *rest), work / "stage")


def _fill_disk(release: Path, kernel_root: Path, modules: Path, disk: Path) -> None:
    """Put on the disk what a guest needs only at times: modules with the indexes of depmod(8), and
    programs."""
    (disk / "usr/lib/modules").mkdir(parents=True)
    (disk / "lib").symlink_to("usr/lib")  # where depmod looks
    target = disk / "usr/lib/modules" / modules.name
    for module in kernel.select_modules(modules, kernel.names_below(modules, DISK_MODULES)):
        path = target / module.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(module.content)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        if (modules / name).exists():
            _copy(modules / name, target / name)
    # Programs look here for the kernel's options.
    for config in kernel_root.glob("boot/config-*"):
        _copy(config, target / "config")
    depmod = disk.with_name("depmod")
    depmod.symlink_to(release / _DEPMOD)
    _run(release, depmod, "-b", disk, modules.name)
    kernel.add_soft_dependencies(target)
    (disk / "etc").mkdir()
    (disk / "etc/modprobe.conf").write_text(_MODULE_OPTIONS)
    for paths in _DISK_PROGRAMS.values():
        _select(release, paths, disk)
    _select_libraries(release, disk)


def _squashed(release: Path, tree: Path, work: Path) -> bytes:
    """Return a tree as a read-only filesystem. LZ4 makes unpacking cheap for the guest."""
    target = work / "squashed"
    _run(
        *(release, release / _SQUASH, tree, target),
        *("-comp", "lz4", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-all-root"),
        *("-mkfs-time", 0, "-all-time", 0),
    )
    return target.read_bytes()


def _devices(disk: Path) -> str:
    """Return the device nodes that load modules of the disk, as depmod has found them."""
    return _only(disk, "usr/lib/modules/*/modules.devname").read_text()


def _select_libraries(release: Path, stage: Path) -> None:
    """Select the libraries that the release's own loader finds for the files in the stage, and the
    loader."""
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
    # Programs look for the loader here.
    (stage / "usr/lib64").mkdir()
    (stage / "usr/lib64" / _LOADER).symlink_to(f"/{_LIBRARIES}/{_LOADER}")


def _is_dynamic(path: Path) -> bool:
    """Whether a file needs a loader. All ELF files here do, except for busybox and the kernel's."""
    if path.is_symlink() or not path.is_file() or path.name == "busybox" or path.suffix == ".ko":
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def _compile(release: Path, stage: Path, version: str) -> None:
    """Compile Python files with the guest's own interpreter, each `.pyc` beside its source: nothing
    is compiled under emulation, and the output has no time stamp."""
    for name in (f"usr/lib/python{version}", OWN):
        _run_python(
            *(release, version, "-m", "compileall", "-q", "-b", "-j1"),
            *("--invalidation-mode", "unchecked-hash", "-s", stage, "-p", "/", stage / name),
        )


def _try_imports(stage: Path, version: str) -> None:
    """Import the whole agent with only what the guest will have."""
    own = [Path(name) for name in own_sources()]
    names = [
        ".".join(path.relative_to(OWN).with_suffix("").parts)
        for path in own
        if path.suffix == ".py"
    ]
    lines = [f"import sys; sys.path.append({str(stage / OWN)!r})"]
    lines += [f"import {name.removesuffix('.__init__')}" for name in names]
    _run_python(stage, version, "-c", "\n".join(lines))


def _run_python(root: Path, version: str, *arguments: object) -> None:
    """Run the Python of a tree. Raises ImageError."""
    _run(root, root / f"usr/bin/python{version}", "-B", "-s", "-S", *arguments)


def _run(root: Path, program: Path, *arguments: object) -> None:
    """Run a program with the loader and the libraries of a tree. Raises ImageError."""
    libraries = root / _LIBRARIES
    command = [
        *(libraries / _LOADER, "--inhibit-cache", "--library-path", libraries),
        *(program, *arguments),
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
        raise ImageError(f"{program.name} of the guest's release failed: {output[0]}")


def _files(stage: Path) -> Tree:
    return {
        str(path.relative_to(stage)): _entry(path)
        for path in stage.rglob("*")
        if path.suffix != ".py" and (path.is_symlink() or path.is_file())
    }


def _skeleton(stage: Path, python: str) -> Tree:
    """Return busybox's commands, the few files of /etc, and the directories to mount on."""
    tree = {name: Entry(0o40755) for name in _DIRECTORIES}
    listed = subprocess.run(
        [stage / _PROGRAMS["busybox-static"], "--list"], capture_output=True, text=True, check=True
    )
    for name in listed.stdout.split():
        if name != "busybox":
            tree[f"usr/bin/{name}"] = Entry.link("busybox")
    # The kernel runs modprobe when it lacks something.
    for name in ("modprobe", "modinfo"):
        script = f'#!/bin/sh\nexec sh /{OWN}/disk {name} "$@"\n'
        tree[f"usr/bin/{name}"] = Entry.file(script.encode(), 0o755)
    tree[f"{OWN}/mounted"] = Entry(0o40755)
    tree["usr/lib/modules"] = Entry.link(f"/{OWN}/mounted/usr/lib/modules")
    tree["etc/modprobe.conf"] = Entry.link(f"/{OWN}/mounted/etc/modprobe.conf")
    # Everything is in /usr, as in present releases.
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
    shared = (*SHARE_MODULES, *kernel.names_below(directory, TABLE_MODULES))
    lists = (("load", BOOT_MODULES), ("share", shared), ("disk", READER_MODULES))
    for listing, wanted in lists:
        names = []
        for module in kernel.select_modules(directory, wanted):
            names.append(f"{OWN}/modules/{module.file}")
            tree[names[-1]] = Entry.file(module.content)
        lines = "".join(f"/{name}\n" for name in names)
        tree[f"etc/modules.{listing}"] = Entry.file(lines.encode())
    return tree


def _select_own(stage: Path) -> None:
    for name, source in own_sources().items():
        _copy(source, stage / name)
        (stage / name).chmod(0o755 if name in EXECUTABLE else 0o644)


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
